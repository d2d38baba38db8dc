//! What this machine allows a tracer to do.
//!
//! Facts only: nothing here decides which hook to use. `None` is "could not be learnt", and
//! [`Facts::default`] knows nothing. What stands in the way of a full answer, and what to do
//! about it, is said by [`Facts::problems`].

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::capability::Capabilities;
use crate::event::KernelFacts;

/// Inode of the initial pid namespace (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Inode of the initial cgroup namespace (`PROC_CGROUP_INIT_INO`).
const INITIAL_CGROUP_NAMESPACE: &str = "cgroup:[4026531835]";

/// Where procfs and sysfs are mounted.
#[derive(Clone, Debug)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
        }
    }
}

/// What this machine allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Release of the running kernel, for people only.
    pub kernel_release: Option<String>,
    /// Architecture this program was built for.
    pub arch: Option<&'static str>,
    /// Size of a page.
    pub page_size_bytes: Option<u64>,
    /// CPUs that may ever be online: the length of per-CPU arrays.
    pub cpus_possible: Option<u32>,
    /// The kernel shows its type information.
    pub btf: Option<bool>,
    /// File systems of the kernel that are mounted, and where.
    pub mounts: Option<Mounts>,
    /// What the kernel refuses even to root.
    pub lockdown: Option<Lockdown>,
    /// Kprobes can be created through the perf PMU.
    pub kprobes: Option<bool>,
    /// `kernel.perf_event_paranoid`.
    pub perf_event_paranoid: Option<i32>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<i32>,
    /// `kernel.kptr_restrict`: 2 hides kernel addresses from everyone.
    pub kptr_restrict: Option<i32>,
    /// Capabilities in effect.
    pub capabilities: Option<Capabilities>,
    /// `RLIMIT_MEMLOCK`, which kernels before 5.11 charge BPF memory to.
    pub memlock_limit: Option<Limit>,
    /// How cgroups are organised.
    pub cgroups: Option<Cgroups>,
    /// Pressure stall information is on.
    pub psi: Option<bool>,
    /// Swap space, 0 if none.
    pub swap_bytes: Option<u64>,
    /// This process is in the initial pid namespace: pids in events are those in `/proc`.
    pub in_host_pid_namespace: Option<bool>,
    /// This process is in a container: it is in another pid or cgroup namespace than the host,
    /// or sees other mounts than its PID 1.
    pub in_container: Option<bool>,
}

/// Where the kernel's file systems are mounted; `None` is "nowhere".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mounts {
    /// tracefs: formats and ids of tracepoints.
    pub tracefs: Option<PathBuf>,
    /// bpffs: pinned programs and maps.
    pub bpffs: Option<PathBuf>,
    /// securityfs: the lockdown mode.
    pub securityfs: Option<PathBuf>,
}

/// Lockdown mode of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lockdown {
    /// Nothing is refused.
    None,
    /// Changing the running kernel is refused.
    Integrity,
    /// Reading kernel memory is refused too, which bars most tracing.
    Confidentiality,
}

/// A resource limit in bytes; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// In effect.
    pub soft_bytes: Option<u64>,
    /// How far it can be raised.
    pub hard_bytes: Option<u64>,
}

/// How cgroups are organised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cgroups {
    /// Which hierarchies are mounted.
    pub mode: CgroupMode,
    /// Mount point of the v2 hierarchy.
    pub v2_mount: Option<PathBuf>,
    /// Where the memory controller is.
    pub memory: MemoryController,
}

/// Which cgroup hierarchies are mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupMode {
    /// Version 2 only.
    V2,
    /// Version 1 only.
    V1,
    /// Controllers on version 1, beside a version 2 hierarchy.
    Hybrid,
    /// None.
    None,
}

/// Which hierarchy the memory controller is on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "version", content = "mount")]
pub enum MemoryController {
    /// On the v2 hierarchy mounted here.
    V2(PathBuf),
    /// On the v1 hierarchy mounted here.
    V1(PathBuf),
    /// On none: disabled, not mounted, or not in this kernel.
    Absent,
    /// The v2 hierarchy mounted here does not say.
    Unreadable(PathBuf),
}

impl Facts {
    /// How cgroups are organised, as events name it: `v1`, `hybrid`, `v2` or `none`.
    pub fn cgroup_layout(&self) -> Option<&'static str> {
        Some(match self.cgroups.as_ref()?.mode {
            CgroupMode::V2 => "v2",
            CgroupMode::V1 => "v1",
            CgroupMode::Hybrid => "hybrid",
            CgroupMode::None => "none",
        })
    }

    /// What `probe_status` says of the kernel.
    pub fn for_event(&self) -> KernelFacts {
        let features = [
            ("kprobes", self.kprobes),
            ("psi", self.psi),
            ("swap", self.swap_bytes.map(|bytes| bytes > 0)),
            ("host_pid_namespace", self.in_host_pid_namespace),
            ("container", self.in_container),
        ];
        KernelFacts {
            release: self.kernel_release.clone(),
            machine: self.arch.map(ToOwned::to_owned),
            cgroup: self.cgroup_layout().map(ToOwned::to_owned),
            features: features
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
        }
    }

    /// Reads what can be read below `roots`.
    pub fn gather(roots: &Roots) -> Self {
        let Roots { proc, sys } = roots;
        let mounts = fs::read(proc.join("self/mounts"))
            .ok()
            .map(|table| parse_mounts(&table));
        let in_host_pid_namespace = is_link_to(&proc.join("self/ns/pid"), INITIAL_PID_NAMESPACE);
        Self {
            kernel_release: text(&proc.join("sys/kernel/osrelease")),
            arch: Some(std::env::consts::ARCH),
            page_size_bytes: page_size_bytes(),
            cpus_possible: text(&sys.join("devices/system/cpu/possible"))
                .and_then(|list| count_cpus(&list)),
            btf: exists_in(&sys.join("kernel"), "btf/vmlinux"),
            lockdown: text(&sys.join("kernel/security/lockdown"))
                .and_then(|modes| parse_lockdown(&modes)),
            kprobes: exists_in(&sys.join("bus/event_source/devices"), "kprobe/type"),
            perf_event_paranoid: number(&proc.join("sys/kernel/perf_event_paranoid")),
            unprivileged_bpf_disabled: number(&proc.join("sys/kernel/unprivileged_bpf_disabled")),
            kptr_restrict: number(&proc.join("sys/kernel/kptr_restrict")),
            capabilities: text(&proc.join("self/status"))
                .and_then(|status| parse_capabilities(&status)),
            memlock_limit: text(&proc.join("self/limits"))
                .and_then(|limits| parse_memlock(&limits)),
            cgroups: mounts.as_deref().map(|mounts| cgroups(mounts, roots)),
            // Opening succeeds even where reading then says that it is disabled.
            psi: proc
                .is_dir()
                .then(|| text(&proc.join("pressure/memory")).is_some()),
            swap_bytes: text(&proc.join("meminfo")).and_then(|meminfo| parse_swap(&meminfo)),
            in_container: in_container(proc, in_host_pid_namespace),
            in_host_pid_namespace,
            mounts: mounts.as_deref().map(|mounts| Mounts {
                tracefs: mounted(mounts, "tracefs"),
                bpffs: mounted(mounts, "bpf"),
                securityfs: mounted(mounts, "securityfs"),
            }),
        }
    }
}

/// One line of `/proc/<pid>/mounts`.
struct Mount {
    point: PathBuf,
    filesystem: String,
    options: String,
}

fn parse_mounts(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut words = line.split(|&byte| byte == b' ').skip(1);
        Some(Mount {
            point: OsString::from_vec(unescape(words.next()?)).into(),
            filesystem: String::from_utf8_lossy(words.next()?).into_owned(),
            options: String::from_utf8_lossy(words.next()?).into_owned(),
        })
    };
    table
        .split(|&byte| byte == b'\n')
        .filter_map(line)
        .collect()
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(mut escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(escaped.len());
    while let Some((&byte, rest)) = escaped.split_first() {
        let octal = rest
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(octal.unwrap_or(byte));
        escaped = if octal.is_some() { &rest[3..] } else { rest };
    }
    plain
}

fn mounted(mounts: &[Mount], filesystem: &str) -> Option<PathBuf> {
    mounts
        .iter()
        .find(|mount| mount.filesystem == filesystem)
        .map(|mount| mount.point.clone())
}

fn cgroups(mounts: &[Mount], roots: &Roots) -> Cgroups {
    let v2_mount = mounted(mounts, "cgroup2");
    let v1: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.filesystem == "cgroup")
        .collect();
    let memory_v1 = v1
        .iter()
        .find(|mount| mount.options.split(',').any(|option| option == "memory"));
    let memory = match (memory_v1, &v2_mount) {
        (Some(mount), _) => MemoryController::V1(mount.point.clone()),
        (None, Some(point)) => match text(&on_roots(point, roots).join("cgroup.controllers")) {
            Some(list)
                if list
                    .split_whitespace()
                    .any(|controller| controller == "memory") =>
            {
                MemoryController::V2(point.clone())
            }
            Some(_) => MemoryController::Absent,
            None => MemoryController::Unreadable(point.clone()),
        },
        (None, None) => MemoryController::Absent,
    };
    let mode = match (v1.is_empty(), &v2_mount) {
        (true, Some(_)) => CgroupMode::V2,
        (false, Some(_)) => CgroupMode::Hybrid,
        (false, None) => CgroupMode::V1,
        (true, None) => CgroupMode::None,
    };
    Cgroups {
        mode,
        v2_mount,
        memory,
    }
}

/// A mount point below `/sys`, seen from the sysfs in use.
fn on_roots(point: &Path, roots: &Roots) -> PathBuf {
    point
        .strip_prefix("/sys")
        .map_or_else(|_| point.into(), |below| roots.sys.join(below))
}

fn in_container(proc: &Path, in_host_pid_namespace: Option<bool>) -> Option<bool> {
    let in_host_cgroups = is_link_to(&proc.join("self/ns/cgroup"), INITIAL_CGROUP_NAMESPACE);
    let own_mounts = fs::read_link(proc.join("self/ns/mnt")).ok();
    let has_mounts_of_init = fs::read_link(proc.join("1/ns/mnt"))
        .ok()
        .zip(own_mounts)
        .map(|(init, own)| init == own);
    let signs = [in_host_pid_namespace, in_host_cgroups, has_mounts_of_init];
    if signs.contains(&Some(false)) {
        return Some(true);
    }
    signs.iter().all(Option::is_some).then_some(false)
}

/// Whether `directory` holds `file`; unknown if there is no such directory.
fn exists_in(directory: &Path, file: &str) -> Option<bool> {
    directory.is_dir().then(|| directory.join(file).exists())
}

fn is_link_to(path: &Path, target: &str) -> Option<bool> {
    fs::read_link(path)
        .ok()
        .map(|link| link.as_os_str() == target)
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn parse_lockdown(modes: &str) -> Option<Lockdown> {
    let (_, rest) = modes.split_once('[')?;
    match rest.split_once(']')?.0 {
        "none" => Some(Lockdown::None),
        "integrity" => Some(Lockdown::Integrity),
        "confidentiality" => Some(Lockdown::Confidentiality),
        _ => None,
    }
}

fn parse_capabilities(status: &str) -> Option<Capabilities> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16)
        .ok()
        .map(Capabilities)
}

fn parse_memlock(limits: &str) -> Option<Limit> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max locked memory"))?;
    let mut words = line.split_whitespace();
    let mut bytes = || match words.next()? {
        "unlimited" => Some(None),
        bytes => bytes.parse().ok().map(Some),
    };
    Some(Limit {
        soft_bytes: bytes()?,
        hard_bytes: bytes()?,
    })
}

fn parse_swap(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("SwapTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Number of CPUs in a list such as `0-3,8-11`.
fn count_cpus(cpus: &str) -> Option<u32> {
    cpus.split(',').try_fold(0_u32, |count, range| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        count.checked_add(high.checked_sub(low)?.checked_add(1)?)
    })
}

fn page_size_bytes() -> Option<u64> {
    // SAFETY: sysconf takes no pointers.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok()
}

fn number(path: &Path) -> Option<i32> {
    text(path)?.parse().ok()
}

fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

#[cfg(test)]
mod tests;
