//! What `oomprobe explain` tells of a pod that was restarted again and again.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use oomprobe_tests::containerd::{ContainerSpec, Containerd, PodSpec};
use oomprobe_tests::expect::equal;
use serde_json::Value;

use super::deaths::end_of;
use super::{MIB, TraceTest, trace};

/// The tests here.
pub(super) const ALL: [(&str, TraceTest); 1] = [("story_of_five_restarts", story_of_five_restarts)];

/// Grows until it is killed.
const GROWING: &[&str] = &["/bin/oomprobe-hog", "anon", "128", "--mib-per-s", "12"];

/// Reads through its limit; its shell does not heed SIGTERM, as it is first in its pid namespace.
const READING: &[&str] = &[
    "/bin/sh",
    "-c",
    "dd if=/dev/zero of=/data bs=1M count=96 2>/dev/null; echo reading; \
     /bin/oomprobe-hog read /data 12 --readers 8 & wait",
];

/// The container of this pod leaks, and is then stopped as the kubelet stops one that does not
/// answer its liveness probe.
fn story_of_five_restarts(containerd: &Containerd, probe: &Path) -> Result<()> {
    let tracer = trace(containerd, probe)?;
    let mut pod = PodSpec::new("shop", "cart-7d9f")
        .container(ContainerSpec::new("app", GROWING).memory_limit_bytes(64 * MIB))
        .run(containerd)?;
    for _ in 0..4 {
        let app = pod.start_as("app", GROWING)?;
        app.wait_exited()?;
        end_of(&tracer, app.id())?;
    }
    let app = pod.start_as("app", READING)?;
    app.wait_output("reading")?;
    std::thread::sleep(Duration::from_secs(8));
    app.stop(Duration::from_secs(1))?;
    end_of(&tracer, app.id())?;
    tracer.stop()?;

    let directory = tempfile::tempdir()?;
    let capture = directory.path().join("events.ndjson");
    let lines: Vec<String> = tracer.events().iter().map(Value::to_string).collect();
    fs::write(&capture, lines.join("\n") + "\n")?;
    let explain = |format: &str| {
        let output = Command::new(probe)
            .args(["explain", "--pod", "cart-7d9f", "-o", format, "--from"])
            .arg(&capture)
            .output()
            .context("cannot run oomprobe explain")?;
        let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {err}", output.status);
        String::from_utf8(out).context("oomprobe explain")
    };
    // docs/explain.md shows it.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("story.txt");
    fs::write(&kept, explain("pretty")?).context("target/tmp")?;
    let story: Value = serde_json::from_str(&explain("json")?)?;
    check(&story).with_context(|| format!("{story:#}"))
}

fn check(story: &Value) -> Result<()> {
    equal(story, "pod.name", "cart-7d9f")?;
    equal(story, "holes", Value::Array(Vec::new()))?;
    let deaths = story["deaths"].as_array().context("no deaths")?;
    let causes: Vec<&str> = deaths.iter().filter_map(|d| d["cause"].as_str()).collect();
    ensure!(
        causes
            == [
                "oom_kill",
                "oom_kill",
                "oom_kill",
                "oom_kill",
                "liveness_kill"
            ],
        "{causes:?}"
    );
    for death in &deaths[..4] {
        equal(death, "limit_bytes", 64 * MIB)?;
        equal(death, "exit_code", 137)?;
        let growth = death["lead_up"]["growth_bytes_per_s"].as_f64();
        // The rate it was told to grow by, less where the machine is busy.
        ensure!(
            growth.is_some_and(|growth| growth > 0.0 && growth < 24.0 * 1_048_576.0),
            "growth of {growth:?}"
        );
    }
    let groups = story["pattern"]["groups"].as_array().context("no groups")?;
    let counts: Vec<u64> = groups.iter().filter_map(|g| g["count"].as_u64()).collect();
    ensure!(counts == [4, 1], "{counts:?}");
    Ok(())
}
