//! `cargo xtask bench pressure`: what it costs to watch memory pressure.
//!
//! A workload at its limit does the same work over and over: with nothing, with a tool, with the
//! other, with nothing again.

mod crowd;
pub(super) mod load;
mod report;

use std::{collections::BTreeMap, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::crowd::Use;
use super::{
    cgroup::Scratch,
    document,
    machine::{self, Installed},
    process,
    programs::{Accounting, Ran, Watch},
    slowdown::{self, Nothing, Part, Slowdown},
    tool::{Kind, Programs, Tool},
    worker::Worker,
};
use crate::{cmd::status, debian, user};

/// Limit of each scratch cgroup.
const LIMIT_BYTES: usize = 16 << 20;

/// Work in each round: some 50 to 100 ms.
const ROUND_MIB: u64 = 64;

/// Rounds over which BPF run time is accounted.
const ACCOUNTED_ROUNDS: u32 = 40;

/// The same of the kernel's tracepoints in bpftrace: how long each cgroup waits for reclaim. The
/// cgroup is the task's own (and on v1 not even the memory controller's), where oomprobe finds whose
/// limit it is; that makes bpftrace cheaper, not dearer.
const SCRIPT: &str = "\
tracepoint:vmscan:mm_vmscan_memcg_reclaim_begin,
tracepoint:vmscan:mm_vmscan_direct_reclaim_begin { @start[tid] = nsecs; }
tracepoint:vmscan:mm_vmscan_memcg_reclaim_end,
tracepoint:vmscan:mm_vmscan_direct_reclaim_end /@start[tid]/ {
    @reclaim_us[cgroup] = hist((nsecs - @start[tid]) / 1000);
    @reclaimed_pages[cgroup] = sum(args->nr_reclaimed);
    delete(@start[tid]);
}";

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct PressureArgs {
    /// Cycles for each slowdown: nothing, one tool, the other, nothing
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..))]
    cycles: u32,
    /// Seconds for each figure of a tool's CPU use
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Scratch cgroups with a limit, of which none, 1 and 20 are at it
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(20..))]
    cgroups: u32,
}

/// Everything that was measured.
struct Measured<'a> {
    args: &'a PressureArgs,
    machine: Vec<(&'static str, String)>,
    /// Why bpftrace could not be measured.
    without_bpftrace: Option<String>,
    tools: BTreeMap<Kind, Figures>,
    loads: BTreeMap<load::Kind, Baseline>,
}

/// What was measured of one tool.
#[derive(Debug, Default)]
struct Figures {
    version: String,
    file: Cost,
    anon: Cost,
    /// With none, one and many of the cgroups at their limit.
    crowd: Vec<Use>,
}

/// What a tool costs a workload.
#[derive(Debug, Default)]
struct Cost {
    slowdown: Slowdown,
    programs: Vec<Ran>,
    reclaims: u64,
    hits: u64,
    /// CPU time that the work in which the programs ran takes with nothing.
    work_ns: f64,
}

/// A workload with no tool.
#[derive(Debug, Default)]
struct Baseline {
    nothing: Nothing,
    /// By the kernel's count.
    hits_per_s: f64,
}

/// Measures and writes its part of docs/benchmarks.md.
pub(super) fn run(args: &PressureArgs) -> Result<()> {
    if !debian::is_root()? {
        bail!("tracing reclaim needs root: `sudo -E cargo xtask bench pressure`");
    }
    let oomprobe = user::build(user::Profile::Release)?;
    let measured = measure(args, &oomprobe)?;
    document::write(document::MEMORY_PRESSURE, &report::markdown(&measured))
}

fn measure<'a>(args: &'a PressureArgs, oomprobe: &Path) -> Result<Measured<'a>> {
    let programs = Programs {
        oomprobe,
        script: SCRIPT,
    };
    let scratch = Scratch::create()?;
    let figures = |installed: Installed| Figures {
        version: installed.version,
        ..Figures::default()
    };
    let mut measured = Measured {
        args,
        machine: machine::describe(scratch.version)?,
        without_bpftrace: None,
        tools: BTreeMap::from([(Kind::Oomprobe, figures(machine::oomprobe(oomprobe)?))]),
        loads: BTreeMap::new(),
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
    crowd::measure(&mut measured, programs, &scratch)?;
    // The workload has a CPU of its own if there is more than one.
    let cpu = match cpus.split_last() {
        Some((last, others)) if !others.is_empty() => {
            process::pin(others)?;
            Some(*last)
        }
        _ => None,
    };
    for kind in [load::Kind::File, load::Kind::Anon] {
        workload(&mut measured, programs, &scratch, kind, cpu)?;
    }
    process::pin(&cpus)?;
    measured.machine.push(("load after", machine::load()?));
    Ok(measured)
}

fn workload(
    measured: &mut Measured<'_>,
    programs: Programs<'_>,
    scratch: &Scratch,
    kind: load::Kind,
    cpu: Option<usize>,
) -> Result<()> {
    let (name, directory) = match kind {
        load::Kind::File => ("page cache", "file"),
        load::Kind::Anon => ("anonymous memory", "anon"),
    };
    let cgroup = scratch.child(directory, LIMIT_BYTES as u64)?;
    let mut load = load::start(kind, &cgroup, cpu)?;
    // Up to the limit.
    load.round(ROUND_MIB)?;
    let cycles = measured.args.cycles;
    status(
        "Measuring",
        format_args!("slowdown of {name}, {cycles} cycles"),
    );
    let tools: Vec<Kind> = measured.tools.keys().copied().collect();
    let mut hits_per_s = Vec::new();
    let start = |kind| Tool::attached(programs, kind);
    let (nothing, mut slowdowns) = slowdown::compare(cycles, tools.clone(), start, |part| {
        let (start, hits) = (Instant::now(), scratch.hits(&cgroup)?);
        let took = slowdown::part(&mut load, ROUND_MIB)?;
        if part == Part::First {
            let hits = super::table::count(scratch.hits(&cgroup)? - hits);
            hits_per_s.push(hits / start.elapsed().as_secs_f64());
        }
        Ok(took)
    })?;
    let cpu_ms = nothing.cpu_ms.median().context("no samples")?;
    let work_ns = cpu_ms * 1e6 * f64::from(ACCOUNTED_ROUNDS);
    measured.loads.insert(
        kind,
        Baseline {
            nothing,
            hits_per_s: slowdown::median(hits_per_s)?,
        },
    );
    let mut ran = run_times(&tools, programs, scratch, &cgroup, &mut load)?;
    for (tool, figures) in &mut measured.tools {
        let cost = Cost {
            slowdown: slowdowns.remove(tool).unwrap_or_default(),
            work_ns,
            ..ran.remove(tool).unwrap_or_default()
        };
        match kind {
            load::Kind::File => figures.file = cost,
            load::Kind::Anon => figures.anon = cost,
        }
    }
    Ok(())
}

/// What the programs of all tools cost, with all at work on the same reclaims.
fn run_times(
    order: &[Kind],
    programs: Programs<'_>,
    scratch: &Scratch,
    cgroup: &Path,
    load: &mut Worker,
) -> Result<BTreeMap<Kind, Cost>> {
    // Not when slowdowns are measured: the accounting itself reads the clock twice a run.
    let _accounting = Accounting::enable()?;
    let mut tools = Vec::new();
    for kind in order {
        let tool = Tool::attached(programs, *kind)?;
        tools.push((*kind, Watch::start(tool.pid())?, tool));
    }
    let hits = scratch.hits(cgroup)?;
    for _ in 0..ACCOUNTED_ROUNDS {
        load.round(ROUND_MIB)?;
    }
    let hits = scratch.hits(cgroup)? - hits;
    let mut costs = BTreeMap::new();
    for (kind, watch, _tool) in &tools {
        let cost = Cost {
            programs: watch.ran()?,
            hits,
            ..Cost::default()
        };
        costs.insert(*kind, cost);
    }
    let reclaims = costs
        .get(&Kind::Oomprobe)
        .and_then(|cost| cost.programs.iter().find(|ran| ran.name == RECLAIM_END))
        .with_context(|| format!("oomprobe's program `{RECLAIM_END}` did not run"))?
        .runs
        .count;
    for cost in costs.values_mut() {
        cost.reclaims = reclaims;
        // What runs more rarely runs for something else.
        cost.programs.retain(|ran| ran.runs.count * 2 > reclaims);
    }
    Ok(costs)
}

/// oomprobe's program at the end of each reclaim of a cgroup.
const RECLAIM_END: &str = "mreclaim_end_rt";
