//! Limit hits and stalls as the programs count them, against the kernel's own counters.
//!
//! Needs root. `cargo xtask test --only host` runs it; by itself, or copied into a guest:
//! `cargo test -p probe-user --test memory_pressure -- --ignored --nocapture --test-threads=1`.
//! `OOMPROBE_TEST_PASSES` (4) makes it longer, at some 300 hits for a pass of each of
//! `OOMPROBE_TEST_HOGS` (3) processes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{programs::loaded_programs, sys};
use bytes::Bytes;
use oomprobe::{
    identity::hierarchy,
    kernel::{
        btf::Btf,
        ladder::Signal,
        layout,
        loader::Probe,
        pressure::{MemcgPressure, count},
    },
    ring::decode::{Body, Record},
};
use probe_common::{
    layout::deaths,
    wire::{LimitHit, Loss, section, stall},
};

const LIMIT_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 64 << 20;
const STEP_BYTES: usize = 256 << 10;

/// In what cgroup, and how, the hog is to work: it is this program, started again.
const HOG: &str = "OOMPROBE_TEST_HOG";

/// A cgroup of the memory hierarchy with a child in which tasks live, removed when dropped.
struct Scratch {
    limited: PathBuf,
    leaf: PathBuf,
    is_v2: bool,
}

impl Scratch {
    fn new(name: &str) -> Self {
        let memory = hierarchy::find(Path::new("/")).unwrap().memory;
        let is_v2 = memory.hierarchy == hierarchy::UNIFIED;
        let limited = memory.path.join(format!("{name}-{}", std::process::id()));
        let leaf = limited.join("leaf");
        if is_v2 {
            fs::write(memory.path.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        fs::create_dir(&limited).unwrap();
        if is_v2 {
            fs::write(limited.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        fs::create_dir(&leaf).unwrap();
        Self {
            limited,
            leaf,
            is_v2,
        }
    }

    fn set(&self, file: &str, bytes: u64) {
        fs::write(self.limited.join(file), bytes.to_string()).unwrap();
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.limited).unwrap().ino()
    }

    fn local_event(&self, name: &str) -> u64 {
        let events = fs::read_to_string(self.limited.join("memory.events.local")).unwrap();
        let line = events.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    }

    fn hog(&self, how: &str) -> Child {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "hog", "--ignored"])
            .env(HOG, format!("{how} {}", self.leaf.display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Busy for a moment after its last task has exited.
        let patience = Instant::now() + Duration::from_secs(20);
        for directory in [&self.leaf, &self.limited] {
            while fs::remove_dir(directory).is_err() && Instant::now() < patience {
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn number(variable: &str, default: u32) -> u32 {
    env::var(variable).map_or(default, |number| number.parse().unwrap())
}

/// Fills memory that the kernel may drop without writing it anywhere (`MADV_FREE`), so that a limit
/// is hit over and over and nobody is killed; or keeps what it has filled.
#[test]
#[ignore = "started by the other tests"]
fn hog() {
    let Ok(order) = env::var(HOG) else { return };
    let (how, cgroup) = order.split_once(' ').unwrap();
    fs::write(Path::new(cgroup).join("cgroup.procs"), "0").unwrap();
    // SAFETY: a new private mapping.
    let buffer = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BUFFER_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(buffer, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    let (passes, bytes) = match how {
        "keep" => (1, LIMIT_BYTES.try_into().unwrap()),
        _ => (number("OOMPROBE_TEST_PASSES", 4), BUFFER_BYTES),
    };
    for _ in 0..passes {
        for at in (0..bytes).step_by(STEP_BYTES) {
            // SAFETY: inside the mapping.
            unsafe {
                let step = buffer.byte_add(at);
                step.write_bytes(1, STEP_BYTES);
                if how != "keep" {
                    assert_eq!(libc::madvise(step, STEP_BYTES, libc::MADV_FREE), 0);
                }
            }
        }
    }
}

fn attach() -> Probe {
    let layout = layout::resolve(&Btf::running().unwrap()).layout().unwrap();
    Probe::attach(&layout, 0, deaths::OFF, false).unwrap()
}

fn hits(probe: &mut Probe) -> Vec<(LimitHit, Vec<u8>)> {
    let mut ring = probe.take_bulk().unwrap();
    let mut hits = Vec::new();
    while let Some(item) = ring.next() {
        let record = Record::decode(&Bytes::copy_from_slice(&item)).unwrap();
        if let Body::LimitHit(hit) = &record.body {
            let names = record.names(section::LIMIT_PATH).unwrap();
            hits.push((**hit, names.path(0)));
        }
    }
    hits
}

fn of(probe: &mut Probe, id: u64) -> Option<MemcgPressure> {
    let memcgs = probe.pressure().memcgs().unwrap();
    memcgs.into_iter().find(|memcg| memcg.memcg_id == id)
}

fn show(probe: &Probe, signals: &[Signal]) {
    for signal in signals {
        let hook = probe.hook(*signal).map(|hook| hook.to_string());
        println!("{:15} {}", signal.name(), hook.as_deref().unwrap_or("none"));
    }
}

/// What each program cost on average, while the kernel kept count.
fn show_costs() {
    for program in loaded_programs().filter_map(Result::ok) {
        if program.run_count() > 100 {
            let ns = program.run_time().as_nanos() / u128::from(program.run_count());
            let name = program.name_as_str().unwrap_or_default();
            println!("{name:15} {ns} ns, {} times", program.run_count());
        }
    }
}

fn assert_nothing_lost(probe: &Probe) {
    for (reason, count) in probe.losses().unwrap() {
        let is_ring = matches!(reason, Loss::BulkRingFull | Loss::CriticalRingFull);
        assert!(is_ring || count == 0, "{} {count}", reason.name());
    }
}

#[test]
#[ignore = "needs root"]
fn limit_hits_are_the_kernels_own_count() {
    let scratch = Scratch::new("oomprobe-limit");
    scratch.set(
        if scratch.is_v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        },
        LIMIT_BYTES,
    );
    let mut probe = attach();
    show(&probe, &[Signal::LimitHit, Signal::MemcgReclaim]);
    let stats = sys::enable_stats(sys::Stats::RunTime);
    let start = Instant::now();
    let hogs = number("OOMPROBE_TEST_HOGS", 3);
    let running: Vec<_> = (0..hogs).map(|_| scratch.hog("free")).collect();
    for mut hog in running {
        assert!(hog.wait().unwrap().success());
    }
    let took = start.elapsed();
    show_costs();
    drop(stats);

    let memcg = of(&mut probe, scratch.id()).unwrap();
    let limit = memcg.limit.unwrap();
    let reclaim = memcg.stalls[stall::MEMCG_RECLAIM as usize];
    println!(
        "{} hits in {took:?}, {} reclaims of {} ms, the longest {} µs, {} pages given back",
        limit.max,
        count(&reclaim),
        reclaim.total_ns / 1_000_000,
        reclaim.longest_ns / 1000,
        reclaim.reclaimed_pages
    );
    println!("{:?}", reclaim.histogram);
    if scratch.is_v2 {
        let kernel = scratch.local_event("max ");
        println!("memory.events.local: max {kernel}");
        assert_eq!(limit.max, kernel);
    } else {
        // Counts each try to charge, and there may be two before a reclaim.
        let failcnt = fs::read_to_string(scratch.limited.join("memory.failcnt")).unwrap();
        println!("memory.failcnt: {}", failcnt.trim());
        assert!(limit.max <= failcnt.trim().parse().unwrap());
    }
    assert!(limit.max > 100, "{limit:?}");
    // The first hits of all processes may have been before the first was looked at.
    assert!(limit.max_before < u64::from(hogs), "{limit:?}");
    assert!(limit.first_boot_ns > 0 && limit.first_boot_ns < limit.last_boot_ns);
    // A charge that must not fail counts as a hit and reclaims nothing.
    assert!(count(&reclaim) <= limit.max && count(&reclaim) > limit.max / 2);
    assert!(reclaim.reclaimed_pages > 0);
    let leaf = of(&mut probe, fs::metadata(&scratch.leaf).unwrap().ino());
    assert_eq!(leaf.and_then(|leaf| leaf.limit), None, "it has no limit");

    let hits: Vec<_> = hits(&mut probe)
        .into_iter()
        .filter(|(hit, _)| hit.memcg_id == memcg.memcg_id)
        .collect();
    println!("{} records", hits.len());
    let (first, path) = &hits[0];
    let name = scratch.limited.file_name().unwrap().to_str().unwrap();
    assert!(String::from_utf8_lossy(path).ends_with(name), "{path:?}");
    assert_eq!(first.totals.first_boot_ns, first.totals.last_boot_ns);
    assert_eq!(first.max_pages, LIMIT_BYTES / 4096);
    assert!(first.usage_pages <= first.max_pages);
    assert!(hits.len() as u64 <= 2 + took.as_secs() * 2, "one a second");

    let node = probe.pressure().node().unwrap();
    assert!(count(&node[stall::MEMCG_RECLAIM as usize]) >= count(&reclaim));
    assert_nothing_lost(&probe);
    probe.pressure().forget(memcg.memcg_id);
    assert_eq!(of(&mut probe, memcg.memcg_id), None);
}

#[test]
#[ignore = "needs root"]
fn throttling_over_memory_high_is_timed() {
    let scratch = Scratch::new("oomprobe-high");
    if !scratch.is_v2 {
        println!("no memory.high on v1");
        return;
    }
    scratch.set("memory.high", LIMIT_BYTES / 2);
    let mut probe = attach();
    show(&probe, &[Signal::LimitHit, Signal::HighThrottle]);
    let start = Instant::now();
    let mut hog = scratch.hog("keep");
    let patience = start + Duration::from_secs(20);
    while Instant::now() < patience && hog.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(100));
    }
    let _ = hog.kill();
    hog.wait().unwrap();
    let took = start.elapsed();

    let memcg = of(&mut probe, scratch.id()).unwrap();
    let limit = memcg.limit.unwrap();
    let kernel = scratch.local_event("high ");
    println!("high {} of {kernel} in {took:?}", limit.high);
    assert_eq!(limit.high, kernel);
    let leaf = of(&mut probe, fs::metadata(&scratch.leaf).unwrap().ino()).unwrap();
    let throttle = leaf.stalls[stall::HIGH_THROTTLE as usize];
    println!(
        "throttled {} times, {} ms, the longest {} ms",
        count(&throttle),
        throttle.total_ns / 1_000_000,
        throttle.longest_ns / 1_000_000
    );
    assert!(u128::from(throttle.total_ns) <= took.as_nanos());
    assert!(throttle.longest_ns > 1_000_000, "it was put to sleep");
    assert_nothing_lost(&probe);
}
