//! The incident that this project began with: a node is full of socket buffers, every pod looks
//! healthy, and the cause is an agent that does not read its capture.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use oomprobe_tests::containerd::{Container, ContainerSpec, Containerd, PodSpec};
use oomprobe_tests::deadline::soon;
use oomprobe_tests::expect::{at, equal};
use oomprobe_tests::skb::{Report, SKB_BYTES, Slab, explains, feed, near, number, pretty};
use serde_json::Value;

use super::{MIB, TraceTest};

/// The tests here.
pub(super) const ALL: [(&str, TraceTest); 1] =
    [("leak_of_a_monitoring_agent", leak_of_a_monitoring_agent)];

const NAMESPACE: &str = "weave";
const POD: &str = "weave-scope-agent-x7k2p";
const CONTAINER: &str = "scope-agent";

/// Takes up to 256 MiB; nobody may lower the score that a container has.
const AGENT: &[&str] = &[
    "/bin/oomprobe-hog",
    "--oom-score-adj",
    "1000",
    "unread",
    "capture",
    "268435456",
];

/// 200 MiB of buffers.
const PACKETS: u64 = 200 * MIB / SKB_BYTES;

/// The capture is in the node's network, as such an agent's is.
fn leak_of_a_monitoring_agent(containerd: &Containerd, probe: &Path) -> Result<()> {
    let agent = ContainerSpec::new(CONTAINER, AGENT).capability("NET_ADMIN");
    let mut pod = PodSpec::new(NAMESPACE, POD)
        .container(agent)
        .run(containerd)?;
    let app = pod.start(CONTAINER)?;
    app.wait_output("ready")?;
    let (before, charged_before) = (Slab::settled()?, pod.memory_bytes()?);
    feed(PACKETS)?;
    let grown = Slab::read()?.since(before);
    ensure!(grown.heads * 10 >= PACKETS * 9, "{grown:?}");
    // What everybody looked at.
    let charged = pod.memory_bytes()?.saturating_sub(charged_before);
    ensure!(charged < MIB, "{charged} bytes are charged to the pod");

    // Nothing ran until now.
    let socket = containerd.socket();
    let socket = socket.to_str().context("the socket's path is not UTF-8")?;
    let arguments = ["--cri-socket", socket, "--duration", "2s"];
    let report = Report::take(probe, &[&arguments[..], &["--census", "full"]].concat())?;
    check(&report, &app, grown).with_context(|| format!("{:#}", report.event))?;
    // docs/skb.md shows it.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skb.txt");
    fs::write(&kept, pretty(probe, &arguments)?).context("target/tmp")?;

    // What the report says to do.
    pod.delete()?;
    grown.wait_gone(before, soon())
}

fn check(report: &Report, app: &Container, grown: Slab) -> Result<()> {
    let is_its = |one: &Value| at(one, "container.id") == app.id();
    let holder = report.one("holders", "holder of the container", is_its)?;
    let pid = u32::try_from(number(holder, "process.pid")?)?;
    equal(holder, "process.comm", "oomprobe-hog")?;
    equal(holder, "process.ns_pid", 1)?;
    equal(holder, "cgroup.path", app.cgroup_path())?;
    equal(holder, "socket.family", "packet")?;
    equal(holder, "socket.protocol", "ip")?;
    equal(
        holder,
        "socket.netns",
        fs::metadata("/proc/self/ns/net")?.ino(),
    )?;
    ensure!(
        has_open(pid, number(holder, "socket.inode")?)?,
        "process {pid} has no such socket"
    );
    near("bytes", number(holder, "bytes")?, PACKETS * SKB_BYTES)?;
    explains(95, number(holder, "skbs")?, grown.heads)?;
    check_names(holder)?;

    report.finds(holder, "socket_not_read")?;
    let finding = at(holder, "verdict");
    let summary = at(finding, "summary").as_str().context("summary")?;
    let pod = format!("{NAMESPACE}/{POD}");
    ensure!(summary.contains(&pod), "{summary}");
    let remedy = at(finding, "evidence.0").as_str().context("evidence")?;
    ensure!(
        remedy.starts_with(&format!("restarting pod {pod} frees ")),
        "{remedy}"
    );
    equal(
        finding,
        "next_steps.0",
        format!("kubectl -n {NAMESPACE} delete pod {POD}"),
    )?;

    // The container may have more: a last message of its runtime, in a socket that is closed.
    let group = report.group(number(holder, "socket.inode")?)?;
    equal(group, "process.pid", pid)?;
    equal(group, "destructor", "sock_rfree")?;
    explains(95, number(group, "skbs")?, grown.heads)?;
    check_names(group)
}

fn check_names(subject: &Value) -> Result<()> {
    equal(subject, "k8s.namespace.name", NAMESPACE)?;
    equal(subject, "k8s.pod.name", POD)?;
    equal(subject, "k8s.container.name", CONTAINER)
}

/// Whether a process has the socket open.
fn has_open(pid: u32, inode: u64) -> Result<bool> {
    let link = format!("socket:[{inode}]");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).context("its files")?;
    Ok(files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| target.to_str() == Some(&link)))
}
