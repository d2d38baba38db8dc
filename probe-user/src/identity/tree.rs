//! Cgroup id ↔ path.
//!
//! An id is the kernfs id: unique per hierarchy and boot, and the inode number of the directory.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::handle;
use super::hierarchy::{Hierarchies, Mount};

/// How long a removed cgroup can still be looked up.
pub const DEAD_KEPT: Duration = Duration::from_secs(600);

/// An id that was not found is not searched again for this long.
const MISS_KEPT: Duration = Duration::from_secs(1);

/// Cgroups remembered: some 200 bytes each.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(8192).expect("not zero");

/// Directories one search may visit.
const WALK_LIMIT: usize = 65_536;

/// A cgroup that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Path from the root of the hierarchy.
    pub path: Rc<[u8]>,
    /// False once the directory is known to be gone.
    pub alive: bool,
}

enum Entry {
    Live(Rc<[u8]>),
    Dead(Rc<[u8]>, Instant),
    Missing(Instant),
}

struct Root {
    mount: Mount,
    /// As the kernel spells the path of the mount point, for cutting it off results.
    spelled: PathBuf,
    dir: File,
}

/// Cache of both hierarchies, fed by the life cycle events of cgroups and by the file system.
pub struct Tree {
    roots: Vec<Root>,
    cache: LruCache<(u32, u64), Entry>,
}

impl Tree {
    /// Opens the mount points.
    pub fn open(hierarchies: &Hierarchies) -> io::Result<Self> {
        let mut roots = vec![Root::open(&hierarchies.memory)?];
        if let Some(unified) = &hierarchies.unified
            && unified.hierarchy != hierarchies.memory.hierarchy
        {
            roots.push(Root::open(unified)?);
        }
        Ok(Self {
            roots,
            cache: LruCache::new(CAPACITY),
        })
    }

    /// Path of a cgroup, from the cache, by its file handle, or by walking the tree.
    pub fn path(&mut self, hierarchy: u32, id: u64) -> Option<Located> {
        self.path_at(hierarchy, id, Instant::now())
    }

    /// Id of a cgroup, by its path from the root of the hierarchy.
    pub fn id(&self, hierarchy: u32, path: &[u8]) -> io::Result<u64> {
        let root = self
            .root(hierarchy)
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let below = path
            .strip_prefix(root.mount.root.as_slice())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let path = root.mount.path.join(OsStr::from_bytes(below));
        fs::metadata(path).map(|dir| dir.ino())
    }

    /// A cgroup was made, or renamed.
    pub fn created(&mut self, hierarchy: u32, id: u64, path: &[u8]) {
        self.cache.put((hierarchy, id), Entry::Live(path.into()));
    }

    /// A cgroup was removed; what it was called stays known for [`DEAD_KEPT`].
    pub fn removed(&mut self, hierarchy: u32, id: u64, path: &[u8]) {
        let entry = Entry::Dead(path.into(), Instant::now());
        self.cache.put((hierarchy, id), entry);
    }

    /// Whether a cgroup that was found is gone, also if nobody told of its removal. One that was
    /// never found may be outside of what is mounted here: it is not known to be gone.
    pub fn is_gone(&self, hierarchy: u32, id: u64) -> bool {
        match self.cache.peek(&(hierarchy, id)) {
            Some(Entry::Dead(..)) => true,
            Some(Entry::Live(path)) => match self.id(hierarchy, path) {
                Ok(other) => other != id,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            },
            Some(Entry::Missing(_)) | None => false,
        }
    }

    fn path_at(&mut self, hierarchy: u32, id: u64, now: Instant) -> Option<Located> {
        let key = (hierarchy, id);
        match self.cache.get(&key) {
            Some(Entry::Dead(path, since)) if now.duration_since(*since) < DEAD_KEPT => {
                return Some(Located {
                    path: path.clone(),
                    alive: false,
                });
            }
            Some(Entry::Dead(..)) => {
                self.cache.pop(&key);
                return None;
            }
            Some(Entry::Missing(since)) if now.duration_since(*since) < MISS_KEPT => return None,
            Some(Entry::Live(path)) => {
                return Some(Located {
                    path: path.clone(),
                    alive: true,
                });
            }
            Some(Entry::Missing(_)) | None => {}
        }
        let root = self.roots.iter().find(|r| r.mount.hierarchy == hierarchy)?;
        let found = match root.open_by_id(id) {
            Err(error) if error.raw_os_error() == Some(libc::ESTALE) => None,
            Ok(path) => path,
            // No privilege, or no file handles: look at every directory.
            Err(_) => root.search(id),
        };
        let entry = match &found {
            Some(path) => Entry::Live(path.clone()),
            None => Entry::Missing(now),
        };
        self.cache.put(key, entry);
        found.map(|path| Located { path, alive: true })
    }

    fn root(&self, hierarchy: u32) -> Option<&Root> {
        self.roots
            .iter()
            .find(|root| root.mount.hierarchy == hierarchy)
    }
}

impl Root {
    fn open(mount: &Mount) -> io::Result<Self> {
        let dir = File::open(&mount.path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", mount.path.display()))
        })?;
        Ok(Self {
            spelled: fs::canonicalize(&mount.path)?,
            mount: mount.clone(),
            dir,
        })
    }

    /// None if the cgroup exists outside of what is mounted here.
    fn open_by_id(&self, id: u64) -> io::Result<Option<Rc<[u8]>>> {
        let path = handle::path_of(&self.dir, id)?;
        Ok(path
            .strip_prefix(&self.spelled)
            .ok()
            .map(|below| self.rooted(below)))
    }

    /// Breadth first, for containers are seldom deep. Directories that are gone or forbidden are
    /// passed over.
    fn search(&self, id: u64) -> Option<Rc<[u8]>> {
        if self.dir.metadata().is_ok_and(|root| root.ino() == id) {
            return Some(self.rooted(Path::new("")));
        }
        let mut queue = VecDeque::from([PathBuf::new()]);
        let mut visited = 0;
        while let Some(dir) = queue.pop_front() {
            let Ok(entries) = fs::read_dir(self.mount.path.join(&dir)) else {
                continue;
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = dir.join(entry.file_name());
                if entry.ino() == id {
                    return Some(self.rooted(&path));
                }
                visited += 1;
                if visited == WALK_LIMIT {
                    return None;
                }
                queue.push_back(path);
            }
        }
        None
    }

    fn rooted(&self, below: &Path) -> Rc<[u8]> {
        let below = below.as_os_str().as_bytes();
        if below.is_empty() && self.mount.root.is_empty() {
            return b"/".as_slice().into();
        }
        let mut path = self.mount.root.clone();
        if !below.is_empty() {
            path.push(b'/');
            path.extend_from_slice(below);
        }
        path.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_forgotten_after_their_time() {
        let mut tree = Tree {
            roots: Vec::new(),
            cache: LruCache::new(CAPACITY),
        };
        tree.removed(4, 77, b"/gone");
        let now = Instant::now();
        let located = tree.path_at(4, 77, now).unwrap();
        assert_eq!(&*located.path, b"/gone");
        assert!(!located.alive);
        assert_eq!(tree.path_at(0, 77, now), None, "another hierarchy");
        assert_eq!(tree.path_at(4, 77, now + DEAD_KEPT), None);
    }

    #[test]
    fn a_removal_that_nobody_told_of_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mount {
            hierarchy: 4,
            path: dir.path().to_owned(),
            root: Vec::new(),
        };
        let mut tree = Tree {
            roots: vec![Root::open(&mount).unwrap()],
            cache: LruCache::new(CAPACITY),
        };
        fs::create_dir(dir.path().join("pod")).unwrap();
        let id = tree.id(4, b"/pod").unwrap();
        assert!(!tree.is_gone(4, id), "not known");
        tree.created(4, id, b"/pod");
        assert!(!tree.is_gone(4, id));
        fs::rename(dir.path().join("pod"), dir.path().join("old")).unwrap();
        assert!(tree.is_gone(4, id));
        fs::create_dir(dir.path().join("pod")).unwrap();
        assert!(tree.is_gone(4, id), "another one of that name");
        tree.removed(4, id, b"/pod");
        assert!(tree.is_gone(4, id));
    }

    #[test]
    fn a_walk_finds_what_a_handle_would() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
        let id = fs::metadata(dir.path().join("a/b/c")).unwrap().ino();
        let root = Root::open(&Mount {
            hierarchy: 0,
            path: dir.path().to_owned(),
            root: b"/docker/x".to_vec(),
        })
        .unwrap();
        assert_eq!(&*root.search(id).unwrap(), b"/docker/x/a/b/c");
        assert_eq!(root.search(u64::MAX), None);
    }
}
