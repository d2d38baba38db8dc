//! One cgroup against its own limit.

use super::Draft;
use super::activity::{Activity, Wait, over, refault_wait_evidence};
use super::thresholds::{
    BRIM_RATIO, DIRTY_RATIO, DOMINANT_RATIO, FULL_RATIO, GROWING_RATIO, REFAULT_RATIO,
    REFAULTS_PER_S, SOON_S, SPIKE_RATIO, SPIKE_WITHIN_S, STEADY_BYTES, STEADY_EVENNESS,
    STEADY_LOOKS, UNPLANNED_RATIO, WAITING, WAITING_UNNAMED,
};
use crate::event::label::{self, bytes, ratio};
use crate::event::{Confidence, Finding, FindingId};
use crate::pressure::sample::Detail;
use crate::pressure::series::{approx, evenness};

/// The first rule that holds: each names a narrower cause than the ones after it.
const RULES: [fn(&Activity<'_>) -> Option<Draft>; 9] = [
    spike,
    filled,
    high_throttling,
    swap_thrash,
    thrashing,
    limit_too_tight,
    page_cache_pressure,
    unnamed,
    growing,
];

/// What is wrong with a cgroup, as far as its own limit is the reason.
pub(super) fn judge(activity: &Activity<'_>) -> Option<Finding> {
    let draft = RULES.iter().find_map(|rule| rule(activity))?;
    Some(draft.about(activity.window))
}

/// Anonymous memory took up half of the limit between two looks.
fn spike(activity: &Activity<'_>) -> Option<Draft> {
    let limit = activity.window.settings.own_max_bytes?;
    let looks: Vec<_> = activity
        .window
        .samples
        .iter()
        .filter_map(|sample| Some((sample.boot_ns, sample.detail?.anon_bytes)))
        .collect();
    let (grown, within) = looks
        .windows(2)
        .map(|pair| {
            let within = approx(pair[1].0.saturating_sub(pair[0].0)) / 1e9;
            (pair[1].1.saturating_sub(pair[0].1), within)
        })
        .max_by_key(|&(grown, _)| grown)?;
    let full = over(activity.unreclaimable_bytes(), limit) >= FULL_RATIO;
    if !full || within > SPIKE_WITHIN_S || over(grown, limit) < SPIKE_RATIO {
        return None;
    }
    Some(Draft {
        id: FindingId::Spike,
        confidence: if within <= 1.5 {
            Confidence::High
        } else {
            Confidence::Medium
        },
        summary: format!(
            "{} took {} of anonymous memory within {}: it is at its limit of {}",
            activity.window.who(),
            bytes(grown),
            label::seconds(within),
            bytes(limit)
        ),
        evidence: [
            Some(format!(
                "{} of the limit at once, before any limit or scaler can act",
                ratio(over(grown, limit))
            )),
            activity.limit_evidence(),
            Some(activity.makeup_evidence()),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

/// It will be at its limit soon if it goes on like this.
fn growing(activity: &Activity<'_>) -> Option<Draft> {
    let limit = activity.window.settings.own_max_bytes?;
    let kept = |detail: &Detail| {
        let own = detail.anon_bytes.saturating_add(detail.shmem_bytes);
        own.saturating_add(Activity::kernel_bytes(detail))
    };
    let details = activity
        .window
        .samples
        .iter()
        .filter_map(|sample| sample.detail);
    let levels: Vec<f64> = details.map(|detail| approx(kept(&detail))).collect();
    let grown = activity.growth(kept);
    let left = limit.saturating_sub(activity.unreclaimable_bytes());
    let per_s = approx(grown) / activity.seconds;
    let soon_s = approx(left) / per_s;
    if levels.len() < STEADY_LOOKS
        || evenness(&levels).is_none_or(|least| least < STEADY_EVENNESS)
        || grown < STEADY_BYTES
        || soon_s > SOON_S
    {
        return None;
    }
    Some(Draft {
        id: FindingId::LeakSuspect,
        // Seconds cannot tell a leak from a start or from a big request.
        confidence: Confidence::Low,
        summary: format!(
            "{} grows by {}: at this rate it is at its limit of {} in {}",
            activity.window.who(),
            label::rate(per_s),
            bytes(limit),
            label::seconds(soon_s)
        ),
        evidence: vec![
            format!(
                "{} more in {}, in each of {} looks, that cannot be given back",
                bytes(grown),
                label::seconds(activity.seconds),
                levels.len()
            ),
            activity.makeup_evidence(),
            "a few seconds do not tell a leak from a start: `oomprobe trace` follows it".to_owned(),
        ],
    })
}

/// A kind of memory, its name, the share of usage from which it is what fills a limit.
type Kind = (FindingId, &'static str, f64, fn(&Detail) -> u64);

/// The limit is full of something that no reclaim takes, and that is not the processes' own.
fn filled(activity: &Activity<'_>) -> Option<Draft> {
    let limit = activity.window.settings.own_max_bytes?;
    if over(activity.unreclaimable_bytes(), limit) < FULL_RATIO {
        return None;
    }
    let kinds: [Kind; 3] = [
        (
            FindingId::TmpfsGrowth,
            "files in tmpfs (emptyDir in memory, /dev/shm) or shared memory",
            DOMINANT_RATIO,
            |d| d.shmem_bytes,
        ),
        (
            FindingId::KernelMemory,
            "kernel memory that cannot be given back",
            UNPLANNED_RATIO,
            Activity::kernel_bytes,
        ),
        (
            FindingId::SocketMemory,
            "socket buffers",
            UNPLANNED_RATIO,
            |d| d.sock_bytes.unwrap_or(0),
        ),
    ];
    let (id, name, _, part) = kinds
        .into_iter()
        .filter(|(.., least, part)| over(part(&activity.last), activity.usage_bytes) >= *least)
        .max_by_key(|(.., part)| part(&activity.last))?;
    let (held, grown) = (part(&activity.last), activity.growth(part));
    // Full and still is a size somebody chose.
    if over(grown, limit) < GROWING_RATIO && !pressed(activity) {
        return None;
    }
    Some(Draft {
        id,
        confidence: Confidence::High,
        summary: format!(
            "{} of the limit of {} is filled by {name}: {}",
            ratio(over(held, limit)),
            activity.window.who(),
            bytes(held)
        ),
        evidence: [
            Some(format!(
                "{} of it came within {}",
                bytes(grown),
                label::seconds(activity.seconds)
            )),
            Some(activity.makeup_evidence()),
            activity.limit_evidence(),
            activity.wait.map(Wait::evidence),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

/// Over `memory.high`, and reclaim does not bring it under: tasks are put to sleep.
fn high_throttling(activity: &Activity<'_>) -> Option<Draft> {
    let high = activity.window.settings.high_bytes?;
    let hits = activity.count(|d| d.high_events);
    let asleep = activity
        .window
        .stalls
        .map(|stalls| approx(stalls.high_throttle_ns) / 1e9 / activity.seconds);
    if hits == 0 || !(activity.waits() || asleep.is_some_and(|asleep| asleep >= WAITING)) {
        return None;
    }
    // A hook says it; else sleep shows as waiting that no refault explains, still over the line.
    let stuck = activity.usage_bytes >= high && activity.refault_ratio() < REFAULT_RATIO;
    let measured = asleep.is_some_and(|asleep| asleep >= WAITING);
    if !measured && (!stuck || asleep.is_some()) {
        return None;
    }
    let asleep = asleep.map(|asleep| {
        format!(
            "tasks slept {} in {} for being over it, taken together",
            label::seconds(asleep * activity.seconds),
            label::seconds(activity.seconds)
        )
    });
    Some(Draft {
        id: FindingId::HighThrottling,
        confidence: if measured {
            Confidence::High
        } else {
            Confidence::Medium
        },
        summary: format!(
            "{} is slowed down by memory.high ({}), not hung: the kernel puts its tasks to sleep",
            activity.window.who(),
            bytes(high)
        ),
        evidence: asleep
            .into_iter()
            .chain(activity.wait.map(Wait::evidence))
            .chain([
                format!(
                    "{} used of {} (memory.high), hit {hits} times in {}; memory.max {}",
                    bytes(activity.usage_bytes),
                    bytes(high),
                    label::seconds(activity.seconds),
                    activity
                        .window
                        .settings
                        .own_max_bytes
                        .map_or("is not set".to_owned(), |max| format!("is {}", bytes(max)))
                ),
                activity.makeup_evidence(),
            ])
            .collect(),
    })
}

fn swap_thrash(activity: &Activity<'_>) -> Option<Draft> {
    let anon = activity.per_s(|d| d.refault_anon);
    let file = activity.per_s(|d| d.refault_file);
    let swapped = activity.last.swap_bytes.filter(|&swap| swap > 0)?;
    if !activity.waits() || !activity.at_own_limit() || anon < REFAULTS_PER_S || anon < file {
        return None;
    }
    Some(Draft {
        id: FindingId::SwapThrash,
        confidence: Confidence::High,
        summary: format!(
            "{} swaps the same memory out and in: its limit is smaller than what it works with",
            activity.window.who()
        ),
        evidence: [
            activity.wait.map(Wait::evidence),
            Some(format!(
                "{anon:.0} pages a second came back from swap ({} of it there), {file:.0} from files",
                bytes(swapped)
            )),
            refault_wait_evidence(activity.refault_wait_ns(), activity.seconds),
            activity.limit_evidence(),
            Some(activity.makeup_evidence()),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

fn thrashing(activity: &Activity<'_>) -> Option<Draft> {
    let rate = approx(activity.refaults()) / activity.seconds;
    if !activity.waits()
        || !activity.at_own_limit()
        || rate < REFAULTS_PER_S
        || activity.refault_ratio() < REFAULT_RATIO
    {
        return None;
    }
    Some(Draft {
        id: FindingId::Thrashing,
        confidence: Confidence::High,
        summary: format!(
            "{} thrashes at its limit: program code and files it needs are thrown out and read \
             back, and nothing is killed",
            activity.window.who()
        ),
        evidence: [
            activity.wait.map(Wait::evidence),
            Some(activity.refault_evidence()),
            refault_wait_evidence(activity.refault_wait_ns(), activity.seconds),
            activity.limit_evidence(),
            Some(format!(
                "{:.0} major faults a second",
                activity.per_s(|d| d.pgmajfault)
            )),
            Some(activity.makeup_evidence()),
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

/// Whether hits of a full limit matter: with swap at work they may cost nothing.
fn pressed(activity: &Activity<'_>) -> bool {
    let swaps = activity.last.swap_bytes.is_some_and(|swap| swap > 0);
    activity.hits() > 0 && (activity.waits() || !swaps)
}

/// Next to nothing is left to reclaim, and the limit is hit.
fn limit_too_tight(activity: &Activity<'_>) -> Option<Draft> {
    let limit = activity.window.settings.own_max_bytes?;
    let kills = activity.count(|d| d.oom_kill_events);
    let held = activity.unreclaimable_bytes();
    let share = over(held, limit);
    let killed = kills > 0 && activity.hits() > 0;
    let at_brim = share >= BRIM_RATIO && pressed(activity);
    let waits = activity.waits() && activity.hits() > 0;
    if share < FULL_RATIO || !(killed || at_brim || waits) {
        return None;
    }
    let kills = (kills > 0).then(|| {
        format!(
            "{kills} processes in it were OOM-killed in {}",
            label::seconds(activity.seconds)
        )
    });
    Some(Draft {
        id: FindingId::LimitTooTight,
        confidence: if activity.wait.is_some() {
            Confidence::High
        } else {
            Confidence::Medium
        },
        summary: format!(
            "the limit of {} ({}) is too near what it needs: {} cannot be given back",
            activity.window.who(),
            bytes(limit),
            bytes(held)
        ),
        evidence: kills
            .into_iter()
            .chain([format!(
                "{} of the limit is neither page cache nor reclaimable slab",
                ratio(share)
            )])
            .chain(activity.limit_evidence())
            .chain(activity.wait.map(Wait::evidence))
            .chain([activity.makeup_evidence()])
            .collect(),
    })
}

fn page_cache_pressure(activity: &Activity<'_>) -> Option<Draft> {
    let file = activity.last.file_bytes;
    if !activity.waits()
        || !activity.at_own_limit()
        || over(file, activity.usage_bytes) < DOMINANT_RATIO
    {
        return None;
    }
    let dirty = activity.last.file_dirty_bytes.unwrap_or(0);
    let writing = over(dirty, file) >= DIRTY_RATIO;
    let why = if writing {
        "writes files faster than the disk takes them"
    } else {
        "reads or writes files through a limit with no room for them"
    };
    let io = activity.rise(|d| d.io_psi_full_us).map(|us| {
        format!(
            "all its tasks waited for disks {} of the time (PSI io full)",
            ratio((approx(us) / 1e6 / activity.seconds).min(1.0))
        )
    });
    Some(Draft {
        id: FindingId::PageCachePressure,
        confidence: if writing {
            Confidence::High
        } else {
            Confidence::Medium
        },
        summary: format!(
            "{} {why}, and waits for page cache to be freed",
            activity.window.who()
        ),
        evidence: [
            activity.wait.map(Wait::evidence),
            Some(format!(
                "{} of its memory is page cache, {} of that dirty or being written",
                ratio(over(file, activity.usage_bytes)),
                bytes(dirty)
            )),
            activity.limit_evidence(),
            io,
        ]
        .into_iter()
        .flatten()
        .collect(),
    })
}

fn unnamed(activity: &Activity<'_>) -> Option<Draft> {
    let wait = activity.wait.filter(|wait| wait.some >= WAITING_UNNAMED)?;
    activity.at_own_limit().then(|| Draft {
        id: FindingId::Unknown,
        confidence: Confidence::Low,
        summary: format!(
            "tasks of {} wait for memory at its limit; what takes it cannot be told",
            activity.window.who()
        ),
        evidence: [wait.evidence()]
            .into_iter()
            .chain(activity.limit_evidence())
            .chain([activity.refault_evidence(), activity.makeup_evidence()])
            .collect(),
    })
}
