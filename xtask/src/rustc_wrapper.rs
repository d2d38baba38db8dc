//! Makes symbol names of BPF code the same everywhere.
//!
//! Names of functions that were not inlined carry a hash of `-C metadata`, which cargo derives
//! from absolute paths: of crates outside of the workspace and of the standard library. As
//! cargo's `RUSTC_WRAPPER`, xtask gives crates an identity of name and version instead.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

/// Tells xtask that cargo called it in place of rustc.
const MARKER: &str = "OOMPROBE_XTASK_IS_RUSTC";

/// Lets `cargo` call this program in place of rustc.
pub(crate) fn apply_to(cargo: &mut Command) -> Result<()> {
    let this = env::current_exe().context("cannot find this program's own file")?;
    cargo.env("RUSTC_WRAPPER", this).env(MARKER, "1");
    Ok(())
}

/// If cargo called this program in place of rustc: becomes rustc, and returns only on failure.
pub(crate) fn become_rustc_if_called() -> Option<ExitCode> {
    env::var_os(MARKER)?;
    let mut args = env::args_os().skip(1);
    let rustc = args.next()?;
    let identity = [
        env::var_os("CARGO_PKG_NAME"),
        env::var_os("CARGO_PKG_VERSION"),
    ];
    let args: Vec<OsString> = match identity {
        [Some(name), Some(version)] => with_metadata(args, &name, &version),
        // Cargo asks rustc about itself.
        _ => args.collect(),
    };
    let error = Command::new(&rustc).args(args).exec();
    eprintln!("error: cannot start {}: {error}", rustc.display());
    Some(ExitCode::FAILURE)
}

/// The arguments with another `-C metadata` if they compile for BPF; host code stays as it is.
fn with_metadata(
    args: impl Iterator<Item = OsString>,
    name: &OsStr,
    version: &OsStr,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    if !args.iter().any(|arg| arg == crate::ebpf::TARGET) {
        return args;
    }
    for arg in &mut args {
        if arg.to_str().is_some_and(|arg| arg.starts_with("metadata=")) {
            *arg = OsString::from("metadata=");
            arg.push(name);
            arg.push("-");
            arg.push(version);
        }
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(args: &str) -> Vec<OsString> {
        with_metadata(
            args.split(' ').map(OsString::from),
            "core".as_ref(),
            "0.0.0".as_ref(),
        )
    }

    #[test]
    fn only_bpf_crates_get_another_identity() {
        let bpf = rewritten("--target bpfel-unknown-none -C metadata=12ab -C extra-filename=-34cd");
        assert_eq!(
            bpf.join(OsStr::new(" ")),
            "--target bpfel-unknown-none -C metadata=core-0.0.0 -C extra-filename=-34cd"
        );
        let host = "--crate-name syn -C metadata=12ab";
        assert_eq!(rewritten(host).join(OsStr::new(" ")), host);
    }
}
