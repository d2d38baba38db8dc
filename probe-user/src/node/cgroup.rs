//! A directory of a cgroup hierarchy.

use std::{fs, path::Path};

/// Whether there is a process in the cgroup or below it. A cgroup that is gone has none.
///
/// On v2 the kernel keeps count (`populated` in `cgroup.events`); on v1 only the cgroup's own
/// processes are looked for, as containers seldom have cgroups of their own there.
pub fn is_populated(dir: &Path) -> bool {
    match fs::read(dir.join("cgroup.events")) {
        Ok(events) => events
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"populated 1"),
        Err(_) => fs::read(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_populated(dir.path()));
        let procs = dir.path().join("cgroup.procs");
        fs::write(&procs, "").unwrap();
        assert!(!is_populated(dir.path()));
        fs::write(&procs, "12\n").unwrap();
        assert!(is_populated(dir.path()));
        // v2, its processes all gone or only in a cgroup below it.
        let events = dir.path().join("cgroup.events");
        fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        assert!(!is_populated(dir.path()));
        fs::write(&procs, "").unwrap();
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        assert!(is_populated(dir.path()));
    }
}
