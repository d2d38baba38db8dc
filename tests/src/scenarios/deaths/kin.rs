//! Ends that have to do with parents, threads and shared memory.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Stage, own_pid, send};
use crate::deadline::until;
use crate::death::Death;
use crate::expect::at;
use crate::hog::End;
use crate::scenario::{Context, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "parent_died",
        "a child that goes with its parent (PR_SET_PDEATHSIG)",
        parent_died,
    ),
    Scenario::new(
        "namespace_init_died",
        "the first process of a pid namespace takes all others along",
        namespace_init_died,
    ),
    Scenario::new(
        "leader_exits_first",
        "a thread ends the process after its leader",
        leader_exits_first,
    ),
    Scenario::new(
        "borrowed_memory",
        "children that run on their parent's memory (vfork, CLONE_VM)",
        borrowed_memory,
    ),
];

fn parent_died(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x40)?;
    let _init = stage.with_init(context)?;
    for (signal, cause) in [
        (Signal::SIGTERM, "init_died"),
        (Signal::SIGKILL, "init_died"),
    ] {
        let number = (signal as i32).to_string();
        let mut hog = stage
            .spec()
            .start(&["end", "orphan", &number], context.deadline)?;
        let child = hog.child_pid(context.deadline)?;
        hog.wait_ready(context.deadline)?;
        hog.go()?;
        let (mut parent, mut orphan) = (None, None);
        for _ in 0..2 {
            let (pid, end) = hog.ended(context.deadline)?;
            let one = if pid == child {
                &mut orphan
            } else {
                &mut parent
            };
            *one = Some((pid, end));
        }
        let (parent, end) = parent.context("no end of the parent")?;
        ensure!(end == End::Code(0), "the parent: {end:?}");
        let (_, end) = orphan.context("no end of the orphan")?;
        ensure!(end == End::Signal(signal as i32), "the orphan: {end:?}");
        context.check_death(
            &Death::of(child, end)?
                .inside(&stage.container, "child", true)
                .sent("parent_death", parent)
                .because(cause),
        )?;
    }
    Ok(())
}

fn namespace_init_died(context: &mut Context) -> Result<()> {
    // Enough that some are stopped while they exit, and others exit meanwhile.
    const CHILDREN: u64 = 50;
    let stage = Stage::new(context, 0x41)?;
    let arguments = ["end", "family", &CHILDREN.to_string(), "3"];
    let mut init = stage
        .spec()
        .as_container_init()
        .start(&arguments, context.deadline)?;
    init.wait_ready(context.deadline)?;
    let mut members = stage.container.cgroup.members()?;
    members.retain(|pid| *pid != init.pid());
    ensure!(members.len() as u64 == CHILDREN, "{members:?}");
    init.go()?;
    let (pid, end) = init.ended(context.deadline)?;
    ensure!(end == End::Code(3), "{end:?}");
    let event = context.check_death(
        &Death::of(pid, end)?
            .inside(&stage.container, "init", false)
            .because("app_exit"),
    )?;
    let (Some(event), Some(tracer)) = (event, context.tracer()) else {
        return Ok(());
    };
    // Each has an event of its own, or went with the first.
    let others = at(&event, "others").as_u64().context("others")?;
    let deaths: Vec<Death> = members
        .into_iter()
        .map(|child| {
            let death = Death::by_signal(child, Signal::SIGKILL)?
                .inside(&stage.container, "child", false)
                .sent("pid_namespace", pid)
                .because("init_died");
            Ok(death)
        })
        .collect::<Result<_>>()?;
    let mut told = 0;
    let all = until(context.deadline, "each of the family", || {
        told = 0;
        let events = tracer.events();
        for death in &deaths {
            if let Some(event) = events.iter().find(|event| death.is_told_by(event)) {
                death.check(event)?;
                told += 1;
            }
        }
        Ok((others + told >= CHILDREN).then_some(others + told))
    });
    let all =
        all.with_context(|| format!("{others} went along and {told} are told, of {CHILDREN}"))?;
    ensure!(all == CHILDREN, "{all} are told, of {CHILDREN}");
    Ok(())
}

fn leader_exits_first(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x42)?;
    let _init = stage.with_init(context)?;
    for how in ["exit", "exit-group", "idle"] {
        let mut hog = stage
            .spec()
            .start(&["end", "thread-last", how], context.deadline)?;
        let thread = hog.child_pid(context.deadline)?;
        if how == "idle" {
            hog.wait_ready(context.deadline)?;
            send(hog.pid(), Signal::SIGKILL)?;
        }
        let end = End::of(hog.wait(context.deadline)?)?;
        let ends = [End::Code(7), End::Code(9), End::Signal(libc::SIGKILL)];
        ensure!(ends.contains(&end), "{how}: {end:?}");
        ensure!(thread != hog.pid(), "the leader is the last thread");
        let death = Death::of(hog.pid(), end)?.inside(&stage.container, "child", true);
        let death = match end {
            End::Code(_) => death.because("app_exit"),
            End::Signal(_) => death.sent("kill", own_pid()).because("killed_by_process"),
        };
        context.check_death(&death)?;
    }
    Ok(())
}

fn borrowed_memory(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x43)?;
    let _init = stage.with_init(context)?;
    let mut hog = stage
        .spec()
        .start(&["end", "vfork", "5"], context.deadline)?;
    let (child, end) = hog.ended(context.deadline)?;
    ensure!(end == End::Code(5), "{end:?}");
    hog.wait_ready(context.deadline)?;
    context.check_death(
        &Death::of(child, end)?
            .inside(&stage.container, "child", true)
            .because("app_exit"),
    )?;

    let mut twins = stage.spec().start(&["shared-mm", "1"], context.deadline)?;
    let twin = twins.child_pid(context.deadline)?;
    twins.wait_ready(context.deadline)?;
    send(twin, Signal::SIGKILL)?;
    context.check_death(
        &Death::by_signal(twin, Signal::SIGKILL)?
            .inside(&stage.container, "child", true)
            .sent("kill", own_pid())
            .because("killed_by_process"),
    )?;
    twins.expect_alive()?;
    hog.expect_alive()
}
