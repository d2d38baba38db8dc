//! Deaths that are OOM kills too: told once as a death, and tied to the incident.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Stage;
use crate::death::Death;
use crate::expect::{at, equal, names_victim};
use crate::hog::Hog;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "oom_death_of_init",
        "a container's first process is OOM-killed: one death, with its incident",
        oom_death_of_init,
    ),
    Scenario::new(
        "oom_death_of_child",
        "another process of a container is OOM-killed: it lives on",
        oom_death_of_child,
    ),
    Scenario::new(
        "oom_deaths_of_group",
        "memory.oom.group: each death is of the same incident",
        oom_deaths_of_group,
    )
    .needs(&[Need::CgroupV2]),
];

/// An OOM victim's death; its cause and incident.
fn check(context: &Context, death: Death) -> Result<Option<(String, String)>> {
    let death = death
        .is("sender.via", "oom_killer")
        .one_of("verdict.cause", ["oom_kill", "oom_group"]);
    let Some(event) = context.check_death(&death)? else {
        return Ok(None);
    };
    let told = |path: &str| at(&event, path).as_str().map(str::to_owned);
    let cause = told("verdict.cause").context("cause")?;
    Ok(Some((cause, told("incident").context("no incident")?)))
}

/// The only `oom_kill` event with this victim.
fn incident_of(context: &Context, victim: i32) -> Result<Value> {
    let tracer = context.tracer().context("a tracer")?;
    let event = tracer.wait_for("oom_kill event", context.deadline, |event| {
        names_victim(event, victim) && event["outcome"] == "killed"
    })?;
    Ok(event["incident"].clone())
}

fn oom_death_of_init(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x50)?;
    stage.container.cgroup.limit(32 * MIB)?;
    let mut init = stage
        .spec()
        .as_container_init()
        .start(&["anon", "64"], context.deadline)?;
    init.wait_killed(context.deadline)?;
    let death = Death::by_signal(init.pid(), Signal::SIGKILL)?;
    let found = check(context, death.inside(&stage.container, "init", false))?;
    let Some((cause, incident)) = found else {
        return Ok(());
    };
    ensure!(cause == "oom_kill", "{cause}");
    ensure!(
        incident_of(context, init.pid())? == incident.as_str(),
        "another incident: {incident}"
    );
    Ok(())
}

fn oom_death_of_child(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x51)?;
    stage.container.cgroup.limit(32 * MIB)?;
    let mut init = stage.with_init(context)?;
    let mut hog = stage.spec().start(&["anon", "64"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let death = Death::by_signal(hog.pid(), Signal::SIGKILL)?
        .inside(&stage.container, "child", true)
        .is("kubernetes_says_oomkilled", ());
    let found = check(context, death)?;
    init.expect_alive()?;
    let Some((cause, incident)) = found else {
        return Ok(());
    };
    ensure!(cause == "oom_kill", "{cause}");
    ensure!(
        incident_of(context, hog.pid())? == incident.as_str(),
        "another incident: {incident}"
    );
    // The first process then ends by itself: no OOM kill of its own.
    drop(init);
    Ok(())
}

fn oom_deaths_of_group(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x52)?;
    stage.container.cgroup.limit(40 * MIB)?;
    stage.container.cgroup.set_oom_group()?;
    let ready = |mut hog: Hog| -> Result<Hog> {
        hog.wait_ready(context.deadline)?;
        Ok(hog)
    };
    let mut init = ready(
        stage
            .spec()
            .as_container_init()
            .start(&["anon", "4"], context.deadline)?,
    )?;
    let mut helper = ready(stage.spec().start(&["anon", "4"], context.deadline)?)?;
    let mut hog = stage.spec().start(&["anon", "64"], context.deadline)?;
    let mut told = Vec::new();
    for (victim, role) in [
        (&mut hog, "child"),
        (&mut helper, "child"),
        (&mut init, "init"),
    ] {
        victim.wait_killed(context.deadline)?;
        let death = Death::by_signal(victim.pid(), Signal::SIGKILL)?;
        told.extend(check(context, death.inside(&stage.container, role, false))?);
    }
    let Some((cause, incident)) = told.first() else {
        return Ok(());
    };
    ensure!(cause == "oom_kill", "the chosen one: {cause}");
    let along = told.iter().skip(1);
    ensure!(
        along
            .clone()
            .all(|(cause, other)| cause == "oom_group" && other == incident),
        "{told:?}"
    );
    equal(
        &serde_json::json!({ "incident": incident_of(context, hog.pid())? }),
        "incident",
        incident.as_str(),
    )
}
