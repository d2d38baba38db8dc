//! Holders in the stream of `oomprobe trace`.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{hold, hold_as};
use crate::deadline::until;
use crate::expect::{Expected, at, equal};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::skb::{SKB_BYTES, number};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_in_stream",
        "the tracer looks at kernel memory at an interval",
        in_stream,
    )
    .needs(&[Need::Tracer]),
    Scenario::new(
        "skb_node_oom",
        "a node runs out of memory of which a capture holds much",
        node_oom,
    )
    .needs(&[
        Need::Tracer,
        Need::Guest,
        Need::NoSwap,
        Need::MemoryAtMostMib(600),
    ])
    .guest_exclusive()
    .seconds(120),
];

/// Some 73 MiB.
const FRAMES: &str = "60000";

/// More than any guest of these tests has.
const ALL_THERE_IS: &str = "4096";

/// What an event of holders says of a socket.
fn holder(event: &Value, inode: u64) -> Option<&Value> {
    let mut holders = at(event, "holders").as_array()?.iter();
    holders.find(|holder| at(holder, "socket.inode") == inode)
}

fn in_stream(context: &mut Context) -> Result<()> {
    let (mut hog, held) = hold(context, &["tap", FRAMES])?;
    let tracer = context.start_tracer(&["--leaks", "10s"])?;
    let is = |kind: &'static str| move |event: &Value| event["kind"] == kind;
    let seen = tracer.wait_for("the holder", context.deadline, |event| {
        event["kind"] == "skb_holders" && holder(event, held.inode).is_some()
    })?;
    equal(&seen, "incident", Value::Null)?;
    let holder = holder(&seen, held.inode).context("holder")?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "skbs", held.packets)?;
    equal(holder, "verdict.id", "socket_not_read")?;

    let outstanding =
        tracer.wait_for("skb_outstanding", context.deadline, is("skb_outstanding"))?;
    equal(&outstanding, "what", "skb")?;
    equal(&outstanding, "sample", 64)?;
    let usage = tracer.wait_for("slab_usage", context.deadline, is("slab_usage"))?;
    let slab = number(&usage, "slab_unreclaimable_bytes")?;
    ensure!(slab >= held.packets * SKB_BYTES, "{slab} bytes of slab");

    // Again and again.
    let looks = || {
        let events = tracer.events();
        events
            .iter()
            .filter(|event| is("skb_holders")(event))
            .count()
    };
    let before = looks();
    until(context.deadline, "another look", || {
        Ok((looks() > before).then_some(()))
    })?;
    hog.expect_alive()?;
    tracer.stop()
}

fn node_oom(context: &mut Context) -> Result<()> {
    context.start_tracer(&[])?;
    let agent = context.scratch.child("agent")?;
    let (mut agent, held) = hold_as(Spec::inside(&agent), context, &["tap", FRAMES])?;
    let cgroup = context.scratch.child("greedy")?;
    let mut greedy = Spec::inside(&cgroup).start(&["anon", ALL_THERE_IS], context.deadline)?;
    greedy.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(greedy.pid(), "node")
            .message("Out of memory")
            .inside(&cgroup)
            .because(&[], &["node_exhausted"]),
    )?;
    let tracer = context.tracer().context("tracer")?;
    let kill = tracer.wait_for("oom_kill", context.deadline, |event| {
        event["kind"] == "oom_kill"
    })?;
    let slab = number(&kill, "node.kernel.slab_bytes")?;
    ensure!(slab >= 64 * MIB, "{slab} bytes of slab: {kill}");
    let caches = at(&kill, "node.slab_caches").as_array().context("caches")?;
    let heads = caches.iter().find(|it| it["name"] == "skbuff_head_cache");
    let heads = heads.with_context(|| format!("no skbuff_head_cache in {caches:?}"))?;
    ensure!(number(heads, "objects")? >= held.packets, "{heads}");

    let incident = at(&kill, "incident");
    let seen = tracer.wait_for("who holds it", context.deadline, |event| {
        event["kind"] == "skb_holders" && at(event, "incident") == incident
    })?;
    let holder = holder(&seen, held.inode).with_context(|| format!("no holder: {seen}"))?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "verdict.id", "socket_not_read")?;
    agent.expect_alive()
}
