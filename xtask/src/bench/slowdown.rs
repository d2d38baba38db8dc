//! How much longer the same work takes with a tool than with nothing.
//!
//! The speed of a shared machine drifts, so each cycle is compared within itself: nothing, one tool
//! after the other, nothing again. The two parts with nothing tell how much of a difference is noise.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use super::{
    stats::Samples,
    worker::{Took, Worker},
};

/// Rounds of work in each part of a cycle, after one to warm up.
pub(super) const ROUNDS: usize = 5;

/// How much longer the same work takes, % of what it takes with nothing, by cycle.
#[derive(Debug, Default)]
pub(super) struct Slowdown {
    pub(super) wall: Samples,
    pub(super) cpu: Samples,
}

impl FromIterator<Took> for Slowdown {
    /// From what it took compared with nothing, 1 if it is the same.
    fn from_iter<I: IntoIterator<Item = Took>>(ratios: I) -> Self {
        let (wall, cpu): (Vec<f64>, Vec<f64>) = ratios
            .into_iter()
            .map(|ratio| (percent(ratio.wall_ns), percent(ratio.cpu_ns)))
            .unzip();
        Self {
            wall: wall.into_iter().collect(),
            cpu: cpu.into_iter().collect(),
        }
    }
}

fn percent(ratio: f64) -> f64 {
    (ratio - 1.0) * 100.0
}

/// A workload with no tool.
#[derive(Debug, Default)]
pub(super) struct Nothing {
    /// The second time with nothing in a cycle, compared with the first.
    pub(super) again: Slowdown,
    pub(super) wall_ms: Samples,
    pub(super) cpu_ms: Samples,
}

/// Which part of a cycle is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    First,
    Traced,
    Last,
}

/// Runs the cycles: `start` gives a tool that is at work until it is dropped, `measure` does the work
/// of a part.
pub(super) fn compare<K: Copy + Ord, T>(
    cycles: u32,
    mut tools: Vec<K>,
    mut start: impl FnMut(K) -> Result<T>,
    mut measure: impl FnMut(Part) -> Result<Took>,
) -> Result<(Nothing, BTreeMap<K, Slowdown>)> {
    let mut nothing = Vec::new();
    let mut again = Vec::new();
    let mut ratios: BTreeMap<K, Vec<Took>> = BTreeMap::new();
    for _ in 0..cycles {
        let first = measure(Part::First)?;
        let mut traced = Vec::new();
        for kind in &tools {
            let _tool = start(*kind)?;
            traced.push((*kind, measure(Part::Traced)?));
        }
        let last = measure(Part::Last)?;
        again.push(ratio(last, first));
        let mean = mean(first, last);
        nothing.push(mean);
        for (kind, took) in traced {
            ratios.entry(kind).or_default().push(ratio(took, mean));
        }
        tools.reverse();
    }
    let nothing = Nothing {
        again: again.into_iter().collect(),
        wall_ms: nothing.iter().map(|took| took.wall_ns / 1e6).collect(),
        cpu_ms: nothing.iter().map(|took| took.cpu_ns / 1e6).collect(),
    };
    let slowdowns = ratios
        .into_iter()
        .map(|(kind, ratios)| (kind, ratios.into_iter().collect()));
    Ok((nothing, slowdowns.collect()))
}

/// A part of a cycle: the medians of its rounds of `amount`.
pub(super) fn part(worker: &mut Worker, amount: u64) -> Result<Took> {
    worker.round(amount)?;
    let rounds: Vec<Took> = (0..ROUNDS)
        .map(|_| worker.round(amount))
        .collect::<Result<_>>()?;
    Ok(Took {
        wall_ns: median(rounds.iter().map(|took| took.wall_ns))?,
        cpu_ns: median(rounds.iter().map(|took| took.cpu_ns))?,
    })
}

pub(super) fn median(values: impl IntoIterator<Item = f64>) -> Result<f64> {
    let samples: Samples = values.into_iter().collect();
    samples.median().context("no samples")
}

fn ratio(took: Took, nothing: Took) -> Took {
    Took {
        wall_ns: took.wall_ns / nothing.wall_ns,
        cpu_ns: took.cpu_ns / nothing.cpu_ns,
    }
}

fn mean(first: Took, last: Took) -> Took {
    Took {
        wall_ns: f64::midpoint(first.wall_ns, last.wall_ns),
        cpu_ns: f64::midpoint(first.cpu_ns, last.cpu_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowdowns_are_percent_of_both_times_with_nothing() {
        let took = |ns| Took {
            wall_ns: ns,
            cpu_ns: ns / 2.0,
        };
        let nothing = mean(took(90.0), took(110.0));
        let slowdown: Slowdown = [ratio(took(103.0), nothing)].into_iter().collect();
        let wall = slowdown.wall.median().unwrap();
        assert!((wall - 3.0).abs() < 1e-9, "{wall}");
        assert!((slowdown.cpu.median().unwrap() - 3.0).abs() < 1e-9);
    }
}
