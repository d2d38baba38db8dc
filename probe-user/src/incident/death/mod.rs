//! One death: what its record tells, who sent the signal, and the public event.

mod held;
mod via;

pub use held::{HOLD_NS, Held, Released};

use probe_common::wire::{self, STOP_SIGNALS, Sent, has, info, section};

use super::{
    explain::{Context, cgroup, process},
    who::Identities,
};
use crate::{
    event::{
        Fault, ProcessDeath, ProcessRole, RuntimeStatus, Sender, Signal, StopRequest, Via, text,
    },
    ring::decode::{Body, Record, parent_comm},
};

/// Programs whose children the runtime started: a container's first process, and what is executed
/// in it. One that ends at once still is the child of the runtime's command itself.
const RUNTIMES: &[&[u8]] = &[
    b"containerd-shim",
    b"conmon",
    b"conmonrs",
    b"crio-conmon",
    b"runc",
    b"crun",
];

/// Whether a program of this name starts what is in containers. A shim may call itself
/// `containerd-shim-…`, cut to 15 bytes; a stage of runc `runc:[2:INIT]`.
pub(super) fn is_runtime(comm: &[u8]) -> bool {
    RUNTIMES.iter().any(|name| {
        comm.strip_prefix(*name)
            .is_some_and(|rest| matches!(rest.first(), None | Some(b':' | b'-')))
    })
}

/// A death, as its record tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Who died.
    pub task: wire::Task,
    /// When, ns since boot.
    pub boot_ns: u64,
    /// Wait status.
    pub status: i32,
    /// Most pages it had resident.
    pub max_rss_pages: Option<u64>,
    /// Path of its memory cgroup.
    pub path: Vec<u8>,
    /// False if that path is not whole: too deep, too long, or unreadable.
    pub has_path: bool,
    /// Path of its v2 cgroup, where that is another.
    pub dfl_path: Option<Vec<u8>>,
    /// The signal that ended it, if one did and it was seen.
    pub sent: Option<Sent>,
    /// The earliest request to stop that came before.
    pub request: Option<Sent>,
    /// How the signal that ended it came about.
    pub via: Via,
}

impl Death {
    /// Reads a record; `None` if it is of another kind.
    pub fn of(record: &Record) -> Option<Self> {
        let Body::Death(death) = &record.body else {
            return None;
        };
        let names = |tag| record.names(tag).map(|names| names.path(0));
        let own = record.names(section::VICTIM_PATH);
        let signals = record.signals();
        let number = death.exit_code & 0x7f;
        let sent = signals
            .iter()
            .find(|sent| number != 0 && sent.signal == number)
            .copied();
        let by_another = |sent: &&Sent| {
            let how = via::of(Some(sent), sent.signal, death);
            matches!(how, Via::Kill | Via::Tkill | Via::Sigqueue)
                && sent.sender.pid != death.task.pid
        };
        let request = signals
            .iter()
            .filter(|sent| STOP_SIGNALS.contains(&sent.signal))
            .filter(by_another)
            .min_by_key(|sent| sent.time_boot_ns)
            .copied();
        Some(Self {
            task: death.task,
            boot_ns: record.header.time_boot_ns,
            status: death.exit_code,
            max_rss_pages: (death.max_rss_pages != u64::MAX).then_some(death.max_rss_pages),
            has_path: own.as_ref().is_some_and(|names| !names.truncated),
            path: own.map(|names| names.path(0)).unwrap_or_default(),
            dfl_path: names(section::VICTIM_DFL_PATH),
            via: via::of(sent.as_ref(), number, death),
            sent,
            request,
        })
    }

    /// The signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        Some(self.status & 0x7f).filter(|signal| *signal != 0)
    }

    /// Whether the runtime started it: the container's first process, or one executed in it.
    pub fn is_from_runtime(&self) -> bool {
        parent_comm(&self.task).is_some_and(is_runtime)
    }

    /// Whether it is the first process of a pid namespace of its own.
    pub fn is_namespace_init(&self) -> bool {
        self.task.has & has::NS_PID != 0 && self.task.ns_level > 0 && self.task.ns_pid == 1
    }

    /// When its deadly signal was sent, else when it ended: what came before led up to it.
    pub fn struck_boot_ns(&self) -> u64 {
        self.sent.map_or(self.boot_ns, |sent| sent.time_boot_ns)
    }
}

/// What else is known of a death, from other sources than its record.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Paths of the memory cgroups of the senders of the deadly signal and of the request.
    pub sender_paths: [Option<Vec<u8>>; 2],
    /// Their arguments.
    pub sender_cmdlines: [Option<Vec<String>>; 2],
    /// What the kernel log says of the fault: instruction and mapping.
    pub logged: Option<(u64, Option<String>)>,
    /// `incident` of the OOM kill it is a victim of.
    pub incident: Option<String>,
    /// Whether its container lived on.
    pub container_survived: Option<bool>,
    /// Whether another container of its pod was asked to stop too.
    pub siblings_asked: Option<bool>,
    /// Deaths that went with it.
    pub others: u64,
    /// What the runtime says.
    pub runtime: Option<RuntimeStatus>,
}

impl Findings {
    fn via(&self, death: &Death) -> Via {
        match death.via {
            // A victim that asked for the memory itself is killed as by its own limit.
            Via::Kernel | Via::ResourceLimit if self.incident.is_some() => Via::OomKiller,
            via => via,
        }
    }
}

/// Paths of all cgroups an event about `death` names.
pub fn paths(death: &Death, findings: &Findings) -> Vec<Vec<u8>> {
    std::iter::once(death.path.clone())
        .chain(findings.sender_paths.iter().flatten().cloned())
        .collect()
}

/// The event, but for what follows from the rest of it: restarts and verdict.
pub fn process_death(
    context: &Context,
    death: &Death,
    findings: &Findings,
    identities: &Identities,
) -> ProcessDeath {
    let signal = death.signal();
    let code = (death.status >> 8) & 0xff;
    let lifetime_ns = (death.task.start_boot_ns != 0)
        .then(|| death.boot_ns.saturating_sub(death.task.start_boot_ns));
    let who = identities.of(&death.path);
    let role = who
        .container
        .is_some()
        .then(|| role(death, findings.container_survived));
    let sender = |index: usize, sent: &Sent, via: Via| {
        sender(context, sent, via, findings, index, identities)
    };
    ProcessDeath {
        exit_code: u32::try_from(signal.map_or(code, |signal| 128 + signal)).unwrap_or_default(),
        signal: signal.map(self::signal),
        core_dumped: death.status & 0x80 != 0,
        cgroup: Some(cgroup(death.task.memcg_id, &death.path)),
        role,
        lifetime_ms: lifetime_ns.map(|ns| ns / 1_000_000),
        peak_rss_bytes: death.max_rss_pages.map(|pages| context.bytes(pages)),
        sender: match &death.sent {
            Some(sent) => Some(sender(0, sent, findings.via(death))),
            None if death.via != Via::Unknown => Some(Sender {
                via: death.via,
                ..Sender::default()
            }),
            None => None,
        },
        fault: fault(death, findings),
        stop_request: death.request.as_ref().map(|request| StopRequest {
            signal: self::signal(request.signal),
            sender: sender(1, request, via::of_sent(request, &death.task)),
            siblings_too: findings.siblings_asked,
            took_ms: death.boot_ns.saturating_sub(request.time_boot_ns) / 1_000_000,
            killed_after_ms: death
                .sent
                .filter(|sent| sent.signal == libc::SIGKILL)
                .map(|sent| sent.time_boot_ns.saturating_sub(request.time_boot_ns) / 1_000_000),
        }),
        incident: findings.incident.clone(),
        container_survived: findings
            .container_survived
            .filter(|_| role != Some(ProcessRole::Init)),
        others: findings.others,
        runtime: findings.runtime.clone(),
        ..ProcessDeath::default()
    }
}

fn signal(number: i32) -> Signal {
    Signal::of(u32::try_from(number).unwrap_or_default())
}

/// What it was to its container. A process that the runtime started and that is not the first of
/// its pid namespace was executed in the container, or is the first of a container that shares its
/// pod's namespace: the container tells, which does not outlive its first process.
pub fn role(death: &Death, survived: Option<bool>) -> ProcessRole {
    match (death.is_namespace_init(), death.is_from_runtime()) {
        (true, true) => ProcessRole::Init,
        // What is first in a pid namespace that was made in the container, as a browser's sandbox
        // is, does not end it.
        (true, false) if survived != Some(true) => ProcessRole::Init,
        (_, false) => ProcessRole::Child,
        (false, true) if survived == Some(false) => ProcessRole::Init,
        (false, true) => ProcessRole::Exec,
    }
}

fn sender(
    context: &Context,
    sent: &Sent,
    via: Via,
    findings: &Findings,
    index: usize,
    identities: &Identities,
) -> Sender {
    let path = findings.sender_paths.get(index).and_then(Option::as_deref);
    let who = path.map(|path| identities.of(path)).unwrap_or_default();
    let mut process = process(context, &sent.sender, None);
    process.cmdline = findings.sender_cmdlines.get(index).and_then(Clone::clone);
    Sender {
        via,
        sent_at: Some(context.time(sent.time_boot_ns)),
        si_code: Some(Signal::code_name(sent.signal, si_code(sent))),
        parent_comm: parent_comm(&sent.sender).map(text),
        cgroup: path.map(|path| cgroup(sent.sender.memcg_id, path)),
        k8s: who.k8s,
        container: who.container,
        process: Some(process),
    }
}

/// `si_code` as the receiver gets it: where the kernel has no `kernel_siginfo` to send, it fills one in
/// (`__send_signal_locked()`, kernel/signal.c).
fn si_code(sent: &Sent) -> i32 {
    match sent.info {
        info::NONE => libc::SI_USER,
        info::KERNEL => libc::SI_KERNEL,
        _ => sent.si_code,
    }
}

fn fault(death: &Death, findings: &Findings) -> Option<Fault> {
    let hex = |address: u64| format!("{address:#x}");
    let sent = death
        .sent
        .filter(|_| matches!(death.via, Via::Fault | Via::Seccomp));
    if sent.is_none() && findings.logged.is_none() {
        return None;
    }
    let (instruction, mapping) = findings
        .logged
        .clone()
        .map_or((None, None), |(ip, mapping)| (Some(hex(ip)), mapping));
    Some(Fault {
        address: sent.map(|sent| hex(sent.address)),
        instruction,
        mapping,
        syscall: sent
            .map(|sent| sent.syscall)
            .filter(|syscall| *syscall >= 0),
    })
}

#[cfg(test)]
mod tests;
