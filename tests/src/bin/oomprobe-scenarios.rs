//! Runs the scenarios: one JSON line each on stdout, then a line of totals. Exit code 1 if any
//! failed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use oomprobe_tests::scenario::{Options, Outcome, Report, Runner, Scenario};
use oomprobe_tests::scenarios;

#[derive(Parser)]
#[command(about = "Makes the kernel kill and checks what oomprobe says of it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All scenarios, one JSON line each
    List,
    /// Run them
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// Only these, also those that disturb the whole machine
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// This machine is a guest made for the tests
    #[arg(long)]
    guest: bool,
    /// The program under test
    #[arg(long, env = "OOMPROBE_BIN", required_unless_present = "oracle_only")]
    oomprobe: Option<PathBuf>,
    /// Check the workloads against the kernel's own reports, without a tracer
    #[arg(long)]
    oracle_only: bool,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::List => {
            list()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => run_all(run),
    }
}

fn list() -> Result<()> {
    for scenario in scenarios::all() {
        let line = serde_json::json!({
            "scenario": scenario.name,
            "about": scenario.about,
            "needs": scenario.needs.iter().map(|need| format!("{need:?}")).collect::<Vec<_>>(),
            "guest_exclusive": scenario.guest_exclusive,
            "slow": scenario.slow,
        });
        writeln!(io::stdout(), "{line}")?;
    }
    Ok(())
}

fn run_all(run: Run) -> Result<ExitCode> {
    let selected = select(&run.only)?;
    let oomprobe = run.oomprobe.filter(|_| !run.oracle_only);
    let mut runner = Runner::new(Options {
        guest: run.guest,
        oomprobe,
    })?;
    let mut reports = Vec::new();
    for scenario in selected {
        reports.push(print(runner.run(scenario, !run.only.is_empty()))?);
    }
    if let Some(report) = runner.finish() {
        reports.push(print(report)?);
    }
    let count = |outcome| {
        reports
            .iter()
            .filter(|report| report.outcome == outcome)
            .count()
    };
    let failed = count(Outcome::Failed);
    writeln!(
        io::stdout(),
        "{} passed, {failed} failed, {} skipped",
        count(Outcome::Passed),
        count(Outcome::Skipped)
    )?;
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn select(only: &[String]) -> Result<Vec<&'static Scenario>> {
    if let Some(name) = only
        .iter()
        .find(|name| scenarios::all().all(|other| other.name != **name))
    {
        bail!("no scenario is called `{name}`; `oomprobe-scenarios list` shows all");
    }
    let wanted =
        |scenario: &&Scenario| only.is_empty() || only.iter().any(|name| name == scenario.name);
    Ok(scenarios::all().filter(wanted).collect())
}

fn print(report: Report) -> Result<Report> {
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(report)
}
