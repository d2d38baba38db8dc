//! Ends by the process itself: exit codes, also of what it was asked to do.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;

use super::{Stage, own_pid, send};
use crate::death::Death;
use crate::expect::{at, equal};
use crate::hog::{End, Spec};
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "plain_exits",
        "exit codes of a container's first process and of another",
        plain_exits,
    ),
    Scenario::new(
        "asked_to_stop",
        "SIGTERM: obeyed, not handled, and ignored until SIGKILL",
        asked_to_stop,
    ),
    Scenario::new(
        "renamed_by_exec",
        "the name of the program that ended, not of the one before",
        renamed_by_exec,
    ),
    Scenario::new(
        "life_and_memory",
        "how long it lived, and the most memory it had",
        life_and_memory,
    ),
    Scenario::new(
        "all_deaths",
        "deaths outside containers are told when asked for, and only then",
        all_deaths,
    )
    .needs(&[Need::Tracer]),
];

fn plain_exits(context: &mut Context) -> Result<()> {
    for (seed, code) in (0..).zip([0, 1, 2, 126, 127, 143]) {
        let stage = Stage::new(context, seed)?;
        let arguments = ["end", "exit", &code.to_string()];
        let mut init = stage
            .spec()
            .as_container_init()
            .start(&arguments, context.deadline)?;
        let (pid, end) = init.ended(context.deadline)?;
        ensure!((pid, end) == (init.pid(), End::Code(code)), "{pid} {end:?}");
        context.check_death(
            &Death::of(pid, end)?
                .inside(&stage.container, "init", false)
                .is("stop_request", ())
                .because("app_exit"),
        )?;
    }
    let stage = Stage::new(context, 6)?;
    let _init = stage.with_init(context)?;
    let mut well = stage
        .spec()
        .start(&["end", "exit", "0"], context.deadline)?;
    let end = End::of(well.wait(context.deadline)?)?;
    ensure!(end == End::Code(0), "{end:?}");
    let well = Death::of(well.pid(), end)?.inside(&stage.container, "child", true);
    context.check_no_death(&well, &stage.last_word(context)?.because("app_exit"))
}

fn asked_to_stop(context: &mut Context) -> Result<()> {
    // A first process in its own namespace, as nothing else could tell it from one that obeyed.
    for (seed, code) in [(0x10, 0), (0x11, 143)] {
        let stage = Stage::new(context, seed)?;
        let mut init = stage
            .spec()
            .as_container_init()
            .start(&["end", "on-term", &code.to_string()], context.deadline)?;
        init.wait_ready(context.deadline)?;
        send(init.pid(), Signal::SIGTERM)?;
        let (pid, end) = init.ended(context.deadline)?;
        ensure!(end == End::Code(code), "{end:?}");
        context.check_death(
            &asked(Death::of(pid, end)?.inside(&stage.container, "init", false))
                .is("stop_request.killed_after_ms", ())
                .because("app_exit"),
        )?;
    }

    let stage = Stage::new(context, 0x12)?;
    let _init = stage.with_init(context)?;
    let mut idle = stage.idle(context)?;
    send(idle.pid(), Signal::SIGTERM)?;
    let end = End::of(idle.wait(context.deadline)?)?;
    ensure!(end == End::Signal(libc::SIGTERM), "{end:?}");
    context.check_death(
        &Death::of(idle.pid(), end)?
            .inside(&stage.container, "child", true)
            .sent("kill", own_pid())
            .is("sender.si_code", "SI_USER")
            .because("killed_by_process"),
    )?;

    let stage = Stage::new(context, 0x13)?;
    let mut deaf = stage
        .spec()
        .as_container_init()
        .start(&["end", "on-term"], context.deadline)?;
    deaf.wait_ready(context.deadline)?;
    let before = Instant::now();
    send(deaf.pid(), Signal::SIGTERM)?;
    let asked_at = Instant::now();
    std::thread::sleep(Duration::from_millis(700));
    let at_least = asked_at.elapsed();
    send(deaf.pid(), Signal::SIGKILL)?;
    let at_most = before.elapsed();
    let (pid, end) = deaf.ended(context.deadline)?;
    let ended_by = before.elapsed();
    let death = Death::of(pid, end)?.inside(&stage.container, "init", false);
    let Some(event) = context.check_death(
        &asked(death)
            .sent("kill", own_pid())
            .because("killed_by_process"),
    )?
    else {
        return Ok(());
    };
    let ms = |path| at(&event, path).as_u64().map(u128::from).context(path);
    let delay = ms("stop_request.killed_after_ms")?;
    ensure!(
        (at_least.as_millis()..=at_most.as_millis()).contains(&delay),
        "killed after {delay} ms, not {at_least:?} to {at_most:?}"
    );
    let took = ms("stop_request.took_ms")?;
    ensure!(
        (delay..=ended_by.as_millis()).contains(&took),
        "took {took} ms, killed after {delay}, gone after {ended_by:?}"
    );
    Ok(())
}

/// By this process, with SIGTERM.
fn asked(death: Death) -> Death {
    death
        .is("stop_request.signal.name", "SIGTERM")
        .is("stop_request.sender.via", "kill")
        .is("stop_request.sender.process.pid", own_pid())
}

fn renamed_by_exec(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x18)?;
    let arguments = ["end", "exec", "before-exec", "5"];
    let mut init = stage
        .spec()
        .as_container_init()
        .start(&arguments, context.deadline)?;
    let (pid, end) = init.ended(context.deadline)?;
    ensure!(end == End::Code(5), "{end:?}");
    context
        .check_death(
            &Death::of(pid, end)?
                .inside(&stage.container, "init", false)
                .is("process.comm", "oomprobe-hog")
                .because("app_exit"),
        )
        .map(drop)
}

fn life_and_memory(context: &mut Context) -> Result<()> {
    const TAKEN_MIB: u64 = 24;
    let stage = Stage::new(context, 0x1a)?;
    let _init = stage.with_init(context)?;
    let before = Instant::now();
    let mut hog = stage
        .spec()
        .start(&["anon", &TAKEN_MIB.to_string()], context.deadline)?;
    let started = Instant::now();
    hog.wait_ready(context.deadline)?;
    std::thread::sleep(Duration::from_millis(300));
    let at_least = started.elapsed();
    send(hog.pid(), Signal::SIGKILL)?;
    let end = End::of(hog.wait(context.deadline)?)?;
    let at_most = before.elapsed();
    let death = Death::of(hog.pid(), end)?.inside(&stage.container, "child", true);
    let Some(event) = context.check_death(&death.sent("kill", own_pid()))? else {
        return Ok(());
    };
    let number = |path| at(&event, path).as_u64().context(path);
    let lived = u128::from(number("lifetime_ms")?);
    ensure!(
        (at_least.as_millis()..=at_most.as_millis()).contains(&lived),
        "lived for {lived} ms, not {at_least:?} to {at_most:?}"
    );
    // Beside what it took there are its program and its stack; and the kernel counts what it was
    // before it became another program, a copy of this one.
    let peak = number("peak_rss_bytes")?;
    let at_most = own_peak()?.max(TAKEN_MIB * MIB) + 16 * MIB;
    ensure!(
        (TAKEN_MIB * MIB..at_most).contains(&peak),
        "{peak} bytes at most, possible are {at_most}"
    );
    Ok(())
}

/// Most memory that the program that runs the scenarios ever had resident, bytes.
fn own_peak() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok(u64::try_from(usage.max_rss())? * 1024)
}

fn all_deaths(context: &mut Context) -> Result<()> {
    let outside = context.scratch.child("no-container")?;
    let exits = |code: &str, context: &Context| -> Result<Death> {
        let mut hog = Spec::inside(&outside).start(&["end", "exit", code], context.deadline)?;
        Death::of(hog.pid(), End::of(hog.wait(context.deadline)?)?)
    };
    context.start_tracer(&[])?;
    let unasked = exits("3", context)?;
    let stage = Stage::new(context, 0x19)?;
    let _init = stage.with_init(context)?;
    context.check_no_death(&unasked, &stage.last_word(context)?)?;

    let tracer = context.start_tracer(&["--all-deaths"])?;
    for code in ["0", "3"] {
        let death = exits(code, context)?
            .is("role", ())
            .is("container_survived", ())
            .because("app_exit");
        let event = context.check_death(&death)?.context("a tracer")?;
        equal(&event, "k8s", ())?;
        equal(&event, "container", ())?;
    }
    tracer.stop()
}
