//! Builds the static `oomprobe` binary and runs it here or in a guest.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cache::Cache,
    cmd::{self, status},
    debian, tools, vm,
    workspace::Workspace,
};

/// How something is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly.
    Dev,
    /// As it ships.
    Release,
}

/// A cargo command for programs that need no library of the machine they run on.
pub(crate) fn static_cargo(workspace: &Workspace, verb: &str) -> Result<Command> {
    let host = tools::Rustc::query()?.host;
    let mut cargo = tools::cargo();
    cargo
        .current_dir(&workspace.root)
        // Without an explicit target the flags below would also apply to procedural macros.
        .args([verb, "--target", &host])
        // glibc can be linked statically, musl is by default; a guest's initramfs has neither.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    Ok(cargo)
}

/// Where [`static_cargo`] puts programs.
pub(crate) fn directory(workspace: &Workspace, profile: Profile) -> Result<PathBuf> {
    let host = tools::Rustc::query()?.host;
    Ok(workspace.target.join(host).join(match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    }))
}

/// Builds `oomprobe` as a static binary and returns its path.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    let workspace = Workspace::find()?;
    let mut cargo = static_cargo(&workspace, "build")?;
    cargo.args(["--package", "probe-user", "--bin", "oomprobe"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    cmd::run(&mut cargo)?;
    Ok(directory(&workspace, profile)?.join("oomprobe"))
}

/// What to run, and where.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Run in a guest of this kernel, the newest if none is named
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "newest")]
    vm: Option<String>,
    /// Arguments of oomprobe
    #[arg(last = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// Builds `oomprobe` and runs it; the exit code is its own.
pub(crate) fn run(cache: &Cache, args: &RunArgs) -> Result<ExitCode> {
    match &args.vm {
        Some(kernel) => vm::run(cache, kernel, &build(Profile::Release)?, &args.args),
        None => run_here(&args.args),
    }
}

/// Becomes `oomprobe` with these arguments, as root.
fn run_here(args: &[String]) -> Result<ExitCode> {
    let in_guest = format!(
        "run it in a guest with `cargo xtask run --vm -- {}`",
        args.join(" ")
    );
    if let Some(missing) = missing_here() {
        bail!("{missing}: {in_guest}");
    }
    let sudo = if debian::is_root()? {
        None
    } else {
        let sudo = cmd::find_in_path("sudo");
        Some(sudo.with_context(|| format!("oomprobe needs root and here is no sudo: {in_guest}"))?)
    };
    let binary = build(Profile::Release)?;
    let mut command = match sudo {
        None => Command::new(&binary),
        Some(sudo) => {
            status(
                "Running",
                format_args!("{} with sudo (BPF needs root)", binary.display()),
            );
            let mut command = Command::new(sudo);
            command.arg("--").arg(&binary);
            command
        }
    };
    // In place of xtask, so that exit code and signals are oomprobe's own.
    let error = command.args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}

/// What the running kernel lacks for any BPF program of oomprobe.
fn missing_here() -> Option<&'static str> {
    if !Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists() {
        Some("this kernel has no BPF (CONFIG_BPF_SYSCALL)")
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        Some("this kernel has no BTF (/sys/kernel/btf/vmlinux is missing)")
    } else {
        None
    }
}
