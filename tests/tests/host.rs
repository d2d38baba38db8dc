//! The scenarios on the running kernel, with the program that `OOMPROBE_BIN` names. Without it
//! nothing runs, so that `cargo test` works for everyone; `cargo xtask test` sets it.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use oomprobe_tests::scenario::{Options, Outcome, Runner, Scenario};
use oomprobe_tests::scenarios;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One kernel log, one machine's memory: one scenario at a time.
    arguments.test_threads = Some(1);
    let Some(oomprobe) = std::env::var_os("OOMPROBE_BIN") else {
        eprintln!("OOMPROBE_BIN is not set: `cargo xtask test --only host` runs the scenarios");
        return ExitCode::SUCCESS;
    };
    let runner = Arc::new(Mutex::new(None));
    let trials = scenarios::all()
        .map(|scenario| {
            let (runner, oomprobe) = (Arc::clone(&runner), oomprobe.clone());
            let filter = arguments.filter.as_deref();
            let named = filter.is_some_and(|filter| scenario.name.contains(filter));
            Trial::ignorable_test(scenario.name, move || {
                let mut runner = runner.lock().unwrap_or_else(PoisonError::into_inner);
                run(&mut runner, scenario, named, oomprobe.into())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut runner = runner.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(report) = runner.as_mut().and_then(Runner::finish) else {
        return conclusion.exit_code();
    };
    // It ends after all of them, and is told as they are.
    if report.outcome == Outcome::Failed {
        println!("test {} ... FAILED\n", report.scenario);
        println!("---- {} ----", report.scenario);
        println!("{}\n", report.reason.unwrap_or_default());
        return ExitCode::FAILURE;
    }
    println!("test {} ... ok", report.scenario);
    conclusion.exit_code()
}

fn run(
    runner: &mut Option<Runner>,
    scenario: &Scenario,
    named: bool,
    oomprobe: std::path::PathBuf,
) -> Result<Completion, Failed> {
    let runner = match runner {
        Some(runner) => runner,
        None => runner.insert(Runner::new(Options {
            guest: false,
            oomprobe: Some(oomprobe),
        })?),
    };
    let report = runner.run(scenario, named);
    let reason = report.reason.unwrap_or_default();
    match report.outcome {
        Outcome::Passed => Ok(Completion::Completed),
        Outcome::Skipped => Ok(Completion::ignored_with(reason)),
        Outcome::Failed => Err(reason.into()),
    }
}
