//! A leak of the kernel's own: packets that keep the network namespace alive in which they wait.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::full_report;
use crate::expect::{at, equal};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::skb::{Slab, near, number};

pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "skb_abandoned_netns",
    "whoever sent packets that wait in a queue is gone, and so is all that could reach the queue",
    abandoned,
)
.needs(&[Need::Tracer, Need::Guest, Need::Module("sch_netem")])
// What it leaves behind stays.
.guest_exclusive()
.seconds(120)];

/// Some 24 MiB.
const PACKETS: u64 = 20_000;

fn abandoned(context: &mut Context) -> Result<()> {
    let workload = ["unread", "qdisc", &PACKETS.to_string()];
    let mut hog = Spec::inside(&context.scratch).start(&workload, context.deadline)?;
    let told = hog.after("queues ", context.deadline)?;
    hog.wait_ready(context.deadline)?;
    let (netns, _) = told.split_once(' ').context("queues NETNS COUNT")?;
    let netns: u64 = netns.parse()?;

    let report = full_report(context)?;
    report.finds(report.queue("qdisc", netns)?, "qdisc_backlog")?;
    equal(&report.event, "census.abandoned", Value::Null)?;

    // The namespace had a process.
    drop(hog);
    let slab = Slab::settled()?;
    let report = full_report(context)?;
    ensure!(report.queue("qdisc", netns).is_err(), "it can be entered");
    let abandoned = at(&report.event, "census.abandoned");
    equal(abandoned, "netns", netns)?;
    equal(abandoned, "namespaces", 1)?;
    equal(abandoned, "devices", serde_json::json!(["lo"]))?;
    near("packets", number(abandoned, "skbs")?, PACKETS)?;
    report.one("findings", "netns_abandoned", |finding| {
        at(finding, "id") == "netns_abandoned"
    })?;
    // The kernel has them, whatever we say.
    ensure!(slab.heads >= PACKETS, "{} buffers in use", slab.heads);
    Ok(())
}
