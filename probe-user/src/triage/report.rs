//! Two looks, compared.

use std::collections::HashMap;

use super::cgroups::{Kind, Unit};
use super::collect::{Look, RESOURCES};
use crate::event::{
    Cpu, NodeMemory, NodePressure, OomHistory, Reclaim, Throttled, TopCgroup, Triage,
};
use crate::node::psi::Stall;
use crate::pressure::sample::{Detail, NodeSample};

/// Cgroups that are listed as held up by their CPU limit.
const THROTTLED: usize = 5;

/// A pod is listed beside its containers if it holds this much that they do not: tmpfs volumes,
/// what ended containers left behind.
const POD_OWN_BYTES: u64 = 64 << 20;

/// What changed from `first` to `second`, and what is the case then. Names, findings and what is
/// read once are still to be added.
pub(super) fn compare(first: &Look, second: &Look, top: usize) -> Triage {
    let elapsed = Elapsed::between(first.node.boot_ns, second.node.boot_ns);
    let before: HashMap<u64, &Unit> = first.units.iter().map(|unit| (unit.id, unit)).collect();
    Triage {
        duration_ms: elapsed.ns / 1_000_000,
        memory: memory(&second.node),
        pressure: pressure(first, second, elapsed),
        reclaim: reclaim(&first.node, &second.node, elapsed),
        cpu: cpu(first, second, &before),
        oom: OomHistory {
            kills_since_boot: second.node.oom_kill,
            kills_now: difference(first.node.oom_kill, second.node.oom_kill),
            uptime_s: second.node.boot_ns / 1_000_000_000,
            recent: Vec::new(),
        },
        cgroups: second.units.len() as u64,
        top: biggest(&second.units, top)
            .into_iter()
            .map(|unit| row(before.get(&unit.id).copied(), unit))
            .collect(),
        ..Triage::default()
    }
}

#[derive(Clone, Copy)]
struct Elapsed {
    ns: u64,
}

impl Elapsed {
    fn between(start_ns: u64, end_ns: u64) -> Self {
        Self {
            ns: end_ns.saturating_sub(start_ns).max(1),
        }
    }

    /// Events per second, to the tenth. `None` if a counter is missing or went back.
    fn rate(self, first: Option<u64>, second: Option<u64>) -> Option<f64> {
        let events = difference(first, second)?;
        Some(rounded(float(events) * 1e9 / float(self.ns), 10.0))
    }

    /// Share of the time that a counter of microseconds grew by.
    fn share(self, first_us: Option<u64>, second_us: Option<u64>) -> Option<f64> {
        let us = difference(first_us, second_us)?;
        // The files are not read at the very same moments as the clock.
        Some(rounded(float(us) * 1e3 / float(self.ns), 1e4).min(1.0))
    }
}

fn difference(first: Option<u64>, second: Option<u64>) -> Option<u64> {
    second?.checked_sub(first?)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "rates and shares need no more than 52 bits"
)]
fn float(value: u64) -> f64 {
    value as f64
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

fn memory(node: &NodeSample) -> NodeMemory {
    NodeMemory {
        total_bytes: Some(node.total_bytes),
        available_bytes: node.available_bytes,
        free_bytes: node.free_bytes,
        anon_bytes: node.anon_bytes,
        file_bytes: node.file_bytes,
        shmem_bytes: node.shmem_bytes,
        dirty_bytes: node.dirty_bytes,
        swap_total_bytes: node.swap_total_bytes,
        swap_free_bytes: node.swap_free_bytes,
        committed_bytes: node.committed_bytes,
        commit_limit_bytes: node.commit_limit_bytes,
        overcommit_mode: None,
        slab_reclaimable_bytes: node.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: node.slab_unreclaimable_bytes,
        slab_caches: Vec::new(),
    }
}

fn pressure(first: &Look, second: &Look, elapsed: Elapsed) -> Vec<NodePressure> {
    let ratio = |stall: &Stall| rounded(stall.avg60_percent / 100.0, 1e4);
    RESOURCES
        .iter()
        .enumerate()
        .filter_map(|(index, resource)| {
            let now = second.pressure[index].as_ref()?;
            let share = |totals: fn(&NodeSample) -> &[Option<u64>; 3]| {
                elapsed.share(totals(&first.node)[index], totals(&second.node)[index])
            };
            Some(NodePressure {
                resource: (*resource).to_owned(),
                some_ratio: share(|node| &node.psi_some_us),
                full_ratio: share(|node| &node.psi_full_us),
                some_60s_ratio: Some(ratio(&now.some)),
                full_60s_ratio: now.full.as_ref().map(ratio),
            })
        })
        .collect()
}

fn reclaim(first: &NodeSample, second: &NodeSample, elapsed: Elapsed) -> Reclaim {
    let rate =
        |counter: fn(&NodeSample) -> Option<u64>| elapsed.rate(counter(first), counter(second));
    Reclaim {
        kswapd_scanned_per_s: rate(|node| node.pgscan_kswapd),
        direct_scanned_per_s: rate(|node| node.pgscan_direct),
        reclaimed_per_s: rate(|node| node.pgsteal),
        direct_stalls_per_s: rate(|node| node.allocstall),
        compact_stalls_per_s: rate(|node| node.compact_stall),
        refaults_anon_per_s: rate(|node| node.refault_anon),
        refaults_file_per_s: rate(|node| node.refault_file),
        swap_in_per_s: rate(|node| node.pswpin),
        swap_out_per_s: rate(|node| node.pswpout),
        major_faults_per_s: rate(|node| node.pgmajfault),
    }
}

fn cpu(first: &Look, second: &Look, before: &HashMap<u64, &Unit>) -> Cpu {
    let tasks = first.tasks.zip(second.tasks);
    let mut throttled: Vec<Throttled> = second
        .units
        .iter()
        .filter_map(|unit| throttled(before.get(&unit.id)?, unit))
        .collect();
    throttled.sort_by(|a, b| {
        let worse = b.throttled_ratio.total_cmp(&a.throttled_ratio);
        worse.then_with(|| b.throttled_ms.total_cmp(&a.throttled_ms))
    });
    throttled.truncate(THROTTLED);
    Cpu {
        cpus: second.tasks.map(|tasks| tasks.cpus),
        load1: second.load.map(|load| load.load1),
        load5: second.load.map(|load| load.load5),
        load15: second.load.map(|load| load.load15),
        running: tasks.and_then(|(a, b)| Some(a.running?.min(b.running?))),
        blocked: tasks.and_then(|(a, b)| Some(a.blocked?.min(b.blocked?))),
        throttled,
    }
}

fn throttled(before: &Unit, unit: &Unit) -> Option<Throttled> {
    let (first, second) = (before.throttling?, unit.throttling?);
    let periods = second.periods.checked_sub(first.periods)?;
    let throttled_periods = second.throttled.checked_sub(first.throttled)?;
    let us = second.throttled_us.checked_sub(first.throttled_us)?;
    (throttled_periods > 0).then(|| Throttled {
        cgroup: unit.cgroup(),
        k8s: None,
        container: None,
        periods,
        throttled_periods,
        // A period that is under way counts as throttled before it counts as a period.
        throttled_ratio: rounded(float(throttled_periods) / float(periods.max(1)), 1e4).min(1.0),
        throttled_ms: float(us) / 1e3,
    })
}

/// The `top` biggest, each byte in as few of them as a reader can make sense of.
fn biggest(units: &[Unit], top: usize) -> Vec<&Unit> {
    let mut shown: Vec<&Unit> = units
        .iter()
        .filter(|unit| unit.sample.usage_bytes > 0)
        .filter(|unit| unit.kind != Kind::Pod || holds_much_itself(unit, units))
        .collect();
    shown.sort_by(|a, b| {
        let bigger = b.sample.usage_bytes.cmp(&a.sample.usage_bytes);
        bigger.then_with(|| a.path.cmp(&b.path))
    });
    shown.truncate(top);
    shown
}

fn holds_much_itself(pod: &Unit, units: &[Unit]) -> bool {
    let usage = pod.sample.usage_bytes;
    if usage < POD_OWN_BYTES {
        return false;
    }
    let inside = |unit: &&Unit| {
        unit.kind == Kind::Container
            && unit
                .path
                .strip_prefix(&pod.path[..])
                .is_some_and(|rest| rest.starts_with(b"/"))
    };
    let containers = units
        .iter()
        .filter(inside)
        .map(|unit| unit.sample.usage_bytes)
        .fold(0, u64::saturating_add);
    usage.saturating_sub(containers) >= POD_OWN_BYTES.max(usage / 10)
}

fn row(before: Option<&Unit>, unit: &Unit) -> TopCgroup {
    let first = before.map(|unit| unit.sample);
    let sample = unit.sample;
    let elapsed = first.map(|first| Elapsed::between(first.boot_ns, sample.boot_ns));
    let detail = sample.detail;
    let was = first.and_then(|first| first.detail);
    let usage = sample.usage_bytes;
    let settings = unit.settings;
    let growth = first.zip(elapsed).map(|(first, elapsed)| {
        let up = elapsed.rate(Some(first.usage_bytes), Some(usage));
        let down = || elapsed.rate(Some(usage), Some(first.usage_bytes));
        up.or_else(|| down().map(|rate| -rate)).unwrap_or(0.0)
    });
    let share = |total: fn(&Detail) -> Option<u64>| {
        elapsed?.share(
            was.as_ref().and_then(total),
            detail.as_ref().and_then(total),
        )
    };
    let grown = |count: fn(&Detail) -> Option<u64>| {
        difference(
            was.as_ref().and_then(count),
            detail.as_ref().and_then(count),
        )
    };
    let refaults = |detail: &Detail| {
        let (anon, file) = (detail.refault_anon, detail.refault_file);
        [anon, file]
            .into_iter()
            .flatten()
            .reduce(u64::saturating_add)
    };
    let limit_bytes = settings.own_max_bytes;
    TopCgroup {
        cgroup: unit.cgroup(),
        k8s: None,
        container: None,
        usage_bytes: usage,
        working_set_bytes: detail
            .and_then(|detail| detail.inactive_file_bytes)
            .map(|inactive| usage.saturating_sub(inactive)),
        growth_bytes_per_s: growth,
        anon_bytes: detail.map(|detail| detail.anon_bytes),
        file_bytes: detail.map(|detail| detail.file_bytes),
        shmem_bytes: detail.map(|detail| detail.shmem_bytes),
        kernel_bytes: detail.and_then(|detail| detail.kernel_bytes),
        slab_bytes: detail.and_then(|detail| {
            let slab = detail.slab_reclaimable_bytes?;
            slab.checked_add(detail.slab_unreclaimable_bytes?)
        }),
        sock_bytes: detail.and_then(|detail| detail.sock_bytes),
        swap_bytes: detail.and_then(|detail| detail.swap_bytes),
        limit_bytes,
        limit_ratio: limit_bytes
            .filter(|&limit| limit > 0)
            .map(|limit| rounded(float(usage) / float(limit), 1e4)),
        effective_limit_bytes: settings.max_bytes,
        high_bytes: settings.high_bytes,
        low_bytes: settings.low_bytes,
        min_bytes: settings.min_bytes,
        memory_some_ratio: share(|detail| detail.psi_some_us),
        memory_full_ratio: share(|detail| detail.psi_full_us),
        max_hits: grown(|detail| detail.max_events),
        high_hits: grown(|detail| detail.high_events),
        refaults_per_s: elapsed.and_then(|elapsed| {
            elapsed.rate(
                was.as_ref().and_then(refaults),
                detail.as_ref().and_then(refaults),
            )
        }),
        oom_kills: detail.and_then(|detail| detail.oom_kill_events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::cpu::Throttling;
    use crate::pressure::sample::{CgroupSample, Settings};

    const MIB: u64 = 1 << 20;

    fn unit(path: &str, kind: Kind, usage_bytes: u64) -> Unit {
        Unit {
            id: path.len() as u64,
            between: Vec::new(),
            path: path.as_bytes().to_vec(),
            kind,
            sample: CgroupSample {
                boot_ns: 0,
                usage_bytes,
                detail: Some(Detail::default()),
            },
            settings: Settings::default(),
            throttling: Some(Throttling::default()),
        }
    }

    fn look(boot_ns: u64, units: Vec<Unit>) -> Look {
        Look {
            node: NodeSample {
                boot_ns,
                ..NodeSample::default()
            },
            pressure: [None; 3],
            load: None,
            tasks: None,
            units,
        }
    }

    #[test]
    fn a_pod_is_listed_only_for_what_its_containers_do_not_hold() {
        let pods = |own: u64| {
            let units = [
                unit("/pod", Kind::Pod, 200 * MIB + own),
                unit("/pod/a", Kind::Container, 150 * MIB),
                unit("/pod/bb", Kind::Container, 50 * MIB),
                unit("/podding", Kind::Container, 0),
            ];
            biggest(&units, 10).len()
        };
        assert_eq!(pods(MIB), 2);
        assert_eq!(pods(100 * MIB), 3);
    }

    #[test]
    fn rates_are_per_second_and_shares_at_most_one() {
        let mut unit = unit("/a", Kind::Other, 10 * MIB);
        let first = look(1_000_000_000, vec![unit.clone()]);
        unit.sample.boot_ns = 2_000_000_000;
        unit.sample.usage_bytes = 4 * MIB;
        unit.settings.own_max_bytes = Some(8 * MIB);
        unit.sample.detail = Some(Detail {
            psi_some_us: Some(500_000),
            ..Detail::default()
        });
        unit.throttling = Some(Throttling {
            periods: 10,
            throttled: 11,
            throttled_us: 2500,
        });
        let second = look(3_000_000_000, vec![unit]);
        let triage = compare(&first, &second, 10);
        assert_eq!(triage.duration_ms, 2000);
        let [top] = &triage.top[..] else {
            panic!("{triage:?}")
        };
        assert_eq!(top.growth_bytes_per_s, Some(-3_145_728.0));
        assert_eq!(top.limit_ratio, Some(0.5));
        assert_eq!(top.memory_some_ratio, None, "it was not told before");
        let [throttled] = &triage.cpu.throttled[..] else {
            panic!("{triage:?}")
        };
        assert_eq!(
            (throttled.throttled_ratio, throttled.throttled_ms),
            (1.0, 2.5)
        );
    }

    #[test]
    fn a_counter_that_went_back_gives_no_rate() {
        let elapsed = Elapsed::between(0, 2_000_000_000);
        assert_eq!(elapsed.rate(Some(5), Some(3)), None);
        assert_eq!(elapsed.rate(None, Some(3)), None);
        assert_eq!(elapsed.rate(Some(3), Some(8)), Some(2.5));
        assert_eq!(elapsed.share(Some(0), Some(3_000_000)), Some(1.0));
        assert_eq!(elapsed.share(Some(0), Some(500_000)), Some(0.25));
    }
}
