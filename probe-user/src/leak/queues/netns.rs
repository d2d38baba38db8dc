//! The network namespaces of a node, and how to get into one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::event::queues::Namespace;
use crate::event::{NotRead, text};
use crate::identity::hierarchy::unescape;

/// Pids kept of each namespace: more are needed to enter it only if these end meanwhile, and to
/// name its pod hardly ever.
const MOST_PIDS: usize = 8;

/// Most namespaces looked at: a node has one for each pod, and a few hundred pods.
const MOST: usize = 4096;

/// All namespaces that a process is in or that are mounted, by inode.
pub(super) fn find(
    host_root: &Path,
    deadline: Instant,
    not_read: &mut Vec<NotRead>,
) -> Vec<Namespace> {
    let proc = host_root.join("proc");
    let mut found = BTreeMap::new();
    match pids(&proc) {
        Ok(pids) => {
            let mut refused = 0_u64;
            for pid in pids {
                if Instant::now() >= deadline {
                    not_read.push(NotRead {
                        what: "network namespaces of all processes".to_owned(),
                        why: "no time left".to_owned(),
                    });
                    break;
                }
                match fs::read_link(proc.join(format!("{pid}/ns/net"))) {
                    Ok(link) => add_process(&mut found, pid, link.as_os_str().as_bytes()),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused += 1,
                    // Kernel threads that end and processes that are gone.
                    Err(_) => {}
                }
            }
            if refused > 0 {
                not_read.push(NotRead::refused(
                    "network namespaces of all processes",
                    refused,
                ));
            }
        }
        Err(error) => not_read.push(NotRead {
            what: format!("network namespaces in {}", proc.display()),
            why: error.to_string(),
        }),
    }
    // Without pid 1's mounts, ours are better than none.
    match fs::read(proc.join("1/mountinfo")).or_else(|_| fs::read("/proc/self/mountinfo")) {
        Ok(content) => add_mounts(&mut found, &content),
        Err(error) => not_read.push(NotRead {
            what: "network namespaces without a process".to_owned(),
            why: format!("{}/1/mountinfo: {error}", proc.display()),
        }),
    }
    let mut found: Vec<Namespace> = found.into_values().collect();
    if found.len() > MOST {
        not_read.push(NotRead {
            what: format!("{} network namespaces", found.len() - MOST),
            why: format!("only {MOST} are looked at"),
        });
        found.truncate(MOST);
    }
    found
}

/// The processes of a procfs, in order.
pub(super) fn pids(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir(proc)? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    pids.sort_unstable();
    Ok(pids)
}

fn add_process(found: &mut BTreeMap<u64, Namespace>, pid: u32, link: &[u8]) {
    let Some(inode) = inode_of(link) else {
        return;
    };
    let namespace = found.entry(inode).or_insert_with(|| Namespace {
        inode,
        ..Namespace::default()
    });
    namespace.processes += 1;
    if namespace.pids.len() < MOST_PIDS {
        namespace.pids.push(pid);
    }
}

fn add_mounts(found: &mut BTreeMap<u64, Namespace>, mountinfo: &[u8]) {
    for (inode, path) in mounted(mountinfo) {
        let namespace = found.entry(inode).or_insert_with(|| Namespace {
            inode,
            ..Namespace::default()
        });
        let path = || text(&unescape(path));
        namespace.mounted_at.get_or_insert_with(path);
    }
}

/// Namespaces that are mounted, and where, escaped as they are:
/// `36 35 0:4 net:[4026532275] /run/netns/cni-1 … - nsfs nsfs …`
pub(super) fn mounted(mountinfo: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    lines.filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let (root, mount_point) = (fields.nth(3)?, fields.next()?);
        fields.by_ref().find(|field| *field == b"-")?;
        (fields.next()? == b"nsfs").then_some(())?;
        Some((inode_of(root)?, mount_point))
    })
}

/// `net:[4026531840]`
pub(super) fn inode_of(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The namespace of this thread.
pub(super) fn own() -> Option<u64> {
    let link = fs::read_link("/proc/thread-self/ns/net").ok()?;
    inode_of(link.as_os_str().as_bytes())
}

/// Moves this thread into `namespace`.
pub(super) fn enter(namespace: &Namespace, host_root: &Path) -> io::Result<()> {
    if own() == Some(namespace.inode) {
        return Ok(());
    }
    let fd = open(namespace, host_root)?;
    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// By a process if one is left, else by where it is mounted.
fn open(namespace: &Namespace, host_root: &Path) -> io::Result<OwnedFd> {
    let proc = host_root.join("proc");
    let by_pid = namespace
        .pids
        .iter()
        .map(|pid| proc.join(format!("{pid}/ns/net")));
    // As pid 1 sees it, which a container may be refused; its own root may be mounted, too.
    let mounted = namespace.mounted_at.iter().flat_map(|path| {
        let below = path.trim_start_matches('/');
        [proc.join("1/root").join(below), host_root.join(below)]
    });
    let mut first_error = None;
    for path in by_pid.chain(mounted) {
        match open_as(&path, namespace.inode) {
            Ok(fd) => return Ok(fd),
            Err(error) => {
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
}

/// Opens `path` if it is still the namespace with this inode.
fn open_as(path: &Path, inode: u64) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(CWD, path, flags, Mode::empty())?;
    if fstat(&fd)?.st_ino == inode {
        Ok(fd)
    } else {
        Err(io::Error::from(io::ErrorKind::NotFound))
    }
}

/// The namespace of a process.
pub(super) fn of(proc: &Path, pid: u32) -> Option<u64> {
    let link = fs::read_link(proc.join(format!("{pid}/ns/net"))).ok()?;
    inode_of(link.as_os_str().as_bytes())
}
