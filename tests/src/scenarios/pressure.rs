//! Limits that are hit, and how a kill came about.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::MIB;
use crate::block::{Source, Zram};
use crate::cgroup::{Cgroup, Pod, Version};
use crate::deadline::until;
use crate::expect::{Expected, at, equal, names_victim, nothing_lost, text};
use crate::hog::Spec;
use crate::memcg::{self, Counters};
use crate::scenario::{Context, Need, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "limit_hits",
        "a container reads through a limit with no room: every hit is counted",
        limit_hits,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "million_limit_hits",
        "the same, a million times",
        million_limit_hits,
    )
    .needs(&[Need::Tracer, Need::NoGuest])
    .slow()
    .seconds(400),
    Scenario::new(
        "stall_time",
        "time in reclaim is the time the kernel says tasks waited",
        stall_time,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::CgroupV2])
    .seconds(40),
    Scenario::new(
        "refault_wait",
        "time in reclaim and until pages are back is all that the kernel calls waiting",
        refault_wait,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::CgroupV2])
    .seconds(40),
    Scenario::new(
        "pressure_ratio",
        "the share of time that tasks wait is the kernel's own account",
        pressure_ratio,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::CgroupV2])
    .seconds(40),
    Scenario::new("leak", "memory grows steadily up to the limit", leak),
    Scenario::new("spike", "all memory is taken at once", spike),
    Scenario::new(
        "hits_before_kill",
        "a container is at its limit for a while before it is killed",
        hits_before_kill,
    ),
    Scenario::new(
        "short_lived_hits",
        "made, killed and removed within a second: the hits are known",
        short_lived_hits,
    ),
    Scenario::new(
        "leak_suspect",
        "one container leaks, another's collector runs: the first is named",
        leak_suspect,
    )
    .needs(&[Need::Tracer]),
];

/// The path of a cgroup as events write it.
pub(super) fn path_of(cgroup: &Cgroup) -> String {
    use std::os::unix::ffi::OsStrExt;
    text(cgroup.kernel_path().as_bytes())
}

/// Arguments of a workload that reads `source`.
pub(super) fn reader(source: &std::path::Path, mib: u32, more: &[&str]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["read".into(), source.into(), mib.to_string().into()];
    arguments.extend(more.iter().map(OsString::from));
    arguments
}

/// Events of this kind about this cgroup, in order.
fn events_about(events: &[Value], kind: &str, path: &str) -> Vec<Value> {
    let about = |event: &&Value| event["kind"] == kind && *at(event, "cgroup.path") == *path;
    events.iter().filter(about).cloned().collect()
}

fn number(event: &Value, path: &str) -> Result<u64> {
    let value = at(event, path).as_u64();
    value.with_context(|| format!("{path} is no number: {event}"))
}

fn float(event: &Value, path: &str) -> Result<f64> {
    let value = at(event, path).as_f64();
    value.with_context(|| format!("{path} is no number: {event}"))
}

/// Fails unless `found` is within so many percent of `expected`.
fn near(what: &str, found: f64, expected: f64, percent: f64) -> Result<()> {
    ensure!(
        (found - expected).abs() <= expected * percent / 100.0,
        "{what} is {found}, expected {expected} within {percent} %"
    );
    Ok(())
}

fn limit_hits(context: &mut Context) -> Result<()> {
    count_hits(context, 1_000)
}

fn million_limit_hits(context: &mut Context) -> Result<()> {
    count_hits(context, 1_000_000)
}

/// v1 does not tell hits, only failed charges: the events' own count is what is waited for there.
fn count_hits(context: &mut Context, wanted: u64) -> Result<()> {
    const LIMIT: u64 = MIB;
    let tracer = context.start_tracer(&[])?;
    let source = Source::new(64)?;
    let cgroup = context.scratch.child("full")?;
    memcg::limit(&cgroup, LIMIT)?;
    let hog = Spec::inside(&cgroup).start(&reader(source.path(), 64, &[]), context.deadline)?;
    let path = path_of(&cgroup);
    let mut hits = 0;
    until(context.deadline, "enough hits", || {
        let told = || {
            let events = events_about(&tracer.events(), "memcg_limit", &path);
            events.last().and_then(|event| event["count"].as_u64())
        };
        hits = match context.version {
            Version::V1 => told().unwrap_or(0),
            Version::V2 => Counters::read(&cgroup)?.max_hits,
        };
        Ok((hits >= wanted).then_some(()))
    })
    .with_context(|| format!("{hits} hits"))?;
    drop(hog);
    let counted = Counters::read(&cgroup)?.max_hits;
    cgroup.remove()?;
    tracer.stop()?;

    let all = tracer.events();
    let events = events_about(&all, "memcg_limit", &path);
    let last = events.last().context("no memcg_limit event")?;
    equal(last, "event", "max")?;
    equal(last, "limit_bytes", LIMIT)?;
    let (count, kernel) = (number(last, "count")?, number(last, "kernel_count")?);
    // It was made after the tracer began.
    ensure!(
        count == kernel,
        "{count} hits counted, {kernel} by the kernel"
    );
    let sum: u64 = events
        .iter()
        .filter_map(|event| event["new"].as_u64())
        .sum();
    ensure!(sum == count, "{count} hits, but {sum} told one by one");
    match context.version {
        Version::V1 => ensure!(
            (wanted..=counted).contains(&count),
            "{count} hits with {counted} failed charges"
        ),
        Version::V2 => ensure!(
            count == counted,
            "{count} hits, memory.events says {counted}"
        ),
    }
    nothing_lost(&all)
}

/// How often a comparison with the kernel's account of waiting is made, each in a cgroup of its own.
/// Between where the kernel begins to count and where a hook does the host may take a guest's time
/// away: one of them may be off by that, the median is not.
const ACCOUNTS: usize = 5;

/// How much waiting each of them is about.
const ACCOUNT: Duration = Duration::from_secs(1);

/// Waits until tasks of `cgroup` have waited for [`ACCOUNT`].
fn wait_for_account(cgroup: &Cgroup, deadline: Instant) -> Result<()> {
    until(deadline, "waiting", || {
        // Each look ends a period of the kernel's account, which drops what is shorter than a jiffy
        // (`collect_percpu_times()`, kernel/sched/psi.c).
        std::thread::sleep(Duration::from_millis(50));
        Ok((waited(cgroup)? >= ACCOUNT).then_some(()))
    })
}

/// Fails unless what was told is within so many percent of what the kernel says, by the median of
/// all accounts.
fn accounts_agree(what: &str, accounts: &[(Duration, Duration)], percent: f64) -> Result<()> {
    let ratio = |(told, kernel): &(Duration, Duration)| told.div_duration_f64(*kernel);
    let mut ratios: Vec<f64> = accounts.iter().map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).context("no account")?;
    near(
        &format!("{what}, told / by the kernel's account ({ratios:.3?})"),
        *median,
        1.0,
        percent,
    )
}

/// What is comparable: anonymous memory that is swapped out and given up, never to be needed again,
/// by one task. Then all that the kernel takes for waiting (PSI memory) is reclaim at the limit,
/// and `some` is the sum of it. With refaults it would be more, with a second task less.
fn stall_time(context: &mut Context) -> Result<()> {
    let tracer = context.start_tracer(&[])?;
    let _swap = Zram::swap(256)?;
    let mut slices = Vec::new();
    for nth in 0..ACCOUNTS {
        let cgroup = context.scratch.child(format!("swapping-{nth}"))?;
        cgroup.limit(24 * MIB)?;
        memcg::allow_swap(&cgroup)?;
        // PSI weighs what each processor saw: of a task that moves about it tells half the time.
        let hog = Spec::inside(&cgroup).on_cpu(0).start(
            &["sawtooth", "96", "--mib-per-s", "100000"],
            context.deadline,
        )?;
        wait_for_account(&cgroup, context.deadline)?;
        drop(hog);
        slices.push((path_of(&cgroup), waited(&cgroup)?));
        cgroup.remove()?;
    }
    tracer.stop()?;

    let all = tracer.events();
    let mut accounts = Vec::new();
    for (path, waited) in slices {
        let mut events = events_about(&all, "reclaim_stall", &path);
        events.retain(|event| event["stall"] == "memcg_reclaim");
        let last = events.last().context("no reclaim_stall event")?;
        let total_ns = number(last, "total_ns")?;
        accounts.push((Duration::from_nanos(total_ns), waited));
        let stalls = last["histogram_us_log2"].as_array().context("histogram")?;
        let sum: u64 = stalls.iter().filter_map(Value::as_u64).sum();
        equal(last, "count", sum)?;
        let new_ns = |event: &Value| event["new_ns"].as_u64();
        let sum: u64 = events.iter().filter_map(new_ns).sum();
        equal(last, "total_ns", sum)?;
    }
    accounts_agree("time in reclaim", &accounts, 5.0)?;
    nothing_lost(&all)
}

/// One task that needs what was just taken from it, memory from swap in some cgroups and files
/// from a slow disk in others: what the hooks make of its waiting, of each kind, adds up to the
/// kernel's own account.
fn refault_wait(context: &mut Context) -> Result<()> {
    const SLOW_DISK: u64 = 2 * MIB;
    let tracer = context.start_tracer(&[])?;
    let _swap = Zram::swap(128)?;
    let source = Zram::new(64)?;
    let mut slices = Vec::new();
    for (name, workload) in [
        ("swapping", ["touch", "40"].map(OsString::from).to_vec()),
        ("reading", reader(source.path(), 40, &["--random"])),
    ] {
        for nth in 0..ACCOUNTS {
            let cgroup = context.scratch.child(format!("{name}-{nth}"))?;
            cgroup.limit(24 * MIB)?;
            memcg::allow_swap(&cgroup)?;
            let mut hog = Spec::inside(&cgroup)
                .on_cpu(0)
                .start(&workload, context.deadline)?;
            if name == "reading" {
                hog.wait_ready(context.deadline)?;
                memcg::throttle_reads(&cgroup, &source.numbers()?, SLOW_DISK)?;
            }
            wait_for_account(&cgroup, context.deadline)?;
            if name == "reading" && nth + 1 == ACCOUNTS {
                // Of which of the two the kernel says so depends on what it takes for a page in
                // active use; and on a busy machine it is long until there are any.
                until(context.deadline, "waiting for a page to come back", || {
                    let events = tracer.events();
                    let told = events.iter().any(|event| event["stall"] == "refault_wait");
                    Ok(told.then_some(()))
                })?;
            }
            drop(hog);
            slices.push((name, path_of(&cgroup), waited(&cgroup)?));
            cgroup.remove()?;
        }
    }
    tracer.stop()?;

    let all = tracer.events();
    let mut accounts: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (name, path, waited) in slices {
        let mut totals_ns = BTreeMap::new();
        for event in events_about(&all, "reclaim_stall", &path) {
            let stall = event["stall"].as_str().unwrap_or_default().to_owned();
            totals_ns.insert(stall, number(&event, "total_ns")?);
        }
        let told = Duration::from_nanos(totals_ns.values().sum());
        let of_name = accounts.entry(name).or_default();
        of_name.push((told, waited));
    }
    for (name, accounts) in accounts {
        accounts_agree(
            &format!("{name}: time waited of all kinds"),
            &accounts,
            10.0,
        )?;
    }
    nothing_lost(&all)
}

/// What the kernel says while the tracer looks, against what the tracer says about the same time.
fn pressure_ratio(context: &mut Context) -> Result<()> {
    const ROOM: f64 = 0.1;
    let tracer = context.start_tracer(&[])?;
    let _swap = Zram::swap(256)?;
    let pod = Pod::create(&context.scratch, 0x36)?;
    let cgroup = pod.container(0x36)?.cgroup;
    cgroup.limit(24 * MIB)?;
    memcg::allow_swap(&cgroup)?;
    let _hog = Spec::inside(&cgroup).on_cpu(0).start(
        &["sawtooth", "96", "--mib-per-s", "100000"],
        context.deadline,
    )?;
    let path = path_of(&cgroup);
    let mut account = Vec::new();
    let event = until(context.deadline, "a pressure event", || {
        account.push((uptime_s()?, waited(&cgroup)?));
        Ok(events_about(&tracer.events(), "pressure", &path).pop())
    })?;
    tracer.stop()?;
    let end_s = Duration::from_nanos(number(&event, "time_boot_ns")?).as_secs_f64();
    let start_s = end_s - Duration::from_millis(number(&event, "window_ms")?).as_secs_f64();
    let at = |s: f64| account.iter().rfind(|(at, _)| *at <= s);
    let (first, last) = at(start_s)
        .zip(at(end_s))
        .with_context(|| format!("no account of {start_s} to {end_s} s: {account:?}"))?;
    let expected = last.1.saturating_sub(first.1).as_secs_f64() / (last.0 - first.0);
    let found = float(&event, "some_ratio")?;
    ensure!(
        (found - expected).abs() <= ROOM,
        "some_ratio is {found}, the kernel's account gives {expected}: {event}"
    );
    Ok(())
}

/// Time in which some task of `cgroup` waited for memory, by the kernel's account.
fn waited(cgroup: &Cgroup) -> Result<Duration> {
    let waited_us = Counters::read(cgroup)?.waited_us;
    let waited_us = waited_us.context("no memory.pressure")?;
    Ok(Duration::from_micros(waited_us))
}

/// The clock of events, to a hundredth of a second.
fn uptime_s() -> Result<f64> {
    let uptime = std::fs::read_to_string("/proc/uptime").context("/proc/uptime")?;
    let first = uptime.split(' ').next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("/proc/uptime: {uptime:?}"))
}

/// The `oom_kill` event on `pid`.
fn kill_event(context: &Context, pid: i32) -> Result<Option<Value>> {
    let Some(tracer) = context.tracer() else {
        return Ok(None);
    };
    let wanted = |event: &Value| names_victim(event, pid);
    tracer
        .wait_for("oom_kill event", context.deadline, wanted)
        .map(Some)
}

fn leak(context: &mut Context) -> Result<()> {
    const LIMIT: u64 = 64 * MIB;
    const MIB_PER_S: u32 = 4;
    let pod = Pod::create(&context.scratch, 0x30)?;
    let container = pod.container(0x30)?;
    container.cgroup.limit(LIMIT)?;
    let rate = MIB_PER_S.to_string();
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "96", "--mib-per-s", &rate], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, LIMIT)
            .inside_container(&container, true)
            .because(&["anon_bytes"], &["leak"]),
    )?;
    let Some(event) = kill_event(context, hog.pid())? else {
        return Ok(());
    };
    let samples = at(&event, "before.samples").as_array();
    let samples = samples.with_context(|| format!("no before.samples: {event}"))?;
    let grew = samples.windows(2).all(|pair| {
        let anon = |sample: &Value| sample["anon_bytes"].as_u64().unwrap_or(u64::MAX);
        anon(&pair[0]) <= anon(&pair[1]) || anon(&pair[0]) == u64::MAX
    });
    ensure!(samples.len() >= 8 && grew, "samples of a leak: {samples:?}");
    near(
        "before.growth_bytes_per_s",
        float(&event, "before.growth_bytes_per_s")?,
        f64::from(MIB_PER_S) * 1_048_576.0,
        20.0,
    )
}

fn spike(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 0x31)?;
    let container = pod.container(0x31)?;
    container.cgroup.limit(32 * MIB)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .held()
        .start(&["anon", "64"], context.deadline)?;
    // An idle container, not one that is killed while it starts.
    std::thread::sleep(Duration::from_secs(3));
    hog.go()?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, 32 * MIB)
            .inside_container(&container, true)
            .because(&["anon_bytes"], &["spike"]),
    )
}

fn hits_before_kill(context: &mut Context) -> Result<()> {
    let source = Source::new(64)?;
    let pod = Pod::create(&context.scratch, 0x32)?;
    let container = pod.container(0x32)?;
    memcg::limit(&container.cgroup, 24 * MIB)?;
    let mut reading = Spec::inside(&container.cgroup).start(
        &reader(source.path(), 64, &["--busy", "4"]),
        context.deadline,
    )?;
    let started = Instant::now();
    until(context.deadline, "first hit", || {
        Ok((Counters::read(&container.cgroup)?.hits() > 0).then_some(()))
    })?;
    let hit = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    reading.expect_alive()?;
    let already = Counters::read(&container.cgroup)?.max_hits;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .oom_score_adj(500)
        .start(&["anon", "48"], context.deadline)?;
    let before_kill = hit.elapsed();
    hog.wait_killed(context.deadline)?;
    // The reader goes on hitting the limit until it ends.
    drop(reading);
    let (at_most, counted) = (
        started.elapsed(),
        Counters::read(&container.cgroup)?.max_hits,
    );
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, 24 * MIB)
            .inside_container(&container, true)
            .because(&["anon_bytes"], &["spike", "working_set_over_limit"]),
    )?;
    let Some(event) = kill_event(context, hog.pid())? else {
        return Ok(());
    };
    let first_ms = float(&event, "before.first_limit_hit_ms")?;
    let possible = before_kill.as_secs_f64() * 1e3..=at_most.as_secs_f64() * 1e3;
    ensure!(
        possible.contains(&first_ms),
        "first hit {first_ms} ms before the kill, possible is {possible:?}"
    );
    hits_are(&event, already..=counted, context.version)
}

/// `before.max_hits` of a cgroup that was made not long before is all the kernel counted until the
/// kill: what it had counted at the decision, within the counts of a moment before and after.
fn hits_are(event: &Value, counted: RangeInclusive<u64>, version: Version) -> Result<()> {
    let hits = number(event, "before.max_hits")?;
    let possible = match version {
        // v1 shows no count of hits, but one of tries to charge: several for a hit.
        Version::V1 => 1..=*counted.end(),
        Version::V2 => counted,
    };
    ensure!(
        possible.contains(&hits),
        "before.max_hits is {hits}, the kernel counted {possible:?}"
    );
    if let Some(at_decision) = at(event, "limit.max_events").as_u64() {
        equal(event, "before.max_hits", at_decision)?;
    }
    Ok(())
}

fn short_lived_hits(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 0x33)?;
    let container = pod.container(0x33)?;
    memcg::limit(&container.cgroup, 16 * MIB)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "32"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let counted = Counters::read(&container.cgroup)?.max_hits;
    pod.kubepods.remove()?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, 16 * MIB)
            .inside_container(&container, true),
    )?;
    let Some(event) = kill_event(context, hog.pid())? else {
        return Ok(());
    };
    hits_are(&event, 1..=counted, context.version)
}

/// Both containers read files through their full limits, as many do: it makes the tracer look
/// often, and page cache is no leak.
fn leak_suspect(context: &mut Context) -> Result<()> {
    const MIB_PER_S: u32 = 2;
    let tracer = context.start_tracer(&["--leak-window", "8s"])?;
    let source = Source::new(256)?;
    let pod = Pod::create(&context.scratch, 0x34)?;
    let (leaking, collected) = (pod.container(0x34)?, pod.container(0x35)?);
    let rate = MIB_PER_S.to_string();
    let mut hogs = Vec::new();
    for (container, workload) in [
        (&leaking, ["anon", "512", "--mib-per-s", &rate]),
        (&collected, ["sawtooth", "24", "--mib-per-s", "12"]),
    ] {
        memcg::limit(&container.cgroup, 128 * MIB)?;
        let reading = reader(source.path(), 256, &["--busy", "4"]);
        hogs.push(Spec::inside(&container.cgroup).start(&reading, context.deadline)?);
        until(context.deadline, "first hit", || {
            Ok((Counters::read(&container.cgroup)?.hits() > 0).then_some(()))
        })?;
        hogs.push(Spec::inside(&container.cgroup).start(&workload, context.deadline)?);
    }
    let path = path_of(&leaking.cgroup);
    let suspected = tracer.wait_for("leak_suspect", context.deadline, |event| {
        event["kind"] == "leak_suspect" && *at(event, "cgroup.path") == *path
    })?;
    // As long again for the other, which must not be suspected.
    std::thread::sleep(Duration::from_secs(4));
    drop(hogs);
    tracer.stop()?;
    equal(&suspected, "what", "anon")?;
    equal(&suspected, "limit_bytes", 128 * MIB)?;
    equal(&suspected, "container.id", leaking.id.as_str())?;
    near(
        "growth_bytes_per_s",
        float(&suspected, "growth_bytes_per_s")?,
        f64::from(MIB_PER_S) * 1_048_576.0,
        20.0,
    )?;
    let wrong = events_about(
        &tracer.events(),
        "leak_suspect",
        &path_of(&collected.cgroup),
    );
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}
