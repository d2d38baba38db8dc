//! Whose limit was hit, and how it is called.

use anyhow::{Result, ensure};

use super::{MIB, OWN_MEMORY};
use crate::cgroup::{Pod, hostile_name, newline_is_refused};
use crate::expect::{Expected, names_victim};
use crate::hog::Spec;
use crate::scenario::{Context, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "container_limit",
        "a container grows over its own limit",
        container_limit,
    ),
    Scenario::new(
        "pod_limit",
        "two containers together reach the pod's limit",
        pod_limit,
    ),
    Scenario::new(
        "nested_limits",
        "the limit of a QoS slice is hit before the pod's",
        qos_slice,
    ),
    Scenario::new(
        "kubepods_limit",
        "the limit of all pods together is hit",
        kubepods_limit,
    ),
    Scenario::new(
        "limit_hit_without_kill",
        "reclaim saves the process",
        limit_hit_without_kill,
    ),
    Scenario::new(
        "short_lived_cgroup",
        "the pod is deleted at once",
        short_lived_cgroup,
    ),
    Scenario::new(
        "hostile_names",
        "names meant to confuse terminals and parsers",
        hostile_names,
    ),
];

fn container_limit(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 1)?;
    let container = pod.container(0xa1)?;
    container.cgroup.limit(32 * MIB)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "64"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, 32 * MIB)
            .inside_container(&container, true)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&container.cgroup, &[hog.pid()])
}

fn pod_limit(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 2)?;
    pod.pod.limit(48 * MIB)?;
    let (quiet, greedy) = (pod.container(0xb1)?, pod.container(0xb2)?);
    greedy.cgroup.limit(64 * MIB)?;
    let mut sibling = Spec::inside(&quiet.cgroup)
        .as_container_init()
        .start(&["anon", "12"], context.deadline)?;
    sibling.wait_ready(context.deadline)?;
    let mut hog = Spec::inside(&greedy.cgroup)
        .as_container_init()
        .start(&["anon", "60"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    sibling.expect_alive()?;
    context.check(
        &Expected::kill(hog.pid(), "pod")
            .limit(&pod.pod, 48 * MIB)
            .inside_container(&greedy, true)
            .because(&["anon_bytes"], OWN_MEMORY),
    )?;
    context.check_counted(&greedy.cgroup, &[hog.pid()])?;
    ensure!(
        quiet.cgroup.oom_kills()? == 0,
        "the sibling's cgroup counts a kill"
    );
    Ok(())
}

fn qos_slice(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 3)?;
    pod.qos.limit(40 * MIB)?;
    pod.pod.limit(64 * MIB)?;
    ancestor_limit(context, &pod, "qos_slice")
}

fn kubepods_limit(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 4)?;
    pod.kubepods.limit(40 * MIB)?;
    pod.qos.limit(64 * MIB)?;
    ancestor_limit(context, &pod, "kubepods")
}

fn ancestor_limit(context: &mut Context, pod: &Pod, scope: &'static str) -> Result<()> {
    let container = pod.container(0xc1)?;
    container.cgroup.limit(128 * MIB)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "80"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let owner = if scope == "kubepods" {
        &pod.kubepods
    } else {
        &pod.qos
    };
    let expected = Expected::kill(hog.pid(), scope)
        .limit(owner, 40 * MIB)
        .inside_container(&container, true)
        .because(&["anon_bytes"], OWN_MEMORY);
    context.check(&expected)
}

/// It uses five times its limit and lives, so the limit was hit and reclaim helped.
fn limit_hit_without_kill(context: &mut Context) -> Result<()> {
    let cgroup = context.scratch.child("reclaimable")?;
    cgroup.limit(32 * MIB)?;
    let mut hog = Spec::inside(&cgroup).start(&["lazyfree", "160"], context.deadline)?;
    let status = hog.wait(context.deadline)?;
    ensure!(status.success(), "reclaim should have saved it: {status}");
    ensure!(cgroup.oom_kills()? == 0, "the kernel counts a kill");

    // A kill that is traced afterwards shows that nothing about the first is still on its way.
    let survivor = hog.pid();
    let mut hog = Spec::inside(&cgroup).start(&["anon", "64"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    let expected = Expected::kill(hog.pid(), "slice")
        .limit(&cgroup, 32 * MIB)
        .inside(&cgroup);
    context.check(&expected)?;
    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    let blamed = tracer
        .events()
        .iter()
        .any(|event| names_victim(event, survivor));
    ensure!(!blamed, "a process that lived is in an oom_kill event");
    Ok(())
}

fn short_lived_cgroup(context: &mut Context) -> Result<()> {
    let pod = Pod::create(&context.scratch, 5)?;
    let container = pod.container(0xd1)?;
    container.cgroup.limit(16 * MIB)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(&["anon", "32"], context.deadline)?;
    hog.wait_killed(context.deadline)?;
    pod.kubepods.remove()?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, 16 * MIB)
            .inside_container(&container, true)
            .because(&[], OWN_MEMORY),
    )
}

fn hostile_names(context: &mut Context) -> Result<()> {
    ensure!(
        newline_is_refused(&context.scratch),
        "this kernel takes a newline in a cgroup name"
    );
    let cgroup = context.scratch.child(hostile_name())?;
    cgroup.limit(16 * MIB)?;
    let comms: [&[u8]; 4] = [
        b"\x1b[31mred\x1b[0m",
        b"new\nline) \\x41",
        b"\xff\xfe\xc3(\"}{",
        b"a, pid=1, (b)  ",
    ];
    for comm in comms {
        let mut hog = Spec::inside(&cgroup)
            .comm(comm)
            .start(&["anon", "32"], context.deadline)?;
        hog.wait_killed(context.deadline)?;
        let kill = context.oracle.wait_kill(hog.pid(), context.deadline)?;
        ensure!(kill.comm == comm, "the kernel calls it {:?}", kill.comm);
        context.check(
            &Expected::kill(hog.pid(), "slice")
                .limit(&cgroup, 16 * MIB)
                .inside(&cgroup)
                .because(&["anon_bytes"], OWN_MEMORY),
        )?;
    }
    Ok(())
}
