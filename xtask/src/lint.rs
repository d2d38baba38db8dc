//! Format, clippy, documentation and dependency rules.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{
    cache::Cache,
    cmd::{self, status},
    ebpf,
    tools::{self, Toolchain},
    workspace::Workspace,
};

const CARGO_DENY_VERSION: &str = "0.20.2";

/// All rules.
pub(crate) fn all(cache: &Cache) -> Result<()> {
    let workspace = Workspace::find()?;
    format(&workspace)?;
    clippy(&workspace)?;
    clippy_bpf(&workspace, cache)?;
    doc(&workspace)?;
    dependencies(&workspace, cache)
}

pub(crate) fn format(workspace: &Workspace) -> Result<()> {
    for manifest in ["Cargo.toml", "probe-ebpf/Cargo.toml"] {
        let mut cargo = cargo_in(workspace);
        cmd::run(cargo.args(["fmt", "--all", "--check", "--manifest-path", manifest]))
            .context("the code is not formatted: run `cargo fmt --all`, also in probe-ebpf")?;
    }
    Ok(())
}

pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    cmd::run(cargo_in(workspace).args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-Dwarnings",
    ]))
}

/// Apart from the workspace: a common run would unify features that only the daemon may have.
pub(crate) fn clippy_bpf(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let toolchain = Toolchain::ready(cache)?;
    let mut cargo = ebpf::cargo_for_bpf(&toolchain, &workspace.root, "clippy")?;
    cargo.arg("--target-dir").arg(workspace.target.join("ebpf"));
    cmd::run(cargo.args(["--locked", "--", "-Dwarnings"]))
}

fn doc(workspace: &Workspace) -> Result<()> {
    let mut cargo = cargo_in(workspace);
    cargo.args(["doc", "--workspace", "--no-deps", "--locked"]);
    cmd::run(cargo.env("RUSTDOCFLAGS", "-Dwarnings"))
}

/// Licences, sources and duplicates by `deny.toml`; known vulnerabilities if their database can
/// be reached.
fn dependencies(workspace: &Workspace, cache: &Cache) -> Result<()> {
    let deny = cargo_deny(cache)?;
    for manifest in ["Cargo.toml", "probe-ebpf/Cargo.toml"] {
        let deny = |args: &[&str]| {
            let mut command = Command::new(&deny);
            command
                .current_dir(&workspace.root)
                .args(["--manifest-path", manifest]);
            command.args(args);
            command
        };
        cmd::run(&mut deny(&["check", "bans", "licenses", "sources"]))?;
        if let Err(error) = cmd::output(&mut deny(&["fetch", "db"])) {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            status(
                "Skipping",
                format_args!("advisories, their database is out of reach: {reason}"),
            );
        } else {
            cmd::run(&mut deny(&["check", "--disable-fetch", "advisories"]))?;
        }
    }
    Ok(())
}

fn cargo_deny(cache: &Cache) -> Result<PathBuf> {
    if let Some(deny) = cmd::find_in_path("cargo-deny") {
        return Ok(deny);
    }
    let root = cache.get_or_create(format!("tools/cargo-deny-{CARGO_DENY_VERSION}"), |dir| {
        status(
            "Building",
            format_args!("cargo-deny {CARGO_DENY_VERSION} (once, some minutes)"),
        );
        let target = tempfile::tempdir()?;
        let mut install = tools::cargo();
        install
            // An optimised build takes much longer than all of its runs.
            .args([
                "install",
                "cargo-deny",
                "--version",
                CARGO_DENY_VERSION,
                "--locked",
                "--debug",
            ])
            .arg("--root")
            .arg(dir)
            .arg("--target-dir")
            .arg(target.path());
        cmd::run_quietly(&mut install)
            .context("cargo-deny does not build: install it by hand so that it is in PATH")
    })?;
    Ok(root.join("bin/cargo-deny"))
}

fn cargo_in(workspace: &Workspace) -> Command {
    let mut cargo = tools::cargo();
    cargo.current_dir(&workspace.root);
    cargo
}
