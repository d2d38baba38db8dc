//! The hook ladder: for each signal, the hooks that can serve it, best first.
//!
//! The table is all there is to decide; what a kernel allows is found out by trying
//! ([`super::loader`]), never from its version.

use probe_common::layout::KernelLayout;

use super::{btf::Btf, layout::Shape};

/// Something the tracer observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// The OOM killer's decision and its context.
    OomDecision,
    /// The end of an OOM killer invocation, also of one that killed nobody.
    OomEnd,
    /// A process is marked as victim.
    VictimMark,
    /// A signal is sent: SIGKILL by the kernel, and what may end a process that is followed.
    SignalSent,
    /// A process is gone: a victim, or one whose death is of interest.
    ProcessExit,
    /// The OOM reaper freed a victim's memory.
    VictimReaped,
    /// A cgroup was made or removed.
    CgroupChange,
    /// Whom the OOM killer could have chosen.
    Candidates,
    /// A memory cgroup hit its own limit.
    LimitHit,
    /// Reclaim of a memory cgroup that is at its limit.
    MemcgReclaim,
    /// Reclaim by a task because the node is short.
    DirectReclaim,
    /// Sleep over `memory.high`.
    HighThrottle,
    /// Compaction by a task that needs a large page.
    Compaction,
    /// Waits for pages that had been reclaimed too early.
    RefaultWait,
    /// kswapd is awake.
    Kswapd,
}

impl Signal {
    /// Name in `probe_status` events and `oomprobe doctor`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OomDecision => "oom_decision",
            Self::OomEnd => "oom_end",
            Self::VictimMark => "victim_mark",
            Self::SignalSent => "signal_sent",
            Self::ProcessExit => "process_exit",
            Self::VictimReaped => "victim_reaped",
            Self::CgroupChange => "cgroup_change",
            Self::Candidates => "candidates",
            Self::LimitHit => "limit_hit",
            Self::MemcgReclaim => "memcg_reclaim",
            Self::DirectReclaim => "direct_reclaim",
            Self::HighThrottle => "high_throttle",
            Self::Compaction => "compaction",
            Self::RefaultWait => "refault_wait",
            Self::Kswapd => "kswapd",
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
            Self::SignalSent => {
                "who sent a deadly signal is unknown, a victim that was dying anyway cannot be told \
                 from a kill, and processes that share the victim's memory are not listed"
            }
            Self::ProcessExit => {
                "deaths other than OOM kills cannot be seen, and when a victim was gone is unknown"
            }
            Self::VictimReaped => "whether the OOM reaper was needed is unknown",
            Self::CgroupChange => "paths of cgroups removed before a kill is explained are unknown",
            Self::Candidates => "why this victim and no other cannot be shown",
            Self::LimitHit => "limit hits are counted from files, and who caused them is unknown",
            Self::MemcgReclaim => "time spent in reclaim at a cgroup's limit is unknown",
            Self::DirectReclaim => "time spent in reclaim for the node is unknown",
            Self::HighThrottle => "time spent asleep over memory.high is unknown",
            Self::Compaction => "time spent in compaction is unknown",
            Self::RefaultWait => {
                "time spent waiting for swap-in and for files that were thrown out too early is \
                 unknown"
            }
            Self::Kswapd => "how long kswapd was awake is unknown",
        }
    }

    /// The signal whose programs also serve this one where it has no hook of its own.
    pub const fn stand_in(self) -> Option<Self> {
        match self {
            Self::LimitHit => Some(Self::MemcgReclaim),
            _ => None,
        }
    }

    /// Signals without which this one cannot be told from what they observe.
    pub const fn told_apart_by(self) -> &'static [Self] {
        match self {
            Self::RefaultWait => &[
                Self::Compaction,
                Self::DirectReclaim,
                Self::HighThrottle,
                Self::MemcgReclaim,
            ],
            _ => &[],
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
    /// The rung is better than the next only where a kprobe [is preferred](prefers_kprobe), and is none
    /// elsewhere.
    pub only_if_preferred: bool,
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

/// Whether a task can be stopped in the middle of a program on a tracepoint, while which the kernel
/// does not run that program for other tasks on the CPU: where a tracepoint calls its programs under
/// SRCU and with preemption enabled (`guard(srcu_fast_notrace)(&tracepoint_srcu)`,
/// include/linux/tracepoint.h). Up to 6.12, `tracepoint_srcu` is for idle CPUs only and there is no
/// such guard.
fn tracepoints_are_preemptible(btf: &Btf) -> bool {
    btf.has_variable("tracepoint_srcu_srcu_data") && btf.has_typedef("class_srcu_fast_notrace_t")
}

/// Whether exits are better seen by a kprobe: tracepoints can be preempted, and `taskstats_exit()` is
/// given the task first, as the program takes it.
pub fn prefers_kprobe(btf: &Btf) -> bool {
    let is_given_task = || {
        let parameters = btf.parameters("taskstats_exit").ok()?;
        Some(Shape::Ptr("task_struct").fits(*parameters.first()?))
    };
    tracepoints_are_preemptible(btf) && is_given_task() == Some(true)
}

const fn rung(programs: &'static [(&'static str, Hook)]) -> Rung {
    Rung {
        programs,
        needs: None,
        only_if_preferred: false,
    }
}

const MARK_NEEDS_TASK: Option<Need> = Some(Need {
    field: |layout| layout.mark_victim__has_task,
    why_not: "this kernel's tracepoint passes a pid, not the task",
});

const RECLAIM_NEEDS_MEMCG: Option<Need> = Some(Need {
    field: |layout| layout.memcg_reclaim_begin__has_memcg,
    why_not: "this kernel's tracepoint does not pass the cgroup",
});

const RECLAIM_BEGIN: Hook = Hook::RawTp("mm_vmscan_memcg_reclaim_begin");
const RECLAIM_END: (&str, Hook) = (
    "mreclaim_end_rt",
    Hook::RawTp("mm_vmscan_memcg_reclaim_end"),
);

/// Every signal with its rungs, best first, in the order of attachment: what tells of the end of
/// a kill comes before what tells of its start, so that none is seen only in part.
///
/// A raw tracepoint comes before the same one with typed arguments: for each load of a pointer
/// through a typed one, the verifier may search all of the kernel's types by name
/// (`btf_nested_type_is_trusted()`), which makes a typed program take some 50 ms to load. Not so
/// for exits: a typed load is cheap to run, every process of the node exits, and few loads decide
/// that nobody wants to know.
///
/// A signal's stand-in comes before it ([`Signal::stand_in`]), and what it is told apart by
/// ([`Signal::told_apart_by`]).
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
        Signal::Kswapd,
        &[rung(&[
            ("kswapd_rt", Hook::RawTp("mm_vmscan_kswapd_wake")),
            ("kswapd_end_rt", Hook::RawTp("mm_vmscan_kswapd_sleep")),
        ])],
    ),
    (
        Signal::Compaction,
        &[rung(&[
            ("compact_rt", Hook::RawTp("mm_compaction_begin")),
            ("compact_end_rt", Hook::RawTp("mm_compaction_end")),
        ])],
    ),
    (
        Signal::DirectReclaim,
        &[rung(&[
            ("direct_rt", Hook::RawTp("mm_vmscan_direct_reclaim_begin")),
            ("direct_end_rt", Hook::RawTp("mm_vmscan_direct_reclaim_end")),
        ])],
    ),
    (
        Signal::HighThrottle,
        &[
            rung(&[
                ("high_fe", Hook::FEntry("__mem_cgroup_handle_over_high")),
                ("high_fx", Hook::FExit("__mem_cgroup_handle_over_high")),
            ]),
            rung(&[
                ("high_fe", Hook::FEntry("mem_cgroup_handle_over_high")),
                ("high_fx", Hook::FExit("mem_cgroup_handle_over_high")),
            ]),
            rung(&[
                ("high_kp", Hook::KProbe("__mem_cgroup_handle_over_high")),
                ("high_kr", Hook::KRetProbe("__mem_cgroup_handle_over_high")),
            ]),
            rung(&[
                ("high_kp", Hook::KProbe("mem_cgroup_handle_over_high")),
                ("high_kr", Hook::KRetProbe("mem_cgroup_handle_over_high")),
            ]),
        ],
    ),
    (
        Signal::MemcgReclaim,
        &[
            Rung {
                programs: &[("mreclaim_rt", RECLAIM_BEGIN), RECLAIM_END],
                needs: RECLAIM_NEEDS_MEMCG,
                only_if_preferred: false,
            },
            rung(&[
                ("mreclaim_fe", Hook::FEntry("try_to_free_mem_cgroup_pages")),
                RECLAIM_END,
            ]),
            rung(&[
                ("mreclaim_kp", Hook::KProbe("try_to_free_mem_cgroup_pages")),
                RECLAIM_END,
            ]),
            rung(&[("mreclaim_any_rt", RECLAIM_BEGIN), RECLAIM_END]),
        ],
    ),
    (
        Signal::RefaultWait,
        &[
            rung(&[
                ("memstall_fe", Hook::FEntry("psi_memstall_enter")),
                ("memstall_end_fe", Hook::FEntry("psi_memstall_leave")),
            ]),
            rung(&[
                ("memstall_kp", Hook::KProbe("psi_memstall_enter")),
                ("memstall_end_kp", Hook::KProbe("psi_memstall_leave")),
            ]),
        ],
    ),
    (
        Signal::LimitHit,
        &[
            rung(&[("limit_fx", Hook::FExit("__memcg_memory_event"))]),
            rung(&[("limit_kp", Hook::KProbe("__memcg_memory_event"))]),
        ],
    ),
    (
        Signal::VictimReaped,
        &[rung(&[
            ("reap_finish_rt", Hook::RawTp("finish_task_reaping")),
            ("reap_skip_rt", Hook::RawTp("skip_task_reaping")),
        ])],
    ),
    (
        Signal::ProcessExit,
        &[
            Rung {
                only_if_preferred: true,
                ..rung(&[("exit_kp", Hook::KProbe("taskstats_exit"))])
            },
            rung(&[("exit_tb", Hook::TpBtf("sched_process_exit"))]),
            rung(&[("exit_rt", Hook::RawTp("sched_process_exit"))]),
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
        Signal::SignalSent,
        &[
            rung(&[("signal_rt", Hook::RawTp("signal_generate"))]),
            rung(&[("signal_tb", Hook::TpBtf("signal_generate"))]),
        ],
    ),
    (
        Signal::VictimMark,
        &[
            Rung {
                programs: &[("mark_rt", Hook::RawTp("mark_victim"))],
                needs: MARK_NEEDS_TASK,
                only_if_preferred: false,
            },
            Rung {
                programs: &[("mark_tb", Hook::TpBtf("mark_victim"))],
                needs: MARK_NEEDS_TASK,
                only_if_preferred: false,
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
    fn no_program_serves_two_signals() {
        let mut seen = BTreeSet::new();
        for (_, rungs) in LADDER {
            let mut own = BTreeSet::new();
            for rung in *rungs {
                assert!(rung.hook().is_some());
                let mut once = BTreeSet::new();
                for (program, _) in rung.programs {
                    assert!(once.insert(*program), "{program} twice in a rung");
                    assert!(program.len() <= 15, "{program} is cut by the kernel");
                }
                own.append(&mut once);
            }
            for program in own {
                assert!(seen.insert(program), "{program} in two signals");
            }
        }
    }

    #[test]
    fn what_a_signal_rests_on_is_hooked_before() {
        let signals: Vec<_> = LADDER.iter().map(|(signal, _)| *signal).collect();
        for (index, signal) in signals.iter().enumerate() {
            for other in signal.stand_in().iter().chain(signal.told_apart_by()) {
                assert!(signals[..index].contains(other), "{}", signal.name());
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
