//! Whether a container that was asked to stop was the only one of its pod.

use std::{fs, path::Path};

use super::Daemon;
use crate::{identity::path as grammar, incident::death::Death};

/// Other containers of a pod that are looked at.
const MAX_SIBLINGS: usize = 64;

/// Processes of each: the runtime asks the first one.
const MAX_PROCESSES: usize = 4;

/// The kubelet asks the containers of a pod at once, but each after its preStop hook, ns.
const NEAR_NS: u64 = 30_000_000_000;

impl Daemon {
    /// Whether another container of the same pod, that still has processes, was asked to stop at
    /// about the same time as the one at `root`. `None` if there is none, or if nothing was asked.
    pub(super) fn siblings_asked(&self, death: &Death, root: &[u8]) -> Option<bool> {
        let asked_ns = death.request?.time_boot_ns;
        let end = root.iter().rposition(|byte| *byte == b'/')?;
        let pod = root.get(..end)?;
        let dir = self.collector.directory(pod)?;
        let mut siblings = 0;
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let path = [pod, b"/", entry.file_name().as_encoded_bytes()].concat();
            let claim = grammar::parse(&path);
            // Not the sandbox's own, which is asked last.
            if path == root || claim.container_id.is_none() || claim.role.is_some() {
                continue;
            }
            let pids = processes(&entry.path());
            siblings += usize::from(!pids.is_empty());
            let is_asked = |pid: &u32| {
                let mut requests = self.probe.requests(*pid).into_iter();
                requests.any(|sent| sent.time_boot_ns.abs_diff(asked_ns) < NEAR_NS)
            };
            if pids.iter().any(is_asked) {
                return Some(true);
            }
            if siblings >= MAX_SIBLINGS {
                break;
            }
        }
        (siblings > 0).then_some(false)
    }
}

fn processes(cgroup: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pids = procs.lines().filter_map(|line| line.parse().ok());
    pids.take(MAX_PROCESSES).collect()
}
