//! The section on memory pressure.

use std::fmt::{Result, Write as _};

use super::{Baseline, Cost, Figures, LIMIT_BYTES, Measured, ROUND_MIB, SCRIPT, crowd, load};
use crate::bench::{
    slowdown,
    table::{self, Row, Target, count, mib, number, row},
    tool::Kind,
};

const SLOWDOWN: &[Target] = &[Target::Below(2.0), Target::OfBpftrace(0.5)];

const CPU: &[Target] = &[Target::Below(1.0)];

const ROWS: &[Row<Figures>] = &[
    row(
        "page cache at the limit, slowdown, wall clock",
        "%",
        SLOWDOWN,
        |f: &Figures| f.file.slowdown.wall.median(),
    )
    .give_or_take(|f| f.file.slowdown.wall.median_error()),
    row(
        "page cache at the limit, slowdown, CPU time",
        "%",
        SLOWDOWN,
        |f: &Figures| f.file.slowdown.cpu.median(),
    )
    .give_or_take(|f| f.file.slowdown.cpu.median_error()),
    row(
        "page cache, BPF run time, part of the work's CPU time",
        "%",
        SLOWDOWN,
        |f| f.file.percent_of_work(),
    ),
    row("page cache, BPF run time per reclaim", "ns", &[], |f| {
        f.file.ns_per(f.file.reclaims)
    }),
    row("page cache, BPF run time per limit hit", "ns", &[], |f| {
        f.file.ns_per(f.file.hits)
    }),
    row(
        "anonymous memory at the limit, slowdown, wall clock",
        "%",
        SLOWDOWN,
        |f: &Figures| f.anon.slowdown.wall.median(),
    )
    .give_or_take(|f| f.anon.slowdown.wall.median_error()),
    row(
        "anonymous memory at the limit, slowdown, CPU time",
        "%",
        SLOWDOWN,
        |f: &Figures| f.anon.slowdown.cpu.median(),
    )
    .give_or_take(|f| f.anon.slowdown.cpu.median_error()),
    row(
        "anonymous memory, BPF run time, part of the work's CPU time",
        "%",
        SLOWDOWN,
        |f| f.anon.percent_of_work(),
    ),
    row(
        "anonymous memory, BPF run time per reclaim",
        "ns",
        &[],
        |f| f.anon.ns_per(f.anon.reclaims),
    ),
    row(
        "anonymous memory, BPF run time per limit hit",
        "ns",
        &[],
        |f| f.anon.ns_per(f.anon.hits),
    ),
    row(
        "many cgroups, none at its limit, CPU",
        "% of one",
        CPU,
        |f| Some(f.crowd.first()?.cpu_percent),
    ),
    row("many cgroups, none at its limit, rss", "MiB", &[], |f| {
        Some(mib(f.crowd.first()?.rss_kib))
    }),
    row("many cgroups, 1 at its limit, CPU", "% of one", CPU, |f| {
        Some(f.crowd.get(1)?.cpu_percent)
    }),
    row("many cgroups, 1 at its limit, rss", "MiB", &[], |f| {
        Some(mib(f.crowd.get(1)?.rss_kib))
    }),
    row(
        "many cgroups, 20 at their limit, CPU",
        "% of one",
        CPU,
        |f| Some(f.crowd.get(2)?.cpu_percent),
    ),
    row("many cgroups, 20 at their limit, rss", "MiB", &[], |f| {
        Some(mib(f.crowd.get(2)?.rss_kib))
    }),
];

const _: () = assert!(matches!(crowd::AT_LIMIT, [0, 1, 20]), "as the rows say");

impl Cost {
    fn bpf_ns(&self) -> f64 {
        count(self.programs.iter().map(|program| program.runs.ns).sum())
    }

    fn percent_of_work(&self) -> Option<f64> {
        (self.work_ns > 0.0 && !self.programs.is_empty())
            .then(|| self.bpf_ns() / self.work_ns * 100.0)
    }

    /// BPF run time for each of `times` something happened.
    fn ns_per(&self, times: u64) -> Option<f64> {
        let ns = self.bpf_ns();
        (ns > 0.0 && times > 0).then(|| ns / count(times))
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
    let args = measured.args;
    writeln!(
        text,
        "`cargo xtask bench pressure --cycles {} --seconds {} --cgroups {}`\n",
        args.cycles, args.seconds, args.cgroups
    )?;
    table::figures(text, ROWS, &measured.tools)?;
    if let Some(why) = &measured.without_bpftrace {
        writeln!(text, "\nbpftrace could not be measured here: {why}")?;
    }
    for kind in [load::Kind::File, load::Kind::Anon] {
        workload(text, measured, kind)?;
    }
    writeln!(text, "\n### The machine, for memory pressure\n")?;
    let machine = measured.machine.iter();
    let machine = machine.map(|(name, value)| (*name, value.as_str()));
    let tools = measured.tools.values();
    let tools = tools.map(|figures| ("tool", figures.version.as_str()));
    table::facts(text, machine.chain(tools))?;
    explain(text, measured)
}

fn workload(text: &mut String, measured: &Measured<'_>, kind: load::Kind) -> Result {
    let Some(baseline) = measured.loads.get(&kind) else {
        return Ok(());
    };
    let (title, cost): (_, fn(&Figures) -> &Cost) = match kind {
        load::Kind::File => ("Page cache at the limit", |figures| &figures.file),
        load::Kind::Anon => ("Anonymous memory at the limit", |figures| &figures.anon),
    };
    writeln!(text, "\n### {title}\n")?;
    let reclaims = measured.tools.get(&Kind::Oomprobe).map(cost);
    work(text, baseline, reclaims)?;
    let tools = measured.tools.iter();
    let slowdowns = tools.map(|(tool, figures)| (*tool, &cost(figures).slowdown));
    table::slowdowns(text, &baseline.nothing.again, &slowdowns.collect())?;
    for (tool, figures) in &measured.tools {
        let cost = cost(figures);
        table::programs(text, *tool, &cost.programs, "reclaim", cost.reclaims)?;
    }
    Ok(())
}

fn work(text: &mut String, baseline: &Baseline, traced: Option<&Cost>) -> Result {
    write!(
        text,
        "A round of {ROUND_MIB} MiB with nothing: {} ms, {} ms of CPU; {} limit hits a second by the \
         kernel's count",
        number(baseline.nothing.wall_ms.median()),
        number(baseline.nothing.cpu_ms.median()),
        number(Some(baseline.hits_per_s)),
    )?;
    if let Some(cost) = traced.filter(|cost| cost.hits > 0) {
        let ratio = count(cost.reclaims) / count(cost.hits);
        write!(text, ", {} reclaims for each", number(Some(ratio)))?;
    }
    writeln!(text, ".")
}

fn explain(text: &mut String, measured: &Measured<'_>) -> Result {
    let args = measured.args;
    write!(
        text,
        "
### What is measured of memory pressure

- **The workload** is alone in a cgroup with a limit of {limit} MiB and goes through {span} MiB, over
  and over: it reads a file without blocks (page cache), or writes memory that the kernel may drop
  (`MADV_FREE`). Neither waits for a device, so that it hits its limit as often as it can and nothing
  hides what tracing costs; a workload that also waits for a disk is slowed down less.
- **Slowdown**: {cycles} cycles of nothing, one tool, the other, nothing; the next cycle has the tools
  the other way round. Each part is the median of {rounds} rounds of {ROUND_MIB} MiB, after one to warm
  up; a tool is compared with the mean of both parts with nothing of its cycle. \"Nothing again\" is
  the second of these compared with the first: what noise alone makes. The workload has the last
  CPU of the machine, the tools the others; what else runs on the machine is not kept away.
- **±** is two standard errors of the median. What it leaves open is \"in the noise\": neither met nor
  missed. The part of BPF run time in the work's CPU time does not suffer from that noise, and is what
  a slowdown comes from; it leaves out the cost of calling the programs.
- oomprobe is `oomprobe trace -o json` into a pipe that is read. bpftrace runs this:

```
{SCRIPT}
```

- **BPF run time** is the kernel's account (`kernel.bpf_stats_enabled`), in a run of its own, with
  both tools on the same reclaims; its own clock reads are part of it. Programs that ran less than
  once for two reclaims are left out. On v1 the kernel counts each try to charge as a hit.
- **Many cgroups**: {cgroups} empty ones, each with a limit, then 1 and 20 of them with a workload of
  anonymous memory that never pauses, at the lowest priority. CPU is the process's own clock over
  {seconds} s, both tools at once, taken from {settle} s after the tools were attached and the
  workloads began: starting up is not in it.
",
        limit = LIMIT_BYTES >> 20,
        span = load::SPAN_BYTES >> 20,
        cycles = args.cycles,
        rounds = slowdown::ROUNDS,
        cgroups = args.cgroups,
        seconds = args.seconds,
        settle = crowd::SETTLE.as_secs(),
    )
}
