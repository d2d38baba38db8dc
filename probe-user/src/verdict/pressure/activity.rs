//! What happened within a window, from its first and last look.

use super::thresholds::{AT_LIMIT_RATIO, NODE_SCAN_PER_S, STANDING, WAITING};
use super::{CgroupWindow, Window};
use crate::event::label::{self, bytes, ratio};
use crate::pressure::sample::{CgroupSample, Detail, NodeSample};
use crate::pressure::series::approx;

/// How much of the time tasks waited for memory.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    /// At least one task, 0 to 1.
    pub(super) some: f64,
    /// All of them. `None` where only stalls were measured.
    pub(super) full: Option<f64>,
}

impl Wait {
    pub(super) fn long(self) -> bool {
        self.some >= WAITING || self.full.is_some_and(|full| full >= STANDING)
    }

    pub(super) fn evidence(self) -> String {
        match self.full {
            Some(full) => format!(
                "tasks waited for memory {} of the time, all of them at once {} (PSI some, full)",
                ratio(self.some),
                ratio(full)
            ),
            None => format!(
                "tasks waited for memory {} of the time (stalls, taken together)",
                ratio(self.some)
            ),
        }
    }
}

/// What a cgroup did.
pub(super) struct Activity<'a> {
    pub(super) window: &'a CgroupWindow<'a>,
    pub(super) seconds: f64,
    pub(super) usage_bytes: u64,
    first: Detail,
    pub(super) last: Detail,
    /// `None` where the kernel does not account for it and no hook measured it.
    pub(super) wait: Option<Wait>,
}

impl<'a> Activity<'a> {
    /// `None` without two full looks at different times.
    pub(super) fn of(window: &'a CgroupWindow<'a>) -> Option<Self> {
        let full = |sample: &CgroupSample| Some((*sample, sample.detail?));
        let (first, first_detail) = window.samples.iter().find_map(full)?;
        let (last, last_detail) = window.samples.iter().rev().find_map(full)?;
        let seconds = elapsed_s(first.boot_ns, last.boot_ns)?;
        let share = |from: Option<u64>, to: Option<u64>| Some(share(delta(from, to)?, seconds));
        let psi = share(first_detail.psi_some_us, last_detail.psi_some_us).map(|some| Wait {
            some,
            full: share(first_detail.psi_full_us, last_detail.psi_full_us),
        });
        let stalls = || {
            Some(Wait {
                some: (approx(window.stalls?.total_ns()) / 1e9 / seconds).min(1.0),
                full: None,
            })
        };
        Some(Self {
            window,
            seconds,
            usage_bytes: last.usage_bytes,
            first: first_detail,
            last: last_detail,
            wait: psi.or_else(stalls),
        })
    }

    pub(super) fn waits(&self) -> bool {
        self.wait.is_some_and(Wait::long)
    }

    /// What a counter rose by.
    pub(super) fn rise(&self, counter: fn(&Detail) -> Option<u64>) -> Option<u64> {
        delta(counter(&self.first), counter(&self.last))
    }

    /// The same where what is not counted did not happen.
    pub(super) fn count(&self, counter: fn(&Detail) -> Option<u64>) -> u64 {
        self.rise(counter).unwrap_or(0)
    }

    pub(super) fn per_s(&self, counter: fn(&Detail) -> Option<u64>) -> f64 {
        approx(self.count(counter)) / self.seconds
    }

    /// Growth of a part, bytes; 0 if it shrank.
    pub(super) fn growth(&self, part: impl Fn(&Detail) -> u64) -> u64 {
        part(&self.last).saturating_sub(part(&self.first))
    }

    /// The opposite, bytes; 0 if it grew.
    pub(super) fn shrinkage(&self, part: impl Fn(&Detail) -> u64) -> u64 {
        part(&self.first).saturating_sub(part(&self.last))
    }

    /// Hits of its own hard limit.
    pub(super) fn hits(&self) -> u64 {
        self.count(|d| d.max_events)
    }

    /// Whether its own limit, hard or throttling, made it reclaim.
    pub(super) fn at_own_limit(&self) -> bool {
        let near = |limit: Option<u64>| {
            limit.is_some_and(|limit| approx(self.usage_bytes) >= approx(limit) * AT_LIMIT_RATIO)
        };
        let hit = |rise: Option<u64>, limit| rise.map_or_else(|| near(limit), |hits| hits > 0);
        let settings = &self.window.settings;
        hit(self.rise(|d| d.max_events), settings.own_max_bytes)
            || hit(self.rise(|d| d.high_events), settings.high_bytes)
    }

    /// Kernel memory that is not given back for the asking.
    pub(super) fn kernel_bytes(detail: &Detail) -> u64 {
        let all = detail.kernel_bytes.or(detail.slab_unreclaimable_bytes);
        let given_back = detail
            .kernel_bytes
            .and(detail.slab_reclaimable_bytes)
            .unwrap_or(0);
        all.unwrap_or(0).saturating_sub(given_back)
    }

    /// What reclaim cannot take without swap: all but page cache and reclaimable slab.
    pub(super) fn unreclaimable_bytes(&self) -> u64 {
        let last = &self.last;
        let parts = [
            last.anon_bytes,
            last.shmem_bytes,
            Self::kernel_bytes(last),
            last.sock_bytes.unwrap_or(0),
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Refaults over pages reclaimed.
    pub(super) fn refault_ratio(&self) -> f64 {
        over(self.refaults(), self.count(|d| d.pgsteal))
    }

    pub(super) fn refaults(&self) -> u64 {
        self.count(|d| d.refault_anon)
            .saturating_add(self.count(|d| d.refault_file))
    }

    pub(super) fn refault_evidence(&self) -> String {
        format!(
            "{:.0} pages a second were thrown out and read back, {} of what reclaim took",
            approx(self.refaults()) / self.seconds,
            ratio(self.refault_ratio().min(1.0))
        )
    }

    /// 0 where no hook measured it.
    pub(super) fn refault_wait_ns(&self) -> u64 {
        self.window
            .stalls
            .map_or(0, |stalls| stalls.refault_wait_ns)
    }

    pub(super) fn limit_evidence(&self) -> Option<String> {
        let settings = &self.window.settings;
        let (what, limit, hits) = if self.hits() == 0 && self.count(|d| d.high_events) > 0 {
            (
                "memory.high",
                settings.high_bytes?,
                self.rise(|d| d.high_events),
            )
        } else {
            (
                "the limit",
                settings.own_max_bytes?,
                self.rise(|d| d.max_events),
            )
        };
        let hits = hits
            .map(|hits| format!(", hit {hits} times in {}", label::seconds(self.seconds)))
            .unwrap_or_default();
        Some(format!(
            "{} used of {} ({what}){hits}",
            bytes(self.usage_bytes),
            bytes(limit)
        ))
    }

    pub(super) fn makeup_evidence(&self) -> String {
        let last = &self.last;
        let parts = [
            ("anonymous", last.anon_bytes),
            ("page cache", last.file_bytes),
            ("tmpfs/shared", last.shmem_bytes),
            ("kernel", last.kernel_bytes.unwrap_or(0)),
            ("socket buffers", last.sock_bytes.unwrap_or(0)),
        ];
        let mut shares: Vec<_> = parts
            .into_iter()
            .filter(|&(_, part)| part.saturating_mul(50) >= self.usage_bytes.max(1))
            .collect();
        shares.sort_by_key(|&(_, part)| std::cmp::Reverse(part));
        let shares: Vec<_> = shares
            .iter()
            .map(|&(name, part)| super::super::share(name, part, self.usage_bytes))
            .collect();
        format!("it holds {}", shares.join(", "))
    }
}

/// What the node did.
pub(super) struct NodeActivity {
    pub(super) seconds: f64,
    first: NodeSample,
    pub(super) last: NodeSample,
    /// `None` where PSI is off.
    pub(super) wait: Option<Wait>,
}

impl NodeActivity {
    /// `None` if both looks are of one moment.
    pub(super) fn of(window: &Window<'_>) -> Option<Self> {
        const MEMORY: usize = 1;
        let (first, last) = window.node;
        let seconds = elapsed_s(first.boot_ns, last.boot_ns)?;
        let share = |from: &[Option<u64>; 3], to: &[Option<u64>; 3]| {
            Some(share(delta(from[MEMORY], to[MEMORY])?, seconds))
        };
        let wait = share(&first.psi_some_us, &last.psi_some_us).map(|some| Wait {
            some,
            full: share(&first.psi_full_us, &last.psi_full_us),
        });
        Some(Self {
            seconds,
            first,
            last,
            wait,
        })
    }

    pub(super) fn waits(&self) -> bool {
        self.wait.is_some_and(Wait::long)
    }

    pub(super) fn rise(&self, counter: fn(&NodeSample) -> Option<u64>) -> Option<u64> {
        delta(counter(&self.first), counter(&self.last))
    }

    pub(super) fn per_s(&self, counter: fn(&NodeSample) -> Option<u64>) -> f64 {
        approx(self.rise(counter).unwrap_or(0)) / self.seconds
    }

    pub(super) fn scanned_per_s(&self) -> f64 {
        self.per_s(|n| n.pgscan_kswapd) + self.per_s(|n| n.pgscan_direct)
    }

    /// Whether the node as a whole is short: reclaim that is not for a cgroup's limit.
    pub(super) fn reclaims(&self) -> bool {
        self.scanned_per_s() >= NODE_SCAN_PER_S
    }

    pub(super) fn available_ratio(&self) -> Option<f64> {
        let available = self.last.available_bytes?;
        (self.last.total_bytes > 0).then(|| over(available, self.last.total_bytes))
    }

    pub(super) fn reclaim_evidence(&self) -> String {
        format!(
            "the node scanned {:.0} pages a second for free ones, {} of that by the tasks that \
             needed them",
            self.scanned_per_s(),
            ratio(self.per_s(|n| n.pgscan_direct) / self.scanned_per_s().max(1.0))
        )
    }

    pub(super) fn available_evidence(&self) -> Option<String> {
        Some(format!(
            "{} available of {}",
            bytes(self.last.available_bytes?),
            bytes(self.last.total_bytes)
        ))
    }
}

/// `None` if nobody was seen to wait.
pub(super) fn refault_wait_evidence(ns: u64, seconds: f64) -> Option<String> {
    (ns > 0).then(|| {
        format!(
            "tasks waited {} in {} for such pages to be read, taken together",
            label::seconds(approx(ns) / 1e9),
            label::seconds(seconds)
        )
    })
}

/// What a counter rose by; one that fell has started anew.
fn delta(from: Option<u64>, to: Option<u64>) -> Option<u64> {
    to?.checked_sub(from?)
}

fn elapsed_s(from_ns: u64, to_ns: u64) -> Option<f64> {
    let ns = to_ns.checked_sub(from_ns).filter(|&ns| ns > 0)?;
    Some(approx(ns) / 1e9)
}

/// Microseconds of a window's seconds, at most all of them.
fn share(us: u64, seconds: f64) -> f64 {
    (approx(us) / 1e6 / seconds).min(1.0)
}

/// A ratio; 0 of 0 is 0.
pub(super) fn over(part: u64, whole: u64) -> f64 {
    approx(part) / approx(whole.max(1))
}
