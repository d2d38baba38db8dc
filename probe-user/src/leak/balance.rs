//! What the slab caches of socket buffers say, against what was found.

use std::fs;
use std::path::Path;

use crate::event::{SkbBalance, SkbCache, SkbExplained, text};
use crate::node::{Error, slabinfo};

/// The cache of single buffers: never merged, as it has a region that is copied to user space
/// (net/core/skbuff.c).
const HEADS: &str = "skbuff_head_cache";

/// Caches of buffers: single ones, pairs of a buffer and its clone (TCP), small data.
const CACHES: &[&str] = &[HEADS, "skbuff_fclone_cache", "skbuff_small_head"];

/// Objects of [`HEADS`] that a processor may have at hand and that count as in use: a partly free
/// slab of 32, 30 and more objects in its partial slabs or sheaves, 128 in the NAPI cache, 128 on
/// the list of deferred frees.
const NOISE_PER_CPU: u64 = 350;

/// What slabinfo says of the caches of buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caches(Vec<SkbCache>);

impl Caches {
    /// Reads `<proc>/slabinfo`; names of merged caches come from `<sys>/kernel/slab`.
    pub fn read(proc: &Path, sys: &Path) -> Result<Self, Error> {
        let listed = slabinfo::read(proc)?;
        let directory = sys.join("kernel/slab");
        Ok(Self(
            CACHES
                .iter()
                .filter_map(|name| {
                    let mut aliases = merged_with(&directory, name);
                    let find = |name: &str| listed.iter().find(|c| c.name == name.as_bytes());
                    let cache = find(name).or_else(|| aliases.iter().find_map(|name| find(name)));
                    // A kernel without this cache has neither.
                    if cache.is_none() && aliases.is_empty() && !directory.join(name).exists() {
                        return None;
                    }
                    aliases.sort();
                    Some(SkbCache {
                        name: (*name).to_owned(),
                        objects: cache.map(|cache| cache.objects),
                        bytes: cache.map(|cache| cache.bytes),
                        shared_with: aliases,
                    })
                })
                .collect(),
        ))
    }

    /// Single buffers in use.
    pub fn heads(&self) -> Option<u64> {
        self.0.iter().find(|cache| cache.name == HEADS)?.objects
    }
}

/// Other names of the cache `name`: the links in `directory` that lead to the same place.
fn merged_with(directory: &Path, name: &str) -> Vec<String> {
    let Ok(target) = fs::read_link(directory.join(name)) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|other| other == target))
        .map(|entry| text(std::os::unix::ffi::OsStrExt::as_bytes(&*entry.file_name())))
        .filter(|other| other != name)
        .collect()
}

/// Draws the balance of `after`, or an empty one with the reason that is told elsewhere.
pub fn draw(
    before: Option<&Caches>,
    after: Option<Caches>,
    explained_by: Vec<SkbExplained>,
    cpus: Option<u64>,
) -> SkbBalance {
    let objects: Option<u64> = explained_by.iter().map(|part| part.objects).sum();
    let heads = after.as_ref().and_then(Caches::heads);
    let noise = cpus.map(|cpus| cpus * NOISE_PER_CPU);
    let ratio = heads.zip(objects).and_then(|(heads, objects)| {
        (heads > noise.unwrap_or(0)).then(|| share(objects.min(heads), heads))
    });
    SkbBalance {
        slab_unreclaimable_bytes: None,
        slab_objects: heads,
        noise_objects: noise,
        slab_growth_objects: before
            .and_then(Caches::heads)
            .zip(heads)
            .map(|(before, after)| after.cast_signed().wrapping_sub(before.cast_signed())),
        caches: after.map(|caches| caches.0).unwrap_or_default(),
        explained_objects: objects,
        explained_bytes: explained_by
            .iter()
            .fold(0, |sum, part| sum.saturating_add(part.bytes)),
        explained_by,
        explained_ratio: ratio,
        unexplained_objects: heads
            .zip(objects)
            .map(|(heads, objects)| heads.saturating_sub(objects)),
    }
}

/// To the ten-thousandth.
#[expect(clippy::cast_precision_loss, reason = "a share to four digits")]
pub(super) fn share(part: u64, whole: u64) -> f64 {
    (part as f64 / whole as f64 * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::event::SkbSource;

    fn caches(heads: u64) -> Caches {
        Caches(vec![SkbCache {
            name: HEADS.to_owned(),
            objects: Some(heads),
            ..SkbCache::default()
        }])
    }

    fn part(objects: Option<u64>, bytes: u64) -> SkbExplained {
        SkbExplained {
            source: SkbSource::Sockets,
            objects,
            bytes,
        }
    }

    #[test]
    fn merged_caches_are_found_by_any_of_their_names() {
        let root = tempfile::tempdir().unwrap();
        let slab = root.path().join("kernel/slab");
        fs::create_dir_all(slab.join(":0000512")).unwrap();
        fs::create_dir_all(slab.join(HEADS)).unwrap();
        for name in ["skbuff_fclone_cache", "pool_workqueue", "kmalloc-512"] {
            symlink(":0000512", slab.join(name)).unwrap();
        }
        symlink(":0000064", slab.join("anon_vma")).unwrap();
        let line = |name: &str, objects: u64| {
            format!(
                "{name} {objects} {objects} 256 32 2 : tunables 0 0 0 : slabdata {} 4 0\n",
                objects / 32
            )
        };
        let info = line(HEADS, 3200) + &line("pool_workqueue", 64) + &line("dentry", 32);
        fs::write(root.path().join("slabinfo"), info).unwrap();
        let Caches(found) = Caches::read(root.path(), root.path()).unwrap();
        assert_eq!(found.len(), 2, "this kernel has no small heads: {found:?}");
        assert_eq!(
            (found[0].objects, found[0].shared_with.len()),
            (Some(3200), 0)
        );
        assert_eq!(found[1].objects, Some(64));
        assert_eq!(found[1].shared_with, ["kmalloc-512", "pool_workqueue"]);
    }

    #[test]
    fn what_is_explained_and_what_is_not() {
        let parts = vec![part(Some(99_000), 1 << 27), part(Some(500), 1 << 10)];
        let balance = draw(Some(&caches(1000)), Some(caches(100_000)), parts, Some(2));
        assert_eq!(balance.slab_growth_objects, Some(99_000));
        assert_eq!(balance.explained_objects, Some(99_500));
        assert_eq!(balance.explained_ratio, Some(0.995));
        assert_eq!(balance.unexplained_objects, Some(500));
        assert_eq!(balance.explained_bytes, (1 << 27) + (1 << 10));
    }

    #[test]
    fn noise_is_not_divided_by() {
        let balance = draw(None, Some(caches(600)), vec![part(Some(0), 0)], Some(2));
        assert_eq!(
            (balance.noise_objects, balance.explained_ratio),
            (Some(700), None)
        );
        assert_eq!(balance.slab_growth_objects, None);
    }

    #[test]
    fn what_is_not_counted_is_not_zero() {
        let parts = vec![part(Some(5), 10), part(None, 10)];
        let balance = draw(None, Some(caches(100_000)), parts, Some(2));
        assert_eq!(balance.explained_objects, None);
        assert_eq!(balance.unexplained_objects, None);
        assert_eq!(balance.explained_bytes, 20);
        let balance = draw(None, None, vec![part(Some(5), 10)], Some(2));
        assert_eq!(
            (balance.slab_objects, balance.explained_ratio),
            (None, None)
        );
    }
}
