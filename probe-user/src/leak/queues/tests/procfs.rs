//! A procfs made of files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::netns;
use super::super::owners::{self, TunFile};
use crate::event::queues::Namespace;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

fn process(root: &Path, pid: u32, netns: u64) {
    let dir = root.join(format!("proc/{pid}"));
    for name in ["ns", "fd", "fdinfo"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    symlink(format!("net:[{netns}]"), dir.join("ns/net")).unwrap();
}

#[test]
fn each_namespace_is_found_once() {
    let root = tempfile::tempdir().unwrap();
    for pid in 1..=20 {
        process(root.path(), pid, 1000);
    }
    process(root.path(), 30, 2000);
    fs::create_dir_all(root.path().join("proc/self/ns")).unwrap();
    fs::create_dir_all(root.path().join("proc/31/ns")).unwrap();
    symlink("net:[20x]", root.path().join("proc/31/ns/net")).unwrap();
    fs::write(
        root.path().join("proc/1/mountinfo"),
        "22 1 0:21 / /proc rw shared:5 - proc proc rw\n\
         90 22 0:4 net:[2000] /run/netns/a rw shared:7 - nsfs nsfs rw\n\
         91 22 0:4 net:[3000] /run/netns/cni-b\\040c rw - nsfs nsfs rw\n\
         92 22 0:4 net:[3000] /var/run/netns/cni-b rw shared:1 - nsfs nsfs rw\n\
         93 22 0:4 mnt:[4000] /run/snapd/ns/x rw - nsfs nsfs rw\n\
         94 22 0:4 net:[5000] /run/netns/fake rw - tmpfs nsfs rw\n\
         95 22 0:4 net:[60",
    )
    .unwrap();

    let mut not_read = Vec::new();
    let found = netns::find(root.path(), soon(), &mut not_read);
    let expected = [
        Namespace {
            inode: 1000,
            processes: 20,
            pids: (1..=8).collect(),
            mounted_at: None,
        },
        Namespace {
            inode: 2000,
            processes: 1,
            pids: vec![30],
            mounted_at: Some("/run/netns/a".to_owned()),
        },
        Namespace {
            inode: 3000,
            processes: 0,
            pids: Vec::new(),
            mounted_at: Some("/run/netns/cni-b c".to_owned()),
        },
    ];
    assert_eq!(found, expected);
    assert_eq!(not_read, []);
    assert_eq!(netns::of(&root.path().join("proc"), 30), Some(2000));

    // None of them is a namespace that can be entered.
    for namespace in &found {
        assert!(netns::enter(namespace, root.path()).is_err());
    }
}

#[test]
fn what_cannot_be_read_is_told() {
    let root = tempfile::tempdir().unwrap();
    let mut not_read = Vec::new();
    netns::find(root.path(), soon(), &mut not_read);
    assert!(
        not_read
            .iter()
            .any(|not| not.what.starts_with("network namespaces in "))
    );

    process(root.path(), 7, 1000);
    not_read.clear();
    let found = netns::find(root.path(), Instant::now(), &mut not_read);
    assert!(
        found.iter().all(|namespace| namespace.processes == 0),
        "{found:?}"
    );
    assert!(not_read.iter().any(|not| not.why == "no time left"));
}

#[test]
fn sockets_and_tun_devices_have_owners() {
    let root = tempfile::tempdir().unwrap();
    let link = |pid: u32, fd: u32, target: &str, info: &str| {
        let dir = root.path().join(format!("proc/{pid}"));
        symlink(target, dir.join(format!("fd/{fd}"))).unwrap();
        fs::write(dir.join(format!("fdinfo/{fd}")), info).unwrap();
    };
    for pid in [5, 60] {
        process(root.path(), pid, 1000);
        // The same socket twice in one process.
        link(pid, 3, "socket:[77]", "");
        link(pid, 4, "socket:[77]", "");
    }
    link(5, 5, "socket:[78]", "");
    link(60, 5, "/dev/net/tun", "pos:\t0\nflags:\t02\niff:\ttap7\n");
    link(60, 6, "/dev/net/tun", "pos:\t0\nflags:\t02\niff:\t\n");
    link(60, 7, "/home/x/net/tun", "pos:\t0\n");
    link(60, 8, "socket:[7x", "");

    let wanted = BTreeSet::from([77, 99]);
    let mut not_read = Vec::new();
    let owners = owners::find(&root.path().join("proc"), &wanted, soon(), &mut not_read);
    assert_eq!(
        owners.sockets.into_iter().collect::<Vec<_>>(),
        [(77, vec![5, 60])]
    );
    let tun = TunFile {
        pid: 60,
        device: b"tap7".to_vec(),
    };
    assert_eq!(owners.tuns, [tun]);
    assert_eq!(not_read, []);
}
