//! The incident that this project began with: one capture of a monitoring agent.

use anyhow::{Context as _, Result, ensure};

use super::{full_report, hold_as};
use crate::cgroup::Cgroup;
use crate::expect::{at, equal};
use crate::hog::Spec;
use crate::memcg;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::skb::{SKB_BYTES, Slab, explains, feed, near, number};

pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "skb_seed_incident",
    "an agent's capture is never read: slab grows, and its pod looks healthy",
    seed_incident,
)
.needs(&[Need::Tracer, Need::Guest])
.seconds(120)];

/// 200 MiB of buffers.
const PACKETS: u64 = 200 * MIB / SKB_BYTES;

/// A pod's UID, as systemd's names have it and as Kubernetes writes it.
const POD: &str = "kubepods-besteffort-pod1f0c9a52_5eed_4ce4_a0ba_0242ac110002.slice";
const POD_UID: &str = "1f0c9a52-5eed-4ce4-a0ba-0242ac110002";
const CONTAINER_ID: &str = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed";

fn seed_incident(context: &mut Context) -> Result<()> {
    let kubepods = context.scratch.child("kubepods.slice")?;
    let qos = kubepods.child("kubepods-besteffort.slice")?;
    let pod = qos.child(POD)?;
    let container = pod.child(format!("cri-containerd-{CONTAINER_ID}.scope"))?;

    let workload = ["unread", "capture", &(256 * MIB).to_string()];
    let (hog, held) = hold_as(Spec::inside(&container), context, &workload)?;
    let (before, charged_before) = (Slab::settled()?, memcg::usage_bytes(&pod)?);
    feed(PACKETS)?;
    let grown = Slab::read()?.since(before);
    near("buffers by slabinfo", PACKETS, grown.heads)?;
    // What everybody looked at.
    let charged = memcg::usage_bytes(&pod)?.saturating_sub(charged_before);
    ensure!(charged < MIB, "{charged} bytes are charged to the pod");

    let report = full_report(context)?;
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", hog.pid())?;
    equal(holder, "process.comm", "oomprobe-hog")?;
    equal(holder, "cgroup.path", path(&container)?)?;
    equal(holder, "k8s.pod.uid", POD_UID)?;
    equal(holder, "container.id", CONTAINER_ID)?;
    equal(holder, "socket.family", "packet")?;
    report.finds(holder, "socket_not_read")?;
    near("bytes", number(holder, "bytes")?, PACKETS * SKB_BYTES)?;
    explains(95, number(holder, "skbs")?, grown.heads)?;
    explains(
        95,
        report.number("balance.explained_objects")?,
        report.number("balance.slab_objects")?,
    )?;

    let group = report.group(held.inode)?;
    equal(group, "process.pid", hog.pid())?;
    equal(group, "k8s.pod.uid", POD_UID)?;
    explains(95, number(group, "skbs")?, grown.heads)?;
    let ratio = at(&report.event, "census.explained_ratio").as_f64();
    ensure!(ratio >= Some(0.95), "{ratio:?} of the census is explained");

    drop(hog);
    grown.wait_gone(before, context.deadline)
}

fn path(cgroup: &Cgroup) -> Result<String> {
    let path = cgroup.kernel_path().into_string();
    path.ok().context("a path that is no UTF-8")
}
