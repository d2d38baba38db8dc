//! Which memory cgroups are worth watching, and how they are found.
//!
//! Notices of the kernel tell of new cgroups at once. Some come without one (their BPF program is
//! not attached, or its ring was full), and a limit is set only after a cgroup was made: so the
//! whole tree is walked now and then, a few directories at a time.

use std::{fs, path::PathBuf};

use super::{
    look::{self, Roots},
    sample::Settings,
};
use crate::identity::{Claim, Orchestrator, path as grammar};

/// Most cgroups that are watched. A node of 250 pods has some 1,000.
pub const MAX_WATCHED: usize = 2_048;

/// Directories one walk may visit.
const WALK_LIMIT: usize = 65_536;

/// Units of systemd are watched down to this depth: `/system.slice/x.service`. What is deeper are
/// sessions and applications of users.
const UNIT_DEPTH: usize = 2;

/// Whether the cgroup at `path` is worth watching.
pub fn matters(path: &[u8], settings: &Settings) -> bool {
    settings.own_max_bytes.is_some() || settings.high_bytes.is_some() || is_named(path)
}

/// True for a pod, a container or a unit near the root; false for what a workload made below
/// itself.
pub fn is_named(path: &[u8]) -> bool {
    let claim = grammar::parse(path);
    match claim.orchestrator {
        Orchestrator::None => false,
        Orchestrator::Systemd => {
            let above = std::iter::successors(look::parent(path), |path| look::parent(path));
            above.count() <= UNIT_DEPTH
        }
        _ => look::parent(path).is_none_or(|above| !is_same(&claim, &grammar::parse(above))),
    }
}

fn is_same(claim: &Claim, above: &Claim) -> bool {
    claim.orchestrator == above.orchestrator
        && claim.qos == above.qos
        && claim.pod_uid == above.pod_uid
        && claim.container_id == above.container_id
        && claim.role == above.role
        && claim.inner_container_id == above.inner_container_id
}

/// A walk through the memory hierarchy, depth first, in steps.
#[derive(Debug, Default)]
pub struct Walk {
    /// Directories below the mount point that are still to be listed.
    pending: Vec<PathBuf>,
    visited: usize,
}

impl Walk {
    /// Begins at the root.
    pub fn new() -> Self {
        Self {
            pending: vec![PathBuf::new()],
            visited: 0,
        }
    }

    /// True once everything was visited.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty()
    }

    /// Lists one directory; returns the paths of the cgroups in it, from the true root.
    /// Directories that are gone or forbidden are passed over.
    pub fn step(&mut self, roots: &Roots) -> Vec<Vec<u8>> {
        let Some(dir) = self.pending.pop() else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir(roots.memory.path.join(&dir)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            if self.visited >= WALK_LIMIT {
                self.pending.clear();
                break;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let below = dir.join(entry.file_name());
                found.push(look::rooted(&roots.memory, &below));
                self.pending.push(below);
                self.visited += 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::hierarchy::{Hierarchies, Mode, Mount};

    const POD: &str = "/kubepods.slice/kubepods-burstable.slice/\
        kubepods-burstable-pod6f1f5d4a_0a1b_4c2d_8e3f_0123456789ab.slice";
    const CONTAINER: &str =
        "cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";

    #[test]
    fn pods_containers_units_and_limits() {
        let container = format!("{POD}/{CONTAINER}");
        for path in [
            "/kubepods.slice",
            "/kubepods.slice/kubepods-burstable.slice",
            POD,
            &container,
            "/system.slice",
            "/system.slice/sshd.service",
            "/user.slice/user-1000.slice",
        ] {
            assert!(is_named(path.as_bytes()), "{path}");
        }
        let inner = format!("{container}/init.scope");
        for path in [
            "/",
            "/scratch",
            "/user.slice/user-1000.slice/session-1.scope",
            &inner,
        ] {
            assert!(!is_named(path.as_bytes()), "{path}");
        }
        let limited = Settings {
            high_bytes: Some(1 << 20),
            ..Settings::default()
        };
        assert!(matters(b"/scratch", &limited));
        assert!(!matters(b"/scratch", &Settings::default()));
    }

    #[test]
    fn a_walk_finds_every_directory_once() {
        let dir = tempfile::tempdir().unwrap();
        for below in ["a/b/c", "a/d", "e"] {
            fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        fs::write(dir.path().join("a/memory.current"), "1\n").unwrap();
        let mount = Mount {
            hierarchy: 0,
            path: dir.path().to_owned(),
            root: b"/docker/x".to_vec(),
        };
        let roots = Roots::new(&Hierarchies {
            mode: Mode::Unified,
            memory: mount.clone(),
            unified: Some(mount),
        });
        let mut walk = Walk::new();
        let mut found = Vec::new();
        while !walk.is_done() {
            found.extend(walk.step(&roots));
        }
        found.sort();
        let expected: [&[u8]; 5] = [
            b"/docker/x/a",
            b"/docker/x/a/b",
            b"/docker/x/a/b/c",
            b"/docker/x/a/d",
            b"/docker/x/e",
        ];
        assert_eq!(found, expected);
    }
}
