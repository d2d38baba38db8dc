//! Processes that exited by themselves.

use super::{Facts, Finding, finding, killed};
use crate::event::{Confidence, DeathCause, Signal, label};

/// An OOM kill this shortly before an exit is taken for its reason, ms.
const RECENT_MS: u64 = 10_000;

pub(super) fn find(facts: &Facts<'_>) -> Finding {
    let code = facts.death.exit_code;
    let mut why = format!("exited by itself with code {code}: {}", meaning(code));
    let mut evidence = Vec::new();
    if let Some(stop) = &facts.death.stop_request {
        evidence.push(format!(
            "{} came {} ms before",
            stop.signal.name, stop.took_ms
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
        #[expect(clippy::cast_precision_loss, reason = "a time for a person")]
        let lived = label::seconds(lifetime as f64 / 1000.0);
        evidence.push(format!("it ran for {lived}"));
    }
    if let Some(stop) = &facts.death.stop_request
        && matches!(code, 0 | 143)
        && killed::is_runtime(&stop.sender)
    {
        let why = format!("was asked to stop by the runtime and exited in time with code {code}");
        return finding(DeathCause::RuntimeStop, Confidence::High, why, evidence);
    }
    finding(DeathCause::AppExit, Confidence::High, why, evidence)
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
