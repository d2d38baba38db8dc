//! Builds, runs, tests and measures oomprobe.

mod apt_sources;
mod bench;
mod cache;
mod cmd;
mod debian;
mod ebpf;
mod kernel_support;
mod lint;
mod rustc_wrapper;
#[path = "../../probe-user/bpf/sources.rs"]
mod sources;
mod test;
mod tools;
mod user;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cache::Cache;

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
    /// Build oomprobe as a static binary and print its path
    Build {
        /// Optimise, as for shipping
        #[arg(long)]
        release: bool,
    },
    /// Build oomprobe and run it, on this machine or in a guest
    Run(user::RunArgs),
    /// Run a command, or a shell, in a guest of any kernel of the matrix
    Vm(vm::VmArgs),
    /// Try every hook on every kernel of the matrix and write docs/kernel-support.md
    KernelSupport(kernel_support::KernelSupportArgs),
    /// Measure oomprobe beside other tools and write a section of docs/benchmarks.md
    Bench(bench::BenchArgs),
    /// Be the workload of a benchmark
    #[command(hide = true)]
    BenchLoad(bench::LoadArgs),
    /// Be the other workload of a benchmark
    #[command(hide = true)]
    BenchForks(bench::ForksArgs),
    /// Be the traffic of a benchmark
    #[command(hide = true)]
    BenchTraffic(bench::TrafficArgs),
    /// Check format, lints, documentation and dependencies
    Lint,
    /// Run all that a change must pass
    Test(test::TestArgs),
}

fn main() -> ExitCode {
    if let Some(code) = rustc_wrapper::become_rustc_if_called() {
        return code;
    }
    match run(Cli::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match verb {
        Verb::BuildEbpf => ebpf::build(&cache)?,
        Verb::CheckEbpf => ebpf::check(&cache)?,
        Verb::Build { release } => {
            let profile = if release {
                user::Profile::Release
            } else {
                user::Profile::Dev
            };
            println!("{}", user::build(profile)?.display());
        }
        Verb::Run(args) => return user::run(&cache, &args),
        Verb::Vm(args) => return vm::vm(&cache, args),
        Verb::KernelSupport(args) => kernel_support::run(&cache, &args)?,
        Verb::Bench(args) => bench::run(&cache, &args)?,
        Verb::BenchLoad(args) => bench::work(&args)?,
        Verb::BenchForks(args) => bench::fork_and_exit(&args)?,
        Verb::BenchTraffic(args) => bench::pass_traffic(&args)?,
        Verb::Lint => lint::all(&cache)?,
        Verb::Test(args) => return test::run(&cache, &args),
    }
    Ok(ExitCode::SUCCESS)
}
