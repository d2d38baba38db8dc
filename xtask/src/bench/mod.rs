//! `cargo xtask bench`: measures oomprobe on this machine, beside other tools.
//!
//! Nothing here passes or fails on a time: figures are compared with their targets, printed, and
//! written to docs/benchmarks.md.

mod kill;
mod oom;
mod process;
mod programs;
mod report;
mod stats;
mod tool;

use anyhow::Result;
use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// OOM kills: latency, memory, CPU, start-up, size and BPF run time, beside bpftrace
    Oom(oom::OomArgs),
}

/// Runs the benchmark that was asked for.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Oom(args) => oom::run(args),
    }
}
