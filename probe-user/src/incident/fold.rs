//! Invocations that killed nobody come in thousands: the allocation is tried again for ever. One
//! in a while is reported, with the number of those that were not.

use std::collections::VecDeque;

/// Further ones for one limit are folded into one for this long, ns.
pub(super) const FOLD_NS: u64 = 10_000_000_000;

/// Most limits that are told apart.
const MAX_LIMITS: usize = 64;

/// What was reported lately, by the limit that was hit.
#[derive(Debug, Default)]
pub struct Fold<K>(VecDeque<Reported<K>>);

#[derive(Debug)]
struct Reported<K> {
    limit: K,
    boot_ns: u64,
    folded: u64,
}

impl<K: PartialEq> Fold<K> {
    /// Nothing reported yet.
    pub const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Whether this one is to be reported: then how many before it were not.
    pub fn admit(&mut self, limit: K, boot_ns: u64) -> Option<u64> {
        let mut folded = 0;
        if let Some(index) = self.0.iter().position(|known| known.limit == limit) {
            if let Some(known) = self.0.get_mut(index)
                && boot_ns < known.boot_ns.saturating_add(FOLD_NS)
            {
                known.folded += 1;
                return None;
            }
            folded = self.0.remove(index).map_or(0, |known| known.folded);
        }
        if self.0.len() >= MAX_LIMITS {
            self.0.pop_front();
        }
        self.0.push_back(Reported {
            limit,
            boot_ns,
            folded: 0,
        });
        Some(folded)
    }

    /// Limits that are kept in mind.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_reported_once_in_a_while() {
        let mut fold = Fold::new();
        assert_eq!(fold.admit("a", 0), Some(0));
        assert_eq!(fold.admit("b", 1), Some(0));
        assert_eq!(fold.admit("a", 1), None);
        assert_eq!(fold.admit("a", FOLD_NS - 1), None);
        assert_eq!(fold.admit("a", FOLD_NS), Some(2));
        assert_eq!(fold.admit("b", 2 * FOLD_NS), Some(0));
    }

    #[test]
    fn memory_is_bounded() {
        let mut fold = Fold::new();
        for limit in 0..1000 {
            fold.admit(limit, 0);
        }
        assert_eq!(fold.len(), MAX_LIMITS);
    }
}
