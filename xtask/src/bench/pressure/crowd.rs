//! What the tools themselves use on a node with many limited cgroups.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{LIMIT_BYTES, Measured, load};
use crate::{
    bench::{
        cgroup::Scratch,
        process::{self, Memory},
        table::count,
        tool::{Programs, Tool},
        worker::Worker,
    },
    cmd::status,
};

/// How many of the cgroups are at their limit, one measurement after the other.
pub(super) const AT_LIMIT: [usize; 3] = [0, 1, 20];

/// What a tool does about a change is not its steady use.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// What a tool uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Use {
    /// CPU time, % of one.
    pub(super) cpu_percent: f64,
    pub(super) rss_kib: u64,
}

/// Measures all tools at once: each has its own clock.
pub(super) fn measure(
    measured: &mut Measured<'_>,
    programs: Programs<'_>,
    scratch: &Scratch,
) -> Result<()> {
    let cgroups: Vec<PathBuf> = (0..measured.args.cgroups)
        .map(|number| scratch.child(&format!("idle-{number}"), LIMIT_BYTES as u64))
        .collect::<Result<_>>()?;
    let mut tools = Vec::new();
    for kind in measured.tools.keys() {
        let tool = Tool::attached(programs, *kind)?;
        tools.push(tool);
    }
    let mut loads: Vec<Worker> = Vec::new();
    for at_limit in AT_LIMIT {
        status(
            "Measuring",
            format_args!("{} cgroups, {at_limit} at their limit", cgroups.len()),
        );
        for cgroup in cgroups.iter().take(at_limit).skip(loads.len()) {
            let mut load = load::start(load::Kind::Anon, cgroup, None)?;
            load.keep_on()?;
            loads.push(load);
        }
        thread::sleep(SETTLE);
        let start = Instant::now();
        let before: Vec<u64> = cpu(&tools)?;
        thread::sleep(Duration::from_secs(measured.args.seconds.into()));
        let wall = start.elapsed();
        for ((tool, before), after) in tools.iter().zip(before).zip(cpu(&tools)?) {
            let used = Use {
                cpu_percent: count(after - before) / 1e7 / wall.as_secs_f64(),
                rss_kib: Memory::of(tool.pid())?.rss_kib,
            };
            let figures = measured.tools.entry(tool.kind).or_default();
            figures.crowd.push(used);
        }
    }
    drop(loads);
    drop(tools);
    scratch.clear();
    Ok(())
}

fn cpu(tools: &[Tool]) -> Result<Vec<u64>> {
    tools
        .iter()
        .map(|tool| process::cpu_ns(tool.pid()))
        .collect()
}
