//! Builds the guest's `/init` as a static binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use object::Object;
use serde::Deserialize;

/// An explicit target keeps `crt-static` away from build scripts and proc-macros, which cannot be
/// static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Files made by cargo.
pub(super) struct Built {
    pub(super) vm_init: PathBuf,
    /// A static oomprobe from an earlier build.
    pub(super) oomprobe: Option<PathBuf>,
    /// Place for console logs in cargo's target directory.
    pub(super) logs: PathBuf,
}

/// The part of cargo's JSON messages that names an executable.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds `vm-init`.
pub(super) fn build() -> Result<Built> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let output = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["--package", "oomprobe-tests", "--bin", "vm-init"])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--manifest-path",
        ])
        .arg(manifest)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    ensure!(
        output.status.success(),
        "cargo could not build vm-init, the guest's /init"
    );
    let vm_init = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .next_back()
        .context("cargo names no executable vm-init")?;

    // <target directory>/<target>/release/vm-init
    let oomprobe = vm_init.with_file_name("oomprobe");
    let target_dir = vm_init
        .ancestors()
        .nth(3)
        .context("cargo's target directory")?;
    Ok(Built {
        oomprobe: (oomprobe.is_file() && is_static(&oomprobe)?).then_some(oomprobe),
        logs: target_dir.join("vm"),
        vm_init,
    })
}

/// Whether the program runs without a dynamic loader.
pub(super) fn is_static(program: &Path) -> Result<bool> {
    let elf = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let file = object::File::parse(elf.as_slice())
        .with_context(|| format!("{} is no program", program.display()))?;
    Ok(file.section_by_name(".interp").is_none())
}
