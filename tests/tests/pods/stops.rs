//! Containers that something outside of them ends: what for is told from what else happens.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use oomprobe_tests::containerd::{
    Container, ContainerSpec, ContainerState, Containerd, Pod, PodSpec,
};
use oomprobe_tests::deadline::soon;
use oomprobe_tests::expect::{at, equal};
use oomprobe_tests::meminfo;
use oomprobe_tests::tracer::Tracer;
use oomprobe_tests::unified;
use serde_json::Value;
use tempfile::TempDir;

use super::deaths::{POLITE, SHIM, check, end_of};
use super::{IDLE, MIB, TraceTest, cgroups_named, trace, trace_with};

/// The tests here.
pub(super) const ALL: [(&str, TraceTest); 5] = [
    ("death_by_eviction", death_by_eviction),
    ("death_without_shortage", death_without_shortage),
    ("death_of_a_late_exec_probe", death_of_a_late_exec_probe),
    ("death_by_cgroup_kill", death_by_cgroup_kill),
    ("death_beside_its_sidecar", death_beside_its_sidecar),
];

/// What the kubelet gives the containers of a pod that it evicts: never less than this
/// (`minimumGracePeriodInSeconds`, pkg/kubelet/kuberuntime/kuberuntime_container.go).
const EVICTION_GRACE: Duration = Duration::from_secs(2);

/// A node whose kubelet evicts below so much available memory; all else is this machine's.
fn node_that_evicts_below(bytes: u64) -> Result<TempDir> {
    let root = tempfile::tempdir()?;
    for shared in ["proc", "sys", "var/log"] {
        let link = root.path().join(shared);
        fs::create_dir_all(link.parent().context("below the root")?)?;
        symlink(Path::new("/").join(shared), &link)?;
    }
    let kubelet = root.path().join("var/lib/kubelet");
    fs::create_dir_all(&kubelet)?;
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         evictionHard:\n  memory.available: {bytes}\n  nodefs.available: 10%\n"
    );
    fs::write(kubelet.join("config.yaml"), config)?;
    Ok(root)
}

fn trace_below(containerd: &Containerd, probe: &Path, root: &TempDir) -> Result<Tracer> {
    let root = root.path().to_str().context("the root is not UTF-8")?;
    trace_with(containerd, probe, &["--host-root", root])
}

/// A pod of one container that obeys and one that does not, both running.
fn pod_of_two(containerd: &Containerd, name: &str) -> Result<(Pod, Container, Container)> {
    let mut pod = PodSpec::new("shop", name)
        .container(ContainerSpec::new("app", POLITE))
        .container(ContainerSpec::new("sidecar", IDLE))
        .run(containerd)?;
    let (app, sidecar) = (pod.start("app")?, pod.start("sidecar")?);
    for container in [&app, &sidecar] {
        container.wait_output("idle")?;
    }
    Ok((pod, app, sidecar))
}

/// Ends a pod as the kubelet does: all containers at once, then the sandbox.
fn end_pod(pod: &Pod, containers: &[&Container], grace: Duration) -> Result<()> {
    std::thread::scope(|scope| {
        let stopping: Vec<_> = containers
            .iter()
            .map(|container| scope.spawn(move || container.stop(grace)))
            .collect();
        stopping.into_iter().try_for_each(|stopping| {
            let stopped = stopping.join();
            stopped.map_err(|_| anyhow!("stopping a container panicked"))?
        })
    })?;
    pod.stop()
}

/// What a pod that fills a part of the node and is then stopped is told to have ended of.
fn stopped_below(
    containerd: &Containerd,
    probe: &Path,
    name: &str,
    threshold_bytes: impl Fn(Node) -> u64,
    causes: [&str; 2],
) -> Result<[Value; 2]> {
    let available_bytes = meminfo::bytes("MemAvailable")?;
    // Enough to be told from what else the machine does meanwhile.
    let filled_bytes = available_bytes / 6;
    let root = node_that_evicts_below(threshold_bytes(Node {
        available_bytes,
        filled_bytes,
    }))?;
    let tracer = trace_below(containerd, probe, &root)?;
    let script = format!(
        "trap 'exit 0' TERM; /bin/oomprobe-hog --oom-score-adj 1000 anon {} & wait",
        filled_bytes / MIB
    );
    let filler = ContainerSpec::new("app", &["/bin/sh", "-c", &script])
        .memory_limit_bytes(filled_bytes + 256 * MIB);
    let mut pod = PodSpec::new("shop", name)
        .container(filler)
        .container(ContainerSpec::new("sidecar", IDLE))
        .run(containerd)?;
    let (app, sidecar) = (pod.start("app")?, pod.start("sidecar")?);
    sidecar.wait_output("idle")?;
    app.wait_output("ready")?;
    // The tracer looks at the node once a second, and later on a busy machine.
    std::thread::sleep(Duration::from_secs(2));
    end_pod(&pod, &[&app, &sidecar], EVICTION_GRACE)?;
    let ends = [end_of(&tracer, app.id())?, end_of(&tracer, sidecar.id())?];
    for (event, (code, cause)) in ends.iter().zip([0, 137].into_iter().zip(causes)) {
        let compare = || {
            equal(event, "exit_code", code)?;
            equal(event, "runtime.exit_code", code)?;
            equal(event, "kubernetes_says_oomkilled", false)?;
            equal(event, "stop_request.sender.parent_comm", SHIM)?;
            equal(event, "verdict.cause", cause)
        };
        compare().with_context(|| format!("{event:#}"))?;
    }
    Ok(ends)
}

/// A node before a pod fills it.
#[derive(Clone, Copy)]
struct Node {
    available_bytes: u64,
    filled_bytes: u64,
}

/// The pod whose end gives back what the node is short of, as the kubelet chooses it. One container
/// ends when asked to; the other does not, and its end comes when the shortage is over.
fn death_by_eviction(containerd: &Containerd, probe: &Path) -> Result<()> {
    // With the pod it has far less than this, without it a little more.
    let short = |node: Node| node.available_bytes - node.filled_bytes / 10;
    let causes = ["eviction", "eviction"];
    for event in stopped_below(containerd, probe, "cart-evicted", short, causes)? {
        equal(&event, "verdict.confidence", "medium")?;
        let evidence = event["verdict"]["evidence"].to_string();
        ensure!(evidence.contains("the kubelet evicts below"), "{event:#}");
    }
    Ok(())
}

/// The same stop on a node with memory to spare.
fn death_without_shortage(containerd: &Containerd, probe: &Path) -> Result<()> {
    let ample = |node: Node| node.available_bytes / 2;
    let causes = ["runtime_stop", "runtime_stop_grace_expired"];
    stopped_below(containerd, probe, "cart-spared", ample, causes).map(drop)
}

/// The kubelet gives up on an exec probe, and the runtime kills it; the container lives on, for now.
fn death_of_a_late_exec_probe(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = PodSpec::new("shop", "cart-answers-late")
        .container(ContainerSpec::new("app", IDLE))
        .run(containerd)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    let command = ["/bin/sh", "-c", "exec sleep 2147483646"];
    let answer = app.probe(&command, Duration::from_secs(1));
    let error = answer.err().context("the probe had an answer in time")?;
    ensure!(
        format!("{error:#}").contains("DeadlineExceeded"),
        "{error:#}"
    );
    let event = tracer.wait_for("end of the probe", soon(), |event| {
        event["kind"] == "process_death" && event["container"]["id"] == app.id()
    })?;
    let compare = || {
        equal(&event, "role", "exec")?;
        equal(&event, "exit_code", 137)?;
        equal(&event, "signal.name", "SIGKILL")?;
        equal(&event, "process.comm", "sleep")?;
        equal(&event, "sender.process.comm", SHIM)?;
        equal(&event, "stop_request", ())?;
        equal(&event, "container_survived", true)?;
        equal(&event, "kubernetes_says_oomkilled", ())?;
        equal(&event, "runtime", ())?;
        equal(&event, "restarts", ())?;
        equal(&event, "verdict.cause", "runtime_stop")?;
        let summary = at(&event, "verdict.summary").as_str().unwrap_or_default();
        ensure!(summary.contains("an exec probe"), "{summary}");
        Ok(())
    };
    compare().with_context(|| format!("{event:#}"))?;
    ensure!(app.status()?.state == ContainerState::Running);
    let told = told_of(&tracer, &app)?;
    ensure!(told.len() == 1, "{told:#?}");

    // The probe fails once too often, and the kubelet acts on it.
    ensure!(app.probe(&command, Duration::from_secs(1)).is_err());
    app.stop(Duration::from_secs(1))?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &app.wait_exited()?, &["liveness_kill"])?;
    let evidence = event["verdict"]["evidence"].to_string();
    let cited = "sleep, executed in it, was killed by the runtime for taking too long";
    ensure!(evidence.contains(cited), "{event:#}");
    Ok(())
}

/// All deaths told of what is in this container, which lives; none is on its way.
fn told_of(tracer: &Tracer, container: &Container) -> Result<Vec<Value>> {
    let is_of = |event: &Value| {
        event["kind"] == "process_death" && event["container"]["id"] == container.id()
    };
    let fence = container.exec(&["/bin/sh", "-c", "exit 99"])?;
    ensure!(fence.exit_code == 99, "{fence:?}");
    tracer.wait_for("the fence", soon(), |event| {
        is_of(event) && event["exit_code"] == 99
    })?;
    let mut told = tracer.events();
    told.retain(|event| is_of(event) && event["exit_code"] != 99);
    Ok(told)
}

/// Somebody on the node writes to `cgroup.kill` of a container.
fn death_by_cgroup_kill(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let script = "sleep 2147483646 & echo idle; exec sleep 2147483647";
    let mut pod = PodSpec::new("shop", "cart-killed")
        .container(ContainerSpec::new("app", &["/bin/sh", "-c", script]))
        .run(containerd)?;
    let app = pod.start("app")?;
    app.wait_output("idle")?;
    // runc makes the container a member of the unified hierarchy, also beside v1.
    let mut cgroups = cgroups_named(app.id()).into_iter();
    let unified = cgroups.find(|cgroup| cgroup.join("cgroup.kill").exists());
    unified::kill(&unified.context("no cgroup.kill: it is there since Linux 5.14")?)?;
    let event = end_of(&tracer, app.id())?;
    check(&event, &app.wait_exited()?, &["cgroup_kill"])?;
    let compare = || {
        equal(&event, "exit_code", 137)?;
        equal(&event, "sender.via", "cgroup_kill")?;
        equal(&event, "sender.process.pid", std::process::id())?;
        equal(&event, "sender.container", ())?;
        equal(&event, "stop_request", ())?;
        equal(&event, "others", 1)
    };
    compare().with_context(|| format!("{event:#}"))
}

/// A liveness probe of one of two containers fails, then one of the other: each time the life of
/// the one that is not meant goes on.
fn death_beside_its_sidecar(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let (mut pod, app, sidecar) = pod_of_two(containerd, "cart-half-well")?;
    sidecar.stop(Duration::from_secs(1))?;
    check_beside(&end_of(&tracer, sidecar.id())?, "sidecar", 137)?;
    let told = told_of(&tracer, &app)?;
    ensure!(told.is_empty(), "{told:#?}");

    // That the one before was asked to stop says nothing of the one that took its place.
    let restarted = pod.start("sidecar")?;
    restarted.wait_output("idle")?;
    app.stop(Duration::from_secs(30))?;
    check_beside(&end_of(&tracer, app.id())?, "app", 0)?;
    let told = told_of(&tracer, &restarted)?;
    ensure!(told.is_empty(), "{told:#?}");
    Ok(())
}

fn check_beside(event: &Value, name: &str, code: i32) -> Result<()> {
    let compare = || {
        equal(event, "exit_code", code)?;
        equal(event, "k8s.container.name", name)?;
        equal(event, "stop_request.siblings_too", false)?;
        equal(event, "runtime.sandbox_stopped", false)?;
        equal(event, "restarts.deaths", 1)?;
        equal(event, "verdict.cause", "liveness_kill")
    };
    compare().with_context(|| format!("{event:#}"))
}
