//! What a report has to say of the one before.

use std::collections::HashSet;
use std::time::Instant;

use super::{Group, Key};
use crate::event::{SkbBalance, SkbBefore, SkbHolder};

/// What is kept of a report until the next.
pub(super) struct Last {
    at: Instant,
    balance: SkbBalance,
    holders: Vec<(Key, SkbHolder)>,
}

impl Last {
    /// Keeps a report that was made now, with those that it lists.
    pub(super) fn of(balance: &SkbBalance, listed: &[Group]) -> Self {
        let holders = listed.iter().map(|group| (group.key, group.holder.clone()));
        Self {
            at: Instant::now(),
            balance: balance.clone(),
            holders: holders.collect(),
        }
    }

    /// What is said of it where these hold something now, listed or not.
    pub(super) fn before(self, now: &[Group]) -> SkbBefore {
        let age_ms = self.at.elapsed().as_millis();
        let now: HashSet<Key> = now.iter().map(|group| group.key).collect();
        let gone = self
            .holders
            .into_iter()
            .filter(|(key, _)| !now.contains(key));
        SkbBefore {
            age_ms: u64::try_from(age_ms).unwrap_or(u64::MAX),
            balance: self.balance,
            gone: gone.map(|(_, holder)| holder).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(pid: u32, family: u16) -> Group {
        let holder = SkbHolder {
            bytes: u64::from(pid),
            ..SkbHolder::default()
        };
        Group {
            key: (Some((pid, Some(1))), None, family, 3, 0),
            owners: Vec::new(),
            creator: None,
            biggest: 0,
            had_bytes: 0,
            holder,
        }
    }

    #[test]
    fn who_holds_nothing_any_more_is_gone() {
        let balance = SkbBalance {
            slab_objects: Some(20),
            ..SkbBalance::default()
        };
        let then = [group(1, 17), group(2, 17), group(1, 1)];
        let before = Last::of(&balance, &then).before(&[group(3, 17), group(1, 17)]);
        assert_eq!(before.balance, balance);
        let gone: Vec<u64> = before.gone.iter().map(|holder| holder.bytes).collect();
        assert_eq!(gone, [2, 1]);
    }
}
