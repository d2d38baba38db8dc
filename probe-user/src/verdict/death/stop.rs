//! Processes that the container runtime stopped: on whose behalf, and whether in time.

use super::{Facts, FailedExec, Finding, finding, sender};
use crate::event::{Before, Confidence, CpuThrottled, DeathCause, ProcessRole, label};

/// A SIGKILL this soon after a request to stop did not wait for a grace period, ms: the shortest one
/// that Kubernetes knows is a second.
const AT_ONCE_MS: u64 = 900;
/// Part of the time before a death that tasks must have waited for memory to call it a stall.
const STALLED: f64 = 0.1;

/// A command that failed in a container this shortly before it was stopped is taken for the reason,
/// ms: the kubelet acts on the last failure of a probe at once.
const JUST_BEFORE_MS: u64 = 5_000;

/// How it went after the runtime asked for it.
enum End {
    /// Killed so many ms after the request.
    Expired(u64),
    /// Killed without a request, or right after it.
    AtOnce,
    /// Ended by the request, or by itself after it.
    InTime,
}

/// `is_kill`: it was ended by SIGKILL. `how_sure`: that it was the runtime.
pub(super) fn find(
    facts: &Facts<'_>,
    is_kill: bool,
    how_sure: Confidence,
    mut evidence: Vec<String>,
) -> Finding {
    use Confidence::{High, Medium};

    let end = end(facts, is_kill);
    let how = describe(&end, facts);
    let runtime = facts.death.runtime.as_ref();
    let is_init = facts.death.role == Some(ProcessRole::Init);
    let sandbox_stopped = runtime
        .and_then(|runtime| runtime.sandbox_stopped)
        .filter(|_| is_init);
    let siblings_too = facts
        .death
        .stop_request
        .as_ref()
        .and_then(|request| request.siblings_too)
        == Some(true);
    if siblings_too {
        evidence
            .push("another container of its pod was asked to stop too: the pod ends".to_owned());
    }
    let node = facts.node;
    if (siblings_too || sandbox_stopped == Some(true))
        && let (Some(available), Some(threshold)) =
            (node.available_bytes, node.eviction_threshold_bytes)
        && available < threshold
    {
        let (available, threshold) = (label::bytes(available), label::bytes(threshold));
        evidence.push(format!(
            "node: {available} available when it was stopped, the kubelet evicts below {threshold}"
        ));
        evidence.push(how);
        let why = "was stopped with its pod, on a node short of memory: an eviction";
        return finding(DeathCause::Eviction, Medium, why, evidence);
    }
    if !siblings_too && sandbox_stopped == Some(false) {
        evidence.push(
            "its pod's sandbox still ran a moment later: the pod was not being deleted, or \
             another container of it took longer to stop"
                .to_owned(),
        );
        evidence.push(how);
        let mut why = "was stopped by the runtime alone of its pod: a liveness or startup probe \
                       failed, or its container was restarted"
            .to_owned();
        if let Some(failed) = facts
            .failed_exec
            .filter(|failed| failed.ms_before <= JUST_BEFORE_MS)
        {
            evidence.insert(0, failure(failed));
            why.push_str("; a command executed in it, as of an exec probe, had just failed");
        }
        if let Some(stall) = facts.death.before.as_ref().and_then(stall) {
            evidence.insert(0, stall.evidence);
            why.push_str("; the probe probably failed because the container stood still");
        }
        return finding(DeathCause::LivenessKill, Medium, why, evidence);
    }
    evidence.push(how.clone());
    if facts.death.role == Some(ProcessRole::Exec) && is_kill {
        let why = "was executed in its container and killed by the runtime: an exec probe or a \
                   hook that took too long";
        return finding(DeathCause::RuntimeStop, how_sure.min(Medium), why, evidence);
    }
    let (cause, sure) = match end {
        End::Expired(_) => (DeathCause::RuntimeStopGraceExpired, High),
        End::AtOnce => (DeathCause::RuntimeStop, Medium),
        End::InTime => (DeathCause::RuntimeStop, High),
    };
    finding(
        cause,
        sure.min(how_sure),
        format!("was stopped by the runtime: {how}"),
        evidence,
    )
}

fn end(facts: &Facts<'_>, is_kill: bool) -> End {
    if !is_kill {
        return End::InTime;
    }
    let request = facts.death.stop_request.as_ref();
    let request = request.filter(|request| sender::runtime(&request.sender).is_some());
    match request.and_then(|request| request.killed_after_ms) {
        Some(ms) if ms >= AT_ONCE_MS => End::Expired(ms),
        _ => End::AtOnce,
    }
}

fn describe(end: &End, facts: &Facts<'_>) -> String {
    let death = facts.death;
    let grace_ms = death.runtime.as_ref().and_then(|r| r.grace_period_ms);
    match end {
        End::Expired(ms) => {
            let after = ms_label(*ms);
            match grace_ms {
                // Pod deletions and probes may set a shorter one than the pod.
                Some(grace) if ms + AT_ONCE_MS < grace => format!(
                    "killed {after} after it was asked to stop; the grace period was shorter than \
                     the pod's {}",
                    ms_label(grace)
                ),
                Some(grace) => format!(
                    "killed {after} after it was asked to stop, its grace period of {} was over",
                    ms_label(grace)
                ),
                None => {
                    format!("killed {after} after it was asked to stop, its grace period was over")
                }
            }
        }
        End::AtOnce => {
            "killed, and no request to stop was seen before: a forced stop, or cleaning up"
                .to_owned()
        }
        End::InTime => match &death.stop_request {
            Some(request) => format!(
                "ended in time, {} after {}",
                ms_label(request.took_ms),
                request.signal.name
            ),
            None => "ended in time".to_owned(),
        },
    }
}

fn failure(failed: &FailedExec) -> String {
    let how = if failed.was_late {
        "was killed by the runtime for taking too long".to_owned()
    } else {
        format!("failed with exit code {}", failed.exit_code)
    };
    let before = ms_label(failed.ms_before);
    format!("{}, executed in it, {how} {before} before", failed.comm)
}

/// What made a container stand still.
pub(super) struct Stall {
    /// In two words.
    pub(super) what: &'static str,
    /// With numbers.
    pub(super) evidence: String,
}

/// What made the container stand still before it died.
pub(super) fn stall(before: &Before) -> Option<Stall> {
    for_memory(before).or_else(|| for_processors(before.cpu_throttled?))
}

fn for_memory(before: &Before) -> Option<Stall> {
    let stalled = before.stall_ms.filter(|ms| *ms >= STALLED * before.span_ms);
    if before.thrashed != Some(true) && stalled.is_none() {
        return None;
    }
    let mut parts = Vec::new();
    if let Some(ms) = before.stall_ms {
        parts.push(format!(
            "tasks waited {} for memory",
            label::seconds(ms / 1000.0)
        ));
    }
    if let Some(hits) = before.max_hits.filter(|hits| *hits > 0) {
        parts.push(format!("its limit was hit {hits} times"));
    }
    if before.thrashed == Some(true) {
        parts.push("it thrashed".to_owned());
    }
    Some(Stall {
        what: "reclaim stall",
        evidence: format!(
            "in the {} before: {}",
            label::seconds(before.span_ms / 1000.0),
            parts.join(", ")
        ),
    })
}

fn for_processors(throttled: CpuThrottled) -> Option<Stall> {
    throttled.held_up().then(|| Stall {
        what: "CPU throttling",
        evidence: format!(
            "in the {} before: its CPU limit stopped it in {} of all periods, for {}",
            label::seconds(throttled.window_ms / 1000.0),
            label::ratio(throttled.throttled_ratio),
            label::seconds(throttled.throttled_ms / 1000.0)
        ),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a time for a person")]
pub(super) fn ms_label(ms: u64) -> String {
    label::seconds(ms as f64 / 1000.0)
}
