//! The section on process deaths.

use std::fmt::{Result, Write as _};

use super::{ACCOUNTED_FORKS, Cost, Figures, Load, Measured, ROUND_FORKS, SCRIPT};
use crate::bench::{
    slowdown,
    table::{self, Row, Target, count, number, row},
};

/// A loop of deaths that are of no interest.
const SLOWDOWN: &[Target] = &[Target::Below(3.0), Target::OfBpftrace(1.0)];

/// Each is told, by both tools.
const TOLD: &[Target] = &[Target::OfBpftrace(1.0)];

const ROWS: &[Row<Figures>] = &[
    row(
        "outside containers, slowdown, wall clock",
        "%",
        SLOWDOWN,
        |f: &Figures| f.of(Load::Outside)?.slowdown.wall.median(),
    )
    .give_or_take(|f| f.of(Load::Outside)?.slowdown.wall.median_error()),
    row(
        "outside containers, slowdown, CPU time",
        "%",
        SLOWDOWN,
        |f: &Figures| f.of(Load::Outside)?.slowdown.cpu.median(),
    )
    .give_or_take(|f| f.of(Load::Outside)?.slowdown.cpu.median_error()),
    row(
        "outside containers, BPF run time per fork + exit",
        "ns",
        TOLD,
        |f| f.of(Load::Outside)?.bpf_ns(),
    ),
    row(
        "outside containers, BPF run time, part of the CPU time",
        "%",
        SLOWDOWN,
        |f| f.of(Load::Outside)?.percent_of_work(),
    ),
    row(
        "container, exit 0, slowdown, wall clock",
        "%",
        SLOWDOWN,
        |f: &Figures| f.of(Load::Well)?.slowdown.wall.median(),
    )
    .give_or_take(|f| f.of(Load::Well)?.slowdown.wall.median_error()),
    row(
        "container, exit 0, slowdown, CPU time",
        "%",
        SLOWDOWN,
        |f: &Figures| f.of(Load::Well)?.slowdown.cpu.median(),
    )
    .give_or_take(|f| f.of(Load::Well)?.slowdown.cpu.median_error()),
    row(
        "container, exit 0, BPF run time per fork + exit",
        "ns",
        TOLD,
        |f| f.of(Load::Well)?.bpf_ns(),
    ),
    row(
        "container, exit 0, BPF run time, part of the CPU time",
        "%",
        SLOWDOWN,
        |f| f.of(Load::Well)?.percent_of_work(),
    ),
    row(
        "container, each told, slowdown, wall clock",
        "%",
        TOLD,
        |f: &Figures| f.of(Load::Told)?.slowdown.wall.median(),
    )
    .give_or_take(|f| f.of(Load::Told)?.slowdown.wall.median_error()),
    row(
        "container, each told, slowdown, CPU time",
        "%",
        TOLD,
        |f: &Figures| f.of(Load::Told)?.slowdown.cpu.median(),
    )
    .give_or_take(|f| f.of(Load::Told)?.slowdown.cpu.median_error()),
    row(
        "container, each told, BPF run time per fork + exit",
        "ns",
        TOLD,
        |f| f.of(Load::Told)?.bpf_ns(),
    ),
    row(
        "container, each told, BPF run time, part of the CPU time",
        "%",
        TOLD,
        |f| f.of(Load::Told)?.percent_of_work(),
    ),
];

impl Figures {
    fn of(&self, load: Load) -> Option<&Cost> {
        self.costs.get(&load)
    }
}

impl Cost {
    /// BPF run time for each fork, exit and wait.
    fn bpf_ns(&self) -> Option<f64> {
        let ns: u64 = self.programs.iter().map(|program| program.runs.ns).sum();
        (ns > 0).then(|| count(ns) / count(ACCOUNTED_FORKS))
    }

    fn percent_of_work(&self) -> Option<f64> {
        let ns = self.bpf_ns()?;
        (self.work_ns > 0.0).then(|| ns / self.work_ns * 100.0)
    }
}

/// The whole section.
pub(super) fn markdown(measured: &Measured<'_>) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(&mut text, measured);
    text
}

fn write(text: &mut String, measured: &Measured<'_>) -> Result {
    let cycles = measured.args.cycles;
    writeln!(text, "`cargo xtask bench death --cycles {cycles}`\n")?;
    table::figures(text, ROWS, &measured.tools)?;
    if let Some(why) = &measured.without_bpftrace {
        writeln!(text, "\nbpftrace could not be measured here: {why}")?;
    }
    for load in Load::ALL {
        write_load(text, measured, load)?;
    }
    writeln!(text, "\n### The machine, for process deaths\n")?;
    let machine = measured.machine.iter();
    let machine = machine.map(|(name, value)| (*name, value.as_str()));
    let tools = measured.tools.values();
    let tools = tools.map(|figures| ("tool", figures.version.as_str()));
    table::facts(text, machine.chain(tools))?;
    explain(text, cycles)
}

fn write_load(text: &mut String, measured: &Measured<'_>, load: Load) -> Result {
    let Some(nothing) = measured.nothing.get(&load) else {
        return Ok(());
    };
    let us = |ms: Option<f64>| number(ms.map(|ms| ms * 1e3 / count(ROUND_FORKS)));
    writeln!(
        text,
        "\n### Fork and exit {}\n\nWith nothing: {} µs each, {} µs of CPU.",
        load.name(),
        us(nothing.wall_ms.median()),
        us(nothing.cpu_ms.median()),
    )?;
    let costs = measured.tools.iter();
    let costs = costs.filter_map(|(tool, figures)| Some((*tool, figures.of(load)?)));
    let slowdowns = costs.clone().map(|(tool, cost)| (tool, &cost.slowdown));
    table::slowdowns(text, &nothing.again, &slowdowns.collect())?;
    for (tool, cost) in costs {
        table::programs(text, tool, &cost.programs, "fork + exit", ACCOUNTED_FORKS)?;
    }
    Ok(())
}

fn explain(text: &mut String, cycles: u32) -> Result {
    write!(
        text,
        "
### What is measured of process deaths

- **The workload** forks a child that exits at once and waits for it, over and over, all on the last
  CPU of the machine: nothing but the kernel's own work, so that what is added to it shows. A process
  that also executes a program takes ten times as long, and is slowed down by a tenth of that.
- **Slowdown**: {cycles} cycles of nothing, one tool, the other, nothing; the next cycle has the tools
  the other way round. Each part is the median of {rounds} rounds of {ROUND_FORKS} children, after one
  to warm up; a tool is compared with the mean of both parts with nothing of its cycle. \"Nothing
  again\" is the second of these compared with the first: what noise alone makes. CPU time is that of
  the parent and of its children, in whose time the programs run.
- **±** is two standard errors of the median. What it leaves open is \"in the noise\": neither met nor
  missed.
- oomprobe is `oomprobe trace -o json` into a pipe that is read, with all its other hooks at work.
  bpftrace runs this:

```
{SCRIPT}
```

- **BPF run time** is the kernel's account (`kernel.bpf_stats_enabled`) over {ACCOUNTED_FORKS}
  children, in a run of its own, with both tools on the same deaths; its own clock reads are part of
  it. Programs that ran less than once for two children are left out.
",
        rounds = slowdown::ROUNDS,
    )
}
