//! Findings: what is wrong with the memory of a node now, from two or more looks at it.
//!
//! Rules are pure functions of a [`Window`]. Waiting is what makes memory pressure a problem, so
//! but for limits that are full of what cannot be given back, a rule needs tasks that wait, and
//! then names why. `cgroup` judges each cgroup by its own limit, at most one finding each; `node`
//! what is short for all; `neighbour` who takes from whom. The catalogue is docs/verdicts.md.

mod activity;
mod cgroup;
mod neighbour;
mod node;
mod steps;
mod thresholds;

use std::cmp::Reverse;

use crate::event::label;
use crate::event::{Cgroup, Confidence, Container, Finding, FindingId, K8s, Severity};
use crate::pressure::sample::{CgroupSample, NodeSample, Settings};
use activity::{Activity, NodeActivity};

/// Some seconds of a node. A few are enough; over minutes, what comes and goes is averaged away.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The first and the last look at the node.
    pub node: (NodeSample, NodeSample),
    /// Cgroups that were looked at; ancestors may be among them.
    pub cgroups: &'a [CgroupWindow<'a>],
    /// Bytes of a page.
    pub page_bytes: u64,
}

/// The same seconds of one memory cgroup.
#[derive(Clone, Copy, Debug)]
pub struct CgroupWindow<'a> {
    /// The cgroup.
    pub cgroup: &'a Cgroup,
    /// The pod it belongs to.
    pub k8s: Option<&'a K8s>,
    /// The container it belongs to.
    pub container: Option<&'a Container>,
    /// Its limits and protection.
    pub settings: Settings,
    /// Looks at it, oldest first. The first and the last full ones are compared.
    pub samples: &'a [CgroupSample],
    /// How long its tasks stalled in these seconds, as hooks measured it.
    pub stalls: Option<Stalls>,
}

/// Time that tasks of one cgroup spent waiting for memory, taken together, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// In direct reclaim, as the node was short.
    pub direct_reclaim_ns: u64,
    /// In reclaim for a limit.
    pub memcg_reclaim_ns: u64,
    /// Asleep over `memory.high`.
    pub high_throttle_ns: u64,
    /// Until pages that had been reclaimed too early were read back.
    pub refault_wait_ns: u64,
}

impl Stalls {
    const fn total_ns(self) -> u64 {
        self.direct_reclaim_ns
            .saturating_add(self.memcg_reclaim_ns)
            .saturating_add(self.high_throttle_ns)
            .saturating_add(self.refault_wait_ns)
    }
}

impl CgroupWindow<'_> {
    fn who(&self) -> String {
        label::subject(self.k8s, self.container, Some(self.cgroup))
            .unwrap_or_else(|| "a cgroup".to_owned())
    }

    /// Whether `other` is this cgroup or lies in it.
    fn holds(&self, other: &CgroupWindow<'_>) -> bool {
        holds(self.cgroup, other.cgroup)
    }
}

/// What is wrong, most serious first; empty on a healthy node.
pub fn findings(window: &Window<'_>) -> Vec<Finding> {
    let cgroups: Vec<_> = window.cgroups.iter().filter_map(Activity::of).collect();
    let Some(node) = NodeActivity::of(window) else {
        return Vec::new();
    };
    let mut findings: Vec<_> = cgroups.iter().filter_map(cgroup::judge).collect();
    deepest_only(&mut findings);
    let neighbour = neighbour::noisy(&node, &cgroups, window.page_bytes);
    findings.extend(node::judge(&node, &cgroups, neighbour.is_some()));
    findings.extend(neighbour);
    findings.extend(neighbour::protection(&node, &cgroups));
    if findings.is_empty() {
        findings.extend(node::unnamed(&node));
    }
    findings.sort_by_key(|finding| {
        (
            Reverse(finding.severity),
            Reverse(finding.confidence),
            finding.cgroup.is_some(),
        )
    });
    findings
}

/// An ancestor shows what its descendant does: the descendant's finding says more.
fn deepest_only(findings: &mut Vec<Finding>) {
    let all: Vec<(FindingId, Cgroup)> = findings
        .iter()
        .filter_map(|finding| Some((finding.id, finding.cgroup.clone()?)))
        .collect();
    findings.retain(|finding| {
        finding.cgroup.as_ref().is_none_or(|own| {
            !all.iter()
                .any(|(id, other)| *id == finding.id && !own.is(other) && holds(own, other))
        })
    });
}

/// Whether `inner` is `outer` or lies in it, by path.
fn holds(outer: &Cgroup, inner: &Cgroup) -> bool {
    let (Some(outer), Some(inner)) = (&outer.path, &inner.path) else {
        return false;
    };
    let outer = outer.trim_end_matches('/');
    inner
        .strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A finding in the making.
struct Draft {
    id: FindingId,
    confidence: Confidence,
    summary: String,
    evidence: Vec<String>,
}

impl Draft {
    fn about(self, window: &CgroupWindow<'_>) -> Finding {
        Finding {
            next_steps: steps::of(self.id, Some(window)),
            cgroup: Some(window.cgroup.clone()),
            ..self.finding()
        }
    }

    fn about_node(self) -> Finding {
        Finding {
            next_steps: steps::of(self.id, None),
            ..self.finding()
        }
    }

    fn finding(self) -> Finding {
        Finding {
            id: self.id,
            severity: Severity::Warn,
            confidence: self.confidence,
            cgroup: None,
            summary: self.summary,
            evidence: self.evidence,
            next_steps: Vec::new(),
        }
    }
}
