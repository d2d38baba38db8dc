//! `cargo xtask bench skb`: what it costs to follow socket buffers, and to find who holds them.
//!
//! Traffic goes over loopback with nothing, with one tracer after the other, with nothing again. Then
//! each tracer is audited alone: after traffic that has ended, whatever it takes for outstanding is
//! wrong.

mod audit;
mod looks;
mod report;
mod targets;
mod tracers;
pub(super) mod traffic;

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use super::{
    cgroup::Scratch,
    document, machine,
    slowdown::{self, Nothing, Slowdown},
};
use crate::{
    cache::Cache,
    cmd::status,
    debian::{self, Foreign},
    user,
};
use audit::Audit;
use looks::{Census, Pass};
use tracers::{Kind, Programs, Tracer};
use traffic::Work;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct SkbArgs {
    /// Cycles for each throughput: nothing, each tracer, nothing
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
    cycles: u32,
}

/// One kind of traffic.
#[derive(Debug, Clone, Copy)]
struct Load {
    name: &'static str,
    work: Work,
    /// Bytes in a packet.
    payload: usize,
    /// In each round: some 50 ms with nothing.
    amount: u64,
    unit: &'static str,
}

impl Load {
    const EACH: [Self; 4] = [
        Self::udp("UDP, 64 B", 64),
        Self::udp("UDP, 400 B", 400),
        Self::udp("UDP, 1400 B", 1400),
        Self {
            name: "TCP, 1 stream",
            work: Work::Tcp,
            payload: 0,
            amount: 128,
            unit: "MiB/s",
        },
    ];

    const fn udp(name: &'static str, payload: usize) -> Self {
        Self {
            name,
            work: Work::Udp,
            payload,
            amount: 30_000,
            unit: "packets/s",
        }
    }
}

/// What each tracer costs.
type Slowdowns = BTreeMap<Kind, Slowdown>;

/// Everything that was measured.
struct Measured {
    cycles: u32,
    machine: Vec<(&'static str, String)>,
    versions: Vec<String>,
    /// Tracers that could not be measured, and why.
    missing: BTreeMap<Kind, String>,
    throughput: Vec<(Load, Nothing, Slowdowns)>,
    audits: BTreeMap<Kind, Audit>,
    passes: Vec<Pass>,
    census: Vec<Census>,
}

/// Measures and writes its part of docs/benchmarks.md.
pub(super) fn run(cache: &Cache, args: &SkbArgs) -> Result<()> {
    if !debian::is_root()? {
        bail!("following socket buffers needs root: `sudo -E cargo xtask bench skb`");
    }
    let oomprobe = user::build(user::Profile::Release)?;
    let measured = measure(cache, args, &oomprobe)?;
    document::write(document::SOCKET_BUFFERS, &report::markdown(&measured))
}

fn measure(cache: &Cache, args: &SkbArgs, oomprobe: &Path) -> Result<Measured> {
    let mut missing = BTreeMap::new();
    let mut versions = vec![machine::oomprobe(oomprobe)?.version];
    match machine::installed_bpftrace() {
        Ok(installed) => versions.push(installed.version),
        Err(error) => leave_out(&mut missing, Kind::Bpftrace, &error),
    }
    let memleak = match memleak(cache) {
        Ok(memleak) => {
            versions.push(memleak.package.to_string());
            Some(memleak)
        }
        Err(error) => {
            leave_out(&mut missing, Kind::Memleak, &error);
            None
        }
    };
    let programs = Programs { oomprobe, memleak };
    let mut measured = Measured {
        cycles: args.cycles,
        machine: machine::describe(Scratch::create()?.version)?,
        versions,
        missing,
        throughput: Vec::new(),
        audits: BTreeMap::new(),
        passes: Vec::new(),
        census: Vec::new(),
    };
    let mut tracers = Vec::new();
    for kind in Kind::EACH {
        if measured.missing.contains_key(&kind) {
            continue;
        }
        status("Auditing", kind);
        match audit::audit(&programs, kind) {
            Ok(audit) => {
                measured.audits.insert(kind, audit);
                tracers.push(kind);
            }
            Err(error) => leave_out(&mut measured.missing, kind, &error),
        }
    }
    for load in Load::EACH {
        status(
            "Measuring",
            format_args!("throughput of {}, {} cycles", load.name, args.cycles),
        );
        let mut worker = traffic::start(load.work, load.payload)?;
        let (nothing, slowdowns) = slowdown::compare(
            args.cycles,
            tracers.clone(),
            |kind| Tracer::start(&programs, kind),
            |_| slowdown::part(&mut worker, load.amount),
        )?;
        measured.throughput.push((load, nothing, slowdowns));
    }
    measured.passes = looks::passes(oomprobe)?;
    measured.census = looks::census(oomprobe)?;
    measured.machine.push(("load after", machine::load()?));
    Ok(measured)
}

fn leave_out(missing: &mut BTreeMap<Kind, String>, kind: Kind, error: &anyhow::Error) {
    let why = format!("{error:#}");
    status("Warning", format_args!("without {kind}: {why}"));
    missing.insert(kind, why);
}

/// The release that has it in a version that follows the kernel's tracepoints of today.
fn memleak(cache: &Cache) -> Result<Foreign> {
    const SUITE: &str = "trixie";
    const LIBRARIES: [&str; 4] = ["libc6", "libelf1t64", "zlib1g", "libzstd1"];
    let program = "usr/sbin/memleak-libbpf";
    Foreign::fetch(cache, SUITE, "libbpf-tools", program, &LIBRARIES)
}

/// Objects of `skbuff_head_cache` in use, by the kernel's count.
fn heads_in_use() -> Result<u64> {
    let slabinfo = fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?;
    let heads = slabinfo
        .lines()
        .find_map(|line| line.strip_prefix("skbuff_head_cache "));
    heads
        .and_then(|numbers| numbers.split_whitespace().next()?.parse().ok())
        .context("/proc/slabinfo: no skbuff_head_cache")
}
