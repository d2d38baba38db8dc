//! `oomprobe doctor`: what this kernel allows.

mod kernel_memory;

use std::{io::Write, path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{Common, Output, exit};
use crate::{
    event::escape,
    kernel::{
        btf::Btf,
        facts::{Facts, Roots},
        ladder::{self, Signal},
        layout,
        loader::{self, Surveyed},
        problems::Problem,
    },
};

/// Arguments of `oomprobe doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to write the findings [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
    /// Resolve kernel structures from this BTF file instead of the running kernel, and try no
    /// hooks
    #[arg(long, value_name = "FILE")]
    btf: Option<PathBuf>,
}

/// All findings.
#[derive(Serialize)]
struct Report {
    /// True if kills can be traced here.
    can_trace: bool,
    facts: Facts,
    problems: Vec<Problem>,
    layout: Vec<LayoutRow>,
    signals: Vec<SignalRow>,
    kernel_memory: Vec<kernel_memory::Way>,
    error: Option<String>,
}

#[derive(Serialize)]
struct LayoutRow {
    field: &'static str,
    value: Option<u32>,
    source: Option<String>,
    reason: Option<String>,
}

#[derive(Serialize)]
struct SignalRow {
    signal: &'static str,
    hook: Option<String>,
    /// What events lack if there is none.
    without: Option<&'static str>,
    rungs: Vec<RungRow>,
}

#[derive(Serialize)]
struct RungRow {
    hook: String,
    works: bool,
    reason: Option<String>,
}

/// Examines and reports. Exits 3 if kills cannot be traced here.
pub fn run(args: &Args, common: &Common) -> anyhow::Result<ExitCode> {
    let facts = Facts::gather(&Roots {
        proc: common.host_root.join("proc"),
        sys: common.host_root.join("sys"),
    });
    let mut report = Report {
        can_trace: false,
        problems: facts.problems(),
        facts,
        layout: Vec::new(),
        signals: Vec::new(),
        kernel_memory: Vec::new(),
        error: None,
    };
    if let Err(error) = examine(args, &mut report) {
        report.error = Some(format!("{error:#}"));
    }
    let mut out = std::io::stdout().lock();
    match Output::or_default(args.output) {
        Output::Json => {
            serde_json::to_writer(&mut out, &report)?;
            out.write_all(b"\n")?;
        }
        Output::Pretty => out.write_all(render(&report).as_bytes())?,
    }
    out.flush()?;
    let ok = report.can_trace || (args.btf.is_some() && report.error.is_none());
    Ok(ExitCode::from(if ok { 0 } else { exit::UNSUPPORTED }))
}

fn examine(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let btf = match &args.btf {
        Some(file) => Btf::from_file(file)?,
        None => Btf::running()?,
    };
    let resolved = layout::resolve(&btf);
    report.layout = resolved
        .fields
        .iter()
        .map(|field| LayoutRow {
            field: field.field,
            value: field.value,
            source: field.source.clone(),
            reason: field.absent.clone(),
        })
        .collect();
    let kernel_layout = resolved.layout()?;
    if args.btf.is_some() {
        return Ok(());
    }
    let cpus = report.facts.cpus_possible.unwrap_or(0);
    let prefers_kprobe = ladder::prefers_kprobe(&btf);
    let surveyed = loader::survey(&kernel_layout, cpus, prefers_kprobe)?;
    report.can_trace = surveyed
        .iter()
        .any(|(signal, rungs)| *signal == Signal::VictimMark && rungs.iter().any(|r| r.1.is_ok()));
    report.signals = surveyed.into_iter().map(row).collect();
    report.kernel_memory = kernel_memory::survey(&kernel_layout, &btf);
    Ok(())
}

fn row((signal, rungs): Surveyed) -> SignalRow {
    let hook = rungs
        .iter()
        .find(|(_, result)| result.is_ok())
        .map(|(hook, _)| hook.to_string());
    SignalRow {
        signal: signal.name(),
        without: hook.is_none().then_some(signal.without()),
        hook,
        rungs: rungs
            .into_iter()
            .map(|(hook, result)| RungRow {
                hook: hook.to_string(),
                works: result.is_ok(),
                reason: result.err(),
            })
            .collect(),
    }
}

fn render(report: &Report) -> String {
    use std::fmt::Write as _;

    let mut out = String::new();
    let facts = &report.facts;
    let kernel = facts.kernel_release.as_deref().unwrap_or("?");
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "Kernel   {kernel}, cgroup {}",
        facts.cgroup_layout().unwrap_or("?")
    );
    let found = report
        .layout
        .iter()
        .filter(|row| row.reason.is_none())
        .count();
    let _ = writeln!(
        out,
        "Layout   {found} of {} fields resolved from BTF",
        report.layout.len()
    );
    for row in report.layout.iter().filter(|row| row.reason.is_some()) {
        let reason = row.reason.as_deref().unwrap_or_default();
        let _ = writeln!(out, "           - {}: {reason}", row.field);
    }
    if !report.signals.is_empty() {
        out.push_str("Signals\n");
    }
    for signal in &report.signals {
        let hook = signal.hook.as_deref().unwrap_or("none");
        let mark = if signal.hook.is_some() { "ok" } else { "--" };
        let _ = writeln!(out, "  {mark} {:15} {hook}", signal.signal);
        for rung in signal.rungs.iter().filter(|rung| !rung.works) {
            let reason = rung.reason.as_deref().unwrap_or_default();
            let _ = writeln!(out, "       {:28} {}", rung.hook, escape(reason));
        }
        if let Some(without) = signal.without {
            let _ = writeln!(out, "       so {without}");
        }
    }
    kernel_memory::render(&report.kernel_memory, &mut out);
    for problem in &report.problems {
        let _ = writeln!(
            out,
            "Problem  {}\n  remedy {}",
            problem.detail, problem.remedy
        );
    }
    if let Some(error) = &report.error {
        let _ = writeln!(out, "Error    {}", escape(error));
    }
    let verdict = if report.can_trace {
        "Kills can be traced here."
    } else {
        "Kills cannot be traced here."
    };
    let _ = writeln!(out, "{verdict}");
    out
}
