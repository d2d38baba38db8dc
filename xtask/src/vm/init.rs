//! Builds the guest's `/init` as a static binary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::Object;

use crate::cmd;
use crate::user::{self, Profile};
use crate::workspace::Workspace;

/// Files in cargo's target directory.
pub(super) struct Built {
    pub(super) vm_init: PathBuf,
    /// A static oomprobe from an earlier build.
    pub(super) oomprobe: Option<PathBuf>,
    /// Place for console logs.
    pub(super) logs: PathBuf,
}

/// Builds `vm-init`.
pub(super) fn build() -> Result<Built> {
    let workspace = Workspace::find()?;
    let mut cargo = user::static_cargo(&workspace, "build")?;
    cmd::run(cargo.args([
        "--quiet",
        // Together with the rest of the workspace, as `cargo xtask test` has it already.
        "--workspace",
        "--bin",
        "vm-init",
    ]))?;
    let oomprobe = user::directory(&workspace, Profile::Release)?.join("oomprobe");
    Ok(Built {
        vm_init: user::directory(&workspace, Profile::Dev)?.join("vm-init"),
        oomprobe: (oomprobe.is_file() && is_static(&oomprobe)?).then_some(oomprobe),
        logs: workspace.target.join("vm"),
    })
}

/// Whether the program runs without a dynamic loader.
pub(super) fn is_static(program: &Path) -> Result<bool> {
    let elf = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    let file = object::File::parse(elf.as_slice())
        .with_context(|| format!("{} is no program", program.display()))?;
    Ok(file.section_by_name(".interp").is_none())
}
