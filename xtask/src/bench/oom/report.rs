//! The section on OOM kills.

use std::fmt::Write as _;

use super::{Figures, Latency, Measured};
use crate::bench::{
    table::{self, Row, Target, count, mib, row},
    tool::ms,
};

const MIB: f64 = 1_048_576.0;

const ROWS: &[Row<Figures>] = &[
    row(
        "kill → line, both at once, p50",
        "ms",
        &[Target::OfBpftrace(1.0)],
        |f| f.together.ms.median(),
    ),
    row(
        "kill → line, both at once, p99",
        "ms",
        &[Target::OfBpftrace(1.0)],
        |f| f.together.ms.percentile(99),
    ),
    row("kill → line, alone, p50", "ms", &[], |f| {
        f.alone.ms.median()
    }),
    row(
        "kill → line, alone, p99",
        "ms",
        &[Target::Below(5.0)],
        |f| f.alone.ms.percentile(99),
    ),
    row(
        "kill → line, both read the files, p50",
        "ms",
        &[Target::OfBpftrace(1.0)],
        |f| f.with_files.ms.median(),
    ),
    row(
        "kill → line, both read the files, p99",
        "ms",
        &[Target::OfBpftrace(1.0)],
        |f| f.with_files.ms.percentile(99),
    ),
    row("kill → line, alone, slowest", "ms", &[], |f| {
        f.alone.ms.max()
    }),
    row(
        "kill → line, first kill after start, slowest",
        "ms",
        &[],
        |f| f.first_ms.max(),
    ),
    row("kill → line, in the burst, p50", "ms", &[], |f| {
        f.burst.ms.median()
    }),
    row("kill → line, in the burst, p99", "ms", &[], |f| {
        f.burst.ms.percentile(99)
    }),
    row("kills without a line", "", &[], |f| Some(count(missed(f)))),
    row(
        "start → attached, p50",
        "ms",
        &[Target::Below(300.0)],
        |f| f.start_up_ms.median(),
    ),
    row(
        "start → attached, slowest",
        "ms",
        &[Target::Below(300.0)],
        |f| f.start_up_ms.max(),
    ),
    row("rss, idle", "MiB", &[Target::Below(12.0)], |f| {
        Some(mib(f.cost?.idle.rss_kib))
    }),
    row("pss, idle", "MiB", &[], |f| Some(mib(f.cost?.idle.pss_kib))),
    row("rss, after the burst", "MiB", &[], |f| {
        Some(mib(f.cost?.after_burst.rss_kib))
    }),
    row("pss, after the burst", "MiB", &[], |f| {
        Some(mib(f.cost?.after_burst.pss_kib))
    }),
    row("rss, highest ever", "MiB", &[], |f| {
        Some(mib(f.cost?.after_burst.peak_kib))
    }),
    row("CPU, idle", "% of one", &[], |f| {
        Some(f.cost?.idle_cpu_ratio * 100.0)
    }),
    row("CPU, in the burst", "% of one", &[], |f| {
        f.cost.map(|cost| cost.burst_cpu_ms / cost.burst_ms * 100.0)
    }),
    row("CPU per kill, user space included", "ms", &[], |f| {
        f.cost.map(|cost| cost.burst_cpu_ms / f64::from(f.kills))
    }),
    row("BPF run time per kill", "µs", &[], |f| {
        let ns: u64 = f.programs.iter().map(|program| program.runs.ns).sum();
        (ns > 0).then(|| ms(ns) * 1e3 / f64::from(f.kills))
    }),
    row(
        "size on disk, shared libraries included",
        "MiB",
        &[Target::Below(8.0)],
        |f| (f.size_bytes > 0).then(|| ms(f.size_bytes) * 1e6 / MIB),
    ),
];

/// The whole section.
pub(super) fn markdown(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(&mut text, measured);
    text
}

fn write(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(text, "`cargo xtask bench oom --kills {}`\n", measured.kills)?;
    table::figures(text, ROWS, &measured.tools)?;
    if let Some(why) = &measured.without_bpftrace {
        writeln!(text, "\nbpftrace could not be measured here: {why}")?;
    }
    for (kind, figures) in &measured.tools {
        let kills = u64::from(measured.kills);
        table::programs(text, *kind, &figures.programs, "kill", kills)?;
    }
    writeln!(text, "\n### The machine, for OOM kills\n")?;
    let machine = measured
        .machine
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    let tools = measured
        .tools
        .values()
        .map(|figures| ("tool", figures.version.as_str()));
    table::facts(text, machine.chain(tools))?;
    explain(text, measured)
}

fn explain(text: &mut String, measured: &Measured) -> std::fmt::Result {
    let taken = |latency: fn(&Figures) -> &Latency| {
        measured
            .tools
            .values()
            .map(|f| latency(f).ms.len())
            .max()
            .unwrap_or_default()
    };
    write!(
        text,
        "
### What is measured of OOM kills

- The latencies are those of a machine with the load given above: where others use its CPUs, both
  tools wait for one.
- **A kill** is a process that takes more memory than its scratch cgroup (8 MiB) may have. It
  is killed when the kernel fires `oom:mark_victim`: the time is the one that bpftrace's program
  takes there (`nsecs`, the boot clock), for both tools alike; where a tool runs alone, the one
  that its own program takes. On kernels where oomprobe hooks the decision too, its own stamp is
  that of the decision, which is earlier. **The line** is there when the benchmark has read the
  whole of it from the tool's stdout, a pipe (the boot clock again).
- bpftrace runs the least that tells of a kill, a time and a pid; oomprobe's line is the whole
  event, with limit, memory, candidates and verdict. It is written when the incident is complete,
  other victims included, so that what the kernel does between the mark and that moment (it
  prints \"Killed process\" on the console, for one) is part of oomprobe's figure.
- **Both read the files**: bpftrace is to print (`cat()`) the files that oomprobe reads at every
  kill, those of the cgroup at its limit and those of the node, before its line, which is still a
  time and a pid. Each tool alone; oomprobe's figures are those of \"alone\": it always reads them,
  and the kernel log and the candidates besides.
- Kills at once: {together}; alone: {alone} for each tool. One after the other with pauses of
  10 to 30 ms, in the order A B, A, B, then B A, B, A. The burst has no pauses and both tools.
- Memory and CPU were taken with both tools running: rss and pss after 10 s without a kill and
  after the burst; CPU is the process's own clock. BPF run time is the kernel's account
  (`kernel.bpf_stats_enabled`), in a run of its own; programs on signals and exits also ran for
  the processes that are no victims.
- bpftrace counts as attached when a command that it starts then (`-c`) has said so.
",
        together = taken(|f| &f.together),
        alone = taken(|f| &f.alone),
    )?;
    let apart = &measured.stamps_apart_ms;
    if let (Some(low), Some(high)) = (apart.percentile(1), apart.percentile(99)) {
        writeln!(
            text,
            "- oomprobe's own stamp of a kill is {:+.0} to {:+.0} µs from bpftrace's (p1 to p99).",
            low * 1e3,
            high * 1e3
        )?;
    }
    Ok(())
}

fn missed(figures: &Figures) -> u64 {
    let all = [&figures.together, &figures.alone, &figures.burst];
    all.map(|latency| latency.missed as u64).iter().sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::{stats::Samples, tool::Kind};

    #[test]
    fn what_was_not_measured_has_no_line() {
        let figures = Figures {
            start_up_ms: [100.0].into_iter().collect(),
            ..Figures::default()
        };
        let text = markdown(&Measured {
            kills: 1,
            machine: vec![("kernel", "Linux".to_owned())],
            without_bpftrace: None,
            tools: BTreeMap::from([(Kind::Oomprobe, figures)]),
            stamps_apart_ms: Samples::default(),
        });
        assert!(text.contains("| start → attached, p50 | ms | 100 | – | – | < 300 | met |"));
        assert!(text.contains("| kernel | Linux |"));
        assert!(!text.contains("rss, idle"), "{text}");
    }
}
