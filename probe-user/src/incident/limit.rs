//! Whose limit was hit, where the kernel did not name it.
//!
//! The owner is an ancestor of the trigger's memcg, and the victim is below it. With memcg v1
//! code the kernel sets `oom_lock` on the whole subtree of the limit for the time of the kill
//! (`mem_cgroup_oom_trylock()`, mm/memcontrol-v1.c), so the owner is the highest with it. Without,
//! it is the lowest common ancestor whose page counter stands at its limit. If there is neither,
//! the node was out of memory.

use probe_common::wire::{LimitLevel, level};

/// Page counters at or above this have no limit: `PAGE_COUNTER_MAX` is `LONG_MAX / PAGE_SIZE`.
pub const NO_LIMIT_PAGES: u64 = 1 << 50;

/// Pages by which a counter may stand below its limit and still be the one that was hit: what one
/// failed charge gives back (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h).
const SLACK_PAGES: u64 = 64;

/// How the owner was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// The kernel passed it to the hooked function.
    OomControl,
    /// The kernel had it locked for the kill.
    OomLock,
    /// Its counter stands at its limit.
    CounterAtMax,
    /// The kernel log names it.
    Kmsg,
}

impl FoundBy {
    /// As events name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OomControl => "oom_control",
            Self::OomLock => "oom_lock",
            Self::CounterAtMax => "counter_at_max",
            Self::Kmsg => "kmsg",
        }
    }
}

/// The index in `levels` (leaf first, of the trigger) of the limit owner; `None` for the node.
///
/// `paths` are the paths of the levels, `victim` is the victim's; `logged` is what the kernel log
/// says of this kill: the owner's path, or `Some(None)` for a kill without one.
pub fn infer(
    levels: &[LimitLevel],
    paths: &[Vec<u8>],
    victim: &[u8],
    logged: Option<Option<&[u8]>>,
) -> Option<(usize, FoundBy)> {
    let locked = levels
        .iter()
        .rposition(|level| level.flags & level::OOM_LOCK != 0);
    let at_max = || {
        levels.iter().zip(paths).position(|(level, path)| {
            level.max_pages < NO_LIMIT_PAGES
                && level.usage_pages.saturating_add(SLACK_PAGES) >= level.max_pages
                && is_ancestor(path, victim)
        })
    };
    let can_lock = levels
        .iter()
        .any(|level| level.flags & level::HAS_OOM_LOCK != 0);
    let inferred = match locked {
        Some(index) => Some((index, FoundBy::OomLock)),
        None if can_lock => None,
        None => at_max().map(|index| (index, FoundBy::CounterAtMax)),
    };
    match logged {
        // The log is late and may be rate-limited, but what it says of this kill is the truth.
        Some(Some(path)) => match paths.iter().position(|candidate| candidate == path) {
            Some(index) if inferred.is_none_or(|(other, _)| other != index) => {
                Some((index, FoundBy::Kmsg))
            }
            _ => inferred,
        },
        Some(None) => None,
        None => inferred,
    }
}

/// Whether `path` is `below` or an ancestor of it.
pub fn is_ancestor(path: &[u8], below: &[u8]) -> bool {
    if path == b"/" {
        return true;
    }
    below
        .strip_prefix(path)
        .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn levels(rows: &[(u64, u64, u64)]) -> Vec<LimitLevel> {
        rows.iter()
            .map(|&(usage_pages, max_pages, flags)| LimitLevel {
                usage_pages,
                max_pages,
                flags,
                ..LimitLevel::zeroed()
            })
            .collect()
    }

    fn paths(paths: &[&str]) -> Vec<Vec<u8>> {
        paths.iter().map(|path| path.as_bytes().to_vec()).collect()
    }

    const HAS: u64 = level::HAS_OOM_LOCK;
    const LOCKED: u64 = level::HAS_OOM_LOCK | level::OOM_LOCK;

    #[test]
    fn the_highest_locked_level_owns_the_limit() {
        let levels = levels(&[(10, 100, LOCKED), (100, 100, LOCKED), (200, u64::MAX, HAS)]);
        let paths = paths(&["/pod/a", "/pod", "/"]);
        assert_eq!(
            infer(&levels, &paths, b"/pod/b", None),
            Some((1, FoundBy::OomLock))
        );
    }

    #[test]
    fn without_a_lock_the_node_is_out_of_memory() {
        let levels = levels(&[(100, 100, HAS), (200, u64::MAX, HAS)]);
        let paths = paths(&["/a", "/"]);
        assert_eq!(infer(&levels, &paths, b"/b", None), None);
    }

    #[test]
    fn the_lowest_full_common_ancestor_owns_the_limit() {
        let levels = levels(&[
            (100, 100, 0),
            (990, 1000, 0),
            (2000, 2000, 0),
            (0, u64::MAX, 0),
        ]);
        let paths = paths(&["/s/pod/a", "/s/pod", "/s", "/"]);
        let found = infer(&levels, &paths, b"/s/pod/b", None);
        assert_eq!(found, Some((1, FoundBy::CounterAtMax)));
        let found = infer(&levels, &paths, b"/s/pod2/b", None);
        assert_eq!(found, Some((2, FoundBy::CounterAtMax)));
        assert_eq!(infer(&levels, &paths, b"/elsewhere", None), None);
    }

    #[test]
    fn the_log_corrects() {
        let levels = levels(&[(100, 100, 0), (1000, 1000, 0), (0, u64::MAX, 0)]);
        let paths = paths(&["/pod/a", "/pod", "/"]);
        let logged = |path| infer(&levels, &paths, b"/pod/a", Some(path));
        assert_eq!(logged(Some(b"/pod")), Some((1, FoundBy::Kmsg)));
        assert_eq!(logged(Some(b"/pod/a")), Some((0, FoundBy::CounterAtMax)));
        assert_eq!(logged(None), None);
    }

    #[test]
    fn ancestors_are_whole_components() {
        assert!(is_ancestor(b"/", b"/a"));
        assert!(is_ancestor(b"/a", b"/a"));
        assert!(is_ancestor(b"/a", b"/a/b"));
        assert!(!is_ancestor(b"/a", b"/ab"));
        assert!(!is_ancestor(b"/a/b", b"/a"));
    }
}
