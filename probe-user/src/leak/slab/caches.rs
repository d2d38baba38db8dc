//! Caches, ranked by size and growth.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::event::{SlabCacheUsage, text};
use crate::node::slabinfo::Cache;

/// What `/sys/kernel/slab` tells of the caches. SLUB makes a directory for each, and for those that
/// it merged links to one.
pub(super) struct Sysfs {
    dir: PathBuf,
    /// Directory of each link.
    links: HashMap<Vec<u8>, Vec<u8>>,
    /// Links to each directory.
    names: BTreeMap<Vec<u8>, Vec<Vec<u8>>>,
}

impl Sysfs {
    /// Reads the names below `<sys>/kernel/slab`.
    pub(super) fn open(sys: &Path) -> Result<Self, (PathBuf, std::io::Error)> {
        let dir = sys.join("kernel/slab");
        let mut links = HashMap::new();
        let mut names: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(|error| (dir.clone(), error))? {
            // A cache that goes meanwhile is no longer of interest.
            let Ok(entry) = entry else { continue };
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let Some(target) = target.file_name() else {
                continue;
            };
            let (name, target) = (entry.file_name(), target.as_bytes().to_vec());
            let aliases = names.entry(target.clone()).or_default();
            aliases.push(name.as_bytes().to_vec());
            links.insert(name.as_bytes().to_vec(), target);
        }
        for names in names.values_mut() {
            names.sort();
        }
        Ok(Self { dir, links, names })
    }

    /// The directory of the cache called `name`.
    fn unique<'a>(&'a self, name: &'a [u8]) -> &'a [u8] {
        self.links.get(name).map_or(name, Vec::as_slice)
    }

    /// Other names of the cache called `name`.
    pub(super) fn aliases(&self, name: &[u8]) -> Vec<Vec<u8>> {
        let names = self.names.get(self.unique(name));
        let others = names.into_iter().flatten().filter(|other| *other != name);
        others.cloned().collect()
    }

    /// A file of the cache called `name` that holds a number.
    pub(super) fn number(&self, name: &[u8], file: &str) -> Option<u64> {
        let content = fs::read_to_string(self.path(name).join(file)).ok()?;
        content.split_whitespace().next()?.parse().ok()
    }

    /// Directory of the cache called `name`.
    pub(super) fn path(&self, name: &[u8]) -> PathBuf {
        self.dir.join(OsStr::from_bytes(self.unique(name)))
    }
}

/// A cache at the end of the look, and how it came there.
#[derive(Clone, Debug)]
pub(super) struct Grown {
    pub cache: Cache,
    /// Bytes and objects at each earlier look, oldest first; empty if it is new.
    pub before: Vec<(u64, u64)>,
}

impl Grown {
    /// Joins looks by the name of the cache, in the order of the last.
    pub(super) fn join(looks: &[Vec<Cache>]) -> Vec<Self> {
        let Some((last, earlier)) = looks.split_last() else {
            return Vec::new();
        };
        let mut before: HashMap<&[u8], Vec<(u64, u64)>> = HashMap::new();
        for cache in earlier.iter().flatten() {
            let looks = before.entry(&cache.name).or_default();
            looks.push((cache.bytes, cache.objects));
        }
        last.iter()
            .map(|cache| Self {
                cache: cache.clone(),
                before: before.remove(cache.name.as_slice()).unwrap_or_default(),
            })
            .collect()
    }

    /// Bytes grown over the whole look.
    pub(super) fn grown_bytes(&self) -> i64 {
        let first = self.before.first();
        first.map_or(0, |(bytes, _)| difference(self.cache.bytes, *bytes))
    }

    /// Whether both bytes and objects rose from each look to the next.
    pub(super) fn is_steady(&self) -> bool {
        let last = (self.cache.bytes, self.cache.objects);
        let looks: Vec<(u64, u64)> = self.before.iter().copied().chain([last]).collect();
        looks.len() > 2
            && looks
                .windows(2)
                .all(|pair| pair[1].0 > pair[0].0 && pair[1].1 > pair[0].1)
    }

    /// As the event tells it.
    pub(super) fn usage(&self, sysfs: Option<&Sysfs>, seconds: f64) -> SlabCacheUsage {
        let name = &self.cache.name;
        let first = self.before.first();
        let rate = |now: u64, then: u64| per_second(difference(now, then), seconds);
        SlabCacheUsage {
            name: text(name),
            aliases: sysfs.map(|sysfs| sysfs.aliases(name).iter().map(|it| text(it)).collect()),
            reclaimable: sysfs
                .and_then(|sysfs| sysfs.number(name, "reclaim_account"))
                .map(|flag| flag != 0),
            bytes: self.cache.bytes,
            objects: self.cache.objects,
            object_bytes: self.cache.object_bytes,
            growth_bytes_per_s: first.map(|(bytes, _)| rate(self.cache.bytes, *bytes)),
            growth_objects_per_s: first.map(|(_, objects)| rate(self.cache.objects, *objects)),
        }
    }
}

/// The `top` biggest, then as many more that grew most and are not among them.
pub(super) fn ranked(mut caches: Vec<Grown>, top: usize) -> Vec<Grown> {
    caches.sort_by(|a, b| {
        let by_size = b.cache.bytes.cmp(&a.cache.bytes);
        by_size.then_with(|| a.cache.name.cmp(&b.cache.name))
    });
    let mut rest = caches.split_off(top.min(caches.len()));
    rest.retain(|cache| cache.grown_bytes() > 0);
    rest.sort_by_key(|cache| std::cmp::Reverse(cache.grown_bytes()));
    caches.extend(rest.into_iter().take(top));
    caches
}

pub(super) fn difference(now: u64, then: u64) -> i64 {
    i64::try_from(i128::from(now) - i128::from(then)).unwrap_or(0)
}

/// A rate to the tenth.
pub(super) fn per_second(difference: i64, seconds: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a rate needs no more than 52 bits"
    )]
    let difference = difference as f64;
    (difference / seconds.max(1e-9) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn cache(name: &str, bytes: u64, objects: u64) -> Cache {
        Cache {
            name: name.into(),
            objects,
            object_bytes: 64,
            bytes,
        }
    }

    #[test]
    fn merged_caches_are_one_with_other_names() {
        let root = tempfile::tempdir().unwrap();
        let slab = root.path().join("kernel/slab");
        for name in [":0000512", "dentry"] {
            fs::create_dir_all(slab.join(name)).unwrap();
            let reclaimable = if name == "dentry" { "1\n" } else { "0\n" };
            fs::write(slab.join(name).join("reclaim_account"), reclaimable).unwrap();
        }
        symlink(":0000512", slab.join("skbuff_fclone_cache")).unwrap();
        symlink(":0000512", slab.join("kmalloc-512")).unwrap();
        let sysfs = Sysfs::open(root.path()).unwrap();
        assert_eq!(sysfs.aliases(b"kmalloc-512"), [b"skbuff_fclone_cache"]);
        assert_eq!(sysfs.aliases(b"dentry"), Vec::<Vec<u8>>::new());
        let merged = Grown {
            cache: cache("kmalloc-512", 4096, 8),
            before: vec![(8192, 18)],
        };
        let usage = merged.usage(Some(&sysfs), 2.0);
        assert_eq!(usage.reclaimable, Some(false));
        assert_eq!(usage.growth_bytes_per_s, Some(-2048.0));
        assert_eq!(usage.growth_objects_per_s, Some(-5.0));
        let gone = tempfile::tempdir().unwrap();
        assert!(Sysfs::open(gone.path()).is_err());
        let unknown = merged.usage(None, 2.0);
        assert_eq!((unknown.aliases, unknown.reclaimable), (None, None));
    }

    #[test]
    fn the_biggest_then_those_that_grew() {
        let looks = [
            vec![cache("a", 100, 1), cache("b", 50, 1), cache("c", 1, 1)],
            vec![
                cache("a", 90, 1),
                cache("b", 50, 1),
                cache("c", 20, 2),
                cache("d", 30, 3),
            ],
        ];
        let ranked = ranked(Grown::join(&looks), 2);
        let names: Vec<_> = ranked.iter().map(|it| it.cache.name.as_slice()).collect();
        // `d` was made meanwhile: how fast it grows is not known.
        assert_eq!(names, [b"a", b"b", b"c"]);
    }

    #[test]
    fn steady_growth_never_pauses() {
        let grown = |before: &[(u64, u64)]| Grown {
            cache: cache("x", 40, 40),
            before: before.to_vec(),
        };
        assert!(grown(&[(10, 10), (20, 20), (30, 30)]).is_steady());
        assert!(!grown(&[(10, 10), (30, 30), (30, 30)]).is_steady());
        assert!(!grown(&[(10, 10), (20, 50), (30, 30)]).is_steady());
        assert!(!grown(&[(10, 10)]).is_steady());
    }
}
