//! Facts read from made-up `/proc` and `/sys` trees.

use std::os::unix::fs::symlink;

use super::*;
use crate::kernel::capability::Capability;

/// A machine made of files.
struct Tree {
    directory: tempfile::TempDir,
}

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for (path, content) in files {
            fs::write(tree.parent_of(path), content).unwrap();
        }
        tree
    }

    fn link(self, path: &str, target: &str) -> Self {
        symlink(target, self.parent_of(path)).unwrap();
        self
    }

    /// `path` in the tree, its parent directories made.
    fn parent_of(&self, path: &str) -> PathBuf {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn facts(&self) -> Facts {
        let at = |name| self.directory.path().join(name);
        Facts::gather(&Roots {
            proc: at("proc"),
            sys: at("sys"),
        })
    }
}

#[test]
fn an_empty_tree_tells_nothing() {
    let facts = Tree::new(&[]).facts();
    let known = Facts {
        arch: facts.arch,
        page_size_bytes: facts.page_size_bytes,
        ..Facts::default()
    };
    assert_eq!(facts, known);
    assert!(facts.page_size_bytes.is_some_and(u64::is_power_of_two));
}

#[test]
fn a_v2_host_is_read() {
    let facts = Tree::new(&[
        (
            "proc/self/mounts",
            "tracefs /sys/kernel/tracing tracefs rw 0 0\n\
             bpf /sys/fs/bpf bpf rw 0 0\n\
             securityfs /sys/kernel/security securityfs rw 0 0\n\
             cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n",
        ),
        (
            "proc/self/status",
            "CapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\n",
        ),
        (
            "proc/self/limits",
            "Limit  Soft  Hard  Units\nMax locked memory  8388608  unlimited  bytes\n",
        ),
        (
            "proc/meminfo",
            "MemTotal:  100 kB\nSwapTotal:       2048 kB\n",
        ),
        (
            "proc/pressure/memory",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("proc/sys/kernel/osrelease", "6.12.0-test\n"),
        ("proc/sys/kernel/perf_event_paranoid", "2\n"),
        ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
        ("proc/sys/kernel/kptr_restrict", "1\n"),
        ("sys/devices/system/cpu/possible", "0-3,8-11\n"),
        ("sys/kernel/btf/vmlinux", ""),
        (
            "sys/kernel/security/lockdown",
            "none [integrity] confidentiality\n",
        ),
        ("sys/bus/event_source/devices/kprobe/type", "8\n"),
        (
            "sys/fs/cgroup/cgroup.controllers",
            "cpuset cpu io memory pids\n",
        ),
    ])
    .link("proc/self/ns/pid", INITIAL_PID_NAMESPACE)
    .link("proc/self/ns/cgroup", INITIAL_CGROUP_NAMESPACE)
    .link("proc/self/ns/mnt", "mnt:[4026531832]")
    .link("proc/1/ns/mnt", "mnt:[4026531832]")
    .facts();

    let expected = Facts {
        kernel_release: Some("6.12.0-test".into()),
        arch: facts.arch,
        page_size_bytes: facts.page_size_bytes,
        cpus_possible: Some(8),
        btf: Some(true),
        mounts: Some(Mounts {
            tracefs: Some("/sys/kernel/tracing".into()),
            bpffs: Some("/sys/fs/bpf".into()),
            securityfs: Some("/sys/kernel/security".into()),
        }),
        lockdown: Some(Lockdown::Integrity),
        kprobes: Some(true),
        perf_event_paranoid: Some(2),
        unprivileged_bpf_disabled: Some(2),
        kptr_restrict: Some(1),
        capabilities: Some(Capabilities(0x1ff_feff_ffff)),
        memlock_limit: Some(Limit {
            soft_bytes: Some(8 << 20),
            hard_bytes: None,
        }),
        cgroups: Some(Cgroups {
            mode: CgroupMode::V2,
            v2_mount: Some("/sys/fs/cgroup".into()),
            memory: MemoryController::V2("/sys/fs/cgroup".into()),
        }),
        psi: Some(true),
        swap_bytes: Some(2 << 20),
        in_host_pid_namespace: Some(true),
        in_container: Some(false),
    };
    assert_eq!(facts, expected);
    let capabilities = facts.capabilities.unwrap();
    assert!(capabilities.has(Capability::Bpf) && !capabilities.has(Capability::SysResource));
}

fn cgroups_of(mounts: &str, controllers: Option<&str>) -> Cgroups {
    let mut files = vec![("proc/self/mounts", mounts)];
    files.extend(controllers.map(|list| ("sys/fs/cgroup/cgroup.controllers", list)));
    Tree::new(&files).facts().cgroups.unwrap()
}

#[test]
fn the_memory_controller_is_found_on_every_kind_of_hierarchy() {
    let v1 = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n";
    let named = "cgroup /sys/fs/cgroup/systemd cgroup rw,name=memory 0 0\n";
    let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
    let unified = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";

    let hybrid = cgroups_of(&format!("{v1}{unified}"), None);
    assert_eq!(hybrid.mode, CgroupMode::Hybrid);
    assert_eq!(
        hybrid.memory,
        MemoryController::V1("/sys/fs/cgroup/memory".into())
    );

    let legacy = cgroups_of(v1, None);
    assert_eq!((legacy.mode, legacy.v2_mount), (CgroupMode::V1, None));

    assert_eq!(cgroups_of(named, None).memory, MemoryController::Absent);
    assert_eq!(
        cgroups_of(v2, Some("cpu pids")).memory,
        MemoryController::Absent
    );
    let unreadable = MemoryController::Unreadable("/sys/fs/cgroup".into());
    assert_eq!(cgroups_of(v2, None).memory, unreadable);

    let none = cgroups_of("proc /proc proc rw 0 0\n", None);
    assert_eq!(
        (none.mode, none.memory),
        (CgroupMode::None, MemoryController::Absent)
    );
}

#[test]
fn namespaces_betray_a_container() {
    let link = |pid: &str, own_mounts: &str| {
        Tree::new(&[])
            .link("proc/self/ns/pid", pid)
            .link("proc/self/ns/cgroup", INITIAL_CGROUP_NAMESPACE)
            .link("proc/self/ns/mnt", own_mounts)
            .link("proc/1/ns/mnt", "mnt:[1]")
            .facts()
    };
    let host = link(INITIAL_PID_NAMESPACE, "mnt:[1]");
    assert_eq!(
        (host.in_host_pid_namespace, host.in_container),
        (Some(true), Some(false))
    );
    // A DaemonSet pod with hostPID: the host's processes, but mounts of its own.
    let pod = link(INITIAL_PID_NAMESPACE, "mnt:[2]");
    assert_eq!(
        (pod.in_host_pid_namespace, pod.in_container),
        (Some(true), Some(true))
    );
    let nested = link("pid:[4026532000]", "mnt:[1]");
    assert_eq!(
        (nested.in_host_pid_namespace, nested.in_container),
        (Some(false), Some(true))
    );
}

#[test]
fn mount_points_are_unescaped() {
    let mounts = parse_mounts(b"tracefs /mnt/a\\040b\\134c tracefs rw 0 0\n\ntorn line\n");
    assert_eq!(mounted(&mounts, "tracefs"), Some("/mnt/a b\\c".into()));
    assert_eq!(unescape(b"\\9\\04"), b"\\9\\04");
}

#[test]
fn malformed_files_tell_nothing() {
    assert_eq!(count_cpus("0-"), None);
    assert_eq!(count_cpus("3-1"), None);
    assert_eq!(count_cpus("0-4294967295"), None);
    assert_eq!(parse_lockdown("none integrity"), None);
    assert_eq!(parse_lockdown("[other]"), None);
    assert_eq!(parse_capabilities("CapEff:\tnone"), None);
    assert_eq!(parse_memlock("Max locked memory  many  few"), None);
    assert_eq!(parse_swap("SwapTotal: 18446744073709551615 kB"), None);
}

#[test]
fn this_machine_is_read() {
    let facts = Facts::gather(&Roots::default());
    assert!(facts.kernel_release.is_some() && facts.mounts.is_some());
    assert!(facts.cpus_possible.is_some_and(|cpus| cpus > 0));
    assert!(serde_json::to_value(&facts).unwrap()["capabilities"].is_array());
}
