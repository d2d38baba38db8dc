//! What is to be reached with socket buffers, and whether it is.

use std::fmt::{Result, Write as _};

use super::{
    Measured,
    report::{false_percent, loss, median},
    tracers::Kind,
};
use crate::bench::{
    stats::Samples,
    table::{Figure, number, shown, worst},
};

const SAMPLED_LOSS_PERCENT: f64 = 5.0;
const OF_MEMLEAK: f64 = 1.0 / 3.0;
const FALSE_PERCENT: f64 = 0.05;
const PASS_MS: f64 = 1000.0;
const SAMPLE_MS: f64 = 300.0;

/// One line: what, how much is to be reached, how much it is, whether that is enough.
type Line = (&'static str, String, String, &'static str);

pub(super) fn write(text: &mut String, measured: &Measured) -> Result {
    writeln!(text, "| | target | | |\n|---|---|--:|---|")?;
    let pass = measured.passes.last().map(|pass| &pass.look_ms);
    let sample = measured.census.first().map(|census| &census.took_ms);
    let lines = [
        sampled(measured),
        all(measured),
        taken_for_outstanding(measured),
        time("a look at 100 000 sockets, ms", PASS_MS, pass),
        time("a census by sample, ms", SAMPLE_MS, sample),
    ];
    for (what, target, is, met) in lines {
        writeln!(text, "| {what} | {target} | {is} | {met} |")?;
    }
    Ok(())
}

fn sampled(measured: &Measured) -> Line {
    let lost = |slowdowns: &super::Slowdowns| median(&loss(slowdowns.get(&Kind::Sampled)?));
    let each = measured.throughput.iter();
    let each: Vec<Figure> = each.filter_map(|(_, _, of)| lost(of)).collect();
    let limit = Figure::exact(SAMPLED_LOSS_PERCENT);
    let met: Vec<_> = each.iter().map(|figure| figure.is_below(limit)).collect();
    let most = each.into_iter().max_by(|a, b| a.value.total_cmp(&b.value));
    (
        "1/64: throughput lost, % (the traffic that loses most)",
        format!("< {SAMPLED_LOSS_PERCENT}"),
        shown(most),
        worst(&met),
    )
}

fn all(measured: &Measured) -> Line {
    let (mut met, mut most) = (Vec::new(), None);
    for (_, _, slowdowns) in &measured.throughput {
        let lost = |kind| median(&loss(slowdowns.get(&kind)?));
        let Some((ours, memleak)) = lost(Kind::All).zip(lost(Kind::Memleak)) else {
            continue;
        };
        met.push(ours.is_at_most(Figure {
            value: memleak.value * OF_MEMLEAK,
            error: memleak.error * OF_MEMLEAK,
        }));
        let is_told = memleak.value > memleak.error;
        let ratio = is_told.then(|| ours.value / memleak.value);
        most = most.into_iter().chain(ratio).max_by(f64::total_cmp);
    }
    (
        "all: throughput lost, by that with memleak (likewise)",
        "≤ 1/3".to_owned(),
        number(most),
        worst(&met),
    )
}

fn taken_for_outstanding(measured: &Measured) -> Line {
    let ours = [Kind::Sampled, Kind::All].into_iter();
    let audits = ours.filter_map(|kind| Some((kind, measured.audits.get(&kind)?)));
    let (mut met, mut most) = (Vec::new(), None);
    for (kind, audit) in audits {
        let percent = false_percent(kind, audit);
        if audit.claim.sees_all() {
            met.push(Figure::exact(percent).is_below(Figure::exact(FALSE_PERCENT)));
        }
        most = most.into_iter().chain([percent]).max_by(f64::total_cmp);
    }
    (
        "taken for outstanding although freed, %",
        format!("< {FALSE_PERCENT} with fentry or kprobes"),
        number(most),
        worst(&met),
    )
}

fn time(what: &'static str, limit: f64, samples: Option<&Samples>) -> Line {
    let took = samples.and_then(median);
    let met = took.map(|took| took.is_below(Figure::exact(limit)));
    (
        what,
        format!("< {limit}"),
        shown(took),
        met.unwrap_or_default(),
    )
}
