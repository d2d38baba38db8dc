//! What ended a process.

mod exit;
mod facts;
mod killed;
mod report;
pub mod restarts;
mod sender;
mod steps;
mod stop;
#[cfg(test)]
mod tests;

pub use facts::{EarlierOom, Facts, FailedExec, NodeState, OomPart};

use crate::event::{Confidence, DeathCause, DeathVerdict, Via, label};

/// Cause, how sure, the rest of the sentence, evidence.
struct Finding {
    cause: DeathCause,
    confidence: Confidence,
    why: String,
    evidence: Vec<String>,
}

/// Explains a death. `death.verdict` is not read.
pub fn process_death(facts: &Facts<'_>) -> DeathVerdict {
    let finding = find(facts);
    let who = label::process(facts.process);
    let who = match label::subject(facts.k8s, facts.container, facts.death.cgroup.as_ref()) {
        Some(owner) => format!("{who} in {owner}"),
        None => who,
    };
    DeathVerdict {
        next_steps: steps::of(facts, finding.cause),
        kubernetes_will_report: report::of(facts, finding.cause),
        cause: finding.cause,
        confidence: finding.confidence,
        summary: format!("{who} {}", finding.why),
        evidence: finding.evidence,
    }
}

fn find(facts: &Facts<'_>) -> Finding {
    use Confidence::{High, Medium};

    let death = facts.death;
    if let Some(part) = facts.oom {
        let (cause, why) = match part {
            OomPart::Chosen => (DeathCause::OomKill, "was chosen by the kernel's OOM killer"),
            OomPart::TakenAlong => (
                DeathCause::OomGroup,
                "was taken along by the kernel's OOM killer",
            ),
        };
        let incident = death.incident.iter().map(|id| format!("OOM kill {id}"));
        return finding(cause, High, why, incident.collect());
    }
    let Some(signal) = &death.signal else {
        return exit::find(facts);
    };
    let ended = format!("{} ended it", signal.name);
    let via = death
        .sender
        .as_ref()
        .map_or(Via::Unknown, |sender| sender.via);
    let syscall = death.fault.as_ref().and_then(|fault| fault.syscall);
    if via == Via::Seccomp || (signal.name == "SIGSYS" && syscall.is_some()) {
        let evidence = syscall.map(|number| format!("system call number {number}"));
        return finding(
            DeathCause::Seccomp,
            High,
            "made a system call that its seccomp filter forbids",
            evidence.into_iter().collect(),
        );
    }
    match via {
        Via::ParentDeath => finding(
            DeathCause::InitDied,
            High,
            "had asked to be killed when its parent dies, and it did",
            vec![ended],
        ),
        Via::PidNamespace => finding(
            DeathCause::InitDied,
            High,
            "went with the first process of its pid namespace",
            vec![ended],
        ),
        Via::ResourceLimit => finding(
            DeathCause::ResourceLimit,
            // The kernel would also send SIGKILL for an OOM kill whose records were lost.
            if signal.name == "SIGKILL" {
                Medium
            } else {
                High
            },
            "exceeded a resource limit of its own (see /proc/PID/limits)",
            vec![ended],
        ),
        _ => killed::find(facts, signal, via),
    }
}

fn finding(
    cause: DeathCause,
    confidence: Confidence,
    why: impl Into<String>,
    evidence: Vec<String>,
) -> Finding {
    Finding {
        cause,
        confidence,
        why: why.into(),
        evidence,
    }
}
