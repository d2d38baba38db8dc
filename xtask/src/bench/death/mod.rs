//! `cargo xtask bench death`: what it costs to watch processes end.
//!
//! A process forks children that exit at once, one after the other: with nothing, with a tool, with
//! the other, with nothing again.

pub(super) mod forks;
mod report;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    cgroup::Scratch,
    document,
    machine::{self, Installed},
    process,
    programs::{Accounting, Ran, Watch},
    slowdown::{self, Nothing, Slowdown},
    tool::{Kind, Programs, Tool},
    worker::Worker,
};
use crate::{cmd::status, debian, user};

/// Children in each round: some 50 ms.
const ROUND_FORKS: u64 = 500;

/// Children over which BPF run time is accounted.
const ACCOUNTED_FORKS: u64 = 20_000;

/// The same of the kernel's tracepoints in bpftrace: who sent which signal to whom is remembered,
/// and told when a process ends with anything but 0. It knows no containers, takes no memory
/// figures and forgets no signal that was survived; that makes bpftrace cheaper, not dearer.
const SCRIPT: &str = "\
tracepoint:signal:signal_generate /args->sig != 17 && args->sig != 18/ {
    @sender[args->pid, args->sig] = pid;
    @comm[args->pid, args->sig] = comm;
    @code[args->pid, args->sig] = args->code;
}
tracepoint:sched:sched_process_exit /pid == tid/ {
    $task = (struct task_struct *)curtask;
    $status = $task->exit_code;
    if ($status != 0) {
        $signal = $status & 127;
        printf(\"%d %s status %d, sender %d %s, code %d\\n\", pid, comm, $status,
            @sender[pid, $signal], @comm[pid, $signal], @code[pid, $signal]);
        delete(@sender[pid, $signal]);
        delete(@comm[pid, $signal]);
        delete(@code[pid, $signal]);
    }
}";

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct DeathArgs {
    /// Cycles for each slowdown: nothing, one tool, the other, nothing
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..))]
    cycles: u32,
}

/// Where the children end, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// In no container, with 0: what a build or a cron job does.
    Outside,
    /// In a container, with 0: of no interest either.
    Well,
    /// In a container, with 1: each is told.
    Told,
}

impl Load {
    const ALL: [Self; 3] = [Self::Outside, Self::Well, Self::Told];

    fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside containers, exit 0",
            Self::Well => "in a container, exit 0",
            Self::Told => "in a container, exit 1, each told",
        }
    }

    fn code(self) -> i32 {
        i32::from(self == Self::Told)
    }
}

/// Everything that was measured.
struct Measured<'a> {
    args: &'a DeathArgs,
    machine: Vec<(&'static str, String)>,
    /// Why bpftrace could not be measured.
    without_bpftrace: Option<String>,
    tools: BTreeMap<Kind, Figures>,
    nothing: BTreeMap<Load, Nothing>,
}

/// What was measured of one tool.
#[derive(Debug, Default)]
struct Figures {
    version: String,
    costs: BTreeMap<Load, Cost>,
}

/// What a tool costs a loop.
#[derive(Debug, Default)]
struct Cost {
    slowdown: Slowdown,
    programs: Vec<Ran>,
    /// CPU time that a fork, exit and wait takes with nothing.
    work_ns: f64,
}

/// Measures and writes its part of docs/benchmarks.md.
pub(super) fn run(args: &DeathArgs) -> Result<()> {
    if !debian::is_root()? {
        bail!("tracing deaths needs root: `sudo -E cargo xtask bench death`");
    }
    let oomprobe = user::build(user::Profile::Release)?;
    let measured = measure(args, &oomprobe)?;
    document::write(document::PROCESS_DEATHS, &report::markdown(&measured))
}

fn measure<'a>(args: &'a DeathArgs, oomprobe: &Path) -> Result<Measured<'a>> {
    let programs = Programs {
        oomprobe,
        script: SCRIPT,
    };
    let scratch = Scratch::create()?;
    let figures = |installed: Installed| Figures {
        version: installed.version,
        costs: BTreeMap::new(),
    };
    let mut measured = Measured {
        args,
        machine: machine::describe(scratch.version)?,
        without_bpftrace: None,
        tools: BTreeMap::from([(Kind::Oomprobe, figures(machine::oomprobe(oomprobe)?))]),
        nothing: BTreeMap::new(),
    };
    match machine::bpftrace(programs) {
        Ok(installed) => drop(measured.tools.insert(Kind::Bpftrace, figures(installed))),
        Err(error) => {
            let why = format!("{error:#}");
            status("Warning", format_args!("without bpftrace: {why}"));
            measured.without_bpftrace = Some(why);
        }
    }
    let (_, said) = Tool::start_up_ms(programs, Kind::Oomprobe)?;
    measured.machine.push(("hooks", machine::hooks(&said)));

    let cpus = process::cpus()?;
    // The workload has a CPU of its own if there is more than one.
    let cpu = match cpus.split_last() {
        Some((last, others)) if !others.is_empty() => {
            process::pin(others)?;
            Some(*last)
        }
        _ => None,
    };
    let outside = scratch.below("outside")?;
    let container = scratch.below(&format!(
        "kubepods/burstable/pod0bad5eed-5eed-4ce4-a0ba-000000000001/{}",
        "5e".repeat(32)
    ))?;
    for load in Load::ALL {
        let cgroup = match load {
            Load::Outside => &outside,
            Load::Well | Load::Told => &container,
        };
        let mut worker = forks::start(cgroup, load.code(), cpu)?;
        measure_load(&mut measured, programs, load, &mut worker)?;
    }
    process::pin(&cpus)?;
    measured.machine.push(("load after", machine::load()?));
    Ok(measured)
}

fn measure_load(
    measured: &mut Measured<'_>,
    programs: Programs<'_>,
    load: Load,
    worker: &mut Worker,
) -> Result<()> {
    let cycles = measured.args.cycles;
    status(
        "Measuring",
        format_args!("slowdown {}, {cycles} cycles", load.name()),
    );
    let tools: Vec<Kind> = measured.tools.keys().copied().collect();
    let start = |kind| Tool::attached(programs, kind);
    let (nothing, mut slowdowns) = slowdown::compare(cycles, tools.clone(), start, |_| {
        slowdown::part(worker, ROUND_FORKS)
    })?;
    let cpu_ms = nothing.cpu_ms.median().context("no samples")?;
    let work_ns = cpu_ms * 1e6 / super::table::count(ROUND_FORKS);
    measured.nothing.insert(load, nothing);
    let mut ran = run_times(&tools, programs, worker)?;
    for (tool, figures) in &mut measured.tools {
        let cost = Cost {
            slowdown: slowdowns.remove(tool).unwrap_or_default(),
            programs: ran.remove(tool).unwrap_or_default(),
            work_ns,
        };
        figures.costs.insert(load, cost);
    }
    Ok(())
}

/// What the programs of all tools cost, with all at work on the same deaths.
fn run_times(
    tools: &[Kind],
    programs: Programs<'_>,
    worker: &mut Worker,
) -> Result<BTreeMap<Kind, Vec<Ran>>> {
    // Not when slowdowns are measured: the accounting itself reads the clock twice a run.
    let _accounting = Accounting::enable()?;
    let mut running = Vec::new();
    for kind in tools {
        let tool = Tool::attached(programs, *kind)?;
        running.push((*kind, Watch::start(tool.pid())?, tool));
    }
    worker.round(ACCOUNTED_FORKS)?;
    running
        .iter()
        .map(|(kind, watch, _tool)| {
            let mut ran = watch.ran()?;
            // What runs more rarely runs for something else.
            ran.retain(|ran| ran.runs.count * 2 > ACCOUNTED_FORKS);
            Ok((*kind, ran))
        })
        .collect()
}
