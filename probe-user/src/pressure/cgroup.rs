//! One watched memory cgroup.

use std::{fs::File, io};

use super::{
    history::{HitSeries, Known},
    look::{self, DetailFiles, LimitHits, Roots},
    quota::Quota,
    recorder::Record,
    sample::{CgroupSample, Settings},
};

/// Share of its limit from which on a cgroup gets full looks, in thousandths.
const NEAR_LIMIT_PERMILLE: u64 = 800;

/// Share of time its tasks may wait for memory before it gets full looks, in thousandths.
const STALLING_PERMILLE: u64 = 50;

/// How long after a limit hit there are ten full looks a second.
const HOT_NS: u64 = 10_000_000_000;

/// How long a reason for full looks lasts, so that one that comes and goes keeps its record.
const HOLD_NS: u64 = 30_000_000_000;

/// How long a full look holds while usage stays the same.
const STILL_NS: u64 = 60_000_000_000;

/// How much a cgroup matters; the greater, the more.
pub type Urgency = u64;

/// A watched cgroup: what is open, what is known, what was sampled.
#[derive(Debug)]
pub struct Cgroup {
    usage: Option<File>,
    detail: Option<DetailFiles>,
    /// Limits, as last read.
    pub settings: Settings,
    /// What was sampled.
    pub record: Record,
    /// When it was made; `None` if that was before it was watched.
    pub made_boot_ns: Option<u64>,
    /// Usage as last read, bytes.
    pub usage_bytes: u64,
    /// Limit hits.
    pub hits: Option<HitSeries>,
    /// Hits of its hard limit as hooks counted them.
    pub hooked: u64,
    /// Waits for its CPU quota.
    pub quota: Quota,
    stalled_ns: Option<u64>,
    near_ns: Option<u64>,
    /// When its files were read for the last full look, if usage has been the same ever since.
    still_since_ns: Option<u64>,
}

impl Cgroup {
    /// A cgroup that is not looked at yet. Without `usage` each look opens the file anew.
    pub fn new(usage: Option<File>, settings: Settings, made_boot_ns: Option<u64>) -> Self {
        Self {
            usage,
            detail: None,
            settings,
            record: Record::default(),
            made_boot_ns,
            usage_bytes: 0,
            hits: None,
            hooked: 0,
            quota: Quota::default(),
            stalled_ns: None,
            near_ns: None,
            still_since_ns: None,
        }
    }

    /// True if its usage file is held open.
    pub fn holds_file(&self) -> bool {
        self.usage.is_some()
    }

    /// True while it gets full looks.
    pub fn is_full(&self) -> bool {
        self.detail.is_some()
    }

    /// Reads usage and records it.
    pub fn look(&mut self, roots: &Roots, path: &[u8], now_ns: u64) -> io::Result<()> {
        let usage_bytes = self.read_usage(roots, path)?;
        if usage_bytes != self.usage_bytes {
            self.still_since_ns = None;
        }
        self.usage_bytes = usage_bytes;
        self.record.push_usage(now_ns, self.usage_bytes);
        let limit = self
            .settings
            .max_bytes
            .into_iter()
            .chain(self.settings.high_bytes)
            .min();
        if limit.is_some_and(|limit| permille(self.usage_bytes, limit) >= NEAR_LIMIT_PERMILLE) {
            self.near_ns = Some(now_ns);
        }
        Ok(())
    }

    /// Looks fully and records it.
    pub fn look_fully(
        &mut self,
        roots: &Roots,
        path: &[u8],
        now_ns: u64,
        buf: &mut Vec<u8>,
    ) -> io::Result<CgroupSample> {
        let sample = self.read_fully(roots, path, now_ns, buf)?;
        self.usage_bytes = sample.usage_bytes;
        self.still_since_ns = Some(now_ns);
        self.compare(&sample);
        self.record.push_look(&sample);
        Ok(sample)
    }

    /// The last full look again, without reading a file, if usage has been the same at each look
    /// since: where nothing comes and nothing goes, what it consists of stays as well.
    pub fn look_again(&mut self, now_ns: u64) -> Option<CgroupSample> {
        let is_still = |since_ns: u64| now_ns < since_ns.saturating_add(STILL_NS);
        self.still_since_ns.filter(|&since_ns| is_still(since_ns))?;
        let sample = CgroupSample {
            boot_ns: now_ns,
            ..self.record.last_look()?
        };
        self.record.push_look(&sample);
        Some(sample)
    }

    /// Reads everything, through files held open or opened for this once.
    pub fn read_fully(
        &self,
        roots: &Roots,
        path: &[u8],
        now_ns: u64,
        buf: &mut Vec<u8>,
    ) -> io::Result<CgroupSample> {
        let usage_bytes = self.read_usage(roots, path)?;
        let mut detail = match &self.detail {
            Some(files) => files.read(buf)?,
            None => DetailFiles::open(roots, path)?.read(buf)?,
        };
        if roots.hooked {
            detail.max_events = Some(self.hooked);
        }
        Ok(CgroupSample {
            boot_ns: now_ns,
            usage_bytes,
            detail: Some(detail),
        })
    }

    /// How often it hit its limits, now.
    pub fn limit_hits(
        &self,
        roots: &Roots,
        path: &[u8],
        buf: &mut Vec<u8>,
    ) -> io::Result<LimitHits> {
        if roots.hooked {
            return Ok(LimitHits {
                max: Some(self.hooked),
                ..LimitHits::default()
            });
        }
        roots.limit_hits(path, buf)
    }

    /// Reads how long it waited for its CPU quota.
    pub fn look_at_quota(&mut self, roots: &Roots, path: &[u8], now_ns: u64, buf: &mut Vec<u8>) {
        if let Some(reading) = roots.throttling(path, buf) {
            self.quota.push(now_ns, reading, self.made_boot_ns);
        }
    }

    /// A limit of it was hit.
    pub fn hit(&mut self, boot_ns: u64) {
        self.hits = Some(HitSeries::after(self.hits, boot_ns));
    }

    /// Its tasks wait for memory.
    pub fn stalled(&mut self, boot_ns: u64) {
        self.stalled_ns = Some(boot_ns);
    }

    /// True if it hit a limit within the last ten seconds.
    pub fn is_hot(&self, now_ns: u64) -> bool {
        self.hits
            .is_some_and(|hits| now_ns < hits.last_ns.saturating_add(HOT_NS))
    }

    /// How much it matters that this one gets full looks; 0 if it does not.
    pub fn urgency(&self, now_ns: u64) -> Urgency {
        let lately = |at: Option<u64>| at.is_some_and(|at| now_ns < at.saturating_add(HOLD_NS));
        let reasons = [
            self.is_hot(now_ns),
            lately(self.hits.map(|hits| hits.last_ns)),
            lately(self.stalled_ns),
            lately(self.near_ns),
        ];
        let Some(best) = reasons.iter().position(|&reason| reason) else {
            return 0;
        };
        let fill = self
            .settings
            .max_bytes
            .map_or(0, |limit| permille(self.usage_bytes, limit).min(999));
        (reasons.len() - best) as u64 * 1000 + fill
    }

    /// Begins full looks: opens the files and keeps what they give.
    pub fn begin_full(&mut self, roots: &Roots, path: &[u8]) -> io::Result<()> {
        if self.detail.is_none() {
            self.detail = Some(DetailFiles::open(roots, path)?);
        }
        self.record.keep_looks();
        Ok(())
    }

    /// Ends full looks: closes the files and gives up what they gave.
    pub fn end_full(&mut self) {
        self.detail = None;
        self.record.drop_looks();
    }

    /// Closes all files: it was removed.
    pub fn close(&mut self) {
        self.usage = None;
        self.detail = None;
    }

    /// What is known beside the samples.
    pub fn known(&self) -> Known {
        let last = self.record.last_look().and_then(|sample| sample.detail);
        Known {
            made_boot_ns: self.made_boot_ns,
            limit_bytes: self.settings.own_max_bytes.or(self.settings.max_bytes),
            peak_bytes: None,
            hits: self.hits,
            max_events: last.and_then(|detail| detail.max_events),
            high_events: last.and_then(|detail| detail.high_events),
            cpu_throttled: self.quota.lately(),
        }
    }

    fn read_usage(&self, roots: &Roots, path: &[u8]) -> io::Result<u64> {
        match &self.usage {
            Some(file) => look::read_number(file),
            None => look::read_number(&roots.open_usage(path)?),
        }
    }

    /// What has moved since the look before. If something has, that look is where it began, and
    /// is kept.
    fn compare(&mut self, sample: &CgroupSample) {
        let (Some(last), Some(detail)) = (self.record.last_look(), sample.detail) else {
            return;
        };
        let Some(before) = last.detail else {
            return;
        };
        let rise = |now: Option<u64>, then: Option<u64>| match (now, then) {
            (Some(now), Some(then)) => now.saturating_sub(then),
            _ => 0,
        };
        if rise(detail.max_events, before.max_events) > 0
            || rise(detail.high_events, before.high_events) > 0
        {
            self.hit(sample.boot_ns);
            self.record.keep_looks();
        }
        let interval_us = sample.boot_ns.saturating_sub(last.boot_ns) / 1000;
        let stalled_us = rise(detail.psi_some_us, before.psi_some_us);
        if permille(stalled_us, interval_us) > STALLING_PERMILLE {
            self.stalled(sample.boot_ns);
            self.record.keep_looks();
        }
    }
}

/// `part` of `whole` in thousandths; 0 of nothing.
fn permille(part: u64, whole: u64) -> u64 {
    let permille = (u128::from(part) * 1000).checked_div(u128::from(whole));
    permille.map_or(0, |permille| u64::try_from(permille).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limited(usage_bytes: u64) -> Cgroup {
        let mut cgroup = Cgroup::new(
            None,
            Settings {
                max_bytes: Some(1000),
                ..Settings::default()
            },
            None,
        );
        cgroup.usage_bytes = usage_bytes;
        cgroup
    }

    #[test]
    fn what_hits_its_limit_comes_before_what_stalls_before_what_is_near() {
        let now = 100 * SECOND;
        let mut hot = limited(0);
        hot.hit(now - SECOND);
        let mut hit_lately = limited(999);
        hit_lately.hit(now - 15 * SECOND);
        let mut stalling = limited(999);
        stalling.stalled(now - SECOND);
        let mut near = limited(999);
        near.near_ns = Some(now);
        let urgencies =
            [&hot, &hit_lately, &stalling, &near, &limited(100)].map(|cgroup| cgroup.urgency(now));
        assert!(urgencies.is_sorted_by(|a, b| a > b), "{urgencies:?}");
        assert_eq!(urgencies[4], 0);
        assert_eq!(hot.urgency(now + 60 * SECOND), 0);
    }

    #[test]
    fn no_limit_divides_by_nothing() {
        assert_eq!(permille(5, 0), 0);
        assert_eq!(permille(u64::MAX, 1), u64::MAX);
        assert_eq!(permille(1, 2), 500);
    }
}
