//! What a running process costs, and the clocks this is measured by.

use std::{collections::BTreeMap, fs, io, mem::MaybeUninit};

use anyhow::{Context as _, Result};

/// Memory of a process.
#[expect(clippy::struct_field_names, reason = "units belong in names")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Memory {
    pub(super) rss_kib: u64,
    /// Pages shared with other processes count in part.
    pub(super) pss_kib: u64,
    /// The highest rss so far.
    pub(super) peak_kib: u64,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| {
            let file = format!("/proc/{pid}/{name}");
            fs::read_to_string(&file).context(file)
        };
        Self::parse(&read("status")?, &read("smaps_rollup")?)
            .with_context(|| format!("/proc/{pid}/status has no memory figures"))
    }

    fn parse(status: &str, smaps_rollup: &str) -> Option<Self> {
        Some(Self {
            rss_kib: field(status, "VmRSS:")?,
            pss_kib: field(smaps_rollup, "Pss:")?,
            peak_kib: field(status, "VmHWM:")?,
        })
    }
}

/// CPU time that all threads of a process used so far, ns.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut clock = 0;
    // SAFETY: `clock` outlives the call.
    match unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } {
        0 => clock_ns(clock).with_context(|| format!("CPU clock of process {pid}")),
        error => Err(io::Error::from_raw_os_error(error))
            .with_context(|| format!("CPU clock of process {pid}")),
    }
}

/// The CPUs that the calling thread may run on.
pub(super) fn cpus() -> Result<Vec<usize>> {
    // SAFETY: an empty set is all-zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is valid, and the size its own.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) } != 0 {
        return Err(io::Error::last_os_error()).context("CPUs of this process");
    }
    // SAFETY: the set is valid, and no number is outside it.
    let has = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    Ok((0..size_of_val(&set) * 8).filter(has).collect())
}

/// Keeps the calling thread, and what it starts from then on, on these CPUs.
pub(super) fn pin(cpus: &[usize]) -> Result<()> {
    // SAFETY: an empty set is all-zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        // SAFETY: the set is valid; a CPU it has no room for is ignored.
        unsafe { libc::CPU_SET(*cpu, &mut set) };
    }
    // SAFETY: the set is valid, and the size its own.
    match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("stay on CPUs {cpus:?}")),
    }
}

/// The clock of `bpf_ktime_get_boot_ns()`, ns.
pub(super) fn boot_ns() -> Result<u64> {
    Ok(clock_ns(libc::CLOCK_BOOTTIME)?)
}

fn clock_ns(clock: libc::clockid_t) -> io::Result<u64> {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `time` is valid for a write, and written where the call returns 0.
    let time = unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        time.assume_init()
    };
    Ok(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
}

/// One BPF program that a process holds, as the kernel accounts it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Runs {
    pub(super) count: u64,
    pub(super) ns: u64,
}

/// BPF programs whose file descriptors the process holds, by id.
pub(super) fn programs(pid: u32) -> Result<BTreeMap<u32, Runs>> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).context(dir)?;
    Ok(entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|fdinfo| program(&fdinfo))
        .collect())
}

/// A link's fdinfo has `prog_id` too, but no run time.
fn program(fdinfo: &str) -> Option<(u32, Runs)> {
    let id = u32::try_from(field(fdinfo, "prog_id:")?).ok()?;
    let runs = Runs {
        count: field(fdinfo, "run_cnt:")?,
        ns: field(fdinfo, "run_time_ns:")?,
    };
    Some((id, runs))
}

/// Kernel memory of the BPF maps that the process holds, bytes.
pub(super) fn map_bytes(pid: u32) -> Result<u64> {
    let dir = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&dir).context(dir)?;
    let maps: BTreeMap<u64, u64> = entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|fdinfo| Some((field(&fdinfo, "map_id:")?, field(&fdinfo, "memlock:")?)))
        .collect();
    Ok(maps.values().sum())
}

/// The number in the second column of the line that starts with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_this_process() {
        let memory = Memory::of(std::process::id()).unwrap();
        // Other tests take and free memory between the two files that this is read from.
        assert!(memory.rss_kib > 0 && memory.peak_kib >= memory.rss_kib && memory.pss_kib > 0);
        assert_eq!(Memory::parse("Name:\tkthreadd\n", "Pss: 1 kB\n"), None);
    }

    #[test]
    fn cpu_time_of_this_process_passes() {
        let before = cpu_ns(std::process::id()).unwrap();
        let mut sum = 0_u64;
        for number in 0..1_000_000 {
            sum = std::hint::black_box(sum.wrapping_add(number));
        }
        assert!(cpu_ns(std::process::id()).unwrap() > before);
        assert!(boot_ns().unwrap() > 0);
    }

    #[test]
    fn programs_are_told_from_links() {
        let program_info = "pos:\t0\nprog_type:\t26\nprog_id:\t364\nrun_time_ns:\t1500\n\
                            run_cnt:\t3\nrecursion_misses:\t0\n";
        assert_eq!(
            program(program_info),
            Some((364, Runs { count: 3, ns: 1500 }))
        );
        let link_info = "pos:\t0\nlink_type:\traw_tracepoint\nlink_id:\t7\nprog_id:\t364\n";
        assert_eq!(program(link_info), None);
    }
}
