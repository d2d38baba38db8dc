//! Hierarchies, ids and memberships: from recorded files, and on this machine's own cgroups.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use oomprobe::identity::hierarchy::{self, Error, Mode};
use oomprobe::identity::path::parse;
use oomprobe::identity::pid::{self, select};
use oomprobe::identity::tree::Tree;

const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,nosuid shared:9 master:1 - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
";
const V1_CGROUP: &str = "3:cpu,cpuacct:/\n7:memory:/user.slice\n1:name=systemd:/\n";

const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const V2_CGROUP: &str = "0::/user.slice\n";

#[test]
fn layouts_are_told_apart() {
    let found = hierarchy::parse(V1.as_bytes(), V1_CGROUP.as_bytes()).unwrap();
    assert_eq!(found.mode, Mode::Legacy);
    assert_eq!(found.memory.hierarchy, 7);
    assert_eq!(found.memory.path, Path::new("/sys/fs/cgroup/memory"));
    assert_eq!(found.unified, None);

    let hybrid = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let cgroup = format!("{V1_CGROUP}0::/\n");
    let found = hierarchy::parse(hybrid.as_bytes(), cgroup.as_bytes()).unwrap();
    assert_eq!(found.mode, Mode::Hybrid);
    assert_eq!(found.memory.path, Path::new("/sys/fs/cgroup/memory"));
    let unified = found.unified.unwrap();
    assert_eq!(unified.hierarchy, 0);
    assert_eq!(unified.path, Path::new("/sys/fs/cgroup/unified"));

    let found = hierarchy::parse(V2.as_bytes(), V2_CGROUP.as_bytes()).unwrap();
    assert_eq!(found.mode, Mode::Unified);
    assert_eq!(found.memory.hierarchy, 0);
    assert_eq!(Some(&found.memory), found.unified.as_ref());
}

#[test]
fn the_mount_that_shows_most_is_taken() {
    // A container with a private cgroup namespace and the host's tree mounted at /host.
    let private = format!(
        "{V2}\
         50 23 0:26 /../../.. /host/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n\
         51 23 0:26 /../x /mnt/part ro - cgroup2 cgroup2 rw\n"
    );
    let found = hierarchy::parse(private.as_bytes(), V2_CGROUP.as_bytes()).unwrap();
    assert_eq!(found.memory.path, Path::new("/host/sys/fs/cgroup"));
    assert_eq!(found.memory.root, b"");

    let bind = "50 23 0:26 /docker/ab\\040c /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
    let found = hierarchy::parse(bind.as_bytes(), b"0::/\n").unwrap();
    assert_eq!(found.memory.root, b"/docker/ab c");

    let odd = "50 23 0:26 / /with\\040space\\134 rw - cgroup2 cgroup2 rw\n";
    let found = hierarchy::parse(odd.as_bytes(), b"0::/\n").unwrap();
    assert_eq!(found.memory.path, Path::new("/with space\\"));
}

#[test]
fn a_memory_controller_that_is_not_mounted_is_an_error() {
    let without = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    assert_eq!(
        hierarchy::parse(without.as_bytes(), V1_CGROUP.as_bytes()),
        None
    );
    assert_eq!(hierarchy::parse(b"", b""), None);
    assert_eq!(
        hierarchy::parse(b"\xff \xff\n- - -\n", b"::\nx:memory:\n"),
        None
    );
}

/// A directory that looks like a host's root to `--host-root`.
fn fake_host(mountinfo: &str, cgroup: &str, mount_point: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/1")).unwrap();
    fs::write(root.path().join("proc/1/mountinfo"), mountinfo).unwrap();
    fs::write(root.path().join("proc/1/cgroup"), cgroup).unwrap();
    let below = mount_point.trim_start_matches('/');
    fs::create_dir_all(root.path().join(below)).unwrap();
    root
}

#[test]
fn a_host_root_is_looked_at_from_inside() {
    let root = fake_host(V2, V2_CGROUP, "/sys/fs/cgroup/kubepods/pod1");
    let found = hierarchy::find(root.path()).unwrap();
    assert_eq!(found.mode, Mode::Unified);
    assert_eq!(found.memory.path, root.path().join("sys/fs/cgroup"));

    let tree = Tree::open(&found).unwrap();
    let dir = fs::metadata(found.memory.path.join("kubepods/pod1")).unwrap();
    assert_eq!(tree.id(0, b"/kubepods/pod1").unwrap(), dir.ino());
    assert!(tree.id(0, b"/kubepods/pod2").is_err());
    assert!(tree.id(7, b"/kubepods/pod1").is_err());
}

#[test]
fn a_host_root_without_proc_falls_back_to_this_process() {
    let empty = tempfile::tempdir().unwrap();
    match hierarchy::find(empty.path()) {
        Ok(found) => assert!(found.memory.path.is_absolute()),
        // Where this process sees no cgroups either, the first problem is the one to mend.
        Err(error) => assert!(
            matches!(error, Error::Unreadable { path, .. } if path.starts_with(empty.path()))
        ),
    }
}

/// A cgroup of our own on the memory hierarchy, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    /// None, with the reason printed, where cgroups cannot be made.
    fn new(name: &str) -> Option<(Self, hierarchy::Hierarchies)> {
        let found = match hierarchy::find(Path::new("/")) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let name = format!("oomprobe-identity-{}-{name}", std::process::id());
        let path = found.memory.path.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Some((Self(path), found)),
            Err(error) => {
                eprintln!("skipped: {}: {error}", path.display());
                None
            }
        }
    }

    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn ids_and_paths_of_real_cgroups() {
    let Some((scratch, found)) = Scratch::new("ids") else {
        return;
    };
    let number = found.memory.hierarchy;
    let name = scratch.name();
    let mut tree = Tree::open(&found).unwrap();
    let id = tree.id(number, name.as_bytes()).unwrap();
    assert_eq!(id, fs::metadata(&scratch.0).unwrap().ino());

    let located = tree.path(number, id).unwrap();
    assert!(located.path.ends_with(name.as_bytes()));
    assert!(located.alive);
    if found.memory.is_whole() {
        assert_eq!(&*tree.path(number, 1).unwrap().path, b"/");
    }

    // Removed, and we were told: still known. Not told, and never seen: unknown.
    let mut stranger = Tree::open(&found).unwrap();
    fs::remove_dir(&scratch.0).unwrap();
    tree.removed(number, id, name.as_bytes());
    let located = tree.path(number, id).unwrap();
    assert!(!located.alive);
    assert_eq!(stranger.path(number, id), None);
    assert_eq!(stranger.path(number, u64::MAX), None);
    assert_eq!(stranger.path(12_345, id), None);
    stranger.created(number, id, b"/told");
    assert_eq!(&*stranger.path(number, id).unwrap().path, b"/told");
}

struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_found_in_its_memory_cgroup() {
    let Some((scratch, found)) = Scratch::new("pid") else {
        return;
    };
    let sleeper = Sleeper(Command::new("sleep").arg("600").spawn().unwrap());
    let pid = sleeper.0.id();
    if let Err(error) = fs::write(scratch.0.join("cgroup.procs"), pid.to_string()) {
        eprintln!("skipped: {error}");
        return;
    }
    let membership = pid::membership(Path::new("/"), pid).unwrap();
    drop(sleeper);
    assert_eq!(membership.hierarchy, found.memory.hierarchy);
    assert!(membership.path.ends_with(scratch.name().as_bytes()));
    assert!(!membership.conflict);

    let gone = pid::membership(Path::new("/"), u32::MAX).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
}

const POD: &str = "/kubepods/burstable/pod8833712d-6e69-4f5c-95f3-aebd020ce2e7/95cbe853416f52d927dec41f1406dd75015ea131244a1ca875a7cd4ebe927ac8";
const OTHER: &str = "/kubepods/besteffort/pod26ab26cd-6409-443f-a13c-fd6c231207c8/ae7a1981e064c217035e0b23979c8defd51c850d1af26fbcf148187e5b0da61c";
const NODE: &str = "/docker/93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26";

fn chosen(file: &str) -> String {
    let membership = select(file.as_bytes()).unwrap();
    assert!(!membership.conflict, "{file}");
    assert_eq!(membership.claim, parse(&membership.path), "{file}");
    String::from_utf8(membership.path).unwrap()
}

#[test]
fn the_line_that_counts() {
    // Hybrid: the unified line names the runtime's service for every container.
    let hybrid =
        format!("4:memory:{POD}\n1:name=systemd:/x\n0::/reserved.slice/containerd.service\n");
    assert_eq!(chosen(&hybrid), POD);
    // Only systemd's own hierarchy knows.
    let systemd = format!("9:memory:/\n1:name=systemd:{POD}\n0::/\n");
    assert_eq!(chosen(&systemd), POD);
    // kind on a hybrid host: the memory line knows the node, another the pod.
    let kind = format!("9:memory:{NODE}\n3:pids:{NODE}\n0::{POD}\n");
    assert_eq!(chosen(&kind), POD);
    // The memory line's container counts, whatever other hierarchies hold.
    let docker = format!("9:memory:{NODE}\n0::/docker/{}\n", "a".repeat(64));
    assert_eq!(chosen(&docker), NODE);
    assert_eq!(chosen("9:memory:/a\n0::/b\n"), "/a");
    assert_eq!(chosen("3:pids:/b\n0::/a\n"), "/a");
    assert_eq!(
        chosen(&format!("0::{POD} (deleted)\n")),
        format!("{POD} (deleted)")
    );
    // runc's extra level on some controllers.
    assert_eq!(
        chosen(&format!("5:cpu:/init.scope{NODE}\n4:memory:{NODE}\n")),
        NODE
    );
    assert_eq!(select(b""), None);
    assert_eq!(select(b"nonsense\n:::\n"), None);
}

#[test]
fn two_pods_are_a_conflict() {
    let membership = select(format!("4:memory:{POD}\n0::{OTHER}\n").as_bytes()).unwrap();
    assert!(membership.conflict);
    assert_eq!(membership.claim.pod_uid, None);
    assert_eq!(membership.claim.container_id, None);
    assert!(!membership.claim.trusted);
}
