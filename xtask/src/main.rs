//! Builds, runs, tests and measures oomprobe.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match Command::new("cargo").args(["test", "--workspace"]).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
