//! docs/benchmarks.md: figures beside each other, with their targets.

use std::fmt::Write as _;

use super::{
    oom::{Figures, Latency, Measured},
    programs::Ran,
    tool::{Kind, ms},
};

const MIB: f64 = 1_048_576.0;

/// What a figure of oomprobe is to reach.
#[derive(Clone, Copy)]
enum Target {
    Below(f64),
    NotAboveBpftrace,
}

/// One line of the table.
struct Row {
    what: &'static str,
    unit: &'static str,
    target: Option<Target>,
    of: fn(&Figures, u32) -> Option<f64>,
}

const fn row(
    what: &'static str,
    unit: &'static str,
    target: Option<Target>,
    of: fn(&Figures, u32) -> Option<f64>,
) -> Row {
    Row {
        what,
        unit,
        target,
        of,
    }
}

const ROWS: &[Row] = &[
    row(
        "kill → line, both at once, p50",
        "ms",
        Some(Target::NotAboveBpftrace),
        |f, _| f.together.ms.median(),
    ),
    row(
        "kill → line, both at once, p99",
        "ms",
        Some(Target::NotAboveBpftrace),
        |f, _| f.together.ms.percentile(99),
    ),
    row("kill → line, alone, p50", "ms", None, |f, _| {
        f.alone.ms.median()
    }),
    row(
        "kill → line, alone, p99",
        "ms",
        Some(Target::Below(5.0)),
        |f, _| f.alone.ms.percentile(99),
    ),
    row("kill → line, alone, slowest", "ms", None, |f, _| {
        f.alone.ms.max()
    }),
    row(
        "kill → line, first kill after start, slowest",
        "ms",
        None,
        |f, _| f.first_ms.max(),
    ),
    row("kill → line, in the burst, p50", "ms", None, |f, _| {
        f.burst.ms.median()
    }),
    row("kill → line, in the burst, p99", "ms", None, |f, _| {
        f.burst.ms.percentile(99)
    }),
    row("kills without a line", "", None, |f, _| {
        Some(count(missed(f)))
    }),
    row(
        "start → attached, p50",
        "ms",
        Some(Target::Below(300.0)),
        |f, _| f.start_up_ms.median(),
    ),
    row(
        "start → attached, slowest",
        "ms",
        Some(Target::Below(300.0)),
        |f, _| f.start_up_ms.max(),
    ),
    row("rss, idle", "MiB", Some(Target::Below(12.0)), |f, _| {
        Some(mib(f.cost?.idle.rss_kib))
    }),
    row("pss, idle", "MiB", None, |f, _| {
        Some(mib(f.cost?.idle.pss_kib))
    }),
    row("rss, after the burst", "MiB", None, |f, _| {
        Some(mib(f.cost?.after_burst.rss_kib))
    }),
    row("pss, after the burst", "MiB", None, |f, _| {
        Some(mib(f.cost?.after_burst.pss_kib))
    }),
    row("rss, highest ever", "MiB", None, |f, _| {
        Some(mib(f.cost?.after_burst.peak_kib))
    }),
    row("CPU, idle", "% of one", None, |f, _| {
        Some(f.cost?.idle_cpu_ratio * 100.0)
    }),
    row("CPU, in the burst", "% of one", None, |f, _| {
        f.cost.map(|cost| cost.burst_cpu_ms / cost.burst_ms * 100.0)
    }),
    row(
        "CPU per kill, user space included",
        "ms",
        None,
        |f, kills| f.cost.map(|cost| cost.burst_cpu_ms / f64::from(kills)),
    ),
    row("BPF run time per kill", "µs", None, |f, kills| {
        let ns: u64 = f.programs.iter().map(|program| program.runs.ns).sum();
        (ns > 0).then(|| ms(ns) * 1e3 / f64::from(kills))
    }),
    row(
        "size on disk, shared libraries included",
        "MiB",
        Some(Target::Below(8.0)),
        |f, _| (f.size_bytes > 0).then(|| ms(f.size_bytes) * 1e6 / MIB),
    ),
];

/// The whole document.
pub(super) fn markdown(measured: &Measured) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(&mut text, measured);
    text
}

fn write(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(
        text,
        "# Benchmarks\n\nGenerated; do not edit. The command, as root:\n"
    )?;
    writeln!(
        text,
        "```\ncargo xtask bench oom --kills {}\n```\n",
        measured.kills
    )?;
    writeln!(text, "## OOM kills, beside bpftrace\n")?;
    table(text, measured)?;
    if let Some(why) = &measured.without_bpftrace {
        writeln!(text, "\nbpftrace could not be measured here: {why}")?;
    }
    for (kind, figures) in &measured.tools {
        programs(text, *kind, &figures.programs, measured.kills)?;
    }
    writeln!(text, "\n## The machine\n\n| | |\n|---|---|")?;
    for (name, value) in &measured.machine {
        writeln!(text, "| {name} | {value} |")?;
    }
    for figures in measured.tools.values() {
        writeln!(text, "| tool | {} |", figures.version)?;
    }
    explain(text, measured)
}

fn table(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(
        text,
        "| | unit | oomprobe | bpftrace | oomprobe ÷ bpftrace | target | |"
    )?;
    writeln!(text, "|---|---|--:|--:|--:|---|---|")?;
    let of = |row: &Row, kind| (row.of)(measured.tools.get(&kind)?, measured.kills);
    for row in ROWS {
        let (ours, other) = (of(row, Kind::Oomprobe), of(row, Kind::Bpftrace));
        if ours.is_none() && other.is_none() {
            continue;
        }
        let ratio = ours.zip(other).filter(|(_, other)| *other > 0.0);
        let ratio = ratio.map(|(ours, other)| ours / other);
        let (target, met) = match (row.target, ours) {
            (Some(target), Some(ours)) => {
                let (said, met) = judge(target, ours, other);
                (
                    said,
                    met.map_or("", |met| if met { "met" } else { "**not met**" }),
                )
            }
            _ => (String::new(), ""),
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {target} | {met} |",
            row.what,
            row.unit,
            number(ours),
            number(other),
            number(ratio),
        )?;
    }
    Ok(())
}

/// The target in words and whether it is met; a comparison needs its other side.
fn judge(target: Target, ours: f64, other: Option<f64>) -> (String, Option<bool>) {
    match target {
        Target::Below(limit) => (format!("< {limit}"), Some(ours < limit)),
        Target::NotAboveBpftrace => ("≤ bpftrace's".to_owned(), other.map(|other| ours <= other)),
    }
}

fn programs(text: &mut String, kind: Kind, programs: &[Ran], kills: u32) -> std::fmt::Result {
    if programs.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n### BPF programs of {kind}\n")?;
    writeln!(
        text,
        "| program | runs per kill | µs per run |\n|---|--:|--:|"
    )?;
    for Ran { name, runs } in programs {
        let per_kill = count(runs.count) / f64::from(kills);
        let per_run = ms(runs.ns) * 1e3 / count(runs.count);
        writeln!(
            text,
            "| `{name}` | {} | {} |",
            number(Some(per_kill)),
            number(Some(per_run))
        )?;
    }
    Ok(())
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
## What is measured

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

fn mib(kib: u64) -> f64 {
    count(kib) / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn count(value: u64) -> f64 {
    value as f64
}

/// Three significant digits; more before the point as needed.
fn number(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) => {
            let decimals = match value.abs() {
                100.0.. => 0,
                10.0.. => 1,
                1.0.. => 2,
                _ => 3,
            };
            format!("{value:.decimals$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::stats::Samples;

    fn figures(latency_ms: f64, start_up_ms: f64) -> Figures {
        Figures {
            together: Latency {
                ms: [latency_ms].into_iter().collect(),
                missed: 0,
            },
            start_up_ms: [start_up_ms].into_iter().collect(),
            ..Figures::default()
        }
    }

    fn measured(tools: BTreeMap<Kind, Figures>) -> String {
        markdown(&Measured {
            kills: 1,
            machine: vec![("kernel", "Linux".to_owned())],
            without_bpftrace: None,
            tools,
            stamps_apart_ms: Samples::default(),
        })
    }

    #[test]
    fn targets_are_judged_and_ratios_printed() {
        let text = measured(BTreeMap::from([
            (Kind::Oomprobe, figures(3.0, 100.0)),
            (Kind::Bpftrace, figures(2.0, 400.0)),
        ]));
        let p50 = "| kill → line, both at once, p50 | ms | 3.00 | 2.00 | 1.50 | ≤ bpftrace's \
                   | **not met** |\n";
        assert!(text.contains(p50), "{text}");
        assert!(text.contains("| start → attached, p50 | ms | 100 | 400 | 0.250 | < 300 | met |"));
        assert!(!text.contains("rss, idle"), "no figure, no line");
    }

    #[test]
    fn without_bpftrace_only_own_limits_are_judged() {
        let text = measured(BTreeMap::from([(Kind::Oomprobe, figures(3.0, 300.0))]));
        assert!(
            text.contains("p50 | ms | 3.00 | – | – | ≤ bpftrace's |  |"),
            "{text}"
        );
        assert!(text.contains("p50 | ms | 300 | – | – | < 300 | **not met** |"));
    }

    #[test]
    fn three_digits() {
        let shown = [
            None,
            Some(0.0),
            Some(0.0123),
            Some(1.234),
            Some(12.34),
            Some(1234.5),
        ];
        let wanted = ["–", "0", "0.012", "1.23", "12.3", "1234"];
        assert_eq!(shown.map(number), wanted);
    }
}
