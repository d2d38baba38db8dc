//! Which processes have a socket or a tun device open: `/proc/<pid>/fd` and `fdinfo`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use super::netns::pids;
use crate::event::NotRead;
use crate::node::text::{cut, lines};

/// Longest `fdinfo` that is read: one of a tun device has five lines.
const FDINFO_LEN: u64 = 4096;

/// Who has what open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners {
    /// By inode of the socket, pids in order.
    pub(super) sockets: BTreeMap<u64, Vec<u32>>,
    /// Open files of tun devices.
    pub(super) tuns: Vec<TunFile>,
}

/// A file that reads from a tun device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TunFile {
    pub(super) pid: u32,
    /// Name of the device, in the namespace of the device.
    pub(super) device: Vec<u8>,
}

/// Looks at the open files of all processes for the sockets `wanted` and for tun devices.
pub(super) fn find(
    proc: &Path,
    wanted: &BTreeSet<u64>,
    deadline: Instant,
    not_read: &mut Vec<NotRead>,
) -> Owners {
    let mut owners = Owners::default();
    let mut refused = 0_u64;
    for pid in pids(proc).unwrap_or_default() {
        if Instant::now() >= deadline {
            not_read.push(NotRead {
                what: "open files of all processes".to_owned(),
                why: "no time left".to_owned(),
            });
            break;
        }
        let process = proc.join(pid.to_string());
        match add_process(&process, pid, wanted, &mut owners) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused += 1,
            // What ends meanwhile has no files.
            _ => {}
        }
    }
    if refused > 0 {
        not_read.push(NotRead::refused("open files of all processes", refused));
    }
    owners
}

fn add_process(
    process: &Path,
    pid: u32,
    wanted: &BTreeSet<u64>,
    owners: &mut Owners,
) -> io::Result<()> {
    for entry in fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        let Ok(link) = fs::read_link(entry.path()) else {
            continue;
        };
        let link = link.as_os_str().as_bytes();
        if let Some(inode) = socket(link).filter(|inode| wanted.contains(inode)) {
            let pids = owners.sockets.entry(inode).or_default();
            if pids.last() != Some(&pid) {
                pids.push(pid);
            }
        } else if link.ends_with(b"/net/tun") || link.ends_with(b"/dev/tun") {
            let path = process.join("fdinfo").join(entry.file_name());
            let device = read_some(&path).ok().and_then(|info| tun_device(&info));
            owners
                .tuns
                .extend(device.map(|device| TunFile { pid, device }));
        }
    }
    Ok(())
}

fn read_some(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    io::Read::read_to_end(
        &mut io::Read::take(fs::File::open(path)?, FDINFO_LEN),
        &mut content,
    )?;
    Ok(content)
}

/// `socket:[4711]`
fn socket(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The device of a tun file (`tun_chr_show_fdinfo`, drivers/net/tun.c): `iff:` and its name; no
/// name, if it is attached to none.
fn tun_device(fdinfo: &[u8]) -> Option<Vec<u8>> {
    lines(fdinfo)
        .filter_map(|(_, line)| cut(line, b":"))
        .find(|(key, _)| *key == b"iff")
        .map(|(_, name)| name.trim_ascii().to_vec())
        .filter(|name| !name.is_empty())
}
