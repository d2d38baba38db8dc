//! The node itself runs out, or is told to kill. Each of these has the machine to itself.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::MIB;
use crate::expect::{Expected, at, names_victim};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};

/// Using all memory takes too long on more.
const SMALL: Need = Need::MemoryAtMostMib(1536);

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "node_oom",
        "the node has no page left; the tracer survives it",
        node_oom,
    )
    .needs(&[Need::Guest, Need::NoSwap, SMALL])
    .guest_exclusive()
    .seconds(120),
    Scenario::new("sysrq_f", "a person asks for a kill", sysrq_f)
        .needs(&[Need::Guest, Need::Sysrq])
        .guest_exclusive(),
    Scenario::new(
        "kill_allocating_task",
        "vm.oom_kill_allocating_task",
        kill_allocating_task,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::NoSwap, SMALL])
    .guest_exclusive()
    .seconds(120),
    Scenario::new(
        "mempolicy",
        "one node of two runs out, by memory policy",
        mempolicy,
    )
    .needs(&[Need::Guest, Need::SecondNode, Need::NoSwap, SMALL])
    .guest_exclusive()
    .seconds(120),
    Scenario::new("cpuset", "one node of two runs out, by cpuset", cpuset)
        .needs(&[
            Need::Guest,
            Need::CgroupV2,
            Need::SecondNode,
            Need::NoSwap,
            SMALL,
        ])
        .guest_exclusive()
        .seconds(120),
];

/// More than any guest of these tests has.
const ALL_THERE_IS: &str = "4096";

fn node_oom(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("greedy")?;
    let mut hog = Spec::inside(&cgroup).start(&["anon", ALL_THERE_IS], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "node")
            .message("Out of memory")
            .inside(&cgroup)
            .because(&[], &["node_exhausted"]),
    )?;

    // The tracer was there, and is there for the next.
    let limited = context.scratch.child("limited")?;
    limited.limit(32 * MIB)?;
    let mut hog = Spec::inside(&limited).start(&["anon", "64"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let expected = Expected::kill(hog.pid(), "slice")
        .limit(&limited, 32 * MIB)
        .inside(&limited);
    context.check(&expected)
}

fn sysrq_f(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("asked-for")?;
    let mut hog = Spec::inside(&cgroup)
        .oom_score_adj(1000)
        .start(&["anon", "64"], context.deadline)?;
    hog.wait_ready(context.deadline)?;
    fs::write("/proc/sysrq-trigger", "f").context("/proc/sysrq-trigger")?;
    hog.wait_killed(context.deadline)?;
    let expected = Expected::kill(hog.pid(), "sysrq")
        .message("Out of memory")
        .inside(&cgroup);
    context.check(&expected)
}

/// A sysctl, put back when dropped.
struct Sysctl {
    file: &'static str,
    before: String,
}

impl Sysctl {
    fn set(file: &'static str, value: &str) -> Result<Self> {
        let before = fs::read_to_string(file).context(file)?;
        fs::write(file, value).context(file)?;
        Ok(Self { file, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.file, self.before.trim()) {
            eprintln!("left behind: {}: {error}", self.file);
        }
    }
}

fn kill_allocating_task(context: &mut Context) -> Result<()> {
    let _sysctl = Sysctl::set("/proc/sys/vm/oom_kill_allocating_task", "1")?;
    // On a node it is set at boot: a tracer finds it set when it starts.
    let tracer = context.start_tracer(&[])?;
    let cgroup = context.scratch.child("unlucky")?;
    let mut large = Spec::inside(&cgroup)
        .oom_score_adj(900)
        .start(&["anon", "128"], context.deadline)?;
    large.wait_ready(context.deadline)?;
    let mut hog = Spec::inside(&cgroup).start(&["anon", ALL_THERE_IS], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    if large.expect_alive().is_err() {
        // The last page was asked for by a kernel thread, which cannot be killed: the kernel chose by
        // score first.
        context.check(
            &Expected::kill(large.pid(), "node")
                .message("Out of memory")
                .inside(&cgroup)
                .because(&[], &["node_exhausted"]),
        )?;
    }
    context.check(
        &Expected::kill(hog.pid(), "node")
            .message("Out of memory (oom_kill_allocating_task)")
            .inside(&cgroup)
            .because(&[], &["node_exhausted"]),
    )?;
    let event = tracer.wait_for("oom_kill event", context.deadline, |event| {
        names_victim(event, hog.pid())
    })?;
    ensure!(
        at(&event, "trigger.process.pid") == hog.pid(),
        "trigger {}",
        event["trigger"]
    );
    Ok(())
}

fn mempolicy(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("bound")?;
    let mut hog = Spec::inside(&cgroup)
        .on_node(1)
        .start(&["anon", ALL_THERE_IS], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let expected = Expected::kill(hog.pid(), "mempolicy")
        .message("Out of memory")
        .inside(&cgroup)
        .because(&[], &["node_exhausted"]);
    context.check(&expected)
}

fn cpuset(context: &mut Context) -> Result<()> {
    context.scratch.set_mems("1")?;
    let mut hog =
        Spec::inside(&context.scratch).start(&["anon", ALL_THERE_IS], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let expected = Expected::kill(hog.pid(), "cpuset")
        .message("Out of memory")
        .inside(&context.scratch)
        .because(&[], &["node_exhausted"]);
    context.check(&expected)
}
