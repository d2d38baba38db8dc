//! Counters and gauges of memory pressure, per cgroup and for the node: what a metrics sink
//! exports.
//!
//! Nothing is kept twice: a snapshot is made from the last samples, and only what no sample has
//! (hits and stalls that hooks counted, and labels) is stored here.

use std::{collections::BTreeMap, rc::Rc};

use super::{
    sample::{Detail, NodeSample, Settings},
    watch::MAX_WATCHED,
};
use crate::event::{LimitEvent, StallKind};

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until the cgroup is removed or the node restarts.
    Counter,
    /// Any value.
    Gauge,
}

/// A metric. Names are dotted, units as in UCUM (`By`, `s`, `{page}`), as OpenTelemetry has them;
/// a Prometheus name follows from both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name, without unit.
    pub name: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// One sentence for a person.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal $unit:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: concat!("oomprobe.", $name),
                unit: $unit,
                kind: Kind::$kind,
                help: $help,
            };
        )*

        /// All metrics.
        pub const ALL: &[Metric] = &[$($id),*];
    };
}

metrics! {
    USAGE Gauge "cgroup.memory.usage" "By" "Memory charged.";
    LIMIT Gauge "cgroup.memory.limit" "By" "The tightest hard limit on the way to the root.";
    WORKING_SET Gauge "cgroup.memory.working_set" "By" "Usage without inactive page cache.";
    ANON Gauge "cgroup.memory.anon" "By" "Anonymous memory.";
    FILE Gauge "cgroup.memory.file" "By" "Page cache without shared memory.";
    SHMEM Gauge "cgroup.memory.shmem" "By" "tmpfs and shared memory.";
    KERNEL Gauge "cgroup.memory.kernel" "By" "Kernel memory.";
    SOCK Gauge "cgroup.memory.sock" "By" "Socket buffers.";
    SWAP Gauge "cgroup.memory.swap" "By" "Swap used.";
    LIMIT_HITS Counter "cgroup.memory.limit_hits" "{hit}" "Hits of a limit of the cgroup.";
    OOM_KILLS Counter "cgroup.memory.oom_kills" "{process}" "Processes killed by the OOM killer.";
    REFAULTS Counter "cgroup.memory.refaults" "{page}" "Pages thrown out and read back.";
    MAJOR_FAULTS Counter "cgroup.memory.major_faults" "{fault}" "Page faults that read a disk.";
    PRESSURE Counter "cgroup.memory.pressure" "s" "Time some or all tasks waited for memory.";
    STALLS Counter "cgroup.memory.stalls" "{stall}" "Times a task waited for memory.";
    STALL_TIME Counter "cgroup.memory.stall_time" "s" "Time tasks waited for memory, added up.";
    NODE_TOTAL Gauge "node.memory.total" "By" "Memory of the node.";
    NODE_AVAILABLE Gauge "node.memory.available" "By" "What can be had without swapping.";
    NODE_ANON Gauge "node.memory.anon" "By" "Anonymous memory.";
    NODE_SLAB_UNRECLAIMABLE Gauge "node.memory.slab_unreclaimable" "By" "Slab that does not shrink.";
    NODE_SWAP_USED Gauge "node.memory.swap_used" "By" "Swap used.";
    NODE_REFAULTS Counter "node.memory.refaults" "{page}" "Pages thrown out and read back.";
    NODE_DIRECT_RECLAIMS Counter "node.memory.direct_reclaims" "{stall}" "Entries into direct reclaim.";
    NODE_OOM_KILLS Counter "node.memory.oom_kills" "{process}" "Processes killed by the OOM killer.";
    NODE_PRESSURE Counter "node.pressure" "s" "Time some or all tasks waited for a resource.";
    NODE_STALLS Counter "node.memory.stalls" "{stall}" "Times a task waited for memory.";
    NODE_KSWAPD_TIME Counter "node.memory.kswapd_time" "s" "Time kswapd was awake, all nodes added up.";
    NODE_STALL_TIME Counter "node.memory.stall_time" "s" "Time tasks waited for memory, added up.";
}

/// A label: its key and value, such as `k8s.pod.name`.
pub type Label = (&'static str, Rc<str>);

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Of what.
    pub metric: &'static Metric,
    /// What tells it from other values of the metric in this series.
    pub attributes: Vec<(&'static str, &'static str)>,
    /// The value, in the metric's unit.
    pub value: f64,
}

/// The values of one cgroup or of the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Path of the cgroup; `None` for the node.
    pub cgroup: Option<Rc<[u8]>>,
    /// Whose it is, as far as that is known.
    pub labels: Rc<[Label]>,
    /// The values.
    pub points: Vec<Point>,
}

/// What hooks counted, and who the cgroups are.
#[derive(Debug, Default)]
pub struct Totals {
    cgroups: BTreeMap<Rc<[u8]>, Counted>,
    node: BTreeMap<StallKind, Stalls>,
    kswapd_ns: Option<u64>,
}

#[derive(Debug, Default)]
struct Counted {
    labels: Option<Rc<[Label]>>,
    hits: BTreeMap<LimitEvent, u64>,
    stalls: BTreeMap<StallKind, Stalls>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stalls {
    count: u64,
    total_ns: u64,
}

impl Totals {
    /// Says whose the cgroup at `path` is.
    pub fn label(&mut self, path: &[u8], labels: Rc<[Label]>) {
        if let Some(counted) = self.of(path) {
            counted.labels = Some(labels);
        }
    }

    /// `count` hits of a limit of the cgroup at `path` since oomprobe started.
    pub fn hits(&mut self, path: &[u8], event: LimitEvent, count: u64) {
        if let Some(counted) = self.of(path) {
            counted.hits.insert(event, count);
        }
    }

    /// `count` stalls since oomprobe started, which took `total_ns` together, of the cgroup at
    /// `path`; `None` is the whole node.
    pub fn stalls(&mut self, path: Option<&[u8]>, kind: StallKind, count: u64, total_ns: u64) {
        let stalls = match path {
            None => Some(&mut self.node),
            Some(path) => self.of(path).map(|counted| &mut counted.stalls),
        };
        if let Some(stalls) = stalls {
            stalls.insert(kind, Stalls { count, total_ns });
        }
    }

    /// kswapd was awake for so long since oomprobe started.
    pub fn kswapd(&mut self, total_ns: u64) {
        self.kswapd_ns = Some(total_ns);
    }

    /// The cgroup at `path` is gone.
    pub fn remove(&mut self, path: &[u8]) {
        self.cgroups.remove(path);
    }

    /// `None` if there are too many.
    fn of(&mut self, path: &[u8]) -> Option<&mut Counted> {
        if !self.cgroups.contains_key(path) {
            if self.cgroups.len() >= MAX_WATCHED {
                return None;
            }
            self.cgroups.insert(path.into(), Counted::default());
        }
        self.cgroups.get_mut(path)
    }
}

/// All values there are: of each cgroup its path, usage, limits and last full look.
pub fn snapshot<'a>(
    totals: &Totals,
    cgroups: impl Iterator<Item = (&'a Rc<[u8]>, u64, &'a Settings, Option<Detail>)>,
    node: Option<&NodeSample>,
) -> Vec<Series> {
    let mut all = Vec::new();
    if let Some(node) = node {
        let mut points = of_node(node);
        add_stalls(&mut points, [&NODE_STALLS, &NODE_STALL_TIME], &totals.node);
        points.add_us(&NODE_KSWAPD_TIME, &[], totals.kswapd_ns.map(|ns| ns / 1000));
        all.push(Series {
            cgroup: None,
            labels: Rc::default(),
            points: points.0,
        });
    }
    for (path, usage_bytes, settings, detail) in cgroups {
        let counted = totals.cgroups.get(path);
        let mut points = Points::default();
        points.add(&USAGE, &[], Some(usage_bytes));
        points.add(&LIMIT, &[], settings.max_bytes);
        if let Some(detail) = detail {
            of_detail(&mut points, usage_bytes, &detail);
        }
        if let Some(counted) = counted {
            add_stalls(&mut points, [&STALLS, &STALL_TIME], &counted.stalls);
        }
        let from_files = |event| match event {
            LimitEvent::Max => detail?.max_events,
            LimitEvent::High => detail?.high_events,
        };
        for (event, name) in [(LimitEvent::Max, "max"), (LimitEvent::High, "high")] {
            // A hook's count and the kernel's begin at different times: one source per series.
            let hooked = counted.and_then(|counted| counted.hits.get(&event).copied());
            points.add(
                &LIMIT_HITS,
                &[("limit", name)],
                from_files(event).or(hooked),
            );
        }
        all.push(Series {
            cgroup: Some(path.clone()),
            labels: counted
                .and_then(|counted| counted.labels.clone())
                .unwrap_or_default(),
            points: points.0,
        });
    }
    all
}

fn of_detail(points: &mut Points, usage_bytes: u64, detail: &Detail) {
    let working_set = detail
        .inactive_file_bytes
        .map(|idle| usage_bytes.saturating_sub(idle));
    let refaults = [detail.refault_anon, detail.refault_file];
    for (metric, value) in [
        (&WORKING_SET, working_set),
        (&ANON, Some(detail.anon_bytes)),
        (&FILE, Some(detail.file_bytes)),
        (&SHMEM, Some(detail.shmem_bytes)),
        (&KERNEL, detail.kernel_bytes),
        (&SOCK, detail.sock_bytes),
        (&SWAP, detail.swap_bytes),
        (&OOM_KILLS, detail.oom_kill_events),
        (&REFAULTS, total(refaults)),
        (&MAJOR_FAULTS, detail.pgmajfault),
    ] {
        points.add(metric, &[], value);
    }
    points.add_us(&PRESSURE, &[("stall", "some")], detail.psi_some_us);
    points.add_us(&PRESSURE, &[("stall", "full")], detail.psi_full_us);
}

fn of_node(node: &NodeSample) -> Points {
    let swap_used = node.swap_total_bytes.zip(node.swap_free_bytes);
    let mut points = Points::default();
    for (metric, value) in [
        (&NODE_TOTAL, Some(node.total_bytes)),
        (&NODE_AVAILABLE, node.available_bytes),
        (&NODE_ANON, node.anon_bytes),
        (&NODE_SLAB_UNRECLAIMABLE, node.slab_unreclaimable_bytes),
        (
            &NODE_SWAP_USED,
            swap_used.map(|(all, free)| all.saturating_sub(free)),
        ),
        (
            &NODE_REFAULTS,
            total([node.refault_anon, node.refault_file]),
        ),
        (&NODE_DIRECT_RECLAIMS, node.allocstall),
        (&NODE_OOM_KILLS, node.oom_kill),
    ] {
        points.add(metric, &[], value);
    }
    for (index, resource) in ["cpu", "memory", "io"].into_iter().enumerate() {
        let of = |stall| [("resource", resource), ("stall", stall)];
        points.add_us(&NODE_PRESSURE, &of("some"), node.psi_some_us[index]);
        points.add_us(&NODE_PRESSURE, &of("full"), node.psi_full_us[index]);
    }
    points
}

fn add_stalls(
    points: &mut Points,
    [count, time]: [&'static Metric; 2],
    stalls: &BTreeMap<StallKind, Stalls>,
) {
    for (kind, stalls) in stalls {
        let attributes = [("kind", stall_name(*kind))];
        points.add(count, &attributes, Some(stalls.count));
        points.add_us(time, &attributes, Some(stalls.total_ns / 1000));
    }
}

const fn stall_name(kind: StallKind) -> &'static str {
    match kind {
        StallKind::DirectReclaim => "direct_reclaim",
        StallKind::MemcgReclaim => "memcg_reclaim",
        StallKind::HighThrottle => "high_throttle",
        StallKind::Compaction => "compaction",
        StallKind::RefaultWait => "refault_wait",
    }
}

/// The sum of what is told; `None` if nothing is.
fn total(values: [Option<u64>; 2]) -> Option<u64> {
    values.into_iter().flatten().reduce(u64::saturating_add)
}

#[derive(Default)]
struct Points(Vec<Point>);

impl Points {
    fn add(
        &mut self,
        metric: &'static Metric,
        attributes: &[(&'static str, &'static str)],
        value: Option<u64>,
    ) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact to 2^53 bytes, pages and µs"
        )]
        if let Some(value) = value {
            self.0.push(Point {
                metric,
                attributes: attributes.to_vec(),
                value: value as f64,
            });
        }
    }

    /// A duration in µs, told in seconds.
    fn add_us(
        &mut self,
        metric: &'static Metric,
        attributes: &[(&'static str, &'static str)],
        value: Option<u64>,
    ) {
        self.add(metric, attributes, value);
        if value.is_some()
            && let Some(point) = self.0.last_mut()
        {
            point.value /= 1e6;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn value(series: &Series, metric: &Metric, attribute: Option<&str>) -> Option<f64> {
        let matches = |point: &&Point| {
            point.metric == metric
                && attribute.is_none_or(|name| point.attributes.iter().any(|(_, v)| *v == name))
        };
        series.points.iter().find(matches).map(|point| point.value)
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn values_of_samples_and_of_hooks() {
        let path: Rc<[u8]> = b"/pod".as_slice().into();
        let mut totals = Totals::default();
        let labels: Rc<[Label]> = [("k8s.pod.name", Rc::from("web"))].into();
        totals.label(&path, labels.clone());
        totals.hits(&path, LimitEvent::High, 7);
        totals.hits(&path, LimitEvent::Max, 3);
        totals.stalls(Some(&path), StallKind::MemcgReclaim, 2, 1_500_000_000);
        totals.stalls(None, StallKind::DirectReclaim, 1, 1_000_000);
        totals.kswapd(2_500_000_000);
        let settings = Settings {
            max_bytes: Some(1000),
            ..Settings::default()
        };
        let detail = Detail {
            max_events: Some(9),
            inactive_file_bytes: Some(100),
            psi_some_us: Some(2_000_000),
            refault_file: Some(5),
            ..Detail::default()
        };
        let node = NodeSample::default();
        let cgroups = [(&path, 400, &settings, Some(detail))];
        let all = snapshot(&totals, cgroups.into_iter(), Some(&node));
        let [node, pod] = all.as_slice() else {
            panic!("{all:?}");
        };
        assert_eq!(node.cgroup, None);
        assert_eq!(value(node, &NODE_STALLS, Some("direct_reclaim")), Some(1.0));
        assert_eq!(value(node, &NODE_KSWAPD_TIME, None), Some(2.5));
        assert_eq!(value(node, &NODE_AVAILABLE, None), None);
        assert_eq!(pod.labels, labels);
        assert_eq!(value(pod, &WORKING_SET, None), Some(300.0));
        assert_eq!(value(pod, &LIMIT_HITS, Some("max")), Some(9.0));
        assert_eq!(value(pod, &LIMIT_HITS, Some("high")), Some(7.0));
        assert_eq!(value(pod, &STALL_TIME, Some("memcg_reclaim")), Some(1.5));
        assert_eq!(value(pod, &PRESSURE, Some("some")), Some(2.0));
        assert_eq!(value(pod, &REFAULTS, None), Some(5.0));

        totals.remove(&path);
        let cgroups = [(&path, 400, &settings, None)];
        let all = snapshot(&totals, cgroups.into_iter(), None);
        assert!(all[0].labels.is_empty());
        assert_eq!(all[0].points.len(), 2);
    }

    #[test]
    fn series_are_bounded() {
        let mut totals = Totals::default();
        for index in 0..MAX_WATCHED + 100 {
            totals.hits(format!("/{index}").as_bytes(), LimitEvent::Max, 1);
        }
        assert_eq!(totals.cgroups.len(), MAX_WATCHED);
    }
}
