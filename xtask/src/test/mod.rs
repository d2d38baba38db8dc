//! `cargo xtask test`: everything that a change must pass.

mod guests;
mod programs;
mod tally;

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    cache::Cache,
    cmd::status,
    debian::{self, Tool},
    ebpf, lint, user,
    workspace::Workspace,
};
use tally::{Row, Summary, Tally};

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Kernels of the guests: labels of the matrix, paths of a vmlinuz, `default` or `all`. Slow
    /// scenarios run where a kernel is named, or they are
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "default"
    )]
    kernels: Vec<String>,
    /// Only these steps
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<Step>,
    /// Only these scenarios, on the host and in guests
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Guests at a time [default: a processor for each]
    #[arg(long, value_name = "COUNT")]
    jobs: Option<NonZeroUsize>,
}

/// A part of the tests. Cheapest first, so that a slip shows early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Format and clippy, of the workspace and of the BPF programs
    Lint,
    /// The committed BPF object is what its sources build to
    CheckEbpf,
    /// Unit and property tests
    Unit,
    /// oomprobe as it ships
    Build,
    /// Scenarios on the running kernel, and tests of single parts that need root
    Host,
    /// Pods under a real containerd
    Pods,
    /// Scenarios in guests of other kernels
    Guests,
}

impl Step {
    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }

    fn about(self) -> String {
        self.to_possible_value()
            .and_then(|value| value.get_help().map(ToString::to_string))
            .unwrap_or_default()
    }

    /// Whether it runs the built oomprobe.
    fn runs_oomprobe(self) -> bool {
        matches!(self, Self::Host | Self::Pods | Self::Guests)
    }
}

/// What steps work with.
struct Suite<'a> {
    cache: &'a Cache,
    workspace: Workspace,
    args: &'a TestArgs,
    /// oomprobe, once it is built.
    oomprobe: Option<PathBuf>,
}

impl Suite<'_> {
    fn run(&mut self, step: Step) -> Result<Tally> {
        match step {
            Step::Lint => Ok(self.lint()),
            Step::CheckEbpf => Ok(Tally::check(
                "check-ebpf",
                "cargo xtask check-ebpf",
                ebpf::check(self.cache),
            )),
            Step::Unit => programs::unit_tests(&self.workspace),
            Step::Build => {
                self.oomprobe = Some(user::build(user::Profile::Release)?);
                Ok(Tally::default())
            }
            Step::Host => {
                need_root("make scratch cgroups and load BPF programs")?;
                let scenarios = &self.args.scenario;
                let mut tally = programs::host_tests(&self.workspace, self.oomprobe()?, scenarios)?;
                if scenarios.is_empty() {
                    tally.add(programs::root_tests(&self.workspace)?);
                }
                Ok(tally)
            }
            Step::Pods => self.pods(),
            Step::Guests => guests::run(
                self.cache,
                &self.workspace,
                self.oomprobe()?,
                &self.args.kernels,
                &self.args.scenario,
                jobs(self.args.jobs),
            ),
        }
    }

    fn oomprobe(&self) -> Result<&Path> {
        self.oomprobe.as_deref().context("oomprobe was not built")
    }

    fn lint(&self) -> Tally {
        let mut tally = Tally::default();
        for (rule, result) in [
            ("format", lint::format(&self.workspace)),
            ("clippy", lint::clippy(&self.workspace)),
            (
                "clippy of the BPF programs",
                lint::clippy_bpf(&self.workspace, self.cache),
            ),
        ] {
            tally.add(Tally::check(rule, "cargo xtask lint", result));
        }
        tally
    }

    fn pods(&self) -> Result<Tally> {
        need_root("run containerd")?;
        debian::ensure_installed(
            "make pods",
            &[
                Tool {
                    program: "containerd",
                    package: "containerd",
                },
                Tool {
                    program: "runc",
                    package: "runc",
                },
                Tool {
                    program: "busybox",
                    package: "busybox-static",
                },
            ],
        )?;
        programs::pod_tests(&self.workspace, self.oomprobe()?)
    }
}

/// An emulated guest keeps one processor busy.
fn jobs(asked: Option<NonZeroUsize>) -> usize {
    asked
        .or_else(|| thread::available_parallelism().ok())
        .map_or(1, NonZeroUsize::get)
}

fn need_root(purpose: &str) -> Result<()> {
    if !debian::is_root()? {
        bail!("root is needed to {purpose}: run `cargo xtask test` as root");
    }
    Ok(())
}

/// Runs every step even if one fails, and sums up.
pub(crate) fn run(cache: &Cache, args: &TestArgs) -> Result<ExitCode> {
    let steps = selected(&args.only);
    for (number, step) in (1..).zip(&steps) {
        status(
            "Plan",
            format_args!("{number}/{} {}: {}", steps.len(), step.name(), step.about()),
        );
    }
    let mut suite = Suite {
        cache,
        workspace: Workspace::find()?,
        args,
        oomprobe: None,
    };
    let mut rows = Vec::new();
    for (number, step) in (1..).zip(&steps) {
        status(
            "Testing",
            format_args!("{number}/{} {}", steps.len(), step.name()),
        );
        let start = Instant::now();
        let tally = suite.run(*step).unwrap_or_else(|error| {
            let rerun = format!("cargo xtask test --only {}", step.name());
            Tally::check(&step.name(), &rerun, Err(error))
        });
        rows.push(Row {
            step: step.name(),
            tally,
            took: start.elapsed(),
        });
    }
    let summary = Summary(rows);
    print!("{summary}");
    Ok(if summary.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The steps to run, in order; what runs oomprobe brings its build along.
fn selected(only: &[Step]) -> Vec<Step> {
    let runs_oomprobe = only.iter().any(|step| step.runs_oomprobe());
    Step::value_variants()
        .iter()
        .copied()
        .filter(|step| {
            only.is_empty() || only.contains(step) || (*step == Step::Build && runs_oomprobe)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_runs_oomprobe_builds_it_first() {
        assert_eq!(selected(&[Step::Pods]), [Step::Build, Step::Pods]);
        assert_eq!(selected(&[Step::Unit]), [Step::Unit]);
        assert_eq!(selected(&[]), Step::value_variants());
    }
}
