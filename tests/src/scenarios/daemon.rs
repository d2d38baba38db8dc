//! How the tracer behaves: nothing lost, and a clean end however it comes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::MIB;
use super::victims::storm_kills;
use crate::cgroup::Cgroup;
use crate::deadline::until;
use crate::expect::{Expected, names_victim, nothing_lost};
use crate::hog::{Hog, Spec};
use crate::scenario::{Context, Need, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("burst", "many kills in a row, none lost", burst).seconds(240),
    Scenario::new(
        "stalled_reader",
        "nobody reads stdout during many kills",
        stalled_reader,
    )
    .needs(&[Need::Tracer])
    .seconds(240),
    Scenario::new(
        "sigterm_drains",
        "SIGTERM right after a kill",
        sigterm_drains,
    )
    .needs(&[Need::Tracer]),
    Scenario::new("closed_stdout", "the reader goes away", closed_stdout).needs(&[Need::Tracer]),
    Scenario::new("heartbeat", "silence is shown to be silence", heartbeat).needs(&[Need::Tracer]),
    Scenario::new(
        "every_rung",
        "each hook works that this kernel can have, not only the best",
        every_rung,
    )
    .needs(&[Need::Tracer]),
    Scenario::new("not_root", "a missing capability is named", not_root).needs(&[Need::Tracer]),
];

const BURST: usize = 200;
/// An emulated guest makes one a second.
const BURST_IN_GUEST: usize = 60;

/// Starts that many processes that are killed; the last is their number.
fn start_burst(context: &Context) -> Result<(Cgroup, Hog, usize)> {
    let kills = if context.is_guest {
        BURST_IN_GUEST
    } else {
        BURST
    };
    let cgroup = context.scratch.child("burst")?;
    cgroup.limit(12 * MIB)?;
    let storm = Spec::inside(&cgroup).start(
        &["storm", &kills.to_string(), "10", "--parallel", "2"],
        context.deadline,
    )?;
    Ok((cgroup, storm, kills))
}

fn one_kill(cgroup: &Cgroup, deadline: Instant) -> Result<Hog> {
    cgroup.limit(16 * MIB)?;
    let mut hog = Spec::inside(cgroup).start(&["anon", "32"], deadline)?;
    hog.wait_killed(deadline)?;
    Ok(hog)
}

fn burst(context: &mut Context) -> Result<()> {
    let (cgroup, mut storm, kills) = start_burst(context)?;
    let kills = storm_kills(context, &cgroup, &mut storm, kills)?;
    context.check_all(&kills)?;
    let Some(tracer) = context.tracer() else {
        return Ok(());
    };
    nothing_lost(&tracer.events())
}

/// What cannot be written may be dropped, but not in silence.
fn stalled_reader(context: &mut Context) -> Result<()> {
    let tracer = context.start_tracer(&[])?;
    tracer.pause_reading(true);
    let (cgroup, mut storm, kills) = start_burst(context)?;
    let kills = storm_kills(context, &cgroup, &mut storm, kills)?;
    tracer.pause_reading(false);
    // A kill after it shows that what was held back has been written.
    let last = one_kill(&context.scratch.child("after")?, context.deadline)?;
    tracer.wait_for("kill after the stall", context.deadline, |event| {
        names_victim(event, last.pid())
    })?;
    tracer.stop()?;
    let events = tracer.events();
    let seen =
        |kill: &&crate::oracle::Kill| events.iter().any(|event| names_victim(event, kill.tid));
    let missing = kills.len() - kills.iter().filter(seen).count();
    let confessed = nothing_lost(&events).is_err();
    ensure!(
        missing == 0 || confessed,
        "{missing} kills missing without a word"
    );
    Ok(())
}

fn sigterm_drains(context: &mut Context) -> Result<()> {
    let tracer = context.start_tracer(&[])?;
    let cgroup = context.scratch.child("last")?;
    let hog = one_kill(&cgroup, context.deadline)?;
    tracer.signal(Signal::SIGTERM)?;
    tracer.check_end()?;
    let expected = Expected::kill(hog.pid(), "slice")
        .limit(&cgroup, 16 * MIB)
        .inside(&cgroup);
    context.check(&expected)
}

fn closed_stdout(context: &mut Context) -> Result<()> {
    let mut tracer = Command::new(context.oomprobe()?)
        .args(["trace", "-o", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the tracer")?;
    let stdout = tracer.stdout.take().context("stdout of the tracer")?;
    let attached = BufReader::new(stdout).read_line(&mut String::new());
    let result = attached.context("probe_status").and_then(|_| {
        one_kill(&context.scratch.child("unheard")?, context.deadline)?;
        until(context.deadline, "end of the tracer", || {
            Ok(tracer.try_wait()?)
        })
    });
    // Fails only if it has ended, as it should.
    let _ = tracer.kill();
    let _ = tracer.wait();
    let status = result?;
    ensure!(
        status.code() == Some(0),
        "a reader that left is no error: {status}"
    );
    Ok(())
}

fn heartbeat(context: &mut Context) -> Result<()> {
    let tracer = context.start_tracer(&["--heartbeat", "1s"])?;
    until(context.deadline, "second heartbeat", || {
        let events = tracer.events();
        let beats = events
            .iter()
            .filter(|event| event["kind"] == "heartbeat")
            .count();
        Ok((beats >= 2).then_some(()))
    })?;
    tracer.stop()
}

fn not_root(context: &mut Context) -> Result<()> {
    const NOBODY: u32 = 65534;
    // Where the program was built is not for nobody to read.
    let directory = tempfile::tempdir().context("temporary directory")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("oomprobe");
    fs::copy(context.oomprobe()?, &copy).context("copy oomprobe")?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let output = Command::new(&copy)
        .args(["trace", "-o", "json", "--duration", "1s"])
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .context("run oomprobe as nobody")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(3),
        "{}: {stderr}",
        output.status
    );
    ensure!(stderr.contains("CAP_"), "no capability is named: {stderr}");
    ensure!(!stderr.contains("panicked"), "{stderr}");
    Ok(())
}

/// Kinds of hooks that attach by a kprobe or by patching a function's entry.
const FUNCTION_HOOKS: [&str; 4] = ["kprobe", "kretprobe", "fentry", "fexit"];

/// How a rung says that it is for other kernels. The last is the verifier's word up to some 5.x:
/// typed programs may not take a pointer to an integer.
const LACKS: [&str; 3] = [
    "this kernel has no function",
    "this kernel's tracepoint does not pass",
    "type INT is not a struct",
];

fn every_rung(context: &mut Context) -> Result<()> {
    let output = Command::new(context.oomprobe()?)
        .args(["doctor", "-o", "json"])
        .output()
        .context("run oomprobe doctor")?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("doctor: {}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(
        output.status.code() == Some(0) && report["can_trace"] == true,
        "doctor: {}: {report}",
        output.status
    );
    // Only a required field that is absent is an error to the doctor.
    ensure!(report["error"].is_null(), "doctor: {}", report["error"]);
    let function_hooks = report["facts"]["kprobes"] == true;
    let layout = report["layout"].as_array().context("layout")?;
    // With a pid in place of the task, the tracepoint is of no use.
    let no_task = layout
        .iter()
        .any(|row| row["field"] == "mark_victim__has_task" && row["value"] != 1);
    let signals = report["signals"].as_array().context("signals")?;
    ensure!(!signals.is_empty(), "no signal was examined: {report}");
    let mut broken = Vec::new();
    for rung in signals
        .iter()
        .flat_map(|signal| signal["rungs"].as_array().into_iter().flatten())
    {
        let hook = rung["hook"].as_str().context("a rung without a hook")?;
        let (kind, target) = hook.split_once(':').context("a hook without a target")?;
        let excluded = (!function_hooks && FUNCTION_HOOKS.contains(&kind))
            || (no_task && target == "mark_victim")
            || rung["reason"]
                .as_str()
                .is_some_and(|reason| LACKS.iter().any(|lack| reason.contains(lack)));
        if rung["works"] != true && !excluded {
            broken.push(format!("{hook}: {}", rung["reason"]));
        }
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));

    // Since 7.0 a tracepoint can be preempted, and a program on it be skipped: a kprobe cannot.
    let release = report["facts"]["kernel_release"].as_str();
    let major = release.and_then(|release| release.split('.').next()?.parse::<u32>().ok());
    let probed = function_hooks && major.context("kernel_release")? >= 7;
    let exits = signals
        .iter()
        .find(|signal| signal["signal"] == "process_exit")
        .context("process_exit")?;
    ensure!(
        (exits["hook"] == "kprobe:taskstats_exit") == probed,
        "exits are seen by {}",
        exits["hook"]
    );
    Ok(())
}
