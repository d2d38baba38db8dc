//! The hook ladder: for each signal, the hooks that can serve it, best first.
//!
//! The table is all there is to decide; what a kernel allows is found out by trying
//! ([`super::loader`]), never from its version.

use probe_common::layout::KernelLayout;

/// Something the tracer observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// The OOM killer's decision and its context.
    OomDecision,
    /// The end of an OOM killer invocation, also of one that killed nobody.
    OomEnd,
    /// A process is marked as victim.
    VictimMark,
    /// SIGKILL sent by the kernel.
    KernelKill,
    /// A victim is gone.
    VictimExit,
    /// The OOM reaper freed a victim's memory.
    VictimReaped,
    /// A cgroup was made or removed.
    CgroupChange,
    /// Whom the OOM killer could have chosen.
    Candidates,
}

impl Signal {
    /// Name in `probe_status` events and `oomprobe doctor`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OomDecision => "oom_decision",
            Self::OomEnd => "oom_end",
            Self::VictimMark => "victim_mark",
            Self::KernelKill => "kernel_kill",
            Self::VictimExit => "victim_exit",
            Self::VictimReaped => "victim_reaped",
            Self::CgroupChange => "cgroup_change",
            Self::Candidates => "candidates",
        }
    }

    /// What an event lacks when no hook serves the signal.
    pub const fn without(self) -> &'static str {
        match self {
            Self::OomDecision => {
                "the limit owner is inferred from its counters and the kernel log, not named by \
                 the kernel; points of the decision are unknown"
            }
            Self::OomEnd => "an OOM that killed nobody is seen in the kernel log only",
            Self::VictimMark => "kills cannot be seen",
            Self::KernelKill => {
                "a victim that was dying anyway cannot be told from a kill, and processes that \
                 share the victim's memory are not listed"
            }
            Self::VictimExit => "when a victim was gone is unknown",
            Self::VictimReaped => "whether the OOM reaper was needed is unknown",
            Self::CgroupChange => "paths of cgroups removed before a kill is explained are unknown",
            Self::Candidates => "why this victim and no other cannot be shown",
        }
    }

    /// Whether tracing kills makes no sense without it.
    pub const fn is_essential(self) -> bool {
        matches!(self, Self::VictimMark)
    }
}

/// How one program is loaded and attached, and to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Entry of a kernel function, typed arguments.
    FEntry(&'static str),
    /// Return of a kernel function, typed arguments.
    FExit(&'static str),
    /// Entry of a kernel function.
    KProbe(&'static str),
    /// Return of a kernel function.
    KRetProbe(&'static str),
    /// Tracepoint with typed arguments.
    TpBtf(&'static str),
    /// Raw tracepoint.
    RawTp(&'static str),
    /// BPF iterator.
    Iter(&'static str),
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, target) = match self {
            Self::FEntry(target) => ("fentry", target),
            Self::FExit(target) => ("fexit", target),
            Self::KProbe(target) => ("kprobe", target),
            Self::KRetProbe(target) => ("kretprobe", target),
            Self::TpBtf(target) => ("tp_btf", target),
            Self::RawTp(target) => ("raw_tp", target),
            Self::Iter(target) => ("iter", target),
        };
        write!(f, "{kind}:{target}")
    }
}

/// One way to serve a signal: all programs of it, or none.
#[derive(Clone, Copy, Debug)]
pub struct Rung {
    /// Programs of the BPF object and where they go; the first names the rung.
    pub programs: &'static [(&'static str, Hook)],
    /// What this kernel's types must say for the rung to make sense.
    pub needs: Option<Need>,
}

/// A condition on the kernel's types.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The layout field that must be 1.
    pub field: fn(&KernelLayout) -> u32,
    /// What it means if it is not.
    pub why_not: &'static str,
}

impl Rung {
    /// The hook that names this rung.
    pub fn hook(&self) -> Option<Hook> {
        self.programs.first().map(|(_, hook)| *hook)
    }
}

const fn rung(programs: &'static [(&'static str, Hook)]) -> Rung {
    Rung {
        programs,
        needs: None,
    }
}

const MARK_NEEDS_TASK: Option<Need> = Some(Need {
    field: |layout| layout.mark_victim__has_task,
    why_not: "this kernel's tracepoint passes a pid, not the task",
});

/// Every signal with its rungs, best first, in the order of attachment: what tells of the end of
/// a kill comes before what tells of its start, so that none is seen only in part.
///
/// A raw tracepoint comes before the same one with typed arguments: for each load of a pointer
/// through a typed one, the verifier may search all of the kernel's types by name
/// (`btf_nested_type_is_trusted()`), which makes a typed program take some 50 ms to load.
pub const LADDER: &[(Signal, &[Rung])] = &[
    (
        Signal::CgroupChange,
        &[rung(&[
            ("cgroup_mkdir_rt", Hook::RawTp("cgroup_mkdir")),
            ("cgroup_rmdir_rt", Hook::RawTp("cgroup_rmdir")),
        ])],
    ),
    (
        Signal::Candidates,
        &[rung(&[("candidates", Hook::Iter("task"))])],
    ),
    (
        Signal::VictimReaped,
        &[rung(&[
            ("reap_finish_rt", Hook::RawTp("finish_task_reaping")),
            ("reap_skip_rt", Hook::RawTp("skip_task_reaping")),
        ])],
    ),
    (
        Signal::VictimExit,
        &[
            rung(&[("exit_rt", Hook::RawTp("sched_process_exit"))]),
            rung(&[("exit_tb", Hook::TpBtf("sched_process_exit"))]),
        ],
    ),
    (
        Signal::OomEnd,
        &[
            rung(&[("end_fx", Hook::FExit("out_of_memory"))]),
            rung(&[
                ("end_kr", Hook::KRetProbe("out_of_memory")),
                ("end_kp", Hook::KProbe("out_of_memory")),
            ]),
        ],
    ),
    (
        Signal::OomDecision,
        &[
            rung(&[("decision_fe", Hook::FEntry("oom_kill_process"))]),
            rung(&[("decision_kp", Hook::KProbe("oom_kill_process"))]),
        ],
    ),
    (
        Signal::KernelKill,
        &[
            rung(&[("kill_rt", Hook::RawTp("signal_generate"))]),
            rung(&[("kill_tb", Hook::TpBtf("signal_generate"))]),
        ],
    ),
    (
        Signal::VictimMark,
        &[
            Rung {
                programs: &[("mark_rt", Hook::RawTp("mark_victim"))],
                needs: MARK_NEEDS_TASK,
            },
            Rung {
                programs: &[("mark_tb", Hook::TpBtf("mark_victim"))],
                needs: MARK_NEEDS_TASK,
            },
            rung(&[("mark_fe", Hook::FEntry("mark_oom_victim"))]),
            rung(&[("mark_kp", Hook::KProbe("mark_oom_victim"))]),
        ],
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_program_is_used_once() {
        let mut seen = BTreeSet::new();
        for (_, rungs) in LADDER {
            for rung in *rungs {
                assert!(rung.hook().is_some());
                for (program, _) in rung.programs {
                    assert!(seen.insert(*program), "{program} twice");
                    assert!(program.len() <= 15, "{program} is cut by the kernel");
                }
            }
        }
    }

    #[test]
    fn kills_are_hooked_last() {
        assert_eq!(
            LADDER.last().map(|(signal, _)| *signal),
            Some(Signal::VictimMark)
        );
    }
}
