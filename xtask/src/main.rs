//! Builds, runs, tests and measures oomprobe.

mod apt_sources;
mod cache;
mod cmd;
mod debian;
mod ebpf;
#[path = "../../probe-user/bpf/sources.rs"]
mod sources;
mod tools;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures oomprobe.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the BPF object that is committed and embedded
    BuildEbpf,
    /// Rebuild the BPF object elsewhere and compare it with the committed one
    CheckEbpf,
}

fn main() -> ExitCode {
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::BuildEbpf => ebpf::build(),
        Verb::CheckEbpf => ebpf::check(),
    }
}
