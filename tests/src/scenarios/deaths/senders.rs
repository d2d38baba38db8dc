//! Ends by another process: who it was.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Stage, own_pid, path, send};
use crate::cgroup::Version;
use crate::death::Death;
use crate::expect::{at, equal, text};
use crate::hog::{End, Spec};
use crate::scenario::{Context, Need, Scenario};
use crate::unified::{self, Unified};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "killed_from_another_pod",
        "SIGKILL from a process with a pid namespace and a pod of its own",
        killed_from_another_pod,
    ),
    Scenario::new(
        "every_way_to_send",
        "kill, tgkill, sigqueue, pidfd, by senders that are gone, with hostile names",
        every_way_to_send,
    ),
    Scenario::new(
        "kills_itself",
        "a signal that the process sent itself",
        kills_itself,
    ),
    Scenario::new(
        "cgroup_kill",
        "a write to cgroup.kill, with the process that wrote",
        cgroup_kill,
    )
    .needs(&[Need::CgroupKill]),
    Scenario::new(
        "pid_reused",
        "who signalled the last holder of a pid did not signal the next",
        pid_reused,
    ),
];

fn killed_from_another_pod(context: &mut Context) -> Result<()> {
    let (here, there) = (Stage::new(context, 0x20)?, Stage::new(context, 0x21)?);
    let _init = here.with_init(context)?;
    let known = here.container.cgroup.members()?;
    let target = here.container.cgroup.directory().as_os_str().to_owned();
    let mut killer = there.spec().as_container_init().start(
        &["end".into(), "kill-child".into(), "9".into(), target],
        context.deadline,
    )?;
    // The killer knows its child by the pid of its own namespace.
    let inner = killer.child_pid(context.deadline)?;
    let child = here.other_member(&known)?;
    ensure!(inner != child, "the killer has no namespace of its own");
    killer.go()?;
    let (_, end) = killer.ended(context.deadline)?;
    ensure!(end == End::Signal(libc::SIGKILL), "{end:?}");
    context
        .check_death(
            &Death::of(child, end)?
                .inside(&here.container, "child", true)
                .sent("kill", killer.pid())
                .is("sender.cgroup.path", path(&there.container.cgroup))
                .is("sender.k8s.pod.uid", there.container.pod_uid.as_str())
                .is("sender.container.id", there.container.id.as_str())
                .because("killed_by_process"),
        )
        .map(drop)
}

fn every_way_to_send(context: &mut Context) -> Result<()> {
    const HOSTILE: &[u8] = b"\x1b[2J\"\xff\\\n<b>";
    let here = Stage::new(context, 0x22)?;
    let _init = here.with_init(context)?;
    for (seed, (how, signal, via, code)) in (0x23..).zip([
        ("kill", Signal::SIGKILL, "kill", "SI_USER"),
        ("tgkill", Signal::SIGKILL, "tkill", "SI_TKILL"),
        ("sigqueue", Signal::SIGUSR1, "sigqueue", "SI_QUEUE"),
        ("pidfd", Signal::SIGTERM, "kill", "SI_USER"),
    ]) {
        let there = Stage::new(context, seed)?;
        let mut victim = here
            .spec()
            .comm(HOSTILE)
            .start(&["end", "idle"], context.deadline)?;
        victim.wait_ready(context.deadline)?;
        let pid = victim.pid().to_string();
        let number = (signal as i32).to_string();
        let mut sender = there
            .spec()
            .comm(HOSTILE)
            .start(&["send", "--how", how, &pid, &number], context.deadline)?;
        let sent = sender.wait(context.deadline)?;
        ensure!(sent.success(), "the sender: {sent}");
        // Not even its cgroup is there when the death is told.
        let (container, directories) = (
            path(&there.container.cgroup),
            there.container.cgroup.directory().to_owned(),
        );
        let uid = there.container.pod_uid.clone();
        drop(there);
        ensure!(!directories.exists(), "the sender's cgroup is left");
        let end = End::of(victim.wait(context.deadline)?)?;
        ensure!(end == End::Signal(signal as i32), "{end:?}");
        let event = context.check_death(
            &Death::of(victim.pid(), end)?
                .inside(&here.container, "child", true)
                .sent(via, sender.pid())
                .is("sender.si_code", code)
                .is("process.comm", text(HOSTILE))
                .is("sender.process.comm", text(HOSTILE))
                .because("killed_by_process"),
        )?;
        // Where it was may not be known any more; but it was nowhere else.
        if let Some(event) = event
            && !at(&event, "sender.cgroup").is_null()
        {
            equal(&event, "sender.cgroup.path", container)?;
            equal(&event, "sender.k8s.pod.uid", uid)?;
        }
    }
    Ok(())
}

fn kills_itself(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x28)?;
    let _init = stage.with_init(context)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGUSR2] {
        let number = (signal as i32).to_string();
        let mut hog = stage
            .spec()
            .start(&["end", "raise", &number], context.deadline)?;
        let end = End::of(hog.wait(context.deadline)?)?;
        ensure!(end == End::Signal(signal as i32), "{end:?}");
        context.check_death(
            &Death::of(hog.pid(), end)?
                .inside(&stage.container, "child", true)
                .sent("kill", hog.pid())
                .is("stop_request", ())
                .because("own_signal"),
        )?;
    }
    Ok(())
}

fn cgroup_kill(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x29)?;
    // The unified hierarchy is another where the memory controller is on v1.
    let unified = match context.version {
        Version::V1 => Some(Unified::create("killed")?.context("no unified hierarchy")?),
        Version::V2 => None,
    };
    let directory = unified
        .as_ref()
        .map_or(stage.container.cgroup.directory(), Unified::directory);
    let spec = |stage: &Stage| -> Spec {
        match &unified {
            Some(unified) => stage.spec().also_inside(unified.directory()),
            None => stage.spec(),
        }
    };
    let start = |spec: Spec| -> Result<_> {
        let mut hog = spec.start(&["end", "idle"], context.deadline)?;
        hog.wait_ready(context.deadline)?;
        Ok(hog)
    };
    let mut init = start(spec(&stage).as_container_init())?;
    let mut other = start(spec(&stage))?;
    unified::kill(directory)?;
    let (pid, end) = init.ended(context.deadline)?;
    ensure!(end == End::Signal(libc::SIGKILL), "{end:?}");
    other.wait_killed(context.deadline)?;
    let event = context.check_death(
        &Death::of(pid, end)?
            .inside(&stage.container, "init", false)
            .sent("cgroup_kill", own_pid())
            .because("cgroup_kill"),
    )?;
    let (Some(event), Some(tracer)) = (event, context.tracer()) else {
        return Ok(());
    };
    // The other has an event of its own, or went with the first.
    let other = Death::of(other.pid(), end)?.inside(&stage.container, "child", false);
    let told = tracer.events().iter().any(|event| other.is_told_by(event));
    equal(&event, "others", u64::from(!told))
}

fn pid_reused(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x2a)?;
    let _init = stage.with_init(context)?;
    for first_signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut parent = stage
            .spec()
            .start(&["end", "pid-twice"], context.deadline)?;
        let pid = parent.child_pid(context.deadline)?;
        send(pid, first_signal)?;
        let (_, first) = parent.ended(context.deadline)?;
        let again = parent.child_pid(context.deadline)?;
        ensure!(again == pid, "pid {again}, not {pid} again");
        parent.go()?;
        let (_, second) = parent.ended(context.deadline)?;
        ensure!(second == End::Code(143), "{second:?}");

        let expected = Death::of(pid, second)?
            .inside(&stage.container, "child", true)
            .is("stop_request", ())
            .because("app_exit");
        let Some(tracer) = context.tracer() else {
            continue;
        };
        let is_second =
            |event: &serde_json::Value| expected.is_told_by(event) && at(event, "exit_code") == 143;
        let event = tracer.wait_for("death of the second", context.deadline, is_second)?;
        expected.check(&event)?;
        let told: Vec<_> = tracer
            .events()
            .into_iter()
            .filter(|event| expected.is_told_by(event))
            .collect();
        // The end of the first with 0 is none to tell of.
        let firsts = usize::from(first != End::Code(0));
        ensure!(told.len() == 1 + firsts, "{told:?}");
        if firsts == 1 {
            Death::of(pid, first)?
                .inside(&stage.container, "child", true)
                .sent("kill", own_pid())
                .because("killed_by_process")
                .check(&told[0])?;
        }
    }
    Ok(())
}
