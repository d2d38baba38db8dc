//! Processes that exited by themselves.

use super::{Facts, Finding, finding, sender, stop};
use crate::event::{Confidence, DeathCause, Signal, StopRequest};

/// An OOM kill this shortly before an exit is taken for its reason, ms.
const RECENT_MS: u64 = 10_000;

pub(super) fn find(facts: &Facts<'_>) -> Finding {
    let code = facts.death.exit_code;
    let mut why = format!("exited by itself with code {code}: {}", meaning(code));
    let mut evidence = Vec::new();
    if let Some(asked) = &facts.death.stop_request {
        evidence.push(format!(
            "{} came {} before",
            asked.signal.name,
            stop::ms_label(asked.took_ms)
        ));
    }
    if let Some(oom) = facts.earlier_oom
        && oom.ms_before <= RECENT_MS
    {
        why = format!(
            "{why}; {} ms after an OOM kill in its container",
            oom.ms_before
        );
        evidence.push(format!("OOM kill {} of {}", oom.incident, oom.comm));
    }
    if let Some(lifetime) = facts.death.lifetime_ms {
        evidence.push(format!("it ran for {}", stop::ms_label(lifetime)));
    }
    if let Some(request) = &facts.death.stop_request
        && is_reason(request, facts)
        && let Some(sure) = sender::runtime(&request.sender)
    {
        // Other codes than these may be a failure that came in between.
        let sure = match code {
            0 | 130 | 143 => sure,
            _ => sure.min(Confidence::Medium),
        };
        let mut found = stop::find(facts, false, sure, evidence);
        found.why = format!("{}; it exited with code {code}", found.why);
        return found;
    }
    finding(DeathCause::AppExit, Confidence::High, why, evidence)
}

/// Whether a process that ends so long after a request may do so because of it. A signal that some
/// programs print their threads for, or rotate their logs, and live on, not for long.
fn is_reason(request: &StopRequest, facts: &Facts<'_>) -> bool {
    let runtime = facts.death.runtime.as_ref();
    let grace_ms = runtime.and_then(|runtime| runtime.grace_period_ms);
    let longest_ms = match request.signal.name.as_str() {
        "SIGTERM" => 3_600_000,
        _ => 60_000,
    };
    request.took_ms <= grace_ms.unwrap_or(0).max(longest_ms)
}

/// What programs usually mean by an exit code.
fn meaning(code: u32) -> String {
    match code {
        0 => "done, no error".to_owned(),
        1 => "an error that only its own log tells".to_owned(),
        2 => "usually wrong arguments, or a shell's syntax error".to_owned(),
        125 => "usually the tool that should start the program failed".to_owned(),
        126 => "usually a program that may not be executed".to_owned(),
        127 => "usually a program that was not found".to_owned(),
        129..=192 => format!(
            "usually a shell that passes on that its child died of {}, or a handler of it",
            Signal::of(code - 128).name
        ),
        255 => "usually exit(-1)".to_owned(),
        _ => "what it means only the program tells".to_owned(),
    }
}
