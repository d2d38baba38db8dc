//! Tables of a report: figures of the tools beside each other, with their targets.

use std::{
    collections::BTreeMap,
    fmt::{Display, Result, Write as _},
};

use super::{
    programs::Ran,
    slowdown::Slowdown,
    stats::Samples,
    tool::{Kind, ms},
};

/// What a figure of oomprobe is to reach.
#[derive(Clone, Copy)]
pub(super) enum Target {
    Below(f64),
    /// Not above this part of bpftrace's.
    OfBpftrace(f64),
}

/// One line of the table of figures `F`.
pub(super) struct Row<F> {
    what: &'static str,
    unit: &'static str,
    /// All are to be reached.
    targets: &'static [Target],
    of: fn(&F) -> Option<f64>,
    /// How far the figure may be off.
    error: fn(&F) -> Option<f64>,
}

impl<F> Row<F> {
    /// Judged only as far as the error allows.
    pub(super) const fn give_or_take(mut self, error: fn(&F) -> Option<f64>) -> Self {
        self.error = error;
        self
    }
}

/// A figure that has no error worth mentioning.
pub(super) const fn row<F>(
    what: &'static str,
    unit: &'static str,
    targets: &'static [Target],
    of: fn(&F) -> Option<f64>,
) -> Row<F> {
    Row {
        what,
        unit,
        targets,
        of,
        error: |_| None,
    }
}

/// A figure and how far it may be off.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) error: f64,
}

const MET: &str = "met";
const NOISE: &str = "in the noise";
const NOT_MET: &str = "**not met**";

impl Figure {
    /// A figure that has no error worth mentioning.
    pub(super) const fn exact(value: f64) -> Self {
        Self { value, error: 0.0 }
    }

    /// Whether it is below a limit, as far as both are known.
    pub(super) fn is_below(self, limit: Self) -> &'static str {
        if (limit.value - self.value).abs() < limit.error.hypot(self.error) {
            NOISE
        } else if self.value < limit.value {
            MET
        } else {
            NOT_MET
        }
    }

    /// Whether it is not above a limit, likewise.
    pub(super) fn is_at_most(self, limit: Self) -> &'static str {
        match self.is_below(limit) {
            NOT_MET if self.value.total_cmp(&limit.value).is_eq() => MET,
            judged => judged,
        }
    }
}

/// What is said of several comparisons: the worst; nothing of none.
pub(super) fn worst(judged: &[&'static str]) -> &'static str {
    let by_severity = [NOT_MET, NOISE, MET];
    let worst = by_severity.into_iter().find(|word| judged.contains(word));
    worst.unwrap_or_default()
}

/// Lines that no tool has a figure for are left out.
pub(super) fn figures<F>(text: &mut String, rows: &[Row<F>], tools: &BTreeMap<Kind, F>) -> Result {
    writeln!(
        text,
        "| | unit | oomprobe | bpftrace | oomprobe ÷ bpftrace | target | |"
    )?;
    writeln!(text, "|---|---|--:|--:|--:|---|---|")?;
    for row in rows {
        let of = |kind| {
            let figures = tools.get(&kind)?;
            Some(Figure {
                value: (row.of)(figures)?,
                error: (row.error)(figures).unwrap_or_default(),
            })
        };
        let (ours, other) = (of(Kind::Oomprobe), of(Kind::Bpftrace));
        if ours.is_none() && other.is_none() {
            continue;
        }
        let told = |figure: &Figure| figure.value > figure.error;
        let ratio = ours.filter(told).zip(other.filter(told));
        let ratio = ratio.map(|(ours, other)| ours.value / other.value);
        let (target, met) = ours.map_or_else(Default::default, |ours| judge(row, ours, other));
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {target} | {met} |",
            row.what,
            row.unit,
            shown(ours),
            shown(other),
            number(ratio),
        )?;
    }
    Ok(())
}

/// The targets in words, and whether they are met; a comparison needs its other side.
fn judge<F>(row: &Row<F>, ours: Figure, other: Option<Figure>) -> (String, &'static str) {
    let mut said = Vec::new();
    let mut met = Vec::new();
    for target in row.targets {
        let (words, limit) = match *target {
            Target::Below(value) => (format!("< {value}"), Some(Figure::exact(value))),
            Target::OfBpftrace(part) => (
                match part {
                    1.0 => "≤ bpftrace's".to_owned(),
                    _ => format!("≤ {part} × bpftrace's"),
                },
                other.map(|other| Figure {
                    value: other.value * part,
                    error: other.error * part,
                }),
            ),
        };
        said.push(words);
        met.extend(limit.map(|limit| match target {
            Target::Below(_) => ours.is_below(limit),
            Target::OfBpftrace(_) => ours.is_at_most(limit),
        }));
    }
    (said.join(", "), worst(&met))
}

pub(super) fn shown(figure: Option<Figure>) -> String {
    match figure {
        Some(Figure { value, error }) if error > 0.0 => {
            format!("{} ± {}", number(Some(value)), number(Some(error)))
        }
        _ => number(figure.map(|figure| figure.value)),
    }
}

type Clock = fn(&Slowdown) -> &Samples;

/// Slowdowns by wall clock and by CPU time, beside what noise alone makes.
pub(super) fn slowdowns(
    text: &mut String,
    noise: &Slowdown,
    tools: &BTreeMap<Kind, &Slowdown>,
) -> Result {
    writeln!(
        text,
        "\n| slowdown, % | p25 | median | p75 |\n|---|--:|--:|--:|"
    )?;
    let clocks: [(&str, Clock); 2] = [
        ("wall clock", |slowdown| &slowdown.wall),
        ("CPU time", |slowdown| &slowdown.cpu),
    ];
    for (clock, of) in clocks {
        spread(text, &format!("nothing again, {clock}"), of(noise))?;
        for (tool, slowdown) in tools {
            spread(text, &format!("{tool}, {clock}"), of(slowdown))?;
        }
    }
    Ok(())
}

fn spread(text: &mut String, what: &str, samples: &Samples) -> Result {
    let [low, median, high] = [25, 50, 75].map(|percent| number(samples.percentile(percent)));
    writeln!(text, "| {what} | {low} | {median} | {high} |")
}

/// What each BPF program of a tool cost, for each of `times` that `what` happened.
pub(super) fn programs(
    text: &mut String,
    tool: impl Display,
    programs: &[Ran],
    what: &str,
    times: u64,
) -> Result {
    if programs.is_empty() || times == 0 {
        return Ok(());
    }
    writeln!(text, "\n#### BPF programs of {tool}\n")?;
    writeln!(
        text,
        "| program | runs per {what} | µs per run |\n|---|--:|--:|"
    )?;
    for Ran { name, runs } in programs {
        let per_event = count(runs.count) / count(times);
        let per_run = ms(runs.ns) * 1e3 / count(runs.count);
        writeln!(
            text,
            "| `{name}` | {} | {} |",
            number(Some(per_event)),
            number(Some(per_run))
        )?;
    }
    Ok(())
}

/// Names and what they stand for.
pub(super) fn facts<'a>(
    text: &mut String,
    facts: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result {
    writeln!(text, "| | |\n|---|---|")?;
    for (name, value) in facts {
        writeln!(text, "| {name} | {value} |")?;
    }
    Ok(())
}

pub(super) fn mib(kib: u64) -> f64 {
    count(kib) / 1024.0
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub(super) fn count(value: u64) -> f64 {
    value as f64
}

/// Three significant digits; more before the point as needed.
pub(super) fn number(value: Option<f64>) -> String {
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
    use super::*;

    fn table(targets: &'static [Target], ours: f64, other: Option<f64>) -> String {
        let tools = [(Kind::Oomprobe, Some(ours)), (Kind::Bpftrace, other)];
        let mut text = String::new();
        let rows = [row("cost", "ns", targets, |figure: &Option<f64>| *figure)];
        figures(&mut text, &rows, &BTreeMap::from(tools)).unwrap();
        text
    }

    #[test]
    fn targets_are_judged_and_ratios_printed() {
        let half = &[Target::Below(2.0), Target::OfBpftrace(0.5)];
        let met = "| cost | ns | 1.00 | 2.00 | 0.500 | < 2, ≤ 0.5 × bpftrace's | met |\n";
        assert!(table(half, 1.0, Some(2.0)).ends_with(met));
        assert!(table(half, 1.5, Some(2.0)).contains("**not met**"));
        assert!(table(half, 2.0, Some(9.0)).contains("**not met**"));
        assert!(table(&[Target::OfBpftrace(1.0)], 1.0, Some(1.0)).contains("≤ bpftrace's | met"));
    }

    #[test]
    fn what_noise_may_have_made_is_not_judged() {
        let judged = |ours, targets| {
            let tools = [(Kind::Oomprobe, ours), (Kind::Bpftrace, 4.0)];
            let mut text = String::new();
            let rows = [row("cost", "%", targets, |f: &f64| Some(*f)).give_or_take(|_| Some(0.5))];
            figures(&mut text, &rows, &BTreeMap::from(tools)).unwrap();
            text
        };
        let below: &[Target] = &[Target::Below(2.0)];
        assert!(
            judged(1.6, below)
                .contains("1.60 ± 0.500 | 4.00 ± 0.500 | 0.400 | < 2 | in the noise |")
        );
        assert!(judged(1.4, below).contains("| met |"));
        assert!(judged(2.6, below).contains("| **not met** |"));
        assert!(
            judged(0.4, below).contains("| – | < 2 | met |"),
            "no ratio of noise"
        );
        let half: &[Target] = &[Target::Below(2.0), Target::OfBpftrace(0.5)];
        assert!(
            judged(1.45, half).contains("| in the noise |"),
            "both errors count"
        );
    }

    #[test]
    fn without_bpftrace_only_own_limits_are_judged() {
        let alone = "| cost | ns | 3.00 | – | – | ≤ bpftrace's |  |\n";
        assert!(table(&[Target::OfBpftrace(1.0)], 3.0, None).ends_with(alone));
        assert!(table(&[Target::Below(3.0)], 3.0, None).contains("**not met**"));
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
