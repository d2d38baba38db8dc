//! What passed, failed and was skipped, and how it is told.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::Result;

/// Outcome of a step's tests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: Vec<Failure>,
    pub(super) skipped: usize,
}

/// One failed test.
#[derive(Debug)]
pub(super) struct Failure {
    /// Which test, where.
    pub(super) what: String,
    pub(super) why: String,
    /// The command that repeats just it.
    pub(super) rerun: String,
}

impl Tally {
    /// A check that is one test.
    pub(super) fn check(what: &str, rerun: &str, result: Result<()>) -> Self {
        match result {
            Ok(()) => Self {
                passed: 1,
                ..Self::default()
            },
            Err(error) => Self {
                failed: vec![Failure {
                    what: what.to_owned(),
                    why: format!("{error:#}"),
                    rerun: rerun.to_owned(),
                }],
                ..Self::default()
            },
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped += other.skipped;
    }
}

/// A step and what came of it.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) step: String,
    pub(super) tally: Tally,
    pub(super) took: Duration,
}

/// The end of a run: every failure, a table of the steps, the names of what failed, and the totals on
/// the last line.
#[derive(Debug)]
pub(super) struct Summary(pub(super) Vec<Row>);

impl Summary {
    pub(super) fn failed(&self) -> bool {
        self.0.iter().any(|row| !row.tally.failed.is_empty())
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for failure in self.0.iter().flat_map(|row| &row.tally.failed) {
            writeln!(f, "\nFAILED {}\n{}", failure.what, failure.why.trim_end())?;
            writeln!(f, "  again: {}", failure.rerun)?;
        }
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        writeln!(
            f,
            "\n{:12} {:>7} {:>7} {:>7} {:>8}",
            "step", "passed", "failed", "skipped", "time"
        )?;
        for Row { step, tally, took } in &self.0 {
            passed += tally.passed;
            failed += tally.failed.len();
            skipped += tally.skipped;
            let seconds = took.as_secs();
            writeln!(
                f,
                "{step:12} {:7} {:7} {:7} {:5}:{:02}",
                tally.passed,
                tally.failed.len(),
                tally.skipped,
                seconds / 60,
                seconds % 60
            )?;
        }
        writeln!(f)?;
        // The end of a long log is often all that is kept of it.
        for failure in self.0.iter().flat_map(|row| &row.tally.failed) {
            let why = failure.why.lines().next().unwrap_or_default();
            writeln!(f, "FAILED {}: {why}", failure.what)?;
        }
        writeln!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_totals_of_all_steps() {
        let mut lint = Tally::check("clippy", "x", Ok(()));
        lint.add(Tally::check(
            "fmt",
            "run this",
            Err(anyhow::anyhow!("long line")),
        ));
        let unit = Tally {
            passed: 40,
            skipped: 2,
            ..Tally::default()
        };
        let row = |step: &str, tally| Row {
            step: step.to_owned(),
            tally,
            took: Duration::from_secs(61),
        };
        let summary = Summary(vec![row("lint", lint), row("unit", unit)]);
        let text = summary.to_string();
        assert!(summary.failed());
        assert!(
            text.contains("FAILED fmt\nlong line\n  again: run this\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\n\nFAILED fmt: long line\n41 passed, 1 failed, 2 skipped\n"),
            "{text}"
        );
        assert!(!Summary(Vec::new()).failed());
    }
}
