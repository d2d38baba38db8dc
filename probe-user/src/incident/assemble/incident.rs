//! One invocation of the OOM killer, as far as its records are in.

use probe_common::{
    limits::MAX_VICTIMS,
    wire::{self, OomEnd, level},
};

use crate::ring::decode::{Body, CgroupNames, Record};

/// Most victims listed for one incident: as many as the programs watch for their exit.
pub(super) const MAX_LISTED: usize = MAX_VICTIMS as usize;

/// Why a process is among the victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The OOM killer chose it.
    Chosen,
    /// `memory.oom.group` took it along.
    Group,
    /// It shares the mm of a victim.
    SharesMm,
    /// It was dying anyway and was marked, not killed.
    AlreadyExiting,
}

/// One victim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// The process when it was killed or marked.
    pub task: wire::Task,
    /// Its memory cgroup.
    pub cgroup: CgroupNames,
    /// Its v2 cgroup, where that is another.
    pub dfl_cgroup: Option<CgroupNames>,
    /// Why it is one.
    pub role: Role,
    /// SIGKILL was sent, ns since boot.
    pub killed_boot_ns: Option<u64>,
    /// Its last thread exited: ns since boot, wait status.
    pub exited: Option<(u64, i32)>,
    /// The OOM reaper had freed its memory, ns since boot.
    pub reaped_boot_ns: Option<u64>,
}

impl Victim {
    pub(super) fn is(&self, pid: u32, start_boot_ns: u64) -> bool {
        self.task.pid == pid && self.task.start_boot_ns == start_boot_ns
    }
}

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Not known yet, or no hook tells.
    Unknown,
    /// It killed.
    Killed,
    /// Nothing killable was found.
    NothingKillable,
}

/// One invocation of the OOM killer.
#[derive(Clone, Debug)]
pub struct Incident {
    /// Number in this run, from 1.
    pub number: u64,
    /// First record, ns since boot.
    pub boot_ns: u64,
    /// Thread id of the trigger.
    pub trigger_tid: u32,
    /// The decision, if it is hooked.
    pub decision: Option<Record>,
    /// The first mark: stands in for the decision where that is not hooked.
    pub mark: Option<Record>,
    /// The end, if it is hooked.
    pub end: Option<OomEnd>,
    /// Its record, if it is all there is: nothing killable was found.
    pub fruitless: Option<Record>,
    /// Victims in the order of their kills.
    pub victims: Vec<Victim>,
    /// How many of [`Self::victims`] were there when the incident was closed.
    pub on_time: usize,
    /// By how much the kernel's own counter of OOM kills rose (`/proc/vmstat oom_kill`).
    pub kernel_kills: u64,
    /// Earlier invocations for the same limit that killed nobody and were not reported.
    pub folded: u64,
    /// Victims beyond those listed.
    pub unlisted: u64,
    /// The chosen victim was signalled once more: as a member of its group.
    pub(super) chosen_again: bool,
    pub(super) last_boot_ns: u64,
    pub(super) closed_boot_ns: Option<u64>,
}

impl Incident {
    pub(super) fn new(number: u64, boot_ns: u64, trigger_tid: u32) -> Self {
        Self {
            number,
            boot_ns,
            trigger_tid,
            decision: None,
            mark: None,
            end: None,
            fruitless: None,
            victims: Vec::new(),
            on_time: 0,
            kernel_kills: 0,
            folded: 0,
            unlisted: 0,
            chosen_again: false,
            last_boot_ns: boot_ns,
            closed_boot_ns: None,
        }
    }

    pub(super) fn list(&mut self, victim: Victim) {
        if self.victims.len() < MAX_LISTED {
            self.victims.push(victim);
        } else {
            self.unlisted += 1;
        }
    }

    pub(super) fn victim(&mut self, task: &wire::Task) -> Option<&mut Victim> {
        self.victims
            .iter_mut()
            .find(|victim| victim.is(task.pid, task.start_boot_ns))
    }

    /// Whether others use the memory of the marked victim: they are killed too, after the kernel
    /// has printed its report, when the victim may be gone already.
    pub(super) fn shares_mm(&self) -> bool {
        self.mark.as_ref().is_some_and(|record| match &record.body {
            Body::MarkVictim(mark) => mark.mm_users > mark.victim.threads.max(1),
            _ => false,
        })
    }

    /// Whether a further kill by the same thread can belong to this invocation, where no hook
    /// tells of the end. The kernel kills nobody else for as long as the victim it chose has its
    /// memory, unless it is taking a group or those who share that memory.
    pub(super) fn goes_on(&self) -> bool {
        let chosen_has_memory = self
            .victims
            .first()
            .is_none_or(|chosen| chosen.exited.is_none() && chosen.reaped_boot_ns.is_none());
        let is_group = self.chosen_again
            || self.victims.iter().any(|victim| victim.role == Role::Group)
            || self.context().is_some_and(|context| {
                let mut levels = context.limit_levels().into_iter();
                levels.any(|level| level.flags & level::OOM_GROUP != 0)
            });
        chosen_has_memory || is_group || self.shares_mm()
    }

    /// How it ended.
    pub fn ending(&self) -> Ending {
        if self
            .victims
            .iter()
            .any(|victim| victim.role != Role::AlreadyExiting)
        {
            return Ending::Killed;
        }
        match self.end {
            Some(end) if end.chosen == 0 && self.victims.is_empty() => Ending::NothingKillable,
            _ => Ending::Unknown,
        }
    }

    /// The process that allocated, as the first record that tells has it.
    pub fn trigger(&self) -> Option<&wire::Task> {
        match &self.context()?.body {
            Body::OomDecision(decision) => Some(&decision.trigger),
            Body::MarkVictim(mark) => Some(&mark.trigger),
            Body::OomEnd(end) => Some(&end.trigger),
            _ => None,
        }
    }

    /// The record that carries limit levels, stack and trigger.
    pub fn context(&self) -> Option<&Record> {
        self.decision
            .as_ref()
            .or(self.mark.as_ref())
            .or(self.fruitless.as_ref())
    }

    pub(super) fn settled(&self) -> bool {
        self.victims.iter().all(|victim| victim.exited.is_some())
    }
}
