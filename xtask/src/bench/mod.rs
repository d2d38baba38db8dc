//! `cargo xtask bench`: measures oomprobe on this machine, beside other tools.
//!
//! Nothing here passes or fails on a time: figures are compared with their targets, printed, and
//! written to docs/benchmarks.md.

mod cgroup;
mod death;
mod document;
mod machine;
mod oom;
mod pressure;
mod process;
mod programs;
mod skb;
mod slowdown;
mod stats;
mod table;
mod tool;
mod worker;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::cache::Cache;

pub(crate) use death::forks::{ForksArgs, work as fork_and_exit};
pub(crate) use pressure::load::{LoadArgs, work};
pub(crate) use skb::traffic::{TrafficArgs, work as pass_traffic};

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
    /// Memory pressure: slowdown of a workload at its limit, BPF run time, CPU with 500 cgroups,
    /// beside bpftrace
    Pressure(pressure::PressureArgs),
    /// Process deaths: slowdown of a loop of fork and exit, BPF run time, beside bpftrace
    Death(death::DeathArgs),
    /// Socket buffers: throughput while they are followed, what is missed, and the time it takes to
    /// find who holds them, beside bpftrace and memleak
    Skb(skb::SkbArgs),
}

/// Runs the benchmark that was asked for.
pub(crate) fn run(cache: &Cache, args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Oom(args) => oom::run(args),
        What::Pressure(args) => pressure::run(args),
        What::Death(args) => death::run(args),
        What::Skb(args) => skb::run(cache, args),
    }
}
