//! One way to hold buffers each: sockets of other families, shared, and with nobody.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{check_holder, full_report, hold, next_held, own_netns, report, slab_grew};
use crate::expect::{at, equal};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::skb::{SKB_BYTES, Slab, counted, near, number};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_udp_of_another_namespace",
        "UDP is not read, in a network namespace that its process has left",
        udp_of_another_namespace,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_raw_not_read",
        "a raw socket gets copies of all UDP and is not read",
        raw_not_read,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_netlink_overrun",
        "a subscriber to netlink does not read and loses news",
        netlink_overrun,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_unix_backlog",
        "a unix socket is not read; its bytes are charged to the sender",
        unix_backlog,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_shared_socket",
        "two processes have the socket open that nobody reads",
        shared_socket,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_socket_in_flight",
        "the socket is on its way between processes: only the slabs show it",
        socket_in_flight,
    )
    .needs(&[Need::Tracer]),
];

/// Some 24 MiB.
const PACKETS: &str = "20000";

fn udp_of_another_namespace(context: &mut Context) -> Result<()> {
    let (mut hog, held) = hold(context, &["unread", "udp", PACKETS])?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "socket.family", "inet")?;
    equal(holder, "socket.protocol", "udp")?;
    near("bytes", number(holder, "bytes")?, held.packets * SKB_BYTES)?;
    // That of the socket, not of its process.
    let netns = number(holder, "socket.netns")?;
    ensure!(netns != own_netns()?, "it is in the same namespace");
    report.finds(holder, "socket_not_read")
}

fn raw_not_read(context: &mut Context) -> Result<()> {
    let (mut hog, held) = hold(context, &["unread", "raw", PACKETS])?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "socket.family", "inet")?;
    equal(holder, "socket.type", "raw")?;
    equal(holder, "socket.protocol", "udp")?;
    near("bytes", number(holder, "bytes")?, held.packets * SKB_BYTES)?;
    report.finds(holder, "socket_not_read")
}

fn netlink_overrun(context: &mut Context) -> Result<()> {
    let bytes = 24 * MIB;
    let workload = ["unread", "netlink", &bytes.to_string()];
    let (mut hog, held) = hold(context, &workload)?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "socket.family", "netlink")?;
    equal(holder, "socket.protocol", "route")?;
    equal(holder, "socket.rcvbuf_bytes", bytes)?;
    equal(holder, "socket.saturated", true)?;
    near("bytes", number(holder, "bytes")?, bytes)?;
    let drops = number(holder, "drops")?;
    ensure!(drops >= 100, "{drops} dropped");
    report.finds(holder, "netlink_overrun")
}

fn unix_backlog(context: &mut Context) -> Result<()> {
    let bytes = 32 * MIB;
    let workload = ["unread", "unix", &bytes.to_string()];
    let (mut hog, held) = hold(context, &workload)?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "socket.family", "unix")?;
    equal(holder, "socket.type", "stream")?;
    near("bytes", number(holder, "bytes")?, held.packets * SKB_BYTES)?;
    report.finds(holder, "unix_backlog")
}

fn shared_socket(context: &mut Context) -> Result<()> {
    let workload = ["unread", "shared", PACKETS];
    let mut hog = Spec::inside(&context.scratch).start(&workload, context.deadline)?;
    let (child, parent) = (next_held(&mut hog, context)?, next_held(&mut hog, context)?);
    hog.wait_ready(context.deadline)?;
    ensure!(child.inode == parent.inode, "they have one socket each");
    let report = report(context)?;
    hog.expect_alive()?;

    // Of several, the one that was started first.
    let holder = check_holder(&report, &parent, &context.scratch)?;
    equal(holder, "owners", 2)?;
    let others = at(holder, "shared_with").as_array().context("others")?;
    let others: Vec<&Value> = others.iter().map(|other| at(other, "pid")).collect();
    ensure!(others == [child.pid], "shared with {others:?}");
    report.finds(holder, "socket_not_read")
}

fn socket_in_flight(context: &mut Context) -> Result<()> {
    let before = Slab::settled()?;
    let (mut hog, held) = hold(context, &["unread", "in-flight", PACKETS])?;
    let grown = Slab::read()?.since(before);
    let report = full_report(context)?;
    hog.expect_alive()?;
    slab_grew(context, "buffers", held.packets, grown.heads)?;
    ensure!(
        report.holder(held.inode).is_err(),
        "a process is said to hold it: {}",
        report.event
    );
    let group = report.group(held.inode)?;
    counted(group, held.packets)?;
    equal(group, "queue", "receive")?;
    equal(group, "process", Value::Null)?;
    near("bytes", number(group, "bytes")?, held.packets * SKB_BYTES)?;
    let is_its = |finding: &Value| at(finding, "id") == "socket_not_open";
    report.one("findings", "finding about it", is_its)?;
    report.exits_with(4)
}
