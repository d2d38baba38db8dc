//! Counters that only rise, and how much of them was told already.

use std::collections::BTreeMap;

use crate::event::{LimitEvent, StallKind};

/// Between two events of one counter, ns.
pub(super) const PAUSE_NS: u64 = 10_000_000_000;

/// Stalls that are told: shorter ones together are no news on a busy node.
const LEAST_STALL_NS: u64 = 100_000_000;

/// A counter of a memory cgroup, by kernfs id; 0 is the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Counter {
    Hits(LimitEvent),
    Stalls(StallKind),
}

/// A value of a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) count: u64,
    pub(super) total_ns: u64,
    pub(super) pages: u64,
}

/// What the kernel's counters of a cgroup were at a limit hit that came with a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AtHit {
    /// Bytes charged.
    pub(super) usage: u64,
    /// `memory.max`, bytes; `None` for none.
    pub(super) max: Option<u64>,
    /// `memory.high`, bytes; `None` for none.
    pub(super) high: Option<u64>,
}

/// What was told last, and what was seen at the last hit: of a cgroup that is gone before it is
/// looked at, there is nothing else.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    told: BTreeMap<(u64, Counter), (Value, u64)>,
    at_hit: BTreeMap<u64, AtHit>,
}

impl Ledger {
    /// A limit of a cgroup was hit.
    pub(super) fn hit(&mut self, id: u64, at_hit: AtHit) {
        self.at_hit.insert(id, at_hit);
    }

    /// The last hit of a cgroup that came with a record.
    pub(super) fn at_hit(&self, id: u64) -> Option<AtHit> {
        self.at_hit.get(&id).copied()
    }

    /// What is new of a counter, if it is to be told: at once the first time, then no more often
    /// than every [`PAUSE_NS`]; `last` does not wait, as nothing comes after it.
    pub(super) fn due(
        &mut self,
        id: u64,
        counter: Counter,
        value: Value,
        now_ns: u64,
        last: bool,
    ) -> Option<Value> {
        let told = self.told.get(&(id, counter));
        let (known, at_ns) = told.copied().unwrap_or_default();
        let new = Value {
            count: value.count.saturating_sub(known.count),
            total_ns: value.total_ns.saturating_sub(known.total_ns),
            pages: value.pages.saturating_sub(known.pages),
        };
        let is_news = match counter {
            Counter::Hits(_) => new.count > 0,
            // Who was told of some is told of all in the end.
            Counter::Stalls(_) => {
                new.total_ns >= LEAST_STALL_NS || (last && told.is_some() && new.count > 0)
            }
        };
        let is_time = last || told.is_none() || now_ns >= at_ns.saturating_add(PAUSE_NS);
        if !is_news || !is_time {
            return None;
        }
        self.told.insert((id, counter), (value, now_ns));
        Some(new)
    }

    /// The cgroup was removed.
    pub(super) fn forget(&mut self, id: u64) {
        let counters = (id, Counter::Hits(LimitEvent::Max))..=(id, Counter::Stalls(LAST_KIND));
        let gone: Vec<_> = self.told.range(counters).map(|(key, _)| *key).collect();
        for key in gone {
            self.told.remove(&key);
        }
        self.at_hit.remove(&id);
    }
}

/// Orders last.
const LAST_KIND: StallKind = StallKind::RefaultWait;

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Counter = Counter::Hits(LimitEvent::Max);
    const HIGH: Counter = Counter::Hits(LimitEvent::High);
    const RECLAIM: Counter = Counter::Stalls(StallKind::MemcgReclaim);
    const LAST: Counter = Counter::Stalls(LAST_KIND);

    fn hits(count: u64) -> Value {
        Value {
            count,
            ..Value::default()
        }
    }

    #[test]
    fn the_first_hit_is_told_at_once_and_nothing_is_left_untold() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.due(1, MAX, hits(3), 5, false), Some(hits(3)));
        assert_eq!(ledger.due(1, MAX, hits(9), 6, false), None);
        assert_eq!(ledger.due(1, HIGH, hits(1), 6, false), Some(hits(1)));
        assert_eq!(ledger.due(2, MAX, hits(2), 6, false), Some(hits(2)));
        let later = 5 + PAUSE_NS;
        assert_eq!(ledger.due(1, MAX, hits(9), later, false), Some(hits(6)));
        assert_eq!(ledger.due(1, MAX, hits(9), 3 * PAUSE_NS, true), None);
        assert_eq!(ledger.due(1, MAX, hits(10), later + 1, true), Some(hits(1)));
    }

    #[test]
    fn short_stalls_add_up_to_news() {
        let mut ledger = Ledger::default();
        let stalls = |count, total_ns| Value {
            count,
            total_ns,
            pages: 3 * count,
        };
        let (little, enough) = (stalls(9, LEAST_STALL_NS - 1), stalls(10, LEAST_STALL_NS));
        assert_eq!(ledger.due(1, RECLAIM, little, 5, false), None);
        assert_eq!(ledger.due(1, RECLAIM, enough, 5, false), Some(enough));
        let rest = stalls(11, LEAST_STALL_NS + 7);
        assert_eq!(ledger.due(1, RECLAIM, rest, 9, false), None);
        assert_eq!(ledger.due(1, RECLAIM, rest, 9, true), Some(stalls(1, 7)));
        assert_eq!(ledger.due(2, RECLAIM, little, 9, true), None);
    }

    #[test]
    fn a_removed_cgroup_is_forgotten_whole() {
        let mut ledger = Ledger::default();
        let much = Value {
            count: 1,
            total_ns: LEAST_STALL_NS,
            pages: 0,
        };
        for counter in [MAX, HIGH, RECLAIM, LAST] {
            ledger.due(1, counter, much, 5, false);
            ledger.due(2, counter, much, 5, false);
        }
        for id in [1, 2] {
            ledger.hit(id, AtHit::default());
        }
        ledger.forget(1);
        assert_eq!(ledger.told.len(), 4);
        assert!(ledger.told.keys().all(|(id, _)| *id == 2));
        assert_eq!(ledger.at_hit(1), None);
        assert_eq!(ledger.at_hit(2), Some(AtHit::default()));
    }
}
