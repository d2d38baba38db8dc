//! What oomprobe says of the end of a container is what containerd says of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use oomprobe_tests::containerd::{
    Container, ContainerSpec, ContainerState, ContainerStatus, Containerd, PidNamespace, Pod,
    PodSpec,
};
use oomprobe_tests::deadline::soon;
use oomprobe_tests::expect::{at, equal};
use oomprobe_tests::tracer::Tracer;
use serde_json::Value;

use super::{HOG, IDLE, MIB, TraceTest, lone_hog, trace};

/// The tests here.
pub(super) const ALL: [(&str, TraceTest); 13] = [
    ("death_by_exit_code", death_by_exit_code),
    ("death_by_crash", death_by_crash),
    ("death_within_grace", death_within_grace),
    ("death_after_grace", death_after_grace),
    ("death_without_its_pod", death_without_its_pod),
    ("death_without_grace", death_without_grace),
    ("death_with_its_pod", death_with_its_pod),
    ("death_before_its_sidecar", death_before_its_sidecar),
    ("death_after_an_exec", death_after_an_exec),
    ("death_under_a_cpu_limit", death_under_a_cpu_limit),
    ("death_of_an_exec_probe", death_of_an_exec_probe),
    ("death_by_oom", death_by_oom),
    ("deaths_in_a_crash_loop", deaths_in_a_crash_loop),
];

/// Says that it runs; ends with 0 when asked to.
pub(super) const POLITE: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap 'exit 0' TERM; echo idle; while :; do sleep 0.05; done",
];

/// The same, in its own time.
const LINGERING: &[&str] = &[
    "/bin/sh",
    "-c",
    "trap 'sleep 4; exit 0' TERM; echo idle; while :; do sleep 0.05; done",
];

/// A program that ends as told. Nobody may lower the score that a container has.
const END: &[&str] = &["/bin/oomprobe-hog", "--oom-score-adj", "1000"];

pub(super) const SHIM: &str = "containerd-shim";

/// A pod of one container that runs `command`.
fn pod(containerd: &Containerd, name: &str, command: &[&str]) -> Result<Pod> {
    PodSpec::new("shop", name)
        .container(ContainerSpec::new("app", command).memory_limit_bytes(64 * MIB))
        .run(containerd)
}

/// The end of a container, by its first process.
pub(super) fn end_of(tracer: &Tracer, container: &str) -> Result<Value> {
    let what = format!("end of container {container}");
    tracer.wait_for(&what, soon(), |event| {
        event["kind"] == "process_death"
            && event["container"]["id"] == container
            && event["role"] == "init"
    })
}

/// Compares with what containerd says, and with the cause it must have.
pub(super) fn check(event: &Value, status: &ContainerStatus, causes: &[&str]) -> Result<()> {
    let compare = || {
        equal(event, "exit_code", status.exit_code)?;
        equal(event, "runtime.exit_code", status.exit_code)?;
        equal(event, "runtime.reason", status.reason.as_str())?;
        let oom_killed = status.reason == "OOMKilled";
        equal(event, "kubernetes_says_oomkilled", oom_killed)?;
        equal(event, "k8s.namespace.name", "shop")?;
        equal(event, "k8s.container.name", "app")?;
        equal(event, "container_survived", ())?;
        let cause = at(event, "verdict.cause").as_str().unwrap_or_default();
        ensure!(causes.contains(&cause), "{cause}, expected {causes:?}");
        Ok(())
    };
    compare().with_context(|| format!("containerd: {status:?}, event: {event:#}"))
}

/// The request to stop came from the runtime.
fn check_request(event: &Value) -> Result<()> {
    equal(event, "stop_request.signal.name", "SIGTERM")?;
    equal(event, "stop_request.sender.via", "kill")?;
    equal(event, "stop_request.sender.parent_comm", SHIM).with_context(|| format!("{event:#}"))
}

fn death_by_exit_code(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-exits", IDLE)?;
    for code in [0, 1, 2, 126, 127, 143] {
        let app = pod.start_as("app", &["/bin/sh", "-c", &format!("exit {code}")])?;
        let status = app.wait_exited()?;
        ensure!(status.exit_code == code, "{status:?}");
        let event = end_of(&tracer, app.id())?;
        check(&event, &status, &["app_exit"])?;
        equal(&event, "signal", ())?;
        equal(&event, "stop_request", ())?;
    }
    Ok(())
}

fn death_by_crash(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-crashes", IDLE)?;
    for (command, code, cause) in [
        (&["crash", "segv", "0x0"][..], 139, "crash"),
        (&["crash", "abort"], 134, "crash"),
        (&["crash", "seccomp", "process"], 159, "seccomp"),
    ] {
        let command = [END, command].concat();
        let app = pod.start_as("app", &command)?;
        let status = app.wait_exited()?;
        // A first process is spared what it sends itself: abort(3) then ends it by other means.
        ensure!(
            status.exit_code == code || command.contains(&"abort"),
            "{status:?}"
        );
        let event = end_of(&tracer, app.id())?;
        check(&event, &status, &[cause])?;
    }
    Ok(())
}

fn death_within_grace(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    // One exits with 0; the other, not first in its pid namespace, does not handle the signal.
    for (shared, command, code) in [
        (PidNamespace::Container, POLITE, 0),
        (PidNamespace::Pod, IDLE, 143),
    ] {
        let mut pod = PodSpec::new("shop", "cart-obeys")
            .container(ContainerSpec::new("app", command))
            .pid_namespace(shared)
            .run(containerd)?;
        let app = pod.start("app")?;
        app.wait_output("idle")?;
        app.stop(Duration::from_secs(30))?;
        pod.stop()?;
        let status = app.wait_exited()?;
        ensure!(status.exit_code == code, "{status:?}");
        let event = end_of(&tracer, app.id())?;
        check(&event, &status, &["runtime_stop"])?;
        check_request(&event)?;
        equal(&event, "stop_request.killed_after_ms", ())?;
    }
    Ok(())
}

fn death_after_grace(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-ignores", IDLE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    app.stop(Duration::from_secs(1))?;
    pod.stop()?;
    let status = app.wait_exited()?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &status, &["runtime_stop_grace_expired"])?;
    check_killed_after_grace(&event)
}

/// The kubelet stops one container of a pod that stays when its liveness probe fails.
fn death_without_its_pod(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-unwell", IDLE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    app.stop(Duration::from_secs(1))?;
    let status = app.wait_exited()?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &status, &["liveness_kill"])?;
    equal(&event, "runtime.sandbox_stopped", false)?;
    check_killed_after_grace(&event)
}

fn check_killed_after_grace(event: &Value) -> Result<()> {
    check_request(event)?;
    equal(event, "exit_code", 137)?;
    equal(event, "signal.name", "SIGKILL")?;
    equal(event, "sender.parent_comm", SHIM)?;
    let after = at(event, "stop_request.killed_after_ms").as_u64();
    ensure!(after >= Some(1000), "killed after {after:?} ms");
    Ok(())
}

fn death_without_grace(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-at-once", IDLE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    app.stop(Duration::ZERO)?;
    pod.stop()?;
    let status = app.wait_exited()?;
    ensure!(status.exit_code == 137, "{status:?}");
    let event = end_of(&tracer, app.id())?;
    // No time was given that could expire.
    check(&event, &status, &["runtime_stop"])?;
    equal(&event, "sender.parent_comm", SHIM)?;
    equal(&event, "stop_request", ())
}

fn death_with_its_pod(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-deleted", IDLE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    let uid = pod.uid().to_owned();
    pod.remove_running()?;
    // containerd knows it no more: 137 is what a SIGKILL comes to.
    let event = end_of(&tracer, app.id())?;
    equal(&event, "exit_code", 137)?;
    equal(&event, "signal.name", "SIGKILL")?;
    equal(&event, "k8s.pod.uid", uid)?;
    equal(&event, "sender.parent_comm", SHIM)?;
    equal(&event, "verdict.cause", "runtime_stop").with_context(|| format!("{event:#}"))
}

/// A pod of two is deleted, and one of them takes its time: its sandbox runs on meanwhile.
fn death_before_its_sidecar(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = PodSpec::new("shop", "cart-of-two")
        .container(ContainerSpec::new("app", POLITE))
        .container(ContainerSpec::new("sidecar", LINGERING))
        .run(containerd)?;
    let (app, sidecar) = (pod.start("app")?, pod.start("sidecar")?);
    for container in [&app, &sidecar] {
        container.wait_output("idle")?;
    }
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| sidecar.stop(Duration::from_secs(30)));
        app.stop(Duration::from_secs(30))?;
        let stopped = stopping.join();
        stopped.map_err(|_| anyhow!("stopping the sidecar panicked"))?
    })?;
    pod.stop()?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &app.wait_exited()?, &["runtime_stop"])?;
    equal(&event, "runtime.sandbox_stopped", false)?;
    equal(&event, "stop_request.siblings_too", true).with_context(|| format!("{event:#}"))
}

/// A container that its CPU limit stops most of the time, and that the kubelet stops for not
/// answering in time.
fn death_under_a_cpu_limit(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let busy: &[&str] = &["/bin/sh", "-c", "echo idle; while :; do :; done"];
    let mut pod = PodSpec::new("shop", "cart-slow")
        .container(ContainerSpec::new("app", busy).cpu_limit_millis(100))
        .run(containerd)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    std::thread::sleep(Duration::from_secs(4));
    app.stop(Duration::from_secs(1))?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &app.wait_exited()?, &["liveness_kill"])?;
    let throttled = at(&event, "before.cpu_throttled.throttled_ratio").as_f64();
    let summary = at(&event, "verdict.summary").as_str().unwrap_or_default();
    ensure!(
        throttled.is_some_and(|ratio| ratio > 0.5) && summary.contains("stood still"),
        "{event:#}"
    );
    Ok(())
}

/// What was executed in a container and failed, a moment before that ends, did not end it.
fn death_after_an_exec(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-hooked", POLITE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    let hook = app.exec(&["/bin/sh", "-c", "exit 7"])?;
    ensure!(hook.exit_code == 7, "{hook:?}");
    app.stop(Duration::from_secs(30))?;
    check(
        &end_of(&tracer, app.id())?,
        &app.wait_exited()?,
        &["liveness_kill"],
    )?;
    let event = tracer.wait_for("end of the hook", soon(), |event| {
        event["kind"] == "process_death" && event["exit_code"] == 7
    })?;
    equal(&event, "role", "exec").with_context(|| format!("{event:#}"))
}

fn death_of_an_exec_probe(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-probed", IDLE)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    for (command, cause) in [
        ("exit 7", "app_exit"),
        // From within its namespace, as it is not the first there.
        ("kill -9 $$", "own_signal"),
    ] {
        let answer = app.exec(&["/bin/sh", "-c", command])?;
        let what = format!("end of the probe with {}", answer.exit_code);
        let event = tracer.wait_for(&what, soon(), |event| {
            event["kind"] == "process_death"
                && event["container"]["id"] == app.id()
                && event["exit_code"] == answer.exit_code
        })?;
        let compare = || {
            equal(&event, "role", "exec")?;
            equal(&event, "container_survived", true)?;
            equal(&event, "kubernetes_says_oomkilled", ())?;
            equal(&event, "runtime", ())?;
            equal(&event, "verdict.cause", cause)
        };
        compare().with_context(|| format!("{event:#}"))?;
    }
    // What a probe leaves behind ends as a zombie: the container's first process waits for nobody.
    let leave = "(sleep 0.3; exit 5) >/dev/null 2>&1 & exit 0";
    let answer = app.exec(&["/bin/sh", "-c", leave])?;
    ensure!(answer.exit_code == 0, "{}", answer.exit_code);
    let event = tracer.wait_for("end of what the probe left", soon(), |event| {
        event["kind"] == "process_death"
            && event["container"]["id"] == app.id()
            && event["exit_code"] == 5
    })?;
    equal(&event, "role", "child")?;
    equal(&event, "container_survived", true)?;
    ensure!(app.status()?.state == ContainerState::Running);
    Ok(())
}

fn death_by_oom(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = lone_hog("cart-over").run(containerd)?;
    let app = pod.start("app")?;
    let status = app.wait_exited()?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &status, &["oom_kill"])?;
    equal(&event, "sender.via", "oom_killer")?;
    incident(&tracer, &event, &app)?;

    // A child first, and the container much later by itself: what containerd makes of that is what
    // Kubernetes shows.
    let script = format!("{}; echo idle; sleep 1; exit 3", HOG.join(" "));
    let app = pod.start_as("app", &["/bin/sh", "-c", &script])?;
    let child = tracer.wait_for("death of the child", soon(), |event| {
        event["kind"] == "process_death"
            && event["container"]["id"] == app.id()
            && event["role"] == "child"
    })?;
    equal(&child, "verdict.cause", "oom_kill")?;
    equal(&child, "container_survived", true)?;
    equal(&child, "kubernetes_says_oomkilled", ())?;
    incident(&tracer, &child, &app)?;
    let status = app.wait_exited()?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &status, &["app_exit"])?;
    equal(&event, "incident", ())
}

/// Its incident is that of the kill in the same container.
fn incident(tracer: &Tracer, death: &Value, app: &Container) -> Result<()> {
    let kill = super::oom_kill_of(tracer, app)?;
    ensure!(!death["incident"].is_null(), "no incident: {death:#}");
    equal(death, "incident", kill["incident"].clone())
}

fn deaths_in_a_crash_loop(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = pod(containerd, "cart-loops", IDLE)?;
    let crash = [END, &["crash", "segv", "0x0"]].concat();
    for (number, (command, cause)) in (1..).zip([
        (HOG, "oom_kill"),
        (&crash, "crash"),
        (&["/bin/sh", "-c", "exit 1"], "app_exit"),
        (HOG, "oom_kill"),
        (IDLE, "liveness_kill"),
    ]) {
        let app = pod.start_as("app", command)?;
        if command == IDLE {
            app.wait_output("idle")?;
            app.stop(Duration::from_secs(1))?;
        }
        let status = app.wait_exited()?;
        let event = end_of(&tracer, app.id())?;
        check(&event, &status, &[cause])?;
        let restarts = || {
            equal(&event, "restarts.deaths", number)?;
            let told = at(&event, "restarts.causes").as_array().context("causes")?;
            let count = |cause: &str| {
                let one = told.iter().find(|one| one["cause"] == cause);
                one.and_then(|one| one["count"].as_u64()).unwrap_or(0)
            };
            let all: u64 = told.iter().filter_map(|one| one["count"].as_u64()).sum();
            ensure!(all == number && count(cause) >= 1, "{told:?}");
            if number == 5 {
                ensure!(told[0]["cause"] == "oom_kill", "{told:?}");
                ensure!(count("oom_kill") == 2, "{told:?}");
            }
            Ok(())
        };
        restarts().with_context(|| format!("{:#}", event["restarts"]))?;
    }
    Ok(())
}
