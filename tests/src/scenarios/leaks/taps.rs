//! Captures (`AF_PACKET`): charged to no cgroup.

use anyhow::{Result, ensure};

use super::{check_holder, full_report, hold, next_held, own_netns, report, slab_grew};
use crate::expect::{at, equal};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::skb::{DATA_BYTES, HEAD_BYTES, SKB_BYTES, Slab, counted, explains, near, number};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_tap_not_read",
        "a capture in another network namespace is never read",
        tap_not_read,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_tap_read",
        "a capture has as much in its queue, and is read",
        tap_read,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_taps_share_data",
        "two captures get the same frames: the data is there once",
        taps_share_data,
    )
    .needs(&[Need::Tracer]),
];

/// Some 73 MiB.
const FRAMES: &str = "60000";

fn tap_not_read(context: &mut Context) -> Result<()> {
    let before = Slab::settled()?;
    let (mut hog, held) = hold(context, &["tap", FRAMES])?;
    let grown = Slab::read()?.since(before);
    let report = report(context)?;
    hog.expect_alive()?;

    let holder = check_holder(&report, &held, &context.scratch)?;
    equal(holder, "owners", 1)?;
    equal(holder, "socket.family", "packet")?;
    equal(holder, "socket.protocol", "0x88b5")?;
    equal(holder, "unread_sockets", 1)?;
    let netns = number(holder, "socket.netns")?;
    ensure!(netns != own_netns()?, "it is in the same namespace");

    // The kernel's count of memory, and what the size of a frame makes of it.
    let bytes = number(holder, "bytes")?;
    near("bytes by frames", bytes, held.packets * SKB_BYTES)?;
    slab_grew(context, "bytes", bytes, grown.bytes)?;
    slab_grew(context, "buffers", held.packets, grown.heads)?;

    equal(holder, "verdict.confidence", "high")?;
    report.finds(holder, "socket_not_read")?;
    let explained = report.number("balance.explained_objects")?;
    ensure!(explained >= held.packets, "{explained} explained");
    if context.is_guest {
        // Nothing else is there.
        explains(95, explained, report.number("balance.slab_objects")?)?;
    }
    Ok(())
}

fn tap_read(context: &mut Context) -> Result<()> {
    let (mut hog, held) = hold(context, &["tap", FRAMES, "--read"])?;
    let report = report(context)?;
    hog.expect_alive()?;
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "unread_sockets", 0)?;
    let bytes = number(holder, "bytes")?;
    ensure!(bytes >= 64 * MIB, "{bytes} in its queue");
    report.finds_nothing(holder)?;
    if context.is_guest {
        report.exits_with(0)?;
    }
    Ok(())
}

fn taps_share_data(context: &mut Context) -> Result<()> {
    let before = Slab::settled()?;
    let workload = ["tap", "20000", "--sockets", "2"];
    let mut hog = Spec::inside(&context.scratch).start(&workload, context.deadline)?;
    let taps = [next_held(&mut hog, context)?, next_held(&mut hog, context)?];
    hog.wait_ready(context.deadline)?;
    let grown = Slab::read()?.since(before);
    let report = full_report(context)?;
    hog.expect_alive()?;

    let packets = taps[0].packets;
    let truth = packets * (HEAD_BYTES * 2 + DATA_BYTES);
    slab_grew(context, "buffers", packets * 2, grown.heads)?;
    slab_grew(context, "bytes", truth, grown.bytes)?;
    let mut own_bytes = 0;
    for tap in taps {
        let group = report.group(tap.inode)?;
        counted(group, packets)?;
        equal(group, "process.pid", tap.pid)?;
        // Each is charged for all of it.
        near("bytes of one", number(group, "bytes")?, packets * SKB_BYTES)?;
        own_bytes += number(group, "own_bytes")?;
    }
    near("own bytes of both", own_bytes, truth)?;

    let holder = report.one("holders", "holder", |holder| {
        at(holder, "process.pid") == taps[0].pid
    })?;
    equal(holder, "sockets", 2)?;
    equal(holder, "skbs", packets * 2)?;
    report.finds(holder, "socket_not_read")
}
