//! The daemon's side of memory pressure: who is looked at when, and what is remembered.
//!
//! Each second: the usage of every watched cgroup, a full look at those that matter, and at a few
//! of the others in turn, so that each has one every ten seconds, or every minute if its usage does
//! not change. A cgroup that has just hit a limit is looked at fully ten times a second. One full
//! look costs some 50 µs, most of it `memory.stat`; the bounds below keep all of them under one
//! percent of a processor.

use std::{
    collections::VecDeque,
    ops::{Bound, RangeInclusive},
    path::Path,
    rc::Rc,
    time::Duration,
};

use super::{
    cgroup::Cgroup,
    history, look,
    metrics::{self, Totals},
    node::NodeFiles,
    psi_trigger::{State, Subject, Triggers},
    sample::{CgroupSample, NodeSample, Settings},
    watch::{self, MAX_WATCHED},
    watched::Watched,
};
use crate::{
    event::Before,
    identity::hierarchy::Hierarchies,
    node::{Error, clock, memcg::Version},
};

/// Most cgroups that get a full look each second.
pub const MAX_FULL: usize = 64;

/// Most cgroups that get ten full looks a second.
const MAX_HOT: usize = 8;

/// Most full looks in turn each second.
const MAX_TURNS: usize = 50;

/// In so many seconds each cgroup has its turn, if [`MAX_TURNS`] allow it.
const TURN_SECONDS: usize = 10;

/// Node samples that are kept: two minutes.
const NODE_SAMPLES: usize = 120;

const HOT_INTERVAL_NS: u64 = SECOND_NS / 10;

const SECOND_NS: u64 = 1_000_000_000;

/// A full look at a cgroup.
#[derive(Clone, Debug)]
pub struct Look {
    /// Path from the root of the memory hierarchy.
    pub path: Rc<[u8]>,
    /// What was seen.
    pub sample: CgroupSample,
    /// Its limits.
    pub settings: Settings,
}

/// What one tick found.
#[derive(Debug, Default)]
pub struct Tick {
    /// The node, once a second.
    pub node: Option<NodeSample>,
    /// Full looks, in no order.
    pub looks: Vec<Look>,
    /// Cgroups that were found to be removed.
    pub gone: Vec<Rc<[u8]>>,
}

/// What the kernel's counters of a cgroup were when it killed by its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtKill {
    /// `memory.max`, bytes; `None` for none.
    pub limit_bytes: Option<u64>,
    /// The most it ever was charged.
    pub peak_bytes: Option<u64>,
    /// Hits of its hard limit since it was made.
    pub max_events: Option<u64>,
    /// How many of them there were before hooks counted them, which samples on v1 begin with.
    pub max_unhooked: Option<u64>,
}

/// What could not be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortfall {
    /// Cgroups that are not watched for there are too many, as of the last walk.
    pub left_out: u64,
    /// Cgroups whose usage file is opened for each look for want of file descriptors.
    pub without_file: u64,
    /// Looks that failed, other than at a cgroup that was removed.
    pub failed_looks: u64,
}

impl Shortfall {
    /// How much more could not be sampled than `before`. Who is left out is counted anew by each
    /// walk, and told again only if there are more than the last time.
    pub fn more_than(&self, before: &Self) -> u64 {
        self.left_out.saturating_sub(before.left_out)
            + self.failed_looks.saturating_sub(before.failed_looks)
    }
}

/// Samples memory pressure and remembers it. Everything happens in [`Pressure::tick`], on the
/// caller's thread.
pub struct Pressure {
    watched: Watched,
    /// Those that get full looks, the most urgent first.
    full: Vec<Rc<[u8]>>,
    node_files: NodeFiles,
    node: VecDeque<NodeSample>,
    triggers: Triggers,
    totals: Totals,
    next_ns: u64,
    next_hot_ns: u64,
    /// Who had the last turn.
    turn: Rc<[u8]>,
    failed_looks: u64,
    buf: Vec<u8>,
}

impl Pressure {
    /// Finds the cgroups to watch, opens files, arms the node's trigger. Must be called within a
    /// tokio runtime.
    pub fn new(hierarchies: &Hierarchies, proc: &Path) -> Result<Self, Error> {
        let now_ns = clock::boot_ns();
        Ok(Self {
            watched: Watched::new(hierarchies, now_ns),
            full: Vec::new(),
            node_files: NodeFiles::open(proc)?,
            node: VecDeque::with_capacity(NODE_SAMPLES),
            triggers: Triggers::new(proc),
            totals: Totals::default(),
            next_ns: now_ns,
            next_hot_ns: u64::MAX,
            turn: Rc::default(),
            failed_looks: 0,
            buf: Vec::new(),
        })
    }

    /// Hooks count limit hits ([`Self::counted`]): files of cgroup v1 are not asked for them.
    pub fn hooked(&mut self) {
        self.watched.roots.hooked = self.watched.roots.version == Version::V1;
    }

    /// The cgroup at `path` hit its hard limit so often since oomprobe was attached.
    pub fn counted(&mut self, path: &[u8], hits: u64) {
        if let Some(cgroup) = self.watched.cgroups.get_mut(path) {
            cgroup.hooked = hits;
        }
    }

    /// How long until [`Self::tick`] has something to do.
    pub fn due_in(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.next_ns.min(self.next_hot_ns).saturating_sub(now_ns))
    }

    /// Looks at what is due at `now_ns` (`CLOCK_BOOTTIME`).
    pub fn tick(&mut self, now_ns: u64) -> Tick {
        let mut tick = Tick::default();
        if now_ns >= self.next_ns {
            // Missed seconds are not made up for.
            self.next_ns = (self.next_ns + SECOND_NS).max(now_ns + SECOND_NS / 2);
            self.look_at_node(&mut tick);
            self.look_at_usage(now_ns, &mut tick);
            self.choose_full(now_ns);
            for path in self.full.clone() {
                self.look_fully(&path, now_ns, &mut tick);
            }
            self.take_turns(now_ns, &mut tick);
            self.watched.walk_a_bit(now_ns);
            self.plan_hot(now_ns);
        } else if now_ns >= self.next_hot_ns {
            for path in self.hot(now_ns) {
                self.look_fully(&path, now_ns, &mut tick);
            }
            self.plan_hot(now_ns);
        }
        tick
    }

    /// Waits until tasks of a cgroup, or of the node (`None`), have waited too long for memory.
    /// Dropped while it waits, it has lost nothing.
    pub async fn psi(&mut self) -> Subject {
        let subject = self.triggers.fired().await;
        if let Some(cgroup) = subject
            .as_ref()
            .and_then(|path| self.watched.cgroups.get_mut(path))
        {
            cgroup.stalled(clock::boot_ns());
        }
        subject
    }

    /// Whether the kernel wakes us under pressure, and if not, why.
    pub fn psi_state(&self) -> &State {
        self.triggers.state()
    }

    /// A memory cgroup was made.
    pub fn created(&mut self, path: &[u8], boot_ns: u64) {
        // Of the same name as one whose end was missed.
        self.retire(path);
        // Others may get a limit after this; the next walk sees it.
        if watch::is_named(path) {
            self.watched.watch(path, Some(boot_ns));
        }
    }

    /// A memory cgroup was removed.
    pub fn removed(&mut self, path: &[u8]) {
        self.retire(path);
    }

    /// A limit of the cgroup at `path`, its own, was hit at `boot_ns`.
    pub fn limit_hit(&mut self, path: &[u8], boot_ns: u64) {
        if !self.watched.cgroups.contains_key(path) {
            // Not for one that cannot be watched: it is gone, or its path was too long to record.
            if self.watched.cgroups.len() >= MAX_WATCHED
                && self.watched.roots.open_usage(path).is_ok()
            {
                self.watched.make_room();
            }
            self.watched.watch(path, None);
        }
        let Some(cgroup) = self.watched.cgroups.get_mut(path) else {
            return;
        };
        let was_hot = cgroup.is_hot(boot_ns);
        cgroup.hit(boot_ns);
        if !was_hot {
            self.choose_full(boot_ns);
            self.next_hot_ns = self.next_hot_ns.min(boot_ns);
        }
    }

    /// Takes what hooks counted, and whose a cgroup is, for the metrics.
    pub fn totals(&mut self) -> &mut Totals {
        &mut self.totals
    }

    /// Counters and gauges of every watched cgroup and of the node.
    pub fn metrics(&self) -> Vec<metrics::Series> {
        let cgroups = self.watched.cgroups.iter().map(|(path, cgroup)| {
            let detail = cgroup.record.last_look().and_then(|sample| sample.detail);
            (path, cgroup.usage_bytes, &cgroup.settings, detail)
        });
        metrics::snapshot(&self.totals, cgroups, self.node.back())
    }

    /// The least memory that was available on the node in the samples between two times.
    pub fn least_available_bytes(&self, times_ns: RangeInclusive<u64>) -> Option<u64> {
        let within = |sample: &&NodeSample| times_ns.contains(&sample.boot_ns);
        let samples = self.node.iter().filter(within);
        samples.filter_map(|sample| sample.available_bytes).min()
    }

    /// What led up to a kill in the cgroup at `path`, or for want of memory on its limit; `None`
    /// if nothing is known of it.
    pub fn before(&mut self, path: &[u8], kill_boot_ns: u64, at_kill: AtKill) -> Option<Before> {
        if !self.watched.cgroups.contains_key(path)
            && !self.watched.gone.iter().any(|(gone, _)| **gone == *path)
        {
            self.watched.watch(path, None);
        }
        let now_ns = clock::boot_ns();
        if let Some(cgroup) = self.watched.cgroups.get_mut(path) {
            cgroup.look_at_quota(&self.watched.roots, path, now_ns, &mut self.buf);
        }
        let (cgroup, mut known) = if let Some(cgroup) = self.watched.cgroups.get(path) {
            let mut known = cgroup.known();
            // The counters at the kill; what was in memory then is in the record, or lost.
            if let Ok(hits) = cgroup.limit_hits(&self.watched.roots, path, &mut self.buf) {
                known.max_events = hits.max;
                known.high_events = hits.high;
            }
            (cgroup, known)
        } else {
            let (_, cgroup) = self
                .watched
                .gone
                .iter()
                .rev()
                .find(|(gone, _)| **gone == *path)?;
            (cgroup, cgroup.known())
        };
        known.peak_bytes = at_kill.peak_bytes;
        // A limit that was set after the last look at the settings.
        known.limit_bytes = at_kill.limit_bytes.or(known.limit_bytes);
        // Hits go on while the victim dies: they did not lead up to the kill.
        let unsampled = if self.watched.roots.hooked {
            at_kill.max_unhooked
        } else {
            Some(0)
        };
        let hits = at_kill.max_events.zip(unsampled);
        let hits = hits.map(|(all, unsampled)| all.saturating_sub(unsampled));
        known.max_events = hits.or(known.max_events);
        Some(history::before(
            &cgroup.record.series(),
            kill_boot_ns,
            &known,
        ))
    }

    /// What led up to a kill for want of memory on the node.
    pub fn before_node(&mut self, kill_boot_ns: u64) -> Before {
        history::before_node(self.node.make_contiguous(), kill_boot_ns)
    }

    /// The node's samples of the last two minutes, oldest first.
    pub fn node(&self) -> impl Iterator<Item = &NodeSample> {
        self.node.iter()
    }

    /// Everything recorded of the cgroup at `path`, oldest first, with its limits.
    pub fn series(&self, path: &[u8]) -> Option<(Vec<CgroupSample>, Settings)> {
        let cgroup = self.watched.cgroups.get(path)?;
        Some((cgroup.record.series(), cgroup.settings))
    }

    /// Usage of the cgroup at `path` when it was last looked at, bytes, and its limits; also of one
    /// that was removed a moment ago.
    pub fn usage(&self, path: &[u8]) -> Option<(u64, Settings)> {
        let gone = || {
            self.watched
                .gone
                .iter()
                .rev()
                .find(|(gone, _)| **gone == *path)
        };
        let cgroup = match self.watched.cgroups.get(path) {
            Some(cgroup) => cgroup,
            None => &gone()?.1,
        };
        Some((cgroup.usage_bytes, cgroup.settings))
    }

    /// Paths of the cgroups that get full looks, the most urgent first.
    pub fn full(&self) -> &[Rc<[u8]>] {
        &self.full
    }

    /// Whether no watched cgroup is inside this one: what an ancestor shows is its descendants'.
    pub fn is_leaf(&self, path: &[u8]) -> bool {
        self.watched.is_leaf(path)
    }

    /// Cgroups that are watched.
    pub fn watched(&self) -> usize {
        self.watched.cgroups.len()
    }

    /// What could not be done.
    pub fn shortfall(&self) -> Shortfall {
        let without = self
            .watched
            .cgroups
            .values()
            .filter(|c| !c.holds_file())
            .count();
        Shortfall {
            left_out: self.watched.left_out,
            without_file: without as u64,
            failed_looks: self.failed_looks,
        }
    }

    /// Memory that records take, bytes.
    pub fn bytes(&self) -> usize {
        let records = self
            .watched
            .cgroups
            .iter()
            .chain(self.watched.gone.iter().map(|(path, c)| (path, c)));
        records
            .map(|(path, cgroup)| size_of::<Cgroup>() + path.len() + cgroup.record.looks_bytes())
            .sum::<usize>()
            + self.node.capacity() * size_of::<NodeSample>()
    }

    fn look_at_node(&mut self, tick: &mut Tick) {
        match self.node_files.read() {
            Ok(sample) => {
                if self.node.len() >= NODE_SAMPLES {
                    self.node.pop_front();
                }
                self.node.push_back(sample);
                tick.node = Some(sample);
            }
            Err(_) => self.failed_looks += 1,
        }
    }

    fn look_at_usage(&mut self, now_ns: u64, tick: &mut Tick) {
        for (path, cgroup) in &mut self.watched.cgroups {
            match cgroup.look(&self.watched.roots, path, now_ns) {
                Ok(()) => {}
                Err(error) if look::is_gone(&error) => tick.gone.push(path.clone()),
                Err(_) => self.failed_looks += 1,
            }
        }
        for path in &tick.gone {
            self.retire(path);
        }
    }

    fn look_fully(&mut self, path: &Rc<[u8]>, now_ns: u64, tick: &mut Tick) {
        let Some(cgroup) = self.watched.cgroups.get_mut(path) else {
            return;
        };
        match cgroup.look_fully(&self.watched.roots, path, now_ns, &mut self.buf) {
            Ok(sample) => tick.looks.push(Look {
                path: path.clone(),
                sample,
                settings: cgroup.settings,
            }),
            Err(error) if look::is_gone(&error) => {
                tick.gone.push(path.clone());
                self.retire(path);
            }
            Err(_) => self.failed_looks += 1,
        }
    }

    /// Those who matter most get full looks; the others no more.
    fn choose_full(&mut self, now_ns: u64) {
        let mut urgent: Vec<(u64, &Rc<[u8]>)> = self
            .watched
            .cgroups
            .iter()
            .map(|(path, cgroup)| (cgroup.urgency(now_ns), path))
            .filter(|(urgency, _)| *urgency > 0)
            .collect();
        urgent.sort_by(|a, b| b.cmp(a));
        urgent.truncate(MAX_FULL);
        let chosen: Vec<Rc<[u8]>> = urgent.into_iter().map(|(_, path)| path.clone()).collect();
        for (path, cgroup) in &mut self.watched.cgroups {
            if cgroup.record.keeps_looks() && !chosen.contains(path) {
                self.triggers.remove(path);
                cgroup.end_full();
            }
        }
        self.full.clear();
        for path in chosen {
            let Some(cgroup) = self.watched.cgroups.get_mut(&path) else {
                continue;
            };
            match cgroup.begin_full(&self.watched.roots, &path) {
                Ok(()) => {
                    if let Some(file) = self.watched.roots.pressure_file(&path, "memory.pressure") {
                        self.triggers.add(&path, &file);
                    }
                    self.full.push(path);
                }
                // The next cheap look finds that too.
                Err(error) if look::is_gone(&error) => {}
                Err(_) => self.failed_looks += 1,
            }
        }
    }

    /// Those that get ten full looks a second.
    fn hot(&self, now_ns: u64) -> Vec<Rc<[u8]>> {
        let is_hot = |path: &&Rc<[u8]>| {
            let cgroup = self.watched.cgroups.get(*path);
            cgroup.is_some_and(|cgroup| cgroup.is_hot(now_ns))
        };
        self.full
            .iter()
            .filter(is_hot)
            .take(MAX_HOT)
            .cloned()
            .collect()
    }

    fn plan_hot(&mut self, now_ns: u64) {
        self.next_hot_ns = if self.hot(now_ns).is_empty() {
            u64::MAX
        } else {
            now_ns + HOT_INTERVAL_NS
        };
    }

    /// A full look, and a look at the limits, of the next few in turn. For one whose usage has not
    /// changed the look before stands in.
    fn take_turns(&mut self, now_ns: u64, tick: &mut Tick) {
        let count = self
            .watched
            .cgroups
            .len()
            .div_ceil(TURN_SECONDS)
            .min(MAX_TURNS);
        let after = (Bound::Excluded(self.turn.clone()), Bound::Unbounded);
        let next: Vec<Rc<[u8]>> = self
            .watched
            .cgroups
            .range(after)
            .chain(self.watched.cgroups.iter())
            .take(count.min(self.watched.cgroups.len()))
            .map(|(path, _)| path.clone())
            .collect();
        for path in next {
            self.turn = path.clone();
            let Some(cgroup) = self.watched.cgroups.get_mut(&path) else {
                continue;
            };
            cgroup.look_at_quota(&self.watched.roots, &path, now_ns, &mut self.buf);
            if cgroup.is_full() {
                self.watched.read_settings(&path);
            } else if let Some(sample) = cgroup.look_again(now_ns) {
                tick.looks.push(Look {
                    path,
                    sample,
                    settings: cgroup.settings,
                });
            } else {
                self.watched.read_settings(&path);
                self.look_fully(&path, now_ns, tick);
            }
        }
    }

    /// A cgroup was removed: its record is kept for a while.
    fn retire(&mut self, path: &[u8]) {
        // Hooks also count for those that are not watched.
        self.totals.remove(path);
        self.triggers.remove(path);
        self.full.retain(|full| **full != *path);
        self.watched.retire(path);
    }
}

#[cfg(test)]
mod tests;
