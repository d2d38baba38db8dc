//! Memory pressure that kills nobody: what `trace` and `triage` find, and what they must not.
//!
//! Each load runs until both have looked. What they found about it, over all events, must be what
//! is expected and nothing else.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::MIB;
use super::pressure::{path_of, reader};
use crate::block::{Source, Zram};
use crate::cgroup::{Cgroup, Pod, hostile_name};
use crate::deadline::until;
use crate::expect::{at, equal};
use crate::hog::{Hog, Spec};
use crate::memcg::{self, Counters, waiting_percent};
use crate::scenario::{Context, Need, Scenario, Unmet};

const V2: &[Need] = &[Need::Guest, Need::CgroupV2, Need::NoSwap];

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "page_cache_pressure",
        "file data streams through a limit, and its readers wait",
        page_cache_pressure,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "tmpfs_growth",
        "shared memory fills a limit that files are read through",
        tmpfs_growth,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "limit_too_tight",
        "the heap leaves no room for files under the limit",
        limit_too_tight,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "thrash_without_kill",
        "files in use do not fit under the limit, in a cgroup with a hostile name",
        thrash_without_kill,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "swap_thrash",
        "a heap larger than its limit, in constant use",
        swap_thrash,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "high_throttling",
        "growth over memory.high looks like a hang",
        high_throttling,
    )
    .needs(V2)
    .slow()
    .seconds(20),
    Scenario::new(
        "noisy_neighbour",
        "one pod takes the node's memory, another waits for it",
        noisy_neighbour,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::CgroupV2, Need::NoSwap])
    .slow()
    .guest_exclusive(),
    Scenario::new(
        "healthy_but_busy",
        "files are read through a full limit, and nobody waits",
        healthy_but_busy,
    ),
    Scenario::new(
        "triage_healthy",
        "a node with nothing wrong is told to be so",
        triage_healthy,
    )
    .needs(&[Need::Tracer, Need::Guest])
    .guest_exclusive(),
];

/// Share of the time in which tasks of a load must wait, by the kernel's own account, for it to
/// be a problem. The kernel wakes the tracer at 15 %.
const WAITING_PERCENT: u128 = 15;

/// The same for a load that is none.
const HEALTHY_PERCENT: u128 = 5;

/// What was found about `cgroup`.
fn about(findings: &Value, cgroup: &Cgroup) -> BTreeSet<String> {
    let path = path_of(cgroup);
    let own = |finding: &&Value| *at(finding, "cgroup.path") == *path;
    let findings = findings.as_array().into_iter().flatten().filter(own);
    findings
        .filter_map(|finding| finding["id"].as_str().map(str::to_owned))
        .collect()
}

/// What a tracer found about `cgroup` so far.
fn traced(events: &[Value], cgroup: &Cgroup) -> BTreeSet<String> {
    let pressure = events.iter().filter(|event| event["kind"] == "pressure");
    pressure
        .flat_map(|event| about(&event["findings"], cgroup))
        .collect()
}

/// What one look finds, and the exit code.
fn triage(context: &Context) -> Result<(Value, Option<i32>)> {
    let output = Command::new(context.oomprobe()?)
        .args(["triage", "-o", "json", "--duration", "3s"])
        .output()
        .context("run oomprobe triage")?;
    let event: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("triage: {}", String::from_utf8_lossy(&output.stderr)))?;
    equal(&event, "kind", "triage")?;
    let raw = output.stdout.trim_ascii_end();
    ensure!(
        !raw.iter().any(u8::is_ascii_control),
        "triage writes control bytes: {event}"
    );
    Ok((event, output.status.code()))
}

/// The load is at its limit, and its tasks wait.
fn wait_for_pressure(context: &Context, cgroup: &Cgroup) -> Result<()> {
    until(context.deadline, "hits of the limit", || {
        Ok((Counters::read(cgroup)?.hits() > 0).then_some(()))
    })?;
    let mut percent = 0;
    until(context.deadline, "tasks that wait", || {
        let waiting = waiting_percent(cgroup, Duration::from_secs(1))?;
        percent = waiting.context("no memory.pressure")?;
        Ok((percent >= WAITING_PERCENT).then_some(()))
    })
    .with_context(|| format!("they wait {percent} % of the time"))
}

/// Runs a load in `cgroup` and checks that `id`, and nothing else, is found about it.
fn finds(context: &Context, cgroup: &Cgroup, workload: &[OsString], id: &str) -> Result<()> {
    let mut hog = Spec::inside(cgroup).start(workload, context.deadline)?;
    wait_for_pressure(context, cgroup)?;
    check_found(context, cgroup, id)?;
    hog.expect_alive()?;
    ensure!(cgroup.oom_kills()? == 0, "the kernel counts a kill");
    Ok(())
}

fn check_found(context: &Context, cgroup: &Cgroup, id: &str) -> Result<()> {
    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    let only = BTreeSet::from([id.to_owned()]);
    let path = path_of(cgroup);
    let event = tracer.wait_for("pressure event", context.deadline, |event| {
        let is_about = *at(event, "cgroup.path") == *path;
        event["kind"] == "pressure" && is_about && !about(&event["findings"], cgroup).is_empty()
    });
    let event = event.with_context(|| format!("of it: {:?}", told(&tracer.events(), &path)))?;
    equal(&event, "resource", "memory")?;
    let (looked, code) = triage(context)?;
    let seen = traced(&tracer.events(), cgroup);
    ensure!(seen == only, "trace finds {seen:?}, expected {id}: {event}");
    let seen = about(&looked["findings"], cgroup);
    ensure!(
        seen == only,
        "triage finds {seen:?}, expected {id}: {looked}"
    );
    equal(&looked, "healthy", false)?;
    ensure!(code == Some(4), "triage exits with {code:?}");
    tracer.check_stream()
}

/// All that was told of the cgroup at `path`.
fn told(events: &[Value], path: &str) -> Vec<String> {
    let about = events
        .iter()
        .filter(|event| *at(event, "cgroup.path") == *path);
    about.map(Value::to_string).collect()
}

fn page_cache_pressure(context: &mut Context) -> Result<()> {
    let source = Zram::new(1024)?;
    let pod = Pod::create(&context.scratch, 0x40)?;
    let cgroup = pod.container(0x40)?.cgroup;
    cgroup.limit(32 * MIB)?;
    let workload = reader(source.path(), 128, &["--readers", "8", "--forget"]);
    finds(context, &cgroup, &workload, "page_cache_pressure")
}

fn tmpfs_growth(context: &mut Context) -> Result<()> {
    let source = Zram::new(1024)?;
    let pod = Pod::create(&context.scratch, 0x41)?;
    let cgroup = pod.container(0x41)?.cgroup;
    cgroup.limit(64 * MIB)?;
    let more = ["--readers", "8", "--forget", "--shmem", "59"];
    let workload = reader(source.path(), 128, &more);
    finds(context, &cgroup, &workload, "tmpfs_growth")
}

fn limit_too_tight(context: &mut Context) -> Result<()> {
    let source = Zram::new(1024)?;
    let pod = Pod::create(&context.scratch, 0x42)?;
    let cgroup = pod.container(0x42)?.cgroup;
    cgroup.limit(64 * MIB)?;
    let more = ["--readers", "8", "--forget", "--anon", "59"];
    let workload = reader(source.path(), 128, &more);
    finds(context, &cgroup, &workload, "limit_too_tight")
}

fn thrash_without_kill(context: &mut Context) -> Result<()> {
    let source = Zram::new(64)?;
    // Beside a pod: what is inside a cgroup that stands for itself is not looked at by itself.
    let _pod = Pod::create(&context.scratch, 0x45)?;
    let cgroup = context.scratch.child(hostile_name())?;
    cgroup.limit(32 * MIB)?;
    let more = ["--readers", "4", "--random", "--anon", "16"];
    let workload = reader(source.path(), 6, &more);
    finds(context, &cgroup, &workload, "thrashing")
}

fn swap_thrash(context: &mut Context) -> Result<()> {
    let _swap = Zram::swap(128)?;
    let pod = Pod::create(&context.scratch, 0x43)?;
    let cgroup = pod.container(0x43)?.cgroup;
    cgroup.limit(24 * MIB)?;
    memcg::allow_swap(&cgroup)?;
    finds(
        context,
        &cgroup,
        &["touch".into(), "40".into()],
        "swap_thrash",
    )
}

fn high_throttling(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 0x44)?;
    let cgroup = pod.container(0x44)?.cgroup;
    memcg::set_high(&cgroup, 24 * MIB)?;
    let workload = ["anon".into(), "256".into()];
    finds(context, &cgroup, &workload, "high_throttling")
}

/// Bytes a second.
const SLOW_DISK: u64 = 8 * MIB;

/// The one has files in use, more than the other leaves it, on a slow disk. The other grows, gives
/// all back, and grows anew.
fn noisy_neighbour(context: &mut Context) -> Result<()> {
    let source = Zram::new(256)?;
    let pod = Pod::create(&context.scratch, 0x47)?;
    let (victim, culprit) = (pod.container(0x47)?, pod.container(0x48)?);
    let more = ["--readers", "4", "--random"];
    let mut victims =
        Spec::inside(&victim.cgroup).start(&reader(source.path(), 60, &more), context.deadline)?;
    victims.wait_ready(context.deadline)?;
    memcg::throttle_reads(&victim.cgroup, &source.numbers()?, SLOW_DISK)?;
    let tracer = context.start_tracer(&[])?;
    let mut culprits = start_growing(context, &culprit.cgroup)?;
    wait_for_pressure_of_others(context, &victim.cgroup)?;
    let mut growth = Growth::of(&culprit.cgroup);
    let found = until(context.deadline, "noisy_neighbour", || {
        growth.look()?;
        let found = traced(&tracer.events(), &culprit.cgroup);
        Ok((!found.is_empty()).then_some(found))
    });
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let events = tracer.events();
            let told = || events.iter().filter(|event| event["kind"] == "pressure");
            // An emulated machine with others beside it may take memory too slowly for a verdict.
            let rates = told().map(|event| growth.in_window_of(event));
            let rates = rates.collect::<Result<Vec<f64>>>()?;
            let most = rates.into_iter().fold(0.0, f64::max);
            if most < SURELY_NOISY {
                bail!(Unmet(format!(
                    "too slow a machine: this load took {most:.0} MiB/s at most while looked at"
                )));
            }
            let last: Vec<String> = told().rev().take(3).map(ToString::to_string).collect();
            return Err(error.context(format!("the last of pressure: {last:?}")));
        }
    };
    let only = BTreeSet::from(["noisy_neighbour".to_owned()]);
    ensure!(found == only, "found about the culprit: {found:?}");
    let found = traced(&tracer.events(), &victim.cgroup);
    ensure!(found.is_empty(), "found about the victim: {found:?}");
    victims.expect_alive()?;
    culprits.expect_alive()?;
    tracer.stop()
}

/// MiB a second: who grows by this is told. A verdict asks for 16, by more than usage.
const SURELY_NOISY: f64 = 20.0;

/// How a cgroup grows, by its own counter.
struct Growth<'a> {
    cgroup: &'a Cgroup,
    /// Seconds since boot, and MiB.
    seen: Vec<(f64, f64)>,
}

impl<'a> Growth<'a> {
    const fn of(cgroup: &'a Cgroup) -> Self {
        let seen = Vec::new();
        Self { cgroup, seen }
    }

    fn look(&mut self) -> Result<()> {
        let uptime = fs::read_to_string("/proc/uptime").context("uptime")?;
        let uptime = uptime.split(' ').next().context("an empty uptime")?;
        let bytes = memcg::current(self.cgroup)?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let mib = bytes as f64 / MIB as f64;
        self.seen.push((uptime.parse().context("uptime")?, mib));
        Ok(())
    }

    /// MiB a second over the time that an event is about; what it gave back between is no growth.
    fn in_window_of(&self, event: &Value) -> Result<f64> {
        let window_ms = event["window_ms"].as_f64().context("window_ms")?;
        let end = event["time_boot_ns"].as_f64().context("time_boot_ns")? / 1e9;
        let seconds = window_ms / 1e3;
        let inside = |(at, _): &&(f64, f64)| (end - seconds..=end).contains(at);
        let seen: Vec<_> = self.seen.iter().filter(inside).collect();
        let steps = seen.windows(2).map(|pair| (pair[1].1 - pair[0].1).max(0.0));
        Ok(steps.sum::<f64>() / seconds.max(1e-3))
    }
}

fn start_growing(context: &Context, cgroup: &Cgroup) -> Result<Hog> {
    // It takes from the other for longer than what is looked at, though reclaim slows it down.
    let workload = ["sawtooth", "290", "--mib-per-s", "28"];
    Spec::inside(cgroup).start(&workload, context.deadline)
}

fn wait_for_pressure_of_others(context: &Context, victim: &Cgroup) -> Result<()> {
    until(context.deadline, "the victim to wait", || {
        let waiting = waiting_percent(victim, Duration::from_secs(1))?;
        Ok((waiting.context("no memory.pressure")? >= WAITING_PERCENT).then_some(()))
    })
}

fn healthy_but_busy(context: &mut Context) -> Result<()> {
    let source = Source::new(64)?;
    let pod = Pod::create(&context.scratch, 0x46)?;
    let cgroup = pod.container(0x46)?.cgroup;
    memcg::limit(&cgroup, 16 * MIB)?;
    let workload = reader(source.path(), 64, &["--busy", "10"]);
    let mut hog = Spec::inside(&cgroup).start(&workload, context.deadline)?;
    until(context.deadline, "hits of the limit", || {
        Ok((Counters::read(&cgroup)?.hits() > 100).then_some(()))
    })?;
    let waiting = waiting_percent(&cgroup, Duration::from_secs(4))?;
    ensure!(
        waiting.is_none_or(|percent| percent < HEALTHY_PERCENT),
        "this load is meant not to wait, but does {waiting:?} % of the time"
    );
    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    let (looked, _) = triage(context)?;
    let found = about(&looked["findings"], &cgroup);
    ensure!(found.is_empty(), "triage finds {found:?}: {looked}");
    let found = traced(&tracer.events(), &cgroup);
    ensure!(found.is_empty(), "trace finds {found:?}");
    hog.expect_alive()
}

fn triage_healthy(context: &mut Context) -> Result<()> {
    let (looked, code) = triage(context)?;
    equal(&looked, "findings", Value::Array(Vec::new()))?;
    equal(&looked, "healthy", true)?;
    ensure!(code == Some(0), "triage exits with {code:?}");
    Ok(())
}
