//! Ends by a process's own doing: faults, aborts, filters, limits.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Stage;
use crate::death::Death;
use crate::expect::at;
use crate::hog::{End, Hog};
use crate::scenario::{Context, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "faults",
        "SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, with the address",
        faults,
    ),
    Scenario::new("aborts", "abort(3), without and with a core dump", aborts),
    Scenario::new(
        "seccomp_kills",
        "seccomp: the process, a thread, strict mode",
        seccomp_kills,
    ),
    Scenario::new(
        "own_limits",
        "RLIMIT_CPU, soft and hard, and RLIMIT_FSIZE",
        own_limits,
    ),
];

/// Runs a crash in a container that lives on; the workload and its end.
fn crash(context: &Context, stage: &Stage, crash: &[&str]) -> Result<(Hog, End, bool)> {
    use std::os::unix::process::ExitStatusExt as _;

    let arguments: Vec<&str> = ["crash"].iter().chain(crash).copied().collect();
    let mut hog = stage.spec().start(&arguments, context.deadline)?;
    let status = hog.wait(context.deadline)?;
    Ok((hog, End::of(status)?, status.core_dumped()))
}

/// What holds for every crash.
fn expected(stage: &Stage, pid: i32, end: End, core_dumped: bool) -> Result<Death> {
    Ok(Death::of(pid, end)?
        .inside(&stage.container, "child", true)
        .is("core_dumped", core_dumped)
        .is("stop_request", ()))
}

fn faults(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x30)?;
    let _init = stage.with_init(context)?;
    for (arguments, signal, code, address) in [
        (
            &["segv", "0x0"][..],
            Signal::SIGSEGV,
            "SEGV_MAPERR",
            Some("0x0"),
        ),
        // Where nothing is mapped: the kernel maps from the top.
        (
            &["segv", "0x10f0f0f000"],
            Signal::SIGSEGV,
            "SEGV_MAPERR",
            Some("0x10f0f0f000"),
        ),
        // No address that the processor knows: it does not tell which.
        (
            &["segv", "0xdead00000000beef"],
            Signal::SIGSEGV,
            "SI_KERNEL",
            None,
        ),
        (&["read-only"], Signal::SIGSEGV, "SEGV_ACCERR", None),
        (&["bus"], Signal::SIGBUS, "BUS_ADRERR", None),
        (&["fpe"], Signal::SIGFPE, "FPE_INTDIV", None),
        (&["ill"], Signal::SIGILL, "ILL_ILLOPN", None),
        (&["trap"], Signal::SIGTRAP, "SI_KERNEL", None),
    ] {
        let (mut hog, end, core) = crash(context, &stage, arguments)?;
        ensure!(end == End::Signal(signal as i32), "{arguments:?}: {end:?}");
        let mut death = expected(&stage, hog.pid(), end, core)?
            .sent("fault", hog.pid())
            .is("sender.si_code", code)
            .because("crash");
        let said = hog.all_after("fault ", context.deadline)?;
        if let Some(address) = address.or(said.first().map(String::as_str)) {
            death = death.is("fault.address", address);
        }
        let event = context.check_death(&death)?;
        // At the instruction itself.
        if let Some(event) = event
            && matches!(signal, Signal::SIGFPE | Signal::SIGILL)
        {
            let told = at(&event, "fault.address").as_str().unwrap_or("0x0");
            ensure!(told != "0x0", "no address of the instruction: {event}");
        }
    }
    Ok(())
}

fn aborts(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x31)?;
    let _init = stage.with_init(context)?;
    let directory = tempfile::tempdir().context("directory for a core dump")?;
    let core = directory.path().to_str().context("directory")?;
    for arguments in [&["abort"][..], &["--core", core, "abort"]] {
        let (hog, end, core) = crash(context, &stage, arguments)?;
        ensure!(end == End::Signal(libc::SIGABRT), "{end:?}");
        context.check_death(
            &expected(&stage, hog.pid(), end, core)?
                .sent("tkill", hog.pid())
                .is("sender.si_code", "SI_TKILL")
                .because("crash"),
        )?;
    }
    Ok(())
}

fn seccomp_kills(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x32)?;
    let _init = stage.with_init(context)?;
    for (action, signal) in [
        ("process", Signal::SIGSYS),
        ("only-thread", Signal::SIGSYS),
        ("strict", Signal::SIGKILL),
    ] {
        let (hog, end, core) = crash(context, &stage, &["seccomp", action])?;
        ensure!(end == End::Signal(signal as i32), "{action}: {end:?}");
        let mut death = expected(&stage, hog.pid(), end, core)?
            .is("sender.via", "seccomp")
            .because("seccomp");
        if signal == Signal::SIGSYS {
            // Before 5.16 no signal is sent: the process ends without one.
            let forbidden = Value::from(libc::SYS_getpgid);
            death = death.one_of("fault.syscall", [forbidden, Value::Null]);
        }
        context.check_death(&death)?;
    }
    // What kills one of several threads ends no process.
    let (hog, end, core) = crash(context, &stage, &["seccomp", "other-thread"])?;
    ensure!(end == End::Code(7), "{end:?}");
    context
        .check_death(&expected(&stage, hog.pid(), end, core)?.because("app_exit"))
        .map(drop)
}

fn own_limits(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x33)?;
    let _init = stage.with_init(context)?;
    for (arguments, signal) in [
        (&["cpu-limit"][..], Signal::SIGXCPU),
        (&["cpu-limit", "--hard"], Signal::SIGKILL),
        (&["file-limit"], Signal::SIGXFSZ),
    ] {
        let (hog, end, core) = crash(context, &stage, arguments)?;
        ensure!(end == End::Signal(signal as i32), "{arguments:?}: {end:?}");
        context.check_death(
            &expected(&stage, hog.pid(), end, core)?
                .is("sender.via", "resource_limit")
                .because("resource_limit"),
        )?;
    }
    Ok(())
}
