//! The machine and the tools, as a report names them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::tool::{Kind, Programs, Tool};
use crate::{
    cmd,
    debian::{self, Tool as Package},
};

/// What a report says of a tool itself.
#[derive(Debug)]
pub(super) struct Installed {
    pub(super) version: String,
    /// With the shared libraries it needs.
    pub(super) size_bytes: u64,
}

pub(super) fn oomprobe(program: &Path) -> Result<Installed> {
    Ok(Installed {
        version: version(program)?,
        size_bytes: size(program)?,
    })
}

/// Makes sure that bpftrace is there and that its script works on this kernel.
pub(super) fn bpftrace(programs: Programs<'_>) -> Result<Installed> {
    let installed = installed_bpftrace()?;
    Tool::start_up_ms(programs, Kind::Bpftrace)?;
    Ok(installed)
}

/// Makes sure that bpftrace is there.
pub(super) fn installed_bpftrace() -> Result<Installed> {
    let packages = ["bpftrace", "bpftool"].map(|name| Package {
        program: name,
        package: name,
    });
    debian::ensure_installed("compare with another tracer", &packages)?;
    let found = cmd::find_in_path("bpftrace").context("bpftrace is not in PATH")?;
    Ok(Installed {
        version: version(&found)?,
        size_bytes: size_with_libraries(&found)?,
    })
}

fn version(program: &Path) -> Result<String> {
    let said = cmd::output(Command::new(program).arg("--version"))?;
    Ok(said.trim().to_owned())
}

/// The hooks that serve the signals, from a `probe_status` line.
pub(super) fn hooks(probe_status: &str) -> String {
    let event: serde_json::Value = serde_json::from_str(probe_status).unwrap_or_default();
    let signals = event["signals"].as_array().cloned().unwrap_or_default();
    let hooks: Vec<&str> = signals
        .iter()
        .filter_map(|signal| signal["hook"].as_str())
        .collect();
    hooks.join(", ")
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file)
        .with_context(|| file.display().to_string())?
        .len())
}

/// Size of a program and the shared libraries it cannot start without.
fn size_with_libraries(program: &Path) -> Result<u64> {
    let list = cmd::output(Command::new("ldd").arg(program))?;
    let libraries = list
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from);
    let mut sum = size(program)?;
    for library in libraries {
        sum += size(&library)?;
    }
    Ok(sum)
}

/// Lines about the machine; the memory cgroup is `v1` or `v2`.
pub(super) fn describe(memory_cgroup: &str) -> Result<Vec<(&'static str, String)>> {
    let read = |file: &str| fs::read_to_string(file).with_context(|| file.to_owned());
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo")?;
    let cpus = std::thread::available_parallelism().context("number of CPUs")?;
    let model = after(&cpu, "model name").unwrap_or_else(|| "CPU".to_owned());
    Ok(vec![
        (
            "date",
            cmd::output(Command::new("date").args(["-u", "+%F %R UTC"]))?
                .trim()
                .to_owned(),
        ),
        (
            "kernel",
            cmd::output(Command::new("uname").arg("-srm"))?
                .trim()
                .to_owned(),
        ),
        ("CPU", format!("{cpus} × {model}")),
        (
            "memory",
            after(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default(),
        ),
        ("memory cgroup", memory_cgroup.to_owned()),
        ("load before", load()?),
        (
            "niceness of all of it",
            cmd::output(&mut Command::new("nice"))?.trim().to_owned(),
        ),
    ])
}

/// Mean number of runnable processes over the last 1, 5 and 15 minutes.
pub(super) fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    let load: Vec<&str> = text.split(' ').take(3).collect();
    Ok(load.join(" "))
}
