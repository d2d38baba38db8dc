//! Network namespaces that nobody can enter any more.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::event::permission_denied;

use super::netns::{inode_of, mounted, pids};

/// Why it is not known who keeps a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// There was no time to ask all processes.
    #[error("no time left")]
    TooLate,
    /// Some processes may not be asked.
    #[error("{}", permission_denied(*.0))]
    Refused(u64),
    /// There is no procfs.
    #[error(transparent)]
    Proc(#[from] io::Error),
}

/// Those of `namespaces`, inodes of nsfs, that no thread is in, no process has open and no mount
/// namespace has mounted.
pub fn abandoned(
    proc: &Path,
    namespaces: BTreeSet<u64>,
    deadline: Instant,
) -> Result<BTreeSet<u64>, Unknown> {
    let mut left = namespaces;
    let mut refused = 0_u64;
    let mut mount_namespaces = BTreeSet::new();
    for pid in pids(proc)? {
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Unknown::TooLate);
        }
        let process = proc.join(pid.to_string());
        if forget_used(&process, &mut left, &mut mount_namespaces).is_err() {
            refused += 1;
        }
    }
    if refused > 0 && !left.is_empty() {
        return Err(Unknown::Refused(refused));
    }
    Ok(left)
}

/// Takes those away that this process uses. Fails only if it may not be asked: threads end and files
/// are closed meanwhile.
fn forget_used(
    process: &Path,
    left: &mut BTreeSet<u64>,
    mount_namespaces: &mut BTreeSet<Vec<u8>>,
) -> io::Result<()> {
    let threads = entries(&process.join("task"))?.map(|task| task.join("ns/net"));
    for path in threads.chain(entries(&process.join("fd"))?) {
        if let Some(link) = link(&path)?
            && let Some(inode) = inode_of(&link)
        {
            left.remove(&inode);
        }
    }
    let mounts = link(&process.join("ns/mnt"))?;
    if let Some(mounts) = mounts.filter(|mounts| !mount_namespaces.contains(mounts))
        && let Some(content) = unless_gone(fs::read(process.join("mountinfo")))?
    {
        for (inode, _) in mounted(&content) {
            left.remove(&inode);
        }
        mount_namespaces.insert(mounts);
    }
    Ok(())
}

fn entries(directory: &Path) -> io::Result<impl Iterator<Item = PathBuf> + use<>> {
    let entries = unless_gone(fs::read_dir(directory))?;
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    Ok(entries.map(|entry| entry.path()))
}

fn link(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let target = unless_gone(fs::read_link(path))?;
    Ok(target.map(|target| target.into_os_string().into_vec()))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn deadline() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_a_thread_a_descriptor_or_a_mount_keeps_is_not_abandoned() {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("7");
        for (thread, netns) in [("7", 1), ("8", 2)] {
            let ns = process.join("task").join(thread).join("ns");
            create_dir_all(&ns).unwrap();
            symlink(format!("net:[{netns}]"), ns.join("net")).unwrap();
        }
        for directory in ["fd", "ns"] {
            create_dir_all(process.join(directory)).unwrap();
        }
        symlink("net:[3]", process.join("fd/5")).unwrap();
        symlink("socket:[9]", process.join("fd/6")).unwrap();
        symlink("mnt:[11]", process.join("ns/mnt")).unwrap();
        let mount = "36 35 0:4 net:[4] /run/netns/a rw - nsfs nsfs rw\n";
        write(process.join("mountinfo"), mount).unwrap();

        let asked = BTreeSet::from([1, 2, 3, 4, 9, 11]);
        let left = abandoned(proc.path(), asked, deadline()).unwrap();
        assert_eq!(left, BTreeSet::from([9, 11]));
        let late = abandoned(proc.path(), left, Instant::now());
        assert!(matches!(late, Err(Unknown::TooLate)));
        assert!(abandoned(Path::new("/none"), BTreeSet::from([1]), deadline()).is_err());
    }

    #[test]
    fn our_own_is_not_abandoned() {
        let own = super::super::netns::own().unwrap();
        let proc = Path::new("/proc");
        let left = abandoned(proc, BTreeSet::from([own]), deadline()).unwrap();
        assert!(left.is_empty());
    }
}
