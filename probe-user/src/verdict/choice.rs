//! Why this victim and not another.

use crate::event::label::{self, bytes};
use crate::event::{Candidate, OomKill, Outcome, Role, Rss, Scope};

/// Evidence for the choice, and what oom_score_adj had to do with it.
pub(super) fn why(kill: &OomKill) -> Vec<String> {
    let Some(victim) = kill.chosen().filter(|_| kill.outcome == Outcome::Killed) else {
        return Vec::new();
    };
    let mut evidence = Vec::new();
    let place = if kill.limit.is_some() {
        "in this limit"
    } else {
        "on the node"
    };
    let others = || {
        kill.candidates
            .iter()
            .filter(|other| other.process.pid != victim.process.pid)
    };
    let adj = victim.process.oom_score_adj;
    let own = victim.process.rss.map(Rss::total_bytes);
    if let (Some(own), Some(adj)) = (own, adj) {
        let bigger = others()
            .filter_map(|other| Some((other, size(other)?, other.process.oom_score_adj?)))
            .filter(|&(_, size, other_adj)| size > own && other_adj < adj)
            .max_by_key(|&(_, size, _)| size);
        if let Some((other, size, other_adj)) = bigger {
            evidence.push(format!(
                "chosen for its oom_score_adj {} over {}, which is bigger ({} against {}) but has {}",
                class(adj),
                label::process(&other.process),
                bytes(size),
                bytes(own),
                class(other_adj)
            ));
        } else if others().any(|other| size(other).is_some_and(|size| size <= own))
            && others().filter_map(size).all(|size| size <= own)
        {
            evidence.push(format!(
                "chosen as the biggest process {place}: {}, oom_score_adj {}",
                bytes(own),
                class(adj)
            ));
        } else if !kill.candidates.is_empty() && others().count() == 0 {
            evidence.push(format!("chosen as the only process {place}"));
        }
    }
    let group = kill
        .killed()
        .filter(|victim| victim.role == Role::Group)
        .count();
    if group > 0 {
        evidence.push(format!(
            "memory.oom.group is set: the kernel killed all {} processes of the cgroup at once",
            kill.killed().count()
        ));
    }
    if kill.scope == Scope::Node && victim.k8s.is_some() {
        evidence.push(
            "order on a full node: BestEffort (oom_score_adj 1000), then Burstable (2 to 999, \
             less memory requested first), Guaranteed (-997) last; size adds to it"
                .to_owned(),
        );
    }
    evidence
}

fn size(candidate: &Candidate) -> Option<u64> {
    candidate.process.rss.map(Rss::total_bytes)
}

/// An oom_score_adj with what gives it on a Kubernetes node.
fn class(adj: i32) -> String {
    match adj {
        -1000 => "-1000 (never killed)".to_owned(),
        -999 | -998 => format!("{adj} (system)"),
        -997 => "-997 (Guaranteed)".to_owned(),
        1000 => "1000 (BestEffort)".to_owned(),
        2..=999 => format!("{adj} (Burstable range)"),
        _ => adj.to_string(),
    }
}
