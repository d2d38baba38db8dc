//! Who dies, and of what.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{MIB, OWN_MEMORY};
use crate::cgroup::{Cgroup, Pod};
use crate::deadline::until;
use crate::expect::{Expected, Role, at, names_victim};
use crate::hog::{Hog, Spec};
use crate::mount::Mount;
use crate::oracle::Kill;
use crate::scenario::{Context, Need, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "oom_group",
        "memory.oom.group takes the whole cgroup",
        oom_group,
    )
    .needs(&[Need::CgroupV2]),
    Scenario::new(
        "child_killed_parent_survives",
        "a container lives on without one of its processes",
        child_killed_parent_survives,
    ),
    Scenario::new(
        "leader_exited",
        "a thread outlives its leader and is killed",
        leader_exited,
    ),
    Scenario::new(
        "shared_mm",
        "two processes share the memory, both must die",
        shared_mm,
    ),
    Scenario::new(
        "fork_storm",
        "many children take memory at once",
        fork_storm,
    ),
    Scenario::new(
        "already_exiting",
        "the chosen one is dying already: no kill",
        already_exiting,
    )
    .needs(&[Need::FreezerV1]),
    Scenario::new(
        "nobody_to_choose",
        "the only process in the limit is a child of vfork: the allocation fails",
        nobody_to_choose,
    ),
    Scenario::new(
        "nobody_killable",
        "all are protected: the allocation fails",
        nobody_killable,
    )
    .needs(&[Need::SysResource]),
];

fn oom_group(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 6)?;
    let container = pod.container(0xe1)?;
    container.cgroup.limit(40 * MIB)?;
    container.cgroup.set_oom_group()?;
    let mut init = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "4"], context.deadline)?;
    init.wait_ready(context.deadline)?;
    let mut helper = Spec::inside(&container.cgroup).start(&["anon", "4"], context.deadline)?;
    helper.wait_ready(context.deadline)?;
    let mut hog = Spec::inside(&container.cgroup).start(&["anon", "64"], context.deadline)?;
    for victim in [&mut hog, &mut helper, &mut init] {
        victim.wait_killed(context.deadline)?;
    }
    context.check(
        &Expected::kill(hog.pid(), "container")
            .and(init.pid(), Role::Group)
            .and(helper.pid(), Role::Group)
            .limit(&container.cgroup, 40 * MIB)
            .inside(&container.cgroup)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&container.cgroup, &[hog.pid(), init.pid(), helper.pid()])
}

fn child_killed_parent_survives(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 7)?;
    let container = pod.container(0xf1)?;
    container.cgroup.limit(32 * MIB)?;
    let mut init = Spec::inside(&container.cgroup)
        .as_container_init()
        .held()
        .start(&["child", "64"], context.deadline)?;
    // The workload knows the child's pid in its own namespace only.
    init.child_pid(context.deadline)?;
    let members = container.cgroup.members()?;
    let child = members
        .iter()
        .copied()
        .find(|pid| *pid != init.pid())
        .context("no child")?;
    init.go()?;
    init.wait_ready(context.deadline)?;
    init.expect_alive()?;
    context.check(
        &Expected::kill(child, "container")
            .limit(&container.cgroup, 32 * MIB)
            .inside_container(&container, false)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&container.cgroup, &[child])
}

fn leader_exited(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("leaderless")?;
    cgroup.limit(32 * MIB)?;
    let mut hog = Spec::inside(&cgroup).start(&["leader-exits", "64"], context.deadline)?;
    let thread = hog.child_pid(context.deadline)?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "slice")
            .by_thread(thread)
            .limit(&cgroup, 32 * MIB)
            .inside(&cgroup)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&cgroup, &[thread])
}

fn shared_mm(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("twins")?;
    cgroup.limit(32 * MIB)?;
    let mut hog = Spec::inside(&cgroup).start(&["shared-mm", "64"], context.deadline)?;
    let twin = hog.child_pid(context.deadline)?;
    hog.wait_killed(context.deadline)?;
    until(context.deadline, "death of the twin", || {
        Ok((!cgroup.members()?.contains(&twin)).then_some(()))
    })?;
    // They look the same to the kernel; it may choose either.
    context.oracle.read()?;
    let (chosen, other) = match context.oracle.kill_of(twin) {
        Some(_) => (twin, hog.pid()),
        None => (hog.pid(), twin),
    };
    context.check(
        &Expected::kill(chosen, "slice")
            .and(other, Role::SharesMm)
            .limit(&cgroup, 32 * MIB)
            .inside(&cgroup)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&cgroup, &[hog.pid(), twin])
}

fn fork_storm(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("storm")?;
    cgroup.limit(48 * MIB)?;
    let mut storm =
        Spec::inside(&cgroup).start(&["storm", "12", "16", "--parallel", "8"], context.deadline)?;
    let kills = storm_kills(context, &cgroup, &mut storm, 12)?;
    context.check_all(&kills)
}

/// Follows a `storm` to its end: the kernel's kills of its children, as its log has them, at least
/// as many as were asked for.
pub(super) fn storm_kills(
    context: &mut Context,
    cgroup: &Cgroup,
    storm: &mut Hog,
    at_least: usize,
) -> Result<Vec<Kill>> {
    let mut children = Vec::new();
    while let Some((pid, signal)) = storm.next_killed(context.deadline)? {
        ensure!(
            signal == libc::SIGKILL,
            "child {pid} died of signal {signal}"
        );
        children.push(pid);
        context.oracle.read()?;
    }
    let status = storm.wait(context.deadline)?;
    ensure!(status.success(), "the parent of the storm: {status}");
    context.oracle.check_vmstat(context.deadline)?;
    let kills: Vec<Kill> = context
        .oracle
        .kills
        .iter()
        .filter(|kill| children.contains(&kill.tid))
        .cloned()
        .collect();
    ensure!(
        kills.len() >= at_least,
        "{} kills of {at_least}",
        kills.len()
    );
    context.check_counted(cgroup, &children)?;
    Ok(kills)
}

/// A frozen process that was sent SIGKILL stays until it is thawed. The OOM killer chooses it,
/// sees that it is dying, and only marks it, which thaws it.
fn already_exiting(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("exiting")?;
    cgroup.limit(48 * MIB)?;
    let mount = Mount::new("cgroup", "freezer")?;
    let freezer = Freezer::create(
        mount.path(),
        &format!("oomprobe-test-{}", std::process::id()),
    )?;
    let mut dying = Spec::inside(&cgroup)
        .also_inside(&freezer.0)
        .oom_score_adj(500)
        .start(&["anon", "28"], context.deadline)?;
    dying.wait_ready(context.deadline)?;
    freezer.freeze(context)?;
    kill(Pid::from_raw(dying.pid()), Signal::SIGKILL).context("kill the frozen process")?;
    dying.expect_alive()?;

    let other = Spec::inside(&cgroup).start(&["anon", "36"], context.deadline)?;
    dying.wait_killed(context.deadline)?;
    ensure!(
        freezer.state()? == "FROZEN",
        "it was thawed by another than the OOM killer"
    );
    context.oracle.check_vmstat(context.deadline)?;
    ensure!(
        context.oracle.kill_of(dying.pid()).is_none(),
        "the kernel reports a kill"
    );
    // The other may be killed in the moment between the mark and the return of the memory.
    context.check_counted(&cgroup, &[dying.pid(), other.pid()])?;
    drop(other);

    // A kill that is traced afterwards shows that nothing about the first is still on its way.
    let mut third = Spec::inside(&cgroup).start(&["anon", "64"], context.deadline)?;
    third.wait_killed(context.deadline)?;
    context.check(&Expected::kill(third.pid(), "slice").limit(&cgroup, 48 * MIB))?;
    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    for event in tracer.events() {
        if names_victim(&event, dying.pid()) {
            ensure!(event["outcome"] == "marked_exiting", "not a kill: {event}");
            ensure!(
                at(&event, "victims.0.role") == "already_exiting",
                "not a kill: {event}"
            );
        }
    }
    Ok(())
}

/// A directory of the v1 freezer.
struct Freezer(std::path::PathBuf);

impl Freezer {
    fn create(mount: &Path, name: &str) -> Result<Self> {
        let directory = mount.join(name);
        fs::create_dir(&directory).context("freezer directory")?;
        Ok(Self(directory))
    }

    fn state(&self) -> Result<String> {
        Ok(fs::read_to_string(self.0.join("freezer.state"))?
            .trim()
            .to_owned())
    }

    fn freeze(&self, context: &Context) -> Result<()> {
        fs::write(self.0.join("freezer.state"), "FROZEN").context("freeze")?;
        until(context.deadline, "frozen", || {
            Ok((self.state()? == "FROZEN").then_some(()))
        })
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // A frozen member could not be killed. It is gone when the directory can be removed.
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let removed = until(deadline, "empty", || Ok(fs::remove_dir(&self.0).ok()));
        if removed.is_err() {
            eprintln!("left behind: {}", self.0.display());
        }
    }
}

/// A child of vfork is left alone for its parent's sake, and is all there is in the limit.
fn nobody_to_choose(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("vfork")?;
    cgroup.limit(16 * MIB)?;
    let procs = cgroup.directory().join("cgroup.procs").into_os_string();
    let mut hog = Spec::default().start(&["vfork".into(), procs], context.deadline)?;
    let child = hog.child_pid(context.deadline)?;
    // ENOMEM, ENFILE, ENOBUFS: as what could not be had.
    fruitless(context, &mut hog, &cgroup, child, &["12", "23", "105"])
}

fn nobody_killable(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("protected")?;
    cgroup.limit(16 * MIB)?;
    let mount = Mount::new("tmpfs", "size=64m")?;
    let file = mount.path().join("file").into_os_string();
    let mut hog = Spec::inside(&cgroup)
        .oom_score_adj(-1000)
        .start(&["file".into(), file, "32".into()], context.deadline)?;
    let pid = hog.pid();
    // ENOMEM.
    fruitless(context, &mut hog, &cgroup, pid, &["12"])
}

/// The workload was refused memory, the kernel found nobody to kill, and one event says so.
fn fruitless(
    context: &mut Context,
    hog: &mut Hog,
    cgroup: &Cgroup,
    trigger: i32,
    expected: &[&str],
) -> Result<()> {
    let errno = hog.after("refused ", context.deadline)?;
    ensure!(
        expected.contains(&errno.as_str()),
        "refused with errno {errno}"
    );
    let status = hog.wait(context.deadline)?;
    ensure!(status.code() == Some(3), "the workload: {status}");
    until(context.deadline, "no killable processes", || {
        context.oracle.read()?;
        Ok((context.oracle.nothing_killable > 0).then_some(()))
    })?;
    ensure!(cgroup.oom_kills()? == 0, "the kernel counts a kill");

    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    let event = tracer.wait_for("OOM that killed nobody", context.deadline, |event| {
        event["outcome"] == "nothing_killable" && at(event, "trigger.process.tid") == trigger
    })?;
    if event["victims"]
        .as_array()
        .is_none_or(|victims| !victims.is_empty())
    {
        bail!("nobody was killed: {event}");
    }
    ensure!(
        at(&event, "limit.cgroup.path") == cgroup.kernel_path().to_string_lossy().as_ref(),
        "whose limit: {event}"
    );
    tracer.check_stream()
}
