//! The memory cgroup of a live process, from `/proc/<pid>/cgroup`.
//!
//! Not for victims: a dying task's line reads `memory:/` on v1. Their cgroup comes with the event.

use std::path::Path;
use std::{fs, io};

use super::claim::{Claim, Orchestrator};
use super::path;

/// Where a process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Path from the root of its hierarchy (of our cgroup namespace, if we are in one).
    pub path: Vec<u8>,
    /// Number of the hierarchy the path belongs to; 0 is v2.
    pub hierarchy: u32,
    /// What the path claims. Nothing, if the hierarchies name different pods or containers.
    pub claim: Claim,
    /// True if they do.
    pub conflict: bool,
}

/// Reads the membership of `pid` below `host_root`.
pub fn membership(host_root: &Path, pid: u32) -> io::Result<Membership> {
    let file = fs::read(host_root.join(format!("proc/{pid}/cgroup")))?;
    select(&file).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

struct Line<'a> {
    hierarchy: u32,
    is_memory: bool,
    path: &'a [u8],
    claim: Claim,
}

/// Picks the line that counts in a `/proc/<pid>/cgroup` file. None if there is no line at all.
///
/// The memory controller's line, unless only another one names a pod or a container: some
/// runtimes leave the memory or the v2 hierarchy alone.
pub fn select(file: &[u8]) -> Option<Membership> {
    let mut lines: Vec<Line<'_>> = file
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect();
    // Memory first, then v2, then the rest in the kernel's order.
    lines.sort_by_key(|line| (!line.is_memory, line.hierarchy != 0));

    let with_pod = lines.iter().filter(|line| line.claim.pod_uid.is_some());
    let with_container = lines
        .iter()
        .filter(|line| line.claim.container_id.is_some());
    let pods = distinct(with_pod.clone());
    let (chosen, conflict) = if pods > 0 {
        (with_pod.clone().next(), pods > 1)
    } else if lines.first()?.claim.container_id.is_some() {
        (lines.first(), false)
    } else {
        (with_container.clone().next(), distinct(with_container) > 1)
    };
    let chosen = chosen.or(lines.first())?;
    Some(Membership {
        path: chosen.path.to_owned(),
        hierarchy: chosen.hierarchy,
        claim: if conflict {
            Claim {
                trusted: false,
                ..Claim::of(Orchestrator::Unknown)
            }
        } else {
            chosen.claim.clone()
        },
        conflict,
    })
}

/// Number of different identities among `lines`.
fn distinct<'a>(lines: impl Iterator<Item = &'a Line<'a>>) -> usize {
    let mut seen: Vec<(&Option<String>, &Option<String>)> = Vec::new();
    for line in lines {
        let key = (&line.claim.pod_uid, &line.claim.container_id);
        if !seen.contains(&key) {
            seen.push(key);
        }
    }
    seen.len()
}

/// `4:memory:/path`
fn parse_line(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(3, |byte| *byte == b':');
    let hierarchy = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let is_memory = fields.next()?.split(|b| *b == b',').any(|c| c == b"memory");
    let path = fields.next()?;
    Some(Line {
        hierarchy,
        is_memory,
        path,
        claim: path::parse(path),
    })
}
