//! Real pods: is the harness as real as it claims, and does oomprobe name what dies in it?
//!
//! One containerd serves all tests; they run one after the other. `OOMPROBE_BIN` is the program
//! under test; without it nothing runs, so that `cargo test` works for everyone, and
//! `cargo xtask test` sets it.

mod deaths;
mod leaks;
mod stops;
mod story;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use oomprobe_tests::containerd::{
    Container, ContainerSpec, ContainerState, Containerd, PidNamespace, PodSpec,
};
use oomprobe_tests::deadline::soon;
use oomprobe_tests::hog;
use oomprobe_tests::oracle::{Oracle, Summary};
use oomprobe_tests::tracer::Tracer;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// Says that it runs, then ends only by a signal.
const IDLE: &[&str] = &["/bin/sh", "-c", "echo idle; exec sleep 2147483647"];
/// Looks for the end of a line that never comes, keeping all it has read.
const HOG: &[&str] = &["/bin/tail", "/dev/zero"];

/// Started by the first test that runs, stopped at the end of `main`.
type SharedContainerd = Arc<LazyLock<Result<Containerd>>>;
/// A test of the harness.
type HarnessTest = fn(&Containerd) -> Result<()>;
/// A test of the oomprobe at this path.
type TraceTest = fn(&Containerd, &Path) -> Result<()>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let Some(probe) = std::env::var_os("OOMPROBE_BIN").map(PathBuf::from) else {
        eprintln!("OOMPROBE_BIN is not set: `cargo xtask test --only pods` runs the pods");
        return ExitCode::SUCCESS;
    };
    let containerd: SharedContainerd =
        Arc::new(LazyLock::new(|| Containerd::start(&[&hog::binary()?])));
    let conclusion = libtest_mimic::run(&arguments, trials(&containerd, &probe));
    if conclusion.has_failed()
        && let Ok(containerd) = &**containerd
    {
        eprintln!("containerd's log:\n{}", containerd.log());
    }
    conclusion.exit_code()
}

fn trials(containerd: &SharedContainerd, probe: &Path) -> Vec<Trial> {
    let harness: [(&str, HarnessTest); 6] = [
        ("container_over_its_limit", container_over_its_limit),
        ("one_of_two_containers", one_of_two_containers),
        ("pod_deleted_at_once", pod_deleted_at_once),
        ("stop_with_grace", stop_with_grace),
        ("restarted_container", restarted_container),
        ("failing_test_leaves_nothing", failing_test_leaves_nothing),
    ];
    let traced = [
        ("trace_names_the_pod", trace_names_the_pod as TraceTest),
        (
            "trace_names_one_of_two_containers",
            trace_names_one_of_two_containers,
        ),
        ("trace_names_a_deleted_pod", trace_names_a_deleted_pod),
    ];
    let harness = harness.map(|(name, test)| {
        let containerd = containerd.clone();
        Trial::test(name, move || within(&containerd, test))
    });
    let traced = traced
        .into_iter()
        .chain(deaths::ALL)
        .chain(stops::ALL)
        .chain(story::ALL)
        .chain(leaks::ALL);
    let traced = traced.map(|(name, test)| {
        let containerd = containerd.clone();
        let probe = probe.to_path_buf();
        Trial::test(name, move || {
            within(&containerd, |containerd| test(containerd, &probe))
        })
    });
    harness.into_iter().chain(traced).collect()
}

fn within(
    containerd: &SharedContainerd,
    test: impl FnOnce(&Containerd) -> Result<()>,
) -> Result<(), libtest_mimic::Failed> {
    let containerd = containerd.as_ref().as_ref();
    let containerd = containerd.map_err(|error| format!("no containerd: {error:#}"))?;
    test(containerd).map_err(|error| format!("{error:#}").into())
}

/// A pod with one container that will be killed at 64 MiB. The kubelet gives the pod the same limit.
fn lone_hog(name: &str) -> PodSpec {
    PodSpec::new("shop", name)
        .container(ContainerSpec::new("app", HOG).memory_limit_bytes(64 * MIB))
}

/// A hog, and a neighbour without a limit: the pod then has none either, so the limit that is hit
/// is the container's. The neighbour requests less than a thousandth of any node.
fn hog_and_neighbour(name: &str) -> PodSpec {
    lone_hog(name).container(ContainerSpec::new("sidecar", IDLE).memory_request_bytes(MIB / 16))
}

fn container_over_its_limit(containerd: &Containerd) -> Result<()> {
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = lone_hog("cart-7d9f").run(containerd)?;
    let app = pod.start("app")?;

    let status = app.wait_exited()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    assert_eq!(
        app.cgroup_path(),
        format!("/kubepods/burstable/pod{}/{}", pod.uid(), app.id())
    );
    let kill = kmsg.wait_summary(app.cgroup_path(), soon())?;
    // The sandbox's pages count for the pod: either limit may be met first.
    let limit = kill.limit_path.context("no memcg limit was hit")?;
    let limit = String::from_utf8(limit)?;
    assert!([app.cgroup_path(), pod.cgroup_path()].contains(&limit.as_str()));
    Ok(())
}

fn one_of_two_containers(containerd: &Containerd) -> Result<()> {
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = hog_and_neighbour("cart-two").run(containerd)?;
    let sidecar = pod.start("sidecar")?;
    let app = pod.start("app")?;

    let status = app.wait_exited()?;
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    let kill = kmsg.wait_summary(app.cgroup_path(), soon())?;
    assert_eq!(kill.limit_path, Some(kill.task_path));

    assert_eq!(sidecar.status()?.state, ContainerState::Running);
    let answer = sidecar.exec(&[
        "/bin/sh",
        "-c",
        "cat /proc/1/oom_score_adj; echo no >&2; exit 7",
    ])?;
    assert_eq!(answer.exit_code, 7);
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice()),
        (b"999\n".as_slice(), b"no\n".as_slice())
    );

    let listed = containerd.cri().list_containers()?;
    for (container, name, state) in [
        (&app, "app", ContainerState::Exited),
        (&sidecar, "sidecar", ContainerState::Running),
    ] {
        let one = listed.iter().find(|one| one.id == container.id());
        let one = one.with_context(|| format!("{name} is not listed"))?;
        assert_eq!(one.state, state);
        for (label, value) in [
            ("io.kubernetes.pod.name", "cart-two"),
            ("io.kubernetes.pod.namespace", "shop"),
            ("io.kubernetes.pod.uid", pod.uid()),
            ("io.kubernetes.container.name", name),
        ] {
            assert_eq!(
                one.labels.get(label).map(String::as_str),
                Some(value),
                "{label}"
            );
        }
    }
    Ok(())
}

fn pod_deleted_at_once(containerd: &Containerd) -> Result<()> {
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = lone_hog("cart-gone").run(containerd)?;
    let app = pod.start("app")?;
    app.wait_exited()?;
    pod.delete()?;

    let listed = containerd.cri().list_containers()?;
    assert!(listed.iter().all(|one| one.id != app.id()));
    assert!(!Path::new(&log_link("cart-gone", "app", &app)).exists());
    assert_eq!(cgroups_named(app.id()), Vec::<PathBuf>::new());
    // The kernel had said it before.
    kmsg.wait_summary(app.cgroup_path(), soon())?;
    Ok(())
}

/// A process that is not a pid namespace's init dies of SIGTERM; one that is must handle it, and
/// `sleep` does not.
fn stop_with_grace(containerd: &Containerd) -> Result<()> {
    for (shared, exit_code) in [(PidNamespace::Pod, 143), (PidNamespace::Container, 137)] {
        let mut pod = PodSpec::new("shop", "cart-stop")
            .container(ContainerSpec::new("app", IDLE))
            .pid_namespace(shared)
            .run(containerd)?;
        assert_eq!(
            pod.cgroup_path(),
            format!("/kubepods/besteffort/pod{}", pod.uid())
        );
        let app = pod.start("app")?;
        app.wait_output("idle")?;
        app.stop(Duration::from_secs(1))?;
        let status = app.wait_exited()?;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (exit_code, "Error"),
            "{shared:?}"
        );
    }
    Ok(())
}

fn restarted_container(containerd: &Containerd) -> Result<()> {
    let logs = tempfile::tempdir()?;
    let speaker = ContainerSpec::new("app", &["/bin/sh", "-c", "echo spoken; exit 3"])
        .memory_limit_bytes(16 * MIB)
        .cpu_limit_millis(500);
    let mut pod = PodSpec::new("shop", "cart-again")
        .container(speaker)
        .log_root(logs.path())
        .run(containerd)?;
    assert_eq!(
        pod.cgroup_path(),
        format!("/kubepods/pod{}", pod.uid()),
        "guaranteed"
    );
    for attempt in 0..2 {
        let app = pod.start("app")?;
        assert_eq!(app.wait_exited()?.exit_code, 3);
        let log = format!("pods/shop_cart-again_{}/app/{attempt}.log", pod.uid());
        let link = format!("containers/cart-again_shop_app-{}.log", app.id());
        let text = fs::read_to_string(logs.path().join(&link)).context(link.clone())?;
        assert!(text.ends_with(" stdout F spoken\n"), "{text}");
        assert_eq!(
            fs::read_link(logs.path().join(link))?,
            logs.path().join(log)
        );
        app.remove()?;
    }
    drop(pod);
    assert_eq!(fs::read_dir(logs.path())?.count(), 0, "logs were left");
    Ok(())
}

fn failing_test_leaves_nothing(_: &Containerd) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let program = scratch.path().join("added");
    fs::write(&program, "#!/bin/sh\necho added\nexec sleep 2147483647\n")?;

    let mut traces = None;
    let failure = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let containerd = Containerd::start(&[&program])?;
        let mut pod = PodSpec::new("shop", "cart-fails")
            .container(ContainerSpec::new("app", &["/bin/added"]))
            .run(&containerd)?;
        let app = pod.start("app")?;
        app.wait_output("added")?;
        let directory = containerd.socket().parent().map(Path::to_path_buf);
        let directory = directory.context("the socket has no directory")?;
        let link = log_link("cart-fails", "app", &app);
        let cgroup = format!("pod{}", pod.uid());
        ensure!(link.exists(), "no link to the log");
        ensure!(!processes_with(&directory)?.is_empty(), "no containerd");
        ensure!(!cgroups_named(&cgroup).is_empty(), "no cgroup of the pod");
        traces = Some((directory, link, cgroup));
        // Unwinds as an assertion does, but without its message in the output.
        std::panic::resume_unwind(Box::new("a failing test"));
    }));
    if let Ok(result) = failure {
        return result;
    }
    let (directory, link, cgroup) = traces.context("nothing was started")?;
    assert!(!directory.exists());
    assert!(fs::symlink_metadata(link).is_err());
    assert_eq!(processes_with(&directory)?, Vec::<String>::new());
    assert_eq!(cgroups_named(&cgroup), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    assert!(!mounts.contains(&*directory.to_string_lossy()));
    Ok(())
}

fn trace_names_the_pod(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = lone_hog("cart-traced").run(containerd)?;
    let app = pod.start("app")?;
    let event = oom_kill_of(&tracer, &app)?;
    assert_identity(&event, "cart-traced", pod.uid(), &app);
    assert_scope(&event, &kmsg.wait_summary(app.cgroup_path(), soon())?);
    Ok(())
}

fn trace_names_one_of_two_containers(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = hog_and_neighbour("cart-traced-two").run(containerd)?;
    let sidecar = pod.start("sidecar")?;
    let app = pod.start("app")?;
    let event = oom_kill_of(&tracer, &app)?;
    assert_identity(&event, "cart-traced-two", pod.uid(), &app);
    assert_scope(&event, &kmsg.wait_summary(app.cgroup_path(), soon())?);
    assert_eq!(sidecar.status()?.state, ContainerState::Running);
    Ok(())
}

fn trace_names_a_deleted_pod(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut kmsg = Oracle::begin_with_reports()?;
    let mut pod = lone_hog("cart-vanished").run(containerd)?;
    let app = pod.start("app")?;
    let uid = pod.uid().to_owned();
    let kill = kmsg.wait_summary(app.cgroup_path(), soon())?;
    pod.delete()?;
    let event = oom_kill_of(&tracer, &app)?;
    assert_identity(&event, "cart-vanished", &uid, &app);
    assert_scope(&event, &kill);
    Ok(())
}

fn assert_identity(event: &Value, pod: &str, uid: &str, app: &Container) {
    for (pointer, expected) in [
        ("/k8s/pod/name", pod),
        ("/k8s/namespace/name", "shop"),
        ("/k8s/container/name", "app"),
        ("/k8s/pod/uid", uid),
        ("/container/id", app.id()),
    ] {
        let found = event.pointer(pointer).and_then(Value::as_str);
        assert_eq!(found, Some(expected), "{pointer} of {event:#}");
    }
}

/// The limit owner is who the kernel says it is.
fn assert_scope(event: &Value, kill: &Summary) {
    let scope = if kill.limit_path.as_ref() == Some(&kill.task_path) {
        "container"
    } else {
        "pod"
    };
    assert_eq!(event["scope"], scope, "{kill:?}: {event:#}");
}

/// A tracer that asks this containerd for names.
fn trace(containerd: &Containerd, probe: &Path) -> Result<Tracer> {
    trace_with(containerd, probe, &[])
}

/// The same, with further arguments.
fn trace_with(containerd: &Containerd, probe: &Path, arguments: &[&str]) -> Result<Tracer> {
    let socket = containerd.socket();
    let socket = socket.to_str().context("the socket's path is not UTF-8")?;
    Tracer::start(probe, &[&["--cri-socket", socket], arguments].concat())
}

/// The kill in this container.
fn oom_kill_of(tracer: &Tracer, container: &Container) -> Result<Value> {
    let what = format!("oom_kill of container {}", container.id());
    tracer.wait_for(&what, soon(), |event| {
        event["kind"] == "oom_kill" && event["container"]["id"] == container.id()
    })
}

/// The link that the kubelet makes to a container's log.
fn log_link(pod: &str, name: &str, container: &Container) -> PathBuf {
    format!(
        "/var/log/containers/{pod}_shop_{name}-{}.log",
        container.id()
    )
    .into()
}

/// Every cgroup of that name, in any hierarchy.
fn cgroups_named(name: &str) -> Vec<PathBuf> {
    fn search(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
        // Cgroups of others come and go meanwhile.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == name {
                    found.push(entry.path());
                }
                search(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    search(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

/// Command lines that mention `path`: containerd's and its shims'.
fn processes_with(path: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(bytes) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let command = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if command.contains(&*path.to_string_lossy()) {
            found.push(command);
        }
    }
    Ok(found)
}
