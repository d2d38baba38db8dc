//! Joins ring records into incidents. Pure: records and times in, steps out.
//!
//! The kernel serialises OOM kills (`oom_lock`), so at most one incident is open, and its records
//! come from one thread, the trigger, in the order of the kernel's steps
//! (`__oom_kill_process()`, mm/oom_kill.c): SIGKILL to a victim, mark it, SIGKILL to others that
//! share its mm; in a group kill again for each member. Where no hook tells of the decision and
//! of the end, the first mark opens and silence closes.

mod incident;

use std::collections::VecDeque;

use probe_common::wire::{self, OomEnd, section};

use super::fold::Fold;
use crate::ring::decode::{Body, Record};

pub use incident::{Ending, Incident, Role, Victim};

/// How long an incident without an end hook, in which more may follow, stays open after its last
/// record, ns. The steps are microseconds apart but for the kernel's own report, which a slow
/// console stretches to milliseconds a line. What is delayed longer is reported as late.
pub const QUIET_NS: u64 = 50_000_000;

/// How long to wait for victims to be gone before saying that they are not, ns.
pub const SETTLE_NS: u64 = 10_000_000_000;

/// How long a SIGKILL waits for the mark that makes it an OOM kill, ns.
const KILL_TO_MARK_NS: u64 = 1_000_000_000;

/// Most incidents whose victims are still dying; more than this and the oldest is given up.
const MAX_SETTLING: usize = 512;

/// Most SIGKILLs that may become OOM kills.
const MAX_PENDING_KILLS: usize = 64;

/// What the daemon can expect of the hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// `OOM_END` records come.
    pub end: bool,
    /// `KERNEL_KILL` records come.
    pub kernel_kill: bool,
}

/// What is to be done after a record or a lapse of time.
#[derive(Debug)]
pub enum Step {
    /// An incident began: gather evidence before it fades.
    Opened(u64),
    /// An incident is complete: report it.
    Closed(Box<Incident>),
    /// All victims are gone, or will not go: report that.
    Settled(Box<Incident>),
}

/// The join.
#[derive(Debug)]
pub struct Assembler {
    hooks: Hooks,
    next_number: u64,
    open: Option<Incident>,
    settling: VecDeque<Incident>,
    pending_kills: VecDeque<Record>,
    fold: Fold<u64>,
    kernel_kills: u64,
}

impl Assembler {
    /// An empty one.
    pub fn new(hooks: Hooks) -> Self {
        Self {
            hooks,
            next_number: 1,
            open: None,
            settling: VecDeque::new(),
            pending_kills: VecDeque::new(),
            fold: Fold::new(),
            kernel_kills: 0,
        }
    }

    /// OOM kills seen so far as `/proc/vmstat oom_kill` counts them.
    pub fn kernel_kills(&self) -> u64 {
        self.kernel_kills
    }

    /// The incident that is open.
    pub fn open(&self) -> Option<&Incident> {
        self.open.as_ref()
    }

    /// When [`Self::tick`] has something to do, ns since boot.
    pub fn deadline(&self) -> Option<u64> {
        let quiet = self
            .open
            .as_ref()
            .filter(|_| !self.hooks.end)
            .map(|open| open.last_boot_ns.saturating_add(QUIET_NS));
        // With an end hook an incident without end means that the record of it was lost.
        let stuck = self
            .open
            .as_ref()
            .map(|open| open.last_boot_ns.saturating_add(SETTLE_NS));
        let settle = self
            .settling
            .iter()
            .filter_map(|incident| incident.closed_boot_ns)
            .min()
            .map(|closed| closed.saturating_add(SETTLE_NS));
        [quiet, stuck, settle].into_iter().flatten().min()
    }

    /// Takes one record.
    pub fn push(&mut self, record: Record) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.hooks.end {
            // Records that were read late, in one go, are apart by their own times.
            self.close_if_quiet(record.header.time_boot_ns, QUIET_NS, &mut steps);
        }
        match &record.body {
            Body::OomDecision(decision) => {
                let trigger = decision.trigger.tid;
                self.close(record.header.time_boot_ns, &mut steps);
                let incident = self.begin(&record, trigger, &mut steps);
                incident.decision = Some(record);
            }
            Body::KernelKill(_) => self.kill(record),
            Body::MarkVictim(_) => self.mark(record, &mut steps),
            Body::OomEnd(end) => {
                let end = *end;
                self.end(record, end, &mut steps);
            }
            Body::Exit(exit) => {
                let (exit, time) = (*exit, record.header.time_boot_ns);
                self.exit(&exit, time, &mut steps);
            }
            Body::Reap(reap) => {
                let (tid, time) = (reap.tid, record.header.time_boot_ns);
                let settling = self.settling.iter_mut().rev();
                let victim = self
                    .open
                    .iter_mut()
                    .chain(settling)
                    .flat_map(|incident| &mut incident.victims)
                    .find(|victim| victim.task.tid == tid || victim.task.pid == tid);
                if let Some(victim) = victim {
                    victim.reaped_boot_ns = Some(time);
                }
            }
            Body::Cgroup(_) | Body::Death(_) | Body::LimitHit(_) => {}
        }
        steps
    }

    /// Lets time pass.
    pub fn tick(&mut self, now_boot_ns: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        let patience = if self.hooks.end { SETTLE_NS } else { QUIET_NS };
        self.close_if_quiet(now_boot_ns, patience, &mut steps);
        let mut index = 0;
        while let Some(incident) = self.settling.get(index) {
            let overdue = incident
                .closed_boot_ns
                .is_some_and(|closed| now_boot_ns >= closed.saturating_add(SETTLE_NS));
            if overdue {
                steps.extend(self.settling.remove(index).map(Box::new).map(Step::Settled));
            } else {
                index += 1;
            }
        }
        steps
    }

    /// Closes everything: nothing more will come.
    pub fn finish(&mut self, now_boot_ns: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        self.close(now_boot_ns, &mut steps);
        steps.extend(self.settling.drain(..).map(Box::new).map(Step::Settled));
        steps
    }

    fn number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    fn begin(&mut self, record: &Record, trigger_tid: u32, steps: &mut Vec<Step>) -> &mut Incident {
        let number = self.number();
        steps.push(Step::Opened(number));
        let boot_ns = record.header.time_boot_ns;
        self.open
            .insert(Incident::new(number, boot_ns, trigger_tid))
    }

    fn close_if_quiet(&mut self, now_boot_ns: u64, patience_ns: u64, steps: &mut Vec<Step>) {
        let last = self.open.as_ref().map(|open| open.last_boot_ns);
        if last.is_some_and(|last| now_boot_ns >= last.saturating_add(patience_ns)) {
            self.close(now_boot_ns, steps);
        }
    }

    /// Reports the open incident and watches its victims from then on.
    fn close(&mut self, now_boot_ns: u64, steps: &mut Vec<Step>) {
        let Some(mut incident) = self.open.take() else {
            return;
        };
        incident.closed_boot_ns = Some(now_boot_ns);
        incident.on_time = incident.victims.len();
        steps.push(Step::Closed(Box::new(incident.clone())));
        if incident.victims.is_empty() {
            return;
        }
        if incident.settled() {
            steps.push(Step::Settled(Box::new(incident)));
            return;
        }
        if self.settling.len() >= MAX_SETTLING {
            steps.extend(self.settling.pop_front().map(Box::new).map(Step::Settled));
        }
        self.settling.push_back(incident);
    }

    /// The incident that a record of thread `tid` belongs to: the open one, or the one of that
    /// thread that was closed last, if that was a moment ago.
    fn current(&mut self, tid: u32, now_boot_ns: u64) -> Option<&mut Incident> {
        let has_end = self.hooks.end;
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.trigger_tid == tid && (has_end || open.goes_on()))
        {
            return self.open.as_mut();
        }
        self.settling.iter_mut().rev().find(|incident| {
            incident.trigger_tid == tid
                && incident.end.is_none()
                && now_boot_ns < incident.last_boot_ns.saturating_add(KILL_TO_MARK_NS)
                && incident.goes_on()
        })
    }

    /// SIGKILL from the kernel: the mark that follows makes it a kill; without one it went to a
    /// process that shares the mm of a victim, or has nothing to do with OOM (a pid namespace
    /// whose init died).
    fn kill(&mut self, record: Record) {
        let Body::KernelKill(kill) = &record.body else {
            return;
        };
        let (target, sender, time) = (kill.target, kill.sender_tid, record.header.time_boot_ns);
        let Some(incident) = self.current(sender, time) else {
            self.pend(record);
            return;
        };
        if let Some(known) = incident.victim(&target) {
            // A group kill takes the chosen victim once more, and the kernel counts it once more.
            // Any other repeated signal is for sharing an mm, which is not counted.
            let counts = known.role == Role::Chosen && !incident.chosen_again;
            incident.chosen_again |= counts;
            incident.last_boot_ns = time;
            incident.kernel_kills += u64::from(counts);
            self.kernel_kills += u64::from(counts);
        } else if target.mm != 0 && incident.victims.iter().any(|v| v.task.mm == target.mm) {
            incident.last_boot_ns = time;
            incident.list(Victim {
                task: target,
                cgroup: record.names(section::VICTIM_PATH).unwrap_or_default(),
                dfl_cgroup: None,
                role: Role::SharesMm,
                killed_boot_ns: Some(time),
                exited: None,
                reaped_boot_ns: None,
            });
        } else {
            self.pend(record);
        }
    }

    fn pend(&mut self, record: Record) {
        if self.pending_kills.len() >= MAX_PENDING_KILLS {
            self.pending_kills.pop_front();
        }
        self.pending_kills.push_back(record);
    }

    fn mark(&mut self, record: Record, steps: &mut Vec<Step>) {
        let Body::MarkVictim(mark) = &record.body else {
            return;
        };
        let (task, trigger, time) = (mark.victim, mark.trigger.tid, record.header.time_boot_ns);
        self.pending_kills
            .retain(|kill| time < kill.header.time_boot_ns.saturating_add(KILL_TO_MARK_NS));
        let kill = self
            .pending_kills
            .iter()
            .position(|kill| match &kill.body {
                Body::KernelKill(kill) => {
                    kill.sender_tid == trigger
                        && kill.target.pid == task.pid
                        && kill.target.start_boot_ns == task.start_boot_ns
                }
                _ => false,
            })
            .and_then(|index| self.pending_kills.remove(index));
        let hooks = self.hooks;
        // One invocation marks one victim, or all of a group. A mark without a signal, or of a
        // task in no group, is an invocation of its own: a trigger that still gets no memory
        // calls the OOM killer again at once.
        let is_bare = kill.is_none() && hooks.kernel_kill;
        let may_be_one_of_many = mark.in_oom_group != 0 && !is_bare;
        let belongs = self.current(trigger, time).is_some_and(|incident| {
            hooks.end
                || may_be_one_of_many
                || incident.victims.is_empty()
                || incident.victim(&task).is_some()
        });
        if !belongs {
            self.close(time, steps);
            self.begin(&record, trigger, steps);
        }
        let Some(incident) = self.current(trigger, time) else {
            return;
        };
        incident.last_boot_ns = time;
        let killed_boot_ns = match &kill {
            Some(kill) => Some(kill.header.time_boot_ns),
            None if !hooks.kernel_kill => Some(time),
            None => None,
        };
        let killed_before = incident.victims.iter().any(|v| v.role == Role::Chosen);
        let counts = match incident.victim(&task) {
            // Signalled first for sharing an mm, then taken as a member of the group.
            Some(known) if known.role == Role::SharesMm => {
                known.role = Role::Group;
                true
            }
            Some(_) => false,
            None => {
                incident.list(Victim {
                    task,
                    cgroup: record.names(section::VICTIM_PATH).unwrap_or_default(),
                    dfl_cgroup: record.names(section::VICTIM_DFL_PATH),
                    role: match (killed_boot_ns, killed_before) {
                        (None, _) => Role::AlreadyExiting,
                        (Some(_), true) => Role::Group,
                        (Some(_), false) => Role::Chosen,
                    },
                    killed_boot_ns,
                    exited: None,
                    reaped_boot_ns: None,
                });
                killed_boot_ns.is_some()
            }
        };
        // Nobody else is in its group or shares its memory: this was all.
        let is_alone = mark.in_oom_group == 0 && (1..=task.threads.max(1)).contains(&mark.mm_users);
        incident.kernel_kills += u64::from(counts);
        if incident.mark.is_none() {
            incident.mark = Some(record);
        }
        self.kernel_kills += u64::from(counts);
        if is_alone && !hooks.end {
            self.close(time, steps);
        }
    }

    fn end(&mut self, record: Record, end: OomEnd, steps: &mut Vec<Step>) {
        let time = record.header.time_boot_ns;
        // An end that chose nobody comes by the other ring and may be late: of a call before.
        if let Some(open) = self
            .open
            .as_mut()
            .filter(|open| open.trigger_tid == end.trigger_tid && open.boot_ns <= time)
        {
            open.end = Some(end);
            self.close(time, steps);
            return;
        }
        // `chosen` 2: a victim is still dying, every other allocation comes by here meanwhile.
        // `returned` 1 without a victim: a notifier freed memory, or the caller is dying itself.
        if end.chosen != 0 || end.returned != 0 {
            return;
        }
        let Some(folded) = self.fold.admit(end.limit_cgroup_id, time) else {
            return;
        };
        // Beside the open one, which may go on: the other ring has no order with this one.
        let mut incident = Incident::new(self.number(), time, end.trigger_tid);
        incident.end = Some(end);
        incident.fruitless = Some(record);
        incident.folded = folded;
        incident.closed_boot_ns = Some(time);
        steps.push(Step::Closed(Box::new(incident)));
    }

    fn exit(&mut self, exit: &wire::Exit, time: u64, steps: &mut Vec<Step>) {
        let note = |incident: &mut Incident| {
            let victim = incident
                .victims
                .iter_mut()
                .find(|v| v.is(exit.pid, exit.start_boot_ns));
            if let Some(victim) = victim {
                victim.exited = Some((time, exit.exit_code));
                return true;
            }
            false
        };
        // One that is marked while it is dying may have been killed just before.
        let mut index = 0;
        while let Some(incident) = self.settling.get_mut(index) {
            if note(incident) && incident.settled() {
                steps.extend(self.settling.remove(index).map(Box::new).map(Step::Settled));
            } else {
                index += 1;
            }
        }
        if let Some(open) = self.open.as_mut()
            && note(open)
            && open.trigger().is_some_and(|task| task.pid == exit.pid)
        {
            // A trigger that exits has left the OOM killer, even if no hook said so.
            self.close(time, steps);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
