//! `cargo xtask bench oom`: what it takes to learn of an OOM kill.
//!
//! Every figure of bpftrace is taken in the same run, on the same kills where both run at once.
//! Orders are mirrored (A B … B A), so that neither tool always comes first.

mod kill;
mod report;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    cgroup::Scratch,
    document,
    machine::{self, Installed},
    process::{self, Memory},
    programs::{Accounting, Ran, Watch},
    stats::Samples,
    tool::{Kind, Programs, Seen, Tool, ms},
};
use crate::{cmd::status, debian, user};

/// How long the line of one kill may take before it counts as missed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a tool may take to see its first kill.
const WARM_UP: Duration = Duration::from_secs(30);

/// Over which CPU use without a kill is measured.
const IDLE: Duration = Duration::from_secs(10);

/// The least bpftrace can do to report a victim: time and pid, nothing of the cause.
const SCRIPT: &str = r#"tracepoint:oom:mark_victim { printf("%llu %d\n", nsecs, args->pid); }"#;

/// What oomprobe reads of the cgroup at its limit at every kill, where it is there.
const CGROUP_FILES: &[&str] = &[
    "memory.current",
    "memory.events",
    "memory.events.local",
    "memory.failcnt",
    "memory.kmem.tcp.usage_in_bytes",
    "memory.kmem.usage_in_bytes",
    "memory.oom_control",
    "memory.pressure",
    "memory.stat",
    "memory.swap.current",
    "memory.usage_in_bytes",
    "io.pressure",
];

/// What it reads of the node.
const NODE_FILES: &[&str] = &[
    "/proc/meminfo",
    "/proc/pressure/cpu",
    "/proc/pressure/io",
    "/proc/pressure/memory",
];

/// Starts of each tool.
const STARTS: usize = 10;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct OomArgs {
    /// Kills for each latency figure, and in the burst
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..))]
    kills: u32,
}

/// Everything that was measured.
pub(super) struct Measured {
    pub(super) kills: u32,
    pub(super) machine: Vec<(&'static str, String)>,
    /// Why bpftrace could not be measured.
    pub(super) without_bpftrace: Option<String>,
    pub(super) tools: BTreeMap<Kind, Figures>,
    /// Time stamp of oomprobe minus that of bpftrace for the same kill, ms.
    pub(super) stamps_apart_ms: Samples,
}

/// What was measured of one tool.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) kills: u32,
    pub(super) version: String,
    pub(super) size_bytes: u64,
    pub(super) start_up_ms: Samples,
    pub(super) together: Latency,
    pub(super) alone: Latency,
    /// Alone, and with the files read that tell what the memory was: bpftrace after it was told to,
    /// oomprobe always.
    pub(super) with_files: Latency,
    pub(super) burst: Latency,
    /// From the first kill after each start, where the tool said that it was ready.
    pub(super) first_ms: Samples,
    pub(super) cost: Option<Cost>,
    pub(super) programs: Vec<Ran>,
}

impl Figures {
    fn of(installed: Installed, kills: u32) -> Self {
        Self {
            kills,
            version: installed.version,
            size_bytes: installed.size_bytes,
            ..Self::default()
        }
    }
}

/// Kill to line.
#[derive(Debug, Default)]
pub(super) struct Latency {
    pub(super) ms: Samples,
    pub(super) missed: usize,
}

/// What a tool costs the node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) idle: Memory,
    pub(super) after_burst: Memory,
    pub(super) idle_cpu_ratio: f64,
    pub(super) burst_cpu_ms: f64,
    pub(super) burst_ms: f64,
}

/// The reports of one kill by tool; a tool that missed it is absent.
type Reports = BTreeMap<Kind, Seen>;

/// Measures and writes its part of docs/benchmarks.md.
pub(super) fn run(args: &OomArgs) -> Result<()> {
    if !debian::is_root()? {
        bail!("tracing OOM kills needs root: `sudo -E cargo xtask bench oom`");
    }
    let oomprobe = user::build(user::Profile::Release)?;
    let measured = measure(args, &oomprobe)?;
    document::write(document::OOM_KILLS, &report::markdown(&measured))
}

fn measure(args: &OomArgs, oomprobe: &Path) -> Result<Measured> {
    let programs = Programs {
        oomprobe,
        script: SCRIPT,
    };
    let scratch = Scratch::limited(kill::LIMIT_BYTES)?;
    let mut measured = Measured {
        kills: args.kills,
        machine: machine::describe(scratch.version)?,
        without_bpftrace: None,
        tools: BTreeMap::from([(
            Kind::Oomprobe,
            Figures::of(machine::oomprobe(oomprobe)?, args.kills),
        )]),
        stamps_apart_ms: Samples::default(),
    };
    match machine::bpftrace(programs) {
        Ok(installed) => {
            let figures = Figures::of(installed, args.kills);
            measured.tools.insert(Kind::Bpftrace, figures);
        }
        Err(error) => {
            let why = format!("{error:#}");
            status("Warning", format_args!("without bpftrace: {why}"));
            measured.without_bpftrace = Some(why);
        }
    }
    start_ups(&mut measured, programs)?;
    latencies(&mut measured, programs, &scratch)?;
    costs(&mut measured, programs, &scratch)?;
    run_times(&mut measured, programs, &scratch)?;
    measured.machine.push(("load after", machine::load()?));
    Ok(measured)
}

fn kinds(measured: &Measured) -> Vec<Kind> {
    measured.tools.keys().copied().collect()
}

fn figures(measured: &mut Measured, kind: Kind) -> &mut Figures {
    measured.tools.entry(kind).or_default()
}

fn start_ups(measured: &mut Measured, programs: Programs<'_>) -> Result<()> {
    status("Measuring", "start-up");
    let mut times: BTreeMap<Kind, Vec<f64>> = BTreeMap::new();
    for _ in 0..STARTS {
        for kind in kinds(measured) {
            let (ms, said) = Tool::start_up_ms(programs, kind)?;
            times.entry(kind).or_default().push(ms);
            if kind == Kind::Oomprobe && measured.machine.iter().all(|(name, _)| *name != "hooks") {
                measured.machine.push(("hooks", machine::hooks(&said)));
            }
        }
    }
    for (kind, times) in times {
        figures(measured, kind).start_up_ms = times.into_iter().collect();
    }
    Ok(())
}

fn latencies(measured: &mut Measured, programs: Programs<'_>, scratch: &Scratch) -> Result<()> {
    let both = kinds(measured);
    let reversed: Vec<Kind> = both.iter().rev().copied().collect();
    let half = measured.kills.div_ceil(2);
    let mut together = Vec::new();
    let mut alone: BTreeMap<Kind, Vec<Reports>> = BTreeMap::new();
    let mut first: BTreeMap<Kind, Vec<f64>> = BTreeMap::new();
    let mut with_files = Vec::new();
    // A string of bpftrace has at most 64 bytes.
    let short = tempfile::tempdir().context("directory for a short name")?;
    let cgroup = short.path().join("c");
    std::os::unix::fs::symlink(&scratch.dir, &cgroup).context("a short name")?;
    let reading = Programs {
        script: &script_with_files(&cgroup),
        ..programs
    };
    for order in [&both, &reversed] {
        if order.len() > 1 {
            status("Measuring", format_args!("{half} kills, all tools at once"));
            let mut session = Session::start(programs, scratch, order)?;
            together.extend(session.kills(half, Pace::Apart)?);
        }
        for kind in order {
            status("Measuring", format_args!("{half} kills, {kind} alone"));
            let mut session = Session::start(programs, scratch, &[*kind])?;
            if let Some(seen) = session.first {
                let entry = first.entry(*kind).or_default();
                entry.push(ms(seen.arrival_ns.saturating_sub(seen.stamp_ns)));
            }
            let reports = session.kills(half, Pace::Apart)?;
            alone.entry(*kind).or_default().extend(reports);
            if *kind == Kind::Bpftrace {
                status(
                    "Measuring",
                    format_args!("{half} kills, {kind} that reads files, alone"),
                );
                let mut session = Session::start(reading, scratch, &[*kind])?;
                with_files.extend(session.kills(half, Pace::Apart)?);
            }
        }
    }
    for kind in both {
        let figures = figures(measured, kind);
        figures.together = latency(kind, &together);
        let alone = alone.remove(&kind).unwrap_or_default();
        figures.with_files = match kind {
            Kind::Oomprobe => latency(kind, &alone),
            Kind::Bpftrace => latency(kind, &with_files),
        };
        figures.alone = latency(kind, &alone);
        figures.first_ms = first
            .remove(&kind)
            .unwrap_or_default()
            .into_iter()
            .collect();
    }
    measured.stamps_apart_ms = together
        .iter()
        .filter_map(|reports| {
            let (ours, other) = (reports.get(&Kind::Oomprobe)?, reports.get(&Kind::Bpftrace)?);
            let apart = ms(ours.stamp_ns.abs_diff(other.stamp_ns));
            Some(if ours.stamp_ns < other.stamp_ns {
                -apart
            } else {
                apart
            })
        })
        .collect();
    Ok(())
}

/// [`SCRIPT`], printed after what the files say that oomprobe reads.
fn script_with_files(cgroup: &Path) -> String {
    let of_cgroup = CGROUP_FILES.iter().map(|name| cgroup.join(name));
    let files = of_cgroup.chain(NODE_FILES.iter().map(Into::into));
    let prints = files
        .filter(|file| file.exists())
        .map(|file| format!("cat(\"{}\")", file.display()));
    let mut prints: Vec<String> = prints.collect();
    prints.push("printf".to_owned());
    SCRIPT.replacen("printf", &prints.join("; "), 1)
}

fn costs(measured: &mut Measured, programs: Programs<'_>, scratch: &Scratch) -> Result<()> {
    let mut session = Session::start(programs, scratch, &kinds(measured))?;
    status("Measuring", format_args!("{IDLE:?} without a kill"));
    // What the first kills left behind is not idling.
    std::thread::sleep(Duration::from_secs(1));
    let (started, before) = (Instant::now(), session.cpu_ns()?);
    std::thread::sleep(IDLE);
    let (idled, after) = (started.elapsed(), session.cpu_ns()?);
    let idle = session.memory()?;

    status(
        "Measuring",
        format_args!("a burst of {} kills", measured.kills),
    );
    let (started, burst_before) = (Instant::now(), session.cpu_ns()?);
    let reports = session.kills(measured.kills, Pace::Burst)?;
    let (burst, burst_after) = (started.elapsed(), session.cpu_ns()?);
    let after_burst = session.memory()?;

    let spent = |before: &BTreeMap<Kind, u64>, after: &BTreeMap<Kind, u64>, kind| {
        ms(after
            .get(&kind)
            .zip(before.get(&kind))
            .map_or(0, |(after, before)| after - before))
    };
    for kind in kinds(measured) {
        let (Some(idle), Some(after_burst)) = (idle.get(&kind), after_burst.get(&kind)) else {
            continue;
        };
        let figures = figures(measured, kind);
        figures.burst = latency(kind, &reports);
        figures.cost = Some(Cost {
            idle: *idle,
            after_burst: *after_burst,
            idle_cpu_ratio: spent(&before, &after, kind) / (idled.as_secs_f64() * 1e3),
            burst_cpu_ms: spent(&burst_before, &burst_after, kind),
            burst_ms: burst.as_secs_f64() * 1e3,
        });
    }
    Ok(())
}

fn run_times(measured: &mut Measured, programs: Programs<'_>, scratch: &Scratch) -> Result<()> {
    status(
        "Measuring",
        format_args!("BPF run time over {} kills", measured.kills),
    );
    // Not in the latency runs: the accounting itself reads the clock twice a run.
    let _accounting = Accounting::enable()?;
    let mut session = Session::start(programs, scratch, &kinds(measured))?;
    let watches: Vec<(Kind, Watch)> = session
        .tools
        .iter()
        .map(|tool| Ok((tool.kind, Watch::start(tool.pid())?)))
        .collect::<Result<_>>()?;
    session.kills(measured.kills, Pace::Burst)?;
    for (kind, watch) in watches {
        figures(measured, kind).programs = watch.ran()?;
    }
    Ok(())
}

/// Time from kill to line. The kill is when the tracepoint fired by bpftrace's stamp, where there
/// is one, for both tools alike; else by the tool's own.
fn latency(kind: Kind, kills: &[Reports]) -> Latency {
    let seen: Vec<f64> = kills
        .iter()
        .filter_map(|reports| {
            let seen = reports.get(&kind)?;
            let reference = reports.get(&Kind::Bpftrace).unwrap_or(seen);
            Some(ms(seen.arrival_ns.saturating_sub(reference.stamp_ns)))
        })
        .collect();
    Latency {
        missed: kills.len() - seen.len(),
        ms: seen.into_iter().collect(),
    }
}

/// How kills follow each other.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// The next comes a while after all tools have reported the last.
    Apart,
    /// The next comes at once.
    Burst,
}

/// 10 to 30 ms, so that kills come at no fixed phase of anything periodic.
fn pause() {
    let random = RandomState::new().build_hasher().finish();
    std::thread::sleep(Duration::from_micros(10_000 + random % 20_000));
}

/// Tools that run and see kills.
struct Session<'a> {
    scratch: &'a Scratch,
    tools: Vec<Tool>,
    /// The first kill after a tool said that it was ready, if it said so.
    first: Option<Seen>,
}

impl<'a> Session<'a> {
    /// Starts tools in this order and has processes killed until each has seen one.
    fn start(programs: Programs<'_>, scratch: &'a Scratch, order: &[Kind]) -> Result<Self> {
        let mut session = Self {
            scratch,
            tools: Vec::new(),
            first: None,
        };
        for kind in order {
            let mut tool = Tool::attached(programs, *kind)?;
            let deadline = Instant::now() + WARM_UP;
            let seen = loop {
                let pid = scratch.kill()?;
                if let Some(seen) = tool.kill_of(pid, Duration::from_millis(500))? {
                    break seen;
                }
                if Instant::now() >= deadline {
                    bail!("{kind} sees no kills");
                }
            };
            if *kind == Kind::Oomprobe && order.len() == 1 {
                session.first = Some(seen);
            }
            session.tools.push(tool);
        }
        Ok(session)
    }

    /// Has processes killed one after the other.
    fn kills(&mut self, count: u32, pace: Pace) -> Result<Vec<Reports>> {
        let mut kills = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..count {
            let pid = self.scratch.kill()?;
            match pace {
                Pace::Apart => {
                    kills.push(self.reports(pid)?);
                    pause();
                }
                Pace::Burst => waiting.push(pid),
            }
        }
        for pid in waiting {
            kills.push(self.reports(pid)?);
        }
        Ok(kills)
    }

    fn reports(&mut self, pid: u32) -> Result<Reports> {
        let mut reports = Reports::new();
        for tool in &mut self.tools {
            if let Some(seen) = tool.kill_of(pid, PATIENCE)? {
                reports.insert(tool.kind, seen);
            }
        }
        Ok(reports)
    }

    fn cpu_ns(&self) -> Result<BTreeMap<Kind, u64>> {
        let of = |tool: &Tool| Ok((tool.kind, process::cpu_ns(tool.pid())?));
        self.tools.iter().map(of).collect()
    }

    fn memory(&self) -> Result<BTreeMap<Kind, Memory>> {
        let of = |tool: &Tool| Ok((tool.kind, Memory::of(tool.pid())?));
        self.tools.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_printed_before_the_line() {
        let cgroup = tempfile::tempdir().unwrap();
        std::fs::write(cgroup.path().join("memory.stat"), "").unwrap();
        let script = script_with_files(cgroup.path());
        let stat = format!("cat(\"{}/memory.stat\"); ", cgroup.path().display());
        assert!(script.contains(&stat), "{script}");
        assert!(!script.contains("memory.current"), "{script}");
        assert!(script.find("cat(") < script.find("printf("), "{script}");
    }
}
