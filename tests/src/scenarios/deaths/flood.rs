//! As many deaths a second as the machine can make: none is given to another's sender, and what is
//! missing is counted.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Stage;
use crate::death::Death;
use crate::expect::at;
use crate::hog::End;
use crate::scenario::{Context, Need, Scenario};

pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "death_flood",
    "thousands of deaths a second: none misattributed, what is missing is counted",
    death_flood,
)
.needs(&[Need::Tracer])];

/// Two seconds' worth on a machine that makes 10 000 a second.
const DEATHS: usize = 20_000;
/// An emulated guest makes some hundred a second.
const DEATHS_IN_GUEST: usize = 1600;
/// Senders at work at the same time.
const WORKERS: usize = 4;

/// One death that was made: who ended, how, and who made it.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    pid: i32,
    end: End,
    worker: i32,
}

impl Made {
    /// Of a line of the workload.
    fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<i32> = line
            .split(' ')
            .map(|number| number.parse().ok())
            .collect::<Option<_>>()?;
        let &[pid, end, worker] = numbers.as_slice() else {
            return None;
        };
        let end = match end {
            0.. => End::Code(end),
            signal => End::Signal(-signal),
        };
        Some(Self { pid, end, worker })
    }

    fn expected(&self) -> Result<Death> {
        let death = Death::of(self.pid, self.end)?;
        Ok(match self.end {
            End::Code(_) => death.is("stop_request", ()),
            End::Signal(_) => death.sent("kill", self.worker),
        }
        .is("others", 0))
    }
}

fn death_flood(context: &mut Context) -> Result<()> {
    let tracer = context.start_tracer(&[])?;
    let stage = Stage::new(context, 0x60)?;
    let mut init = stage.with_init(context)?;
    let deaths = if context.is_guest {
        DEATHS_IN_GUEST
    } else {
        DEATHS
    };
    let mut flood = stage.spec().start(
        &["flood", &deaths.to_string(), &WORKERS.to_string()],
        context.deadline,
    )?;
    let mut made: HashMap<i32, Vec<Made>> = HashMap::new();
    let mut count = 0;
    for line in flood.all_after("flooded ", context.deadline)? {
        let one = Made::parse(&line).with_context(|| format!("the flood said {line:?}"))?;
        // An end with 0 of any but the first process is none to tell of.
        if one.end != End::Code(0) {
            count += 1;
            made.entry(one.pid).or_default().push(one);
        }
    }
    let status = flood.wait(context.deadline)?;
    ensure!(status.success(), "the flood: {status}");
    ensure!(count * 2 > deaths, "{count} deaths of {deaths}");
    for rate in flood.all_after("rate ", context.deadline)? {
        eprintln!("{rate} deaths a second by one of {WORKERS} workers");
    }

    init.expect_alive()?;
    tracer.signal(Signal::SIGINT)?;
    let status = tracer.wait_end()?;
    ensure!(status.success(), "the tracer: {status}");
    let events = tracer.events();
    let told = events.iter().filter(|event| {
        event["kind"] == "process_death"
            && at(event, "k8s.pod.uid") == stage.container.pod_uid.as_str()
    });
    let mut seen = 0;
    for event in told {
        let pid = at(event, "process.pid").as_i64().context("pid")?;
        let known = i32::try_from(pid).ok().and_then(|pid| made.get_mut(&pid));
        let known = known.with_context(|| format!("nobody made this death: {event}"))?;
        // A pid may have been used more than once.
        let at = known
            .iter()
            .position(|one| one.expected().is_ok_and(|death| death.check(event).is_ok()));
        let at = at.with_context(|| format!("made {known:?}, but: {event}"))?;
        known.swap_remove(at);
        seen += 1;
    }
    let losses = losses(&events)?;
    let lost: u64 = losses.values().sum();
    // Of the calls that a kernel skips, and of the events that a full queue refuses, some are no
    // deaths of these.
    let may_be_others = [SKIPPED, QUEUE_FULL];
    let all = if may_be_others.iter().any(|one| losses.contains_key(*one)) {
        seen + lost >= count as u64
    } else {
        seen + lost == count as u64
    };
    ensure!(
        all && seen > 0,
        "{seen} told and {losses:?} counted as lost, of {count}"
    );
    Ok(())
}

/// The kernel did not run a program, as it was in the middle of it on that CPU.
const SKIPPED: &str = "program_skipped";

/// Where exits are seen.
const EXIT_HOOKS: [&str; 2] = [":sched_process_exit", ":taskstats_exit"];

/// An event found the queue of the output full.
const QUEUE_FULL: &str = "sink_queue_full";

/// Deaths that the tracer says it lost, by reason.
fn losses(events: &[Value]) -> Result<BTreeMap<String, u64>> {
    const REASONS: [&str; 4] = ["death_ring_full", "death_backlog_full", QUEUE_FULL, SKIPPED];
    let is_of_exits = |event: &&Value| {
        let hook = event["hook"].as_str();
        hook.is_none_or(|hook| EXIT_HOOKS.iter().any(|exit| hook.ends_with(exit)))
    };
    let mut losses = BTreeMap::new();
    let all = events.iter().filter(|event| event["kind"] == "loss");
    for event in all.filter(is_of_exits) {
        let reason = event["reason"].as_str().context("reason")?;
        if REASONS.contains(&reason) {
            let count = event["count"].as_u64().context("count")?;
            *losses.entry(reason.to_owned()).or_default() += count;
        }
    }
    Ok(losses)
}
