//! `oomprobe triage` as a program: on made-up hosts, and on this one.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Output};

use oomprobe::event::{Body, Event, FindingId, Triage, is_hostile};
use unicode_width::UnicodeWidthStr as _;

const UID: &str = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A directory that looks like a host's root to `--host-root`.
struct Host(tempfile::TempDir);

impl Host {
    /// A healthy node without any cgroup.
    fn new(mountinfo: &str, cgroup: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.write("proc/1/mountinfo", mountinfo);
        host.write("proc/1/cgroup", cgroup);
        host.write(
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemFree: 1048576 kB\nMemAvailable: 8388608 kB\n\
             Cached: 4194304 kB\nBuffers: 1024 kB\nShmem: 2048 kB\nAnonPages: 6291456 kB\n\
             SwapTotal: 0 kB\nSwapFree: 0 kB\nSReclaimable: 1024 kB\nSUnreclaim: 2048 kB\n\
             Committed_AS: 9000000 kB\nCommitLimit: 8388608 kB\nDirty: 4 kB\nWriteback: 0 kB\n",
        );
        host.write("proc/vmstat", "oom_kill 0\npgmajfault 5\npgscan_kswapd 9\n");
        host.write(
            "proc/stat",
            "cpu 1 2\ncpu0 1 2\nprocs_running 1\nprocs_blocked 0\n",
        );
        host.write("proc/loadavg", "0.10 0.20 0.30 1/80 11206\n");
        for resource in ["cpu", "memory", "io"] {
            let stall = "avg10=0.00 avg60=0.50 avg300=0.00 total=100";
            let content = format!("some {stall}\nfull {stall}\n");
            host.write(&format!("proc/pressure/{resource}"), &content);
        }
        host.write("proc/sys/kernel/hostname", "node-7\n");
        host.write("proc/sys/vm/overcommit_memory", "1\n");
        host
    }

    fn v2() -> Self {
        let host = Self::new(
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "0::/init.scope\n",
        );
        let container = format!("sys/fs/cgroup/kubepods/burstable/pod{UID}/{ID}");
        for (name, content) in [
            ("memory.current", "536870912\n"),
            ("memory.max", "1073741824\n"),
            ("memory.high", "max\n"),
            ("memory.low", "0\n"),
            ("memory.min", "1048576\n"),
            ("memory.swap.current", "4096\n"),
            (
                "memory.stat",
                "anon 400000000\nfile 100000000\nshmem 30000000\nkernel 9000\nsock 1\n\
                             inactive_file 50000000\nslab_reclaimable 5\nslab_unreclaimable 6\n",
            ),
            ("memory.events", "low 0\nhigh 0\nmax 7\noom 1\noom_kill 2\n"),
            (
                "memory.events.local",
                "low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\n",
            ),
            (
                "memory.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
            (
                "cpu.stat",
                "usage_usec 5\nnr_periods 100\nnr_throttled 90\nthrottled_usec 7\n",
            ),
        ] {
            host.write(&format!("{container}/{name}"), content);
        }
        host
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let root = self.0.path().to_str().unwrap();
        let socket = format!("{root}/no.sock");
        run(&[&["--host-root", root, "--cri-socket", &socket], args].concat())
    }

    fn triage(&self) -> Triage {
        let output = self.run(&[]);
        assert!(output.stderr.is_empty(), "{output:?}");
        let triage = parse(&output.stdout);
        // This machine's own disk may be full: that is no fault of the made-up host.
        let expected = if triage.findings.is_empty() { 0 } else { 4 };
        assert_eq!(output.status.code(), Some(expected));
        triage
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_oomprobe"))
        .arg("triage")
        .args(["--duration", "100ms"])
        .args(args)
        .env_remove("NODE_NAME")
        .env_remove("OOMPROBE_OUTPUT")
        .output()
        .unwrap()
}

fn parse(stdout: &[u8]) -> Triage {
    let text = std::str::from_utf8(stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let event: Event = serde_json::from_str(text).unwrap();
    let Body::Triage(triage) = event.body else {
        panic!("{text}")
    };
    assert_eq!(triage.healthy, triage.findings.is_empty());
    *triage
}

fn ids(triage: &Triage) -> Vec<FindingId> {
    let ids = triage.findings.iter().map(|finding| finding.id);
    ids.filter(|id| *id != FindingId::DiskPressure).collect()
}

fn not_read(triage: &Triage, name: &str) -> Option<String> {
    let found = triage.not_read.iter().find(|one| one.what.ends_with(name));
    found.map(|one| one.why.clone())
}

#[test]
fn a_healthy_node_with_a_pod() {
    let host = Host::v2();
    let triage = host.triage();
    assert_eq!(ids(&triage), []);
    assert!(triage.duration_ms >= 100);
    assert_eq!(
        triage.memory.file_bytes,
        Some((4_194_304 + 1024 - 2048) << 10)
    );
    assert_eq!(triage.memory.overcommit_mode, Some(1));
    assert_eq!(triage.pressure.len(), 3);
    assert_eq!(triage.cpu.cpus, Some(1));
    assert_eq!(triage.conntrack, None);
    // The pod holds nothing that its container does not.
    assert_eq!(triage.cgroups, 2);
    let [top] = &triage.top[..] else {
        panic!("{:#?}", triage.top)
    };
    assert_eq!(top.limit_ratio, Some(0.5));
    assert_eq!(top.effective_limit_bytes, Some(1 << 30));
    assert_eq!(top.high_bytes, None);
    assert_eq!(top.min_bytes, Some(1 << 20));
    assert_eq!(top.file_bytes, Some(70_000_000));
    assert_eq!(top.working_set_bytes, Some(536_870_912 - 50_000_000));
    assert_eq!(top.swap_bytes, Some(4096));
    assert_eq!(top.memory_some_ratio, Some(0.0));
    assert_eq!(top.max_hits, Some(0));
    assert_eq!(top.oom_kills, Some(2));
    let k8s = top.k8s.as_ref().unwrap();
    assert_eq!(k8s.pod.uid.as_deref(), Some(UID));
    assert_eq!(k8s.node.name.as_deref(), Some("node-7"));
    assert_eq!(top.container.as_ref().unwrap().id.as_deref(), Some(ID));
}

#[test]
fn a_v1_tree_with_the_cpu_controller_beside() {
    let host = Host::new(
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
         33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
        "7:memory:/\n",
    );
    let dir = "sys/fs/cgroup/memory/docker";
    host.write(&format!("{dir}/memory.limit_in_bytes"), "8192\n");
    for (name, content) in [
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.usage_in_bytes", "6000\n"),
        (
            "memory.stat",
            "cache 1\ntotal_cache 2000\ntotal_rss 3000\ntotal_shmem 500\n",
        ),
        ("memory.kmem.usage_in_bytes", "700\n"),
        ("memory.failcnt", "3\n"),
    ] {
        host.write(&format!("{dir}/{ID}/{name}"), content);
    }
    let cpu = "nr_periods 100\nnr_throttled 90\nthrottled_time 7\n";
    host.write(
        &format!("sys/fs/cgroup/cpu,cpuacct/docker/{ID}/cpu.stat"),
        cpu,
    );
    let triage = host.triage();
    assert_eq!(ids(&triage), []);
    let [top] = &triage.top[..] else {
        panic!("{:#?}", triage.top)
    };
    assert_eq!(top.limit_bytes, None);
    assert_eq!(top.effective_limit_bytes, Some(8192));
    assert_eq!(top.anon_bytes, Some(3000));
    assert_eq!(top.file_bytes, Some(1500));
    assert_eq!(top.kernel_bytes, Some(700));
    assert_eq!(top.max_hits, Some(0));
    assert_eq!(top.memory_some_ratio, None);
}

#[test]
fn faults_are_found_and_exit_with_4() {
    let host = Host::v2();
    host.write("proc/sys/net/netfilter/nf_conntrack_count", "262100\n");
    host.write("proc/sys/net/netfilter/nf_conntrack_max", "262144\n");
    host.write(
        "proc/meminfo",
        "MemTotal: 16777216 kB\nMemAvailable: 104857 kB\nSUnreclaim: 12582912 kB\n",
    );
    host.write(
        "proc/slabinfo",
        "slabinfo - version: 2.1\n\
         skbuff_head_cache 9 9 256 32 2 : tunables 0 0 0 : slabdata 1500000 1500000 0\n",
    );
    let mut found = ids(&host.triage());
    found.sort_unstable();
    let (overcommit, slab) = (FindingId::Overcommit, FindingId::SlabUnreclaimable);
    assert_eq!(found, [overcommit, slab, FindingId::ConntrackFull]);

    let output = host.run(&["-o", "pretty"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("skbuff_head_cache 11.4 GiB"), "{text}");
    assert!(text.contains("$ oomprobe skb"), "{text}");
}

#[test]
fn what_is_torn_or_missing_is_told_and_the_rest_is_shown() {
    let host = Host::v2();
    host.write("proc/vmstat", "oom_kill 0\npgmajf");
    fs::remove_file(host.0.path().join("proc/stat")).unwrap();
    fs::remove_dir_all(host.0.path().join("proc/pressure")).unwrap();
    host.write("proc/cmdline", "quiet\n");
    host.write("sys/fs/cgroup/torn.service/memory.current", "12x");
    let triage = host.triage();
    assert_eq!(ids(&triage), []);
    assert_eq!(triage.oom.kills_since_boot, None);
    assert_eq!(triage.cpu.cpus, None);
    assert_eq!(triage.pressure, []);
    assert_eq!(triage.top.len(), 1);
    for (name, why) in [
        ("vmstat", "line 2"),
        ("/proc/stat", "there is none"),
        ("pressure (PSI)", "psi=1"),
        ("torn.service/memory.current", "expected a decimal number"),
        ("dev/kmsg", "there is none"),
        ("slabinfo", "there is none"),
    ] {
        let told = not_read(&triage, name).unwrap_or_else(|| panic!("{name}: {triage:#?}"));
        assert!(told.contains(why), "{name}: {told}");
    }
    let text = String::from_utf8(host.run(&["-o", "pretty"]).stdout).unwrap();
    assert!(text.contains("not read"), "{text}");
}

#[test]
fn without_meminfo_it_fails_and_says_why() {
    let host = Host::v2();
    fs::remove_file(host.0.path().join("proc/meminfo")).unwrap();
    let output = host.run(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("proc/meminfo"), "{stderr}");
}

#[test]
fn hostile_names_do_nothing() {
    let host = Host::v2();
    let names: [&[u8]; 3] = [
        b"\x1b]0;own\x07\n.service",
        b"\xff\xfe$(reboot)'",
        "\u{202e}\u{9b}2J日本".as_bytes(),
    ];
    for name in names {
        let dir = host
            .0
            .path()
            .join("sys/fs/cgroup")
            .join(OsStr::from_bytes(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("memory.current"), "900000000000\n").unwrap();
    }
    assert_eq!(host.triage().top.len(), 4);
    let text = String::from_utf8(host.run(&["-o", "pretty"]).stdout).unwrap();
    assert!(text.contains(r"/\x1b]0;own\x07\n.service"), "{text}");
    for line in text.lines() {
        assert!(!line.contains(is_hostile), "{line:?}");
        assert!(line.width() <= 100, "{line}");
    }
}

#[test]
fn only_so_many_are_listed() {
    let host = Host::v2();
    for index in 0..20 {
        let path = format!("sys/fs/cgroup/system.slice/s{index}.service/memory.current");
        host.write(&path, "4096\n");
    }
    assert_eq!(host.triage().top.len(), 10);
    let output = host.run(&["--top", "3", "-o", "pretty"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the biggest 3 of 22 cgroups"), "{text}");
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for args in [["--duration", "0s"], ["--duration", "1h"], ["--top", "x"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_oomprobe"))
            .arg("triage")
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn looks_at_this_machine() {
    let output = run(&[]);
    assert!(output.stderr.is_empty(), "{output:?}");
    let triage = parse(&output.stdout);
    let expected = if triage.healthy { 0 } else { 4 };
    assert_eq!(output.status.code(), Some(expected));
    assert!(triage.memory.total_bytes > Some(64 << 20));
    assert!(triage.cpu.cpus >= Some(1));
    assert!(
        triage
            .disks
            .iter()
            .any(|disk| disk.paths.iter().any(|path| path == "/"))
    );
    if Path::new("/proc/pressure/memory").exists() && triage.pressure.is_empty() {
        assert!(not_read(&triage, "pressure (PSI)").is_some());
    }
}
