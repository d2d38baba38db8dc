//! A node that changes while it is looked at, and names that drive terminals.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{check_holder, full_report, hold, hold_as};
use crate::cgroup::hostile_name;
use crate::expect::{at, equal, text};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::skb::{Report, counted, explains, number, pretty};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_churn",
        "sockets are closed and processes exit while they are looked at",
        churn,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_hostile_names",
        "a holder and its cgroup have names that drive terminals",
        hostile_names,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_without_host_pids",
        "oomprobe is in a PID namespace of its own, and says what it cannot see",
        without_host_pids,
    )
    .needs(&[Need::Tracer]),
];

/// Some 24 MiB.
const WORKLOAD: &[&str] = &["unread", "udp", "20000"];

fn churn(context: &mut Context) -> Result<()> {
    let workload = ["unread", "churn", "4"];
    let mut churn = Spec::inside(&context.scratch).start(&workload, context.deadline)?;
    churn.wait_ready(context.deadline)?;
    let (_hog, held) = hold(context, WORKLOAD)?;
    for _ in 0..3 {
        let report = full_report(context)?;
        let holder = check_holder(&report, &held, &context.scratch)?;
        report.finds(holder, "socket_not_read")?;
        let group = report.group(held.inode)?;
        explains(95, number(group, "skbs")?, held.packets)?;
        if context.is_guest {
            // What is there for a moment is no finding.
            let findings = at(&report.event, "findings").as_array();
            let count = findings.context("findings")?.len();
            ensure!(count == 1, "{findings:?}");
        }
    }
    churn.expect_alive()
}

fn hostile_names(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child(hostile_name())?;
    let comms: [&[u8]; 3] = [
        b"\x1b[31mred\x1b[0m",
        b"new\nline) \\x41",
        b"\xff\xfe\xc3(\"}{",
    ];
    for comm in comms {
        let spec = Spec::inside(&cgroup).comm(comm);
        let (_hog, held) = hold_as(spec, context, WORKLOAD)?;
        let report = super::report(context)?;
        let holder = check_holder(&report, &held, &cgroup)?;
        equal(holder, "process.comm", text(comm))?;
        report.finds(holder, "socket_not_read")?;

        let shown = pretty(context.oomprobe()?, &["--duration", "1s"])?;
        let control = shown.chars().find(|c| c.is_control() && *c != '\n');
        ensure!(control.is_none(), "it prints {control:?}: {shown:?}");
        let pid = held.pid.to_string();
        ensure!(shown.contains(&pid), "no {pid} in {shown}");
    }
    Ok(())
}

fn without_host_pids(context: &mut Context) -> Result<()> {
    let (_hog, held) = hold(context, WORKLOAD)?;
    let arguments = ["--duration", "1s", "--census", "full"];
    let report = Report::take_in_pid_namespace(context.oomprobe()?, &arguments)?;
    ensure!(
        report.holder(held.inode).is_err(),
        "it sees processes of the host: {}",
        report.event
    );
    let what = "sockets of processes in other PID namespaces";
    report.one("not_read", what, |not_read| at(not_read, "what") == what)?;
    // What has an owner that cannot be seen is not said to have none.
    let findings = at(&report.event, "findings").as_array();
    let findings = findings.context("findings")?;
    let unopened = |finding: &Value| at(finding, "id") == "socket_not_open";
    ensure!(!findings.iter().any(unopened), "{findings:?}");
    let group = report.group(held.inode)?;
    counted(group, held.packets)
}
