//! Processes that a signal ended: who sent it, and what for.

use super::{Facts, Finding, finding, sender, stop};
use crate::event::{Confidence, DeathCause, ProcessDeath, Signal, Via, label};

/// Signals of which a program dies by its own fault.
const CRASHES: [&str; 6] = [
    "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGABRT",
];
/// Addresses that are near null: a field of a structure that is not there.
const NULL_PAGE: u64 = 4096;

pub(super) fn find(facts: &Facts<'_>, signal: &Signal, via: Via) -> Finding {
    use Confidence::{High, Low};

    let death = facts.death;
    let sent = death.sender.as_ref().filter(|_| via != Via::Unknown);
    let is_own = sent.is_some_and(|sent| sender::is_own(facts, sent));
    let is_crash = CRASHES.contains(&signal.name.as_str());
    let by_itself = via == Via::Fault || is_own || matches!(via, Via::Unknown | Via::Kernel);
    if via == Via::Fault || (is_crash && by_itself) {
        return crash(death, signal, via);
    }
    if via == Via::Kernel {
        return from_kernel(signal);
    }
    let Some((sent, process)) = sent.and_then(|sent| Some((sent, sent.process.as_ref()?))) else {
        let why = format!("was ended by {}; who sent it is not known", signal.name);
        let missing = "its sender was not seen".to_owned();
        return finding(DeathCause::Unknown, Low, why, vec![missing]);
    };
    if is_own {
        let why = format!("ended itself: it sent {} to its own process", signal.name);
        return finding(DeathCause::OwnSignal, High, why, Vec::new());
    }
    let by = label::process(process);
    let mut evidence = vec![format!("{} from {by}", signal.name)];
    if let Some((_, sure)) = sender::oom_killer(sent) {
        let why = format!("was killed by the userspace OOM killer {by}");
        return finding(DeathCause::UserspaceOomKiller, sure, why, evidence);
    }
    if let Some(sure) = sender::runtime(sent) {
        return stop::find(facts, signal.name == "SIGKILL", sure, evidence);
    }
    let place = sender::place(facts, sent);
    evidence.extend(
        sent.parent_comm
            .iter()
            .map(|parent| format!("{by} is a child of {parent}")),
    );
    let cmdline = process.cmdline.as_ref().map(|args| args.join(" "));
    evidence.extend(cmdline.map(|cmdline| format!("its command line: {cmdline}")));
    if via == Via::CgroupKill {
        let why = format!("was killed: {by}{place} wrote to cgroup.kill");
        return finding(DeathCause::CgroupKill, High, why, evidence);
    }
    let why = format!("was ended by {} from {by}{place}", signal.name);
    finding(DeathCause::KilledByProcess, High, why, evidence)
}

fn crash(death: &ProcessDeath, signal: &Signal, via: Via) -> Finding {
    let fault = death.fault.as_ref();
    let address = fault.and_then(|fault| fault.address.as_deref());
    let parsed = address.and_then(|at| u64::from_str_radix(at.trim_start_matches("0x"), 16).ok());
    let touches = matches!(signal.name.as_str(), "SIGSEGV" | "SIGBUS");
    // A general protection fault has no address: the kernel reports 0 for it.
    let is_general = death
        .sender
        .as_ref()
        .and_then(|sender| sender.si_code.as_deref())
        .is_some_and(|code| matches!(code, "SI_KERNEL" | "128"));
    let mut evidence = Vec::new();
    if let Some(at) = address.filter(|_| !is_general) {
        evidence.push(match parsed {
            Some(number) if touches && number < NULL_PAGE => {
                format!("fault at {at}: a null pointer, or a field of one")
            }
            _ => format!("fault at {at}"),
        });
    }
    if is_general {
        evidence.push("a general protection fault, as of an address that cannot exist".to_owned());
    }
    if let Some(instruction) = fault.and_then(|fault| fault.instruction.as_ref()) {
        let mapping = fault.and_then(|fault| fault.mapping.as_ref());
        let mapping = mapping.map(|at| format!(" in {at}")).unwrap_or_default();
        evidence.push(format!("instruction at {instruction}{mapping}"));
    }
    evidence.push(if death.core_dumped {
        "core dumped".to_owned()
    } else {
        "no core dump".to_owned()
    });
    if let Some(request) = &death.stop_request {
        let before = stop::ms_label(request.took_ms);
        evidence.push(format!("{} came {before} before", request.signal.name));
    }
    let what = match (signal.name.as_str(), via) {
        ("SIGABRT", _) => ": it aborted itself (an assertion, a panic, or heap corruption)",
        ("SIGFPE", Via::Fault) => ": usually a division by zero",
        ("SIGBUS", Via::Fault) => ": usually a mapped file that was cut, or a full /dev/shm",
        _ => "",
    };
    let sure = if via == Via::Unknown {
        Confidence::Medium
    } else {
        Confidence::High
    };
    let why = format!("crashed with {}{what}", signal.name);
    finding(DeathCause::Crash, sure, why, evidence)
}

/// What the kernel sends for something that the process did itself. The process that ran when it
/// was sent is no sender.
fn from_kernel(signal: &Signal) -> Finding {
    use Confidence::{High, Low, Medium};

    let (sure, why) = match signal.name.as_str() {
        "SIGKILL" => {
            let why = "was killed by the kernel, and not by its OOM killer as far as was seen";
            let missing = "missing: why the kernel killed it (a tracer that died, a failed exec, \
                           memory that failed, or an OOM kill that was not seen)";
            return finding(DeathCause::Unknown, Low, why, vec![missing.to_owned()]);
        }
        "SIGPIPE" => (High, "wrote to a pipe or socket that nobody reads any more"),
        "SIGALRM" | "SIGVTALRM" | "SIGPROF" => (High, "let a timer of its own run out"),
        "SIGHUP" => (High, "lost its terminal"),
        "SIGINT" | "SIGQUIT" => (High, "was interrupted from its terminal"),
        "SIGIO" => (High, "asked to be told of input"),
        _ => (
            Medium,
            "got a signal from a timer of its own or from the kernel",
        ),
    };
    let evidence = vec![format!(
        "{} from the kernel, not from a process",
        signal.name
    )];
    let why = format!("{why}, and did not handle {}", signal.name);
    finding(DeathCause::OwnSignal, sure, why, evidence)
}
