//! A death: a few lines for the end of a container, one for any other process.

use super::layout::{Colour, Page};
use crate::event::label::{self, bytes, seconds};
use crate::event::{
    Confidence, Event, Fault, ProcessDeath, ProcessRole, Sender, Severity, StopRequest, Via, escape,
};

const EVIDENCE: usize = 2;
const COMMANDS: usize = 1;

pub(super) fn page(page: &mut Page, time: &str, event: &Event, death: &ProcessDeath) {
    let verdict = &death.verdict;
    let title = title(death);
    if death.role != Some(ProcessRole::Init) {
        // A victim of the OOM killer has been shown with its kill.
        let (colour, why) = match &death.incident {
            Some(incident) => (
                Colour::Dim,
                format!("{}: OOM kill {incident}", who(event, death)),
            ),
            None => (
                colour(event.severity, Colour::Plain),
                verdict.summary.clone(),
            ),
        };
        return page.note(colour, &format!("{time} DIED  {title} · {}", escape(&why)));
    }
    let sure = match verdict.confidence {
        Confidence::High => "",
        Confidence::Medium => " (likely)",
        Confidence::Low => " (a guess)",
    };
    page.line(
        colour(event.severity, Colour::Strong),
        &format!(
            "{time} CONTAINER ENDED  {title} · {}{sure}",
            super::name(&verdict.cause)
        ),
    );
    page.paragraph(Colour::Strong, &escape(&verdict.summary), 2);
    if let Some(request) = &death.stop_request {
        page.item("asked", &escape(&asked(request)), 1);
    }
    if let Some(sender) = death.sender.as_ref().filter(|sender| is_told(sender)) {
        page.item("by", &escape(&sent(sender)), 1);
    }
    if let Some(fault) = death.fault.as_ref().and_then(crashed) {
        page.item("fault", &escape(&fault), 1);
    }
    for (index, evidence) in verdict.evidence.iter().take(EVIDENCE).enumerate() {
        let title = if index == 0 { "because" } else { "" };
        page.item(title, &escape(evidence), 1);
    }
    page.item("lived", &lived(death), 1);
    if let Some(restarts) = death
        .restarts
        .as_ref()
        .filter(|restarts| restarts.deaths > 1)
    {
        page.item("before", &escape(&restarts.summary), 2);
    }
    if let Some(report) = &verdict.kubernetes_will_report {
        let wrong = if report.wrong { ", which is wrong" } else { "" };
        let says = match report.oom_killed {
            Some(true) => format!("says OOMKilled{wrong}: {}", report.why),
            Some(false) => format!("does not say OOMKilled{wrong}: {}", report.why),
            None => report.why.clone(),
        };
        page.item("k8s", &escape(&says), 2);
    }
    for (index, step) in verdict.next_steps.iter().take(COMMANDS).enumerate() {
        page.command(if index == 0 { "next" } else { "" }, &escape(step));
    }
}

const fn colour(severity: Severity, ordinary: Colour) -> Colour {
    match severity {
        Severity::Error | Severity::Fatal => Colour::Alarm,
        Severity::Warn => Colour::Warn,
        _ => ordinary,
    }
}

/// "exit code 137 (SIGKILL), 41 more with it".
fn title(death: &ProcessDeath) -> String {
    let signal = death
        .signal
        .as_ref()
        .map(|signal| format!(" ({})", escape(&signal.name)))
        .unwrap_or_default();
    let others = match death.others {
        0 => String::new(),
        others => format!(", {others} more with it"),
    };
    format!("exit code {}{signal}{others}", death.exit_code)
}

fn who(event: &Event, death: &ProcessDeath) -> String {
    let process = event
        .process
        .as_ref()
        .map_or_else(|| "a process".to_owned(), label::process);
    let cgroup = death.cgroup.as_ref();
    match label::subject(event.k8s.as_ref(), event.container.as_ref(), cgroup) {
        Some(owner) => format!("{process} in {owner}"),
        None => process,
    }
}

/// Whether a process is to be named: not where the kernel acted on its own, and the process is only
/// the one that ran.
fn is_told(sender: &Sender) -> bool {
    sender.process.is_some()
        && matches!(
            sender.via,
            Via::Kill | Via::Tkill | Via::Sigqueue | Via::CgroupKill | Via::ParentDeath
        )
}

fn sent(sender: &Sender) -> String {
    let process = sender.process.as_ref();
    let name = process.map_or_else(|| "a process".to_owned(), label::process);
    let parent = sender
        .parent_comm
        .as_ref()
        .map(|parent| format!(", child of {parent}"))
        .unwrap_or_default();
    let user = process
        .and_then(|process| process.uid)
        .map(|uid| format!(", uid {uid}"))
        .unwrap_or_default();
    let cgroup = sender.cgroup.as_ref();
    let place = label::subject(sender.k8s.as_ref(), sender.container.as_ref(), cgroup)
        .map(|place| format!(", in {place}"))
        .unwrap_or_default();
    let how = match sender.via {
        Via::CgroupKill => " by cgroup.kill",
        Via::ParentDeath => ", its parent, which died",
        _ => "",
    };
    format!("{name}{how}{parent}{user}{place}")
}

fn asked(request: &StopRequest) -> String {
    let then = match request.killed_after_ms {
        Some(ms) => format!("SIGKILL after {}", duration(ms)),
        None => format!("it took {}", duration(request.took_ms)),
    };
    format!(
        "{} from {}; {then}",
        request.signal.name,
        sent(&request.sender)
    )
}

fn crashed(fault: &Fault) -> Option<String> {
    let part =
        |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
    let parts: Vec<String> = [
        part("address", &fault.address),
        part("instruction", &fault.instruction),
        part("in", &fault.mapping),
        fault.syscall.map(|number| format!("system call {number}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn lived(death: &ProcessDeath) -> String {
    let time = death
        .lifetime_ms
        .map_or_else(|| "for an unknown time".to_owned(), duration);
    match death.peak_rss_bytes {
        Some(peak) => format!("{time}, {} resident at most", bytes(peak)),
        None => time,
    }
}

fn duration(ms: u64) -> String {
    seconds(crate::pressure::series::approx(ms) / 1e3)
}
