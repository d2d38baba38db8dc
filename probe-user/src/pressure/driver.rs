//! The daemon's side of memory pressure: who is looked at when, and what is remembered.
//!
//! Each second: the usage of every watched cgroup, a full look at those that matter, and at a few
//! of the others in turn, so that each has one every ten seconds. A cgroup that has just hit a
//! limit is looked at fully ten times a second. One full look costs some 50 µs, most of it
//! `memory.stat`; the bounds below keep all of them under one percent of a processor.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    path::Path,
    rc::Rc,
    time::Duration,
};

use super::{
    cgroup::Cgroup,
    history::{self, Known},
    look::{self, Roots},
    metrics::{self, Totals},
    node::NodeFiles,
    psi_trigger::{State, Subject, Triggers},
    sample::{CgroupSample, NodeSample, Settings},
    watch::{self, MAX_WATCHED, Walk},
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

/// Removed cgroups whose record is kept: a kill is often told when its cgroup is gone already.
const MAX_GONE: usize = 16;

/// Most full looks in turn each second.
const MAX_TURNS: usize = 50;

/// In so many seconds each cgroup has its turn, if [`MAX_TURNS`] allow it.
const TURN_SECONDS: usize = 10;

/// Directories a walk lists each second: 2,048 cgroups in about a minute.
const WALK_STEPS: usize = 40;

/// From the start of a walk to the start of the next.
const WALK_NS: u64 = 60 * SECOND_NS;

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

/// Samples memory pressure and remembers it. Everything happens in [`Pressure::tick`], on the
/// caller's thread.
pub struct Pressure {
    roots: Roots,
    cgroups: BTreeMap<Rc<[u8]>, Cgroup>,
    /// Those that get full looks, the most urgent first.
    full: Vec<Rc<[u8]>>,
    gone: VecDeque<(Rc<[u8]>, Cgroup)>,
    node_files: NodeFiles,
    node: VecDeque<NodeSample>,
    triggers: Triggers,
    totals: Totals,
    walk: Walk,
    next_walk_ns: u64,
    next_ns: u64,
    next_hot_ns: u64,
    /// Who had the last turn.
    turn: Rc<[u8]>,
    files_left: u64,
    left_out: u64,
    left_out_in_walk: u64,
    failed_looks: u64,
    buf: Vec<u8>,
}

impl Pressure {
    /// Finds the cgroups to watch, opens files, arms the node's trigger. Must be called within a
    /// tokio runtime.
    pub fn new(hierarchies: &Hierarchies, proc: &Path) -> Result<Self, Error> {
        // Half is left to everything else.
        let files_left = look::raise_file_limit() / 2;
        let now_ns = clock::boot_ns();
        let mut pressure = Self {
            roots: Roots::new(hierarchies),
            cgroups: BTreeMap::new(),
            full: Vec::new(),
            gone: VecDeque::new(),
            node_files: NodeFiles::open(proc)?,
            node: VecDeque::with_capacity(NODE_SAMPLES),
            triggers: Triggers::new(proc),
            totals: Totals::default(),
            walk: Walk::new(),
            next_walk_ns: now_ns + WALK_NS,
            next_ns: now_ns,
            next_hot_ns: u64::MAX,
            turn: Rc::default(),
            files_left,
            left_out: 0,
            left_out_in_walk: 0,
            failed_looks: 0,
            buf: Vec::new(),
        };
        while !pressure.walk.is_done() {
            pressure.walk_on();
        }
        pressure.left_out = pressure.left_out_in_walk;
        pressure.inherit_limits();
        Ok(pressure)
    }

    /// Hooks count limit hits ([`Self::counted`]): files of cgroup v1 are not asked for them.
    pub fn hooked(&mut self) {
        self.roots.hooked = self.roots.version == Version::V1;
    }

    /// The cgroup at `path` hit its hard limit so often since oomprobe was attached.
    pub fn counted(&mut self, path: &[u8], hits: u64) {
        if let Some(cgroup) = self.cgroups.get_mut(path) {
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
            self.walk_a_bit(now_ns);
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
        if let Some(cgroup) = subject.as_ref().and_then(|path| self.cgroups.get_mut(path)) {
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
            self.watch(path, Some(boot_ns));
        }
    }

    /// A memory cgroup was removed.
    pub fn removed(&mut self, path: &[u8]) {
        self.retire(path);
    }

    /// A limit of the cgroup at `path`, its own, was hit at `boot_ns`.
    pub fn limit_hit(&mut self, path: &[u8], boot_ns: u64) {
        if !self.cgroups.contains_key(path) {
            if self.cgroups.len() >= MAX_WATCHED {
                self.make_room();
            }
            self.watch(path, None);
        }
        let Some(cgroup) = self.cgroups.get_mut(path) else {
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
        let cgroups = self.cgroups.iter().map(|(path, cgroup)| {
            let detail = cgroup.record.last_look().and_then(|sample| sample.detail);
            (path, cgroup.usage_bytes, &cgroup.settings, detail)
        });
        metrics::snapshot(&self.totals, cgroups, self.node.back())
    }

    /// What led up to a kill in the cgroup at `path`, or for want of memory on its limit; `None`
    /// if nothing is known of it.
    pub fn before(&mut self, path: &[u8], kill_boot_ns: u64, at_kill: AtKill) -> Option<Before> {
        if !self.cgroups.contains_key(path) && !self.gone.iter().any(|(gone, _)| **gone == *path) {
            self.watch(path, None);
        }
        let now_ns = clock::boot_ns();
        let (cgroup, mut known) = if let Some(cgroup) = self.cgroups.get(path) {
            // The counters at the kill; what was in memory then is in the record, or lost.
            let after = cgroup.read_fully(&self.roots, path, now_ns, &mut self.buf);
            let counted = after.ok().and_then(|sample| sample.detail);
            let known = cgroup.known();
            let known = Known {
                max_events: counted.map_or(known.max_events, |detail| detail.max_events),
                high_events: counted.map_or(known.high_events, |detail| detail.high_events),
                ..known
            };
            (cgroup, known)
        } else {
            let (_, cgroup) = self.gone.iter().rev().find(|(gone, _)| **gone == *path)?;
            (cgroup, cgroup.known())
        };
        known.peak_bytes = at_kill.peak_bytes;
        // A limit that was set after the last look at the settings.
        known.limit_bytes = at_kill.limit_bytes.or(known.limit_bytes);
        // On v1 samples have the hooks' count, which is another one.
        if !self.roots.hooked {
            known.max_events = at_kill.max_events.or(known.max_events);
        }
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
        let cgroup = self.cgroups.get(path)?;
        Some((cgroup.record.series(), cgroup.settings))
    }

    /// Usage of the cgroup at `path` when it was last looked at, bytes, and its limits; also of one
    /// that was removed a moment ago.
    pub fn usage(&self, path: &[u8]) -> Option<(u64, Settings)> {
        let gone = || self.gone.iter().rev().find(|(gone, _)| **gone == *path);
        let cgroup = match self.cgroups.get(path) {
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
        let below = [path, b"/"].concat();
        let mut after = self
            .cgroups
            .range::<[u8], _>((Bound::Excluded(below.as_slice()), Bound::Unbounded));
        after
            .next()
            .is_none_or(|(next, _)| !next.starts_with(&below))
    }

    /// Cgroups that are watched.
    pub fn watched(&self) -> usize {
        self.cgroups.len()
    }

    /// What could not be done.
    pub fn shortfall(&self) -> Shortfall {
        let without = self.cgroups.values().filter(|c| !c.holds_file()).count();
        Shortfall {
            left_out: self.left_out,
            without_file: without as u64,
            failed_looks: self.failed_looks,
        }
    }

    /// Memory that records take, bytes.
    pub fn bytes(&self) -> usize {
        let records = self
            .cgroups
            .iter()
            .chain(self.gone.iter().map(|(path, c)| (path, c)));
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
        for (path, cgroup) in &mut self.cgroups {
            match cgroup.look(&self.roots, path, now_ns) {
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
        let Some(cgroup) = self.cgroups.get_mut(path) else {
            return;
        };
        match cgroup.look_fully(&self.roots, path, now_ns, &mut self.buf) {
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
            .cgroups
            .iter()
            .map(|(path, cgroup)| (cgroup.urgency(now_ns), path))
            .filter(|(urgency, _)| *urgency > 0)
            .collect();
        urgent.sort_by(|a, b| b.cmp(a));
        urgent.truncate(MAX_FULL);
        let chosen: Vec<Rc<[u8]>> = urgent.into_iter().map(|(_, path)| path.clone()).collect();
        for (path, cgroup) in &mut self.cgroups {
            if cgroup.record.keeps_looks() && !chosen.contains(path) {
                self.triggers.remove(path);
                cgroup.end_full();
            }
        }
        self.full.clear();
        for path in chosen {
            let Some(cgroup) = self.cgroups.get_mut(&path) else {
                continue;
            };
            match cgroup.begin_full(&self.roots, &path) {
                Ok(()) => {
                    if let Some(file) = self.roots.pressure_file(&path, "memory.pressure") {
                        self.triggers.add(&path, &file);
                    }
                    self.full.push(path);
                }
                // The next cheap look finds out what is wrong.
                Err(_) => self.failed_looks += 1,
            }
        }
    }

    /// Those that get ten full looks a second.
    fn hot(&self, now_ns: u64) -> Vec<Rc<[u8]>> {
        let is_hot = |path: &&Rc<[u8]>| {
            let cgroup = self.cgroups.get(*path);
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

    /// A full look, and a look at the limits, of the next few in turn.
    fn take_turns(&mut self, now_ns: u64, tick: &mut Tick) {
        let count = self.cgroups.len().div_ceil(TURN_SECONDS).min(MAX_TURNS);
        let after = (Bound::Excluded(self.turn.clone()), Bound::Unbounded);
        let next: Vec<Rc<[u8]>> = self
            .cgroups
            .range(after)
            .chain(self.cgroups.iter())
            .take(count.min(self.cgroups.len()))
            .map(|(path, _)| path.clone())
            .collect();
        for path in next {
            self.turn = path.clone();
            self.read_settings(&path);
            if self
                .cgroups
                .get(&path)
                .is_some_and(|cgroup| !cgroup.is_full())
            {
                self.look_fully(&path, now_ns, tick);
            }
        }
    }

    fn read_settings(&mut self, path: &[u8]) {
        if let Ok(mut settings) = self.roots.settings(path, &mut self.buf) {
            settings.max_bytes = self.tightest(path, settings.own_max_bytes);
            if let Some(cgroup) = self.cgroups.get_mut(path) {
                cgroup.settings = settings;
            }
        }
    }

    /// The tightest limit on the way to the root. Whoever has one is watched, so no file is read.
    fn tightest(&self, path: &[u8], own: Option<u64>) -> Option<u64> {
        std::iter::successors(look::parent(path), |path| look::parent(path))
            .filter_map(|above| self.cgroups.get(above)?.settings.own_max_bytes)
            .chain(own)
            .min()
    }

    fn inherit_limits(&mut self) {
        let limits: Vec<Option<u64>> = self
            .cgroups
            .iter()
            .map(|(path, cgroup)| self.tightest(path, cgroup.settings.own_max_bytes))
            .collect();
        for (cgroup, limit) in self.cgroups.values_mut().zip(limits) {
            cgroup.settings.max_bytes = limit;
        }
    }

    fn walk_a_bit(&mut self, now_ns: u64) {
        if self.walk.is_done() && now_ns >= self.next_walk_ns {
            self.walk = Walk::new();
            self.left_out_in_walk = 0;
            self.next_walk_ns = now_ns + WALK_NS;
        }
        for _ in 0..WALK_STEPS {
            if self.walk.is_done() {
                return;
            }
            self.walk_on();
        }
    }

    fn walk_on(&mut self) {
        for path in self.walk.step(&self.roots) {
            self.watch(&path, None);
        }
        if self.walk.is_done() {
            self.left_out = self.left_out_in_walk;
        }
    }

    /// Watches the cgroup at `path` if it matters and there is room.
    fn watch(&mut self, path: &[u8], made_boot_ns: Option<u64>) {
        if self.cgroups.contains_key(path) {
            return;
        }
        let Ok(mut settings) = self.roots.settings(path, &mut self.buf) else {
            return;
        };
        if !watch::matters(path, &settings) {
            return;
        }
        if self.cgroups.len() >= MAX_WATCHED {
            self.left_out_in_walk += 1;
            return;
        }
        settings.max_bytes = self.tightest(path, settings.own_max_bytes);
        let usage = match self.roots.open_usage(path) {
            Ok(file) if self.files_left > 0 => {
                self.files_left -= 1;
                Some(file)
            }
            Ok(_) => None,
            Err(error) if look::is_out_of_files(&error) => None,
            Err(_) => return,
        };
        let cgroup = Cgroup::new(usage, settings, made_boot_ns);
        self.cgroups.insert(path.into(), cgroup);
    }

    /// Gives up the one that uses least, of those that do not matter now.
    fn make_room(&mut self) {
        let least = self
            .cgroups
            .iter()
            .filter(|(_, cgroup)| !cgroup.is_full())
            .min_by_key(|(_, cgroup)| cgroup.usage_bytes)
            .map(|(path, _)| path.clone());
        if let Some(cgroup) = least.and_then(|path| self.cgroups.remove(&path)) {
            self.files_left += u64::from(cgroup.holds_file());
            self.left_out += 1;
        }
    }

    /// A cgroup was removed: its record is kept for a while.
    fn retire(&mut self, path: &[u8]) {
        let Some((path, mut cgroup)) = self.cgroups.remove_entry(path) else {
            return;
        };
        self.files_left += u64::from(cgroup.holds_file());
        self.full.retain(|full| *full != path);
        self.triggers.remove(&path);
        self.totals.remove(&path);
        cgroup.close();
        if self.gone.len() >= MAX_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back((path, cgroup));
    }
}

#[cfg(test)]
mod tests;
