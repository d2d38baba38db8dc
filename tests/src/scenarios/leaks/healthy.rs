//! What looks like a leak and is none.

use anyhow::{Result, ensure};

use super::{check_holder, hold, report};
use crate::expect::equal;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::skb::{Slab, number};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_ring",
        "a capture by a ring: its pages are no socket buffers",
        ring,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_busy_udp",
        "a long queue of UDP that is read as fast as it fills",
        busy_udp,
    )
    .needs(&[Need::Tracer]),
    Scenario::new("skb_busy_tcp", "the same of TCP", busy_tcp).needs(&[Need::Tracer]),
    Scenario::new(
        "skb_tcp_coalesces",
        "TCP that is not read: many packets are few buffers",
        tcp_coalesces,
    )
    .needs(&[Need::Tracer]),
];

/// Bytes that would be told of if they were not read (16 MiB), and more.
const LONG_QUEUE: u64 = 20 * MIB;

/// Nothing is found in a machine that has nothing else.
fn nothing_found(context: &Context, report: &crate::skb::Report) -> Result<()> {
    if context.is_guest {
        report.exits_with(0)?;
    }
    Ok(())
}

fn ring(context: &mut Context) -> Result<()> {
    let before = Slab::settled()?;
    let (mut hog, held) = hold(context, &["unread", "ring", "48"])?;
    let grown = Slab::read()?.since(before);
    let report = report(context)?;
    hog.expect_alive()?;
    if context.is_guest {
        // 98 thousand frames came.
        ensure!(grown.heads < 5000, "{} buffers are in use", grown.heads);
    }
    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "ring_bytes", 48 * MIB)?;
    equal(holder, "bytes", 0)?;
    report.finds_nothing(holder)?;
    nothing_found(context, &report)
}

fn busy_udp(context: &mut Context) -> Result<()> {
    let (mut hog, held) = hold(context, &["unread", "udp", "40000", "--read"])?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "unread_sockets", 0)?;
    let bytes = number(holder, "bytes")?;
    ensure!(bytes >= LONG_QUEUE, "{bytes} in its queue");
    report.finds_nothing(holder)?;
    nothing_found(context, &report)
}

fn busy_tcp(context: &mut Context) -> Result<()> {
    let workload = ["unread", "tcp", &(32 * MIB).to_string(), "65536", "--read"];
    let (mut hog, held) = hold(context, &workload)?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "unread_sockets", 0)?;
    let bytes = number(holder, "receive_bytes")?;
    ensure!(bytes >= LONG_QUEUE, "{bytes} in its queue");
    report.finds_nothing(holder)?;
    nothing_found(context, &report)
}

fn tcp_coalesces(context: &mut Context) -> Result<()> {
    let workload = ["unread", "tcp", &MIB.to_string(), "600"];
    let (mut hog, held) = hold(context, &workload)?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "socket.protocol", "tcp")?;
    equal(holder, "unread_sockets", 1)?;
    let bytes = number(holder, "receive_bytes")?;
    ensure!(bytes >= MIB, "{bytes} in its queue");
    let skbs = number(holder, "skbs")?;
    ensure!(
        skbs * 5 < held.packets,
        "{skbs} buffers of {} packets",
        held.packets
    );
    // As much as many a connection has in flight.
    report.finds_nothing(holder)?;
    nothing_found(context, &report)
}
