//! The memory cgroups that are watched: found, limited in number, kept for a while when gone.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    rc::Rc,
};

use super::{
    cgroup::Cgroup,
    look::{self, Roots},
    watch::{self, MAX_WATCHED, Walk},
};
use crate::identity::hierarchy::Hierarchies;

/// Removed cgroups whose record is kept: a kill is often told when its cgroup is gone already.
const MAX_GONE: usize = 16;

/// Directories a walk lists each second: 2,048 cgroups in about a minute.
const WALK_STEPS: usize = 40;

/// From the start of a walk to the start of the next.
const WALK_NS: u64 = 60_000_000_000;

/// Who is watched, by path from the root of the memory hierarchy.
pub struct Watched {
    /// Where cgroups are found.
    pub roots: Roots,
    /// Those that are watched.
    pub cgroups: BTreeMap<Rc<[u8]>, Cgroup>,
    /// Those that were removed lately, the last one at the end.
    pub gone: VecDeque<(Rc<[u8]>, Cgroup)>,
    /// How many are not watched for there are too many, as of the last walk.
    pub left_out: u64,
    left_out_in_walk: u64,
    walk: Walk,
    next_walk_ns: u64,
    files_left: u64,
    buf: Vec<u8>,
}

impl Watched {
    /// Finds all there are.
    pub fn new(hierarchies: &Hierarchies, now_ns: u64) -> Self {
        let mut watched = Self {
            roots: Roots::new(hierarchies),
            cgroups: BTreeMap::new(),
            gone: VecDeque::new(),
            left_out: 0,
            left_out_in_walk: 0,
            walk: Walk::new(),
            next_walk_ns: now_ns + WALK_NS,
            // Half is left to everything else.
            files_left: look::raise_file_limit() / 2,
            buf: Vec::new(),
        };
        while !watched.walk.is_done() {
            watched.walk_on();
        }
        watched.inherit_limits();
        watched
    }

    /// Reads the limits of one anew.
    pub fn read_settings(&mut self, path: &[u8]) {
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

    /// Goes on with a walk for those that came without notice, or begins one if it is time.
    pub fn walk_a_bit(&mut self, now_ns: u64) {
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
    pub fn watch(&mut self, path: &[u8], made_boot_ns: Option<u64>) {
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
    pub fn make_room(&mut self) {
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

    /// A cgroup was removed: its record is kept for a while.
    pub fn retire(&mut self, path: &[u8]) {
        let Some((path, mut cgroup)) = self.cgroups.remove_entry(path) else {
            return;
        };
        self.files_left += u64::from(cgroup.holds_file());
        cgroup.close();
        if self.gone.len() >= MAX_GONE {
            self.gone.pop_front();
        }
        self.gone.push_back((path, cgroup));
    }
}
