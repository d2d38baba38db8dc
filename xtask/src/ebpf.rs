//! Builds the BPF object that is committed and embedded, bit for bit the same everywhere.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::{
    cache::Cache,
    cmd::{self, status},
    rustc_wrapper,
    sources::{self, Lock},
    tools::{self, Toolchain},
    workspace::Workspace,
};

/// Rust's name for little-endian BPF.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The name of the binary in `probe-ebpf`.
const BINARY: &str = "oomprobe";

/// Builds the object and its lock file in place.
pub(crate) fn build(cache: &Cache) -> Result<()> {
    let workspace = Workspace::find()?;
    let toolchain = Toolchain::ready(cache)?;
    let object = Build {
        toolchain: &toolchain,
        sources: &workspace.root,
        locked: false,
    }
    .object(&workspace.target.join("ebpf"))?;
    let lock = Lock {
        object_sha256: sources::sha256(&object),
        sources_sha256: sources::hash_sources(&workspace.root)?,
        rustc: toolchain.rustc.version.clone(),
        llvm: toolchain.rustc.llvm.clone(),
        bpf_linker: toolchain.bpf_linker_version.clone(),
    };
    let (object_path, lock_path) = (workspace.bpf_object(), workspace.bpf_lock());
    write(&object_path, &object)?;
    write(&lock_path, lock.to_string().as_bytes())?;
    status(
        "Built",
        format_args!("{} ({} bytes)", object_path.display(), object.len()),
    );
    Ok(())
}

/// Builds the object from a copy of the sources in another directory and compares it with the
/// committed one, which so proves to be both fresh and reproducible.
pub(crate) fn check(cache: &Cache) -> Result<()> {
    let workspace = Workspace::find()?;
    let toolchain = Toolchain::ready(cache)?;
    let committed = fs::read(workspace.bpf_object())
        .with_context(|| format!("cannot read {}", workspace.bpf_object().display()))?;
    let lock = fs::read_to_string(workspace.bpf_lock())
        .with_context(|| format!("cannot read {}", workspace.bpf_lock().display()))?;
    let lock = Lock::parse(&lock).map_err(anyhow::Error::msg)?;

    let place = workspace.target.join("ebpf-check");
    let copy = place.join("elsewhere");
    copy_sources(&workspace.root, &copy)?;
    let rebuilt = Build {
        toolchain: &toolchain,
        sources: &copy,
        locked: true,
    }
    .object(&place.join("target"))?;

    if lock.sources_sha256 != sources::hash_sources(&workspace.root)? {
        bail!("the BPF sources changed: run `cargo xtask build-ebpf` and commit the object");
    }
    if rebuilt == committed && lock.object_sha256 == sources::sha256(&committed) {
        status("Checked", "the BPF object is what its sources build to");
        return Ok(());
    }
    bail!(
        "{} is not what its sources build to{}: run `cargo xtask build-ebpf` and commit the object",
        workspace.bpf_object().display(),
        tools_that_differ(&lock, &toolchain)
    )
}

/// `" with the tools of this machine (…)"` if some version is not the one in the lock file, else nothing.
fn tools_that_differ(lock: &Lock, toolchain: &Toolchain) -> String {
    let differing: Vec<String> = [
        (
            "rustc",
            lock.rustc.as_str(),
            toolchain.rustc.version.as_str(),
        ),
        ("LLVM", &lock.llvm, &toolchain.rustc.llvm),
        (
            "bpf-linker",
            &lock.bpf_linker,
            &toolchain.bpf_linker_version,
        ),
    ]
    .into_iter()
    .filter(|(_, then, here)| then != here)
    .map(|(tool, then, here)| format!("{tool} was `{then}`, is `{here}`"))
    .collect();
    if differing.is_empty() {
        return String::new();
    }
    format!(" with the tools of this machine ({})", differing.join("; "))
}

/// A cargo command for `probe-ebpf` with all that a compilation for BPF needs.
pub(crate) fn cargo_for_bpf(toolchain: &Toolchain, sources: &Path, verb: &str) -> Result<Command> {
    let mut cargo = tools::cargo();
    cargo
        .current_dir(sources.join("probe-ebpf"))
        .arg(verb)
        .args(["--release", "--target", TARGET, "-Z", "build-std=core"])
        // `-Z` on a stable toolchain.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(toolchain, sources)?);
    rustc_wrapper::apply_to(&mut cargo)?;
    Ok(cargo)
}

/// A build of the object from the sources of some workspace.
struct Build<'a> {
    toolchain: &'a Toolchain,
    sources: &'a Path,
    locked: bool,
}

impl Build<'_> {
    /// The finished object.
    fn object(&self, target: &Path) -> Result<Vec<u8>> {
        status(
            "Building",
            format_args!("the BPF object with {}", self.toolchain.rustc.version),
        );
        let mut cargo = cargo_for_bpf(self.toolchain, self.sources, "build")?;
        cargo.arg("--target-dir").arg(target);
        if self.locked {
            cargo.arg("--locked");
        }
        cmd::run(&mut cargo)?;
        let linked = target.join(TARGET).join("release").join(BINARY);
        let stripped = linked.with_extension("bpf.o");
        self.toolchain.strip_debug(&linked, &stripped)?;
        fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
    }
}

/// Flags separated as `CARGO_ENCODED_RUSTFLAGS` wants them.
fn rustflags(toolchain: &Toolchain, sources: &Path) -> Result<OsString> {
    let linker = toolchain.bpf_linker.as_os_str();
    let mut flags: Vec<OsString> = [
        // BTF is made from debug information.
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // aya-ebpf would take the machine it is built on for the one that runs the programs.
        "--cfg=bpf_target_arch=\"x86_64\"",
    ]
    .map(OsString::from)
    .to_vec();
    flags.push(joined("-Clinker=", linker, ""));
    // BTF and its line information name source files: no path of this machine may be in them.
    let remap = |dir: &Path, name: &str| joined("--remap-path-prefix=", dir.as_os_str(), name);
    flags.push(remap(sources, "=/oomprobe"));
    flags.push(remap(&toolchain.rustc.sysroot, "=/rust"));
    for registry in registries(sources)? {
        flags.push(remap(&registry, "=/crates"));
    }
    Ok(flags.join(OsStr::new("\x1f")))
}

fn joined(before: &str, middle: &OsStr, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(middle);
    text.push(after);
    text
}

/// The directories that hold the crates which `probe-ebpf` takes from registries.
fn registries(sources: &Path) -> Result<BTreeSet<PathBuf>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        source: Option<String>,
        manifest_path: PathBuf,
    }
    let json = cmd::output(
        tools::cargo()
            .current_dir(sources.join("probe-ebpf"))
            .args(["metadata", "--format-version", "1"]),
    )?;
    let metadata: Metadata =
        serde_json::from_str(&json).context("`cargo metadata` is not as documented")?;
    Ok(metadata
        .packages
        .into_iter()
        .filter(|package| package.source.is_some())
        .filter_map(|package| Some(package.manifest_path.parent()?.parent()?.to_owned()))
        .collect())
}

/// Replaces `to` by a copy of the BPF sources of `from`, with the manifest they inherit from.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    let manifest = ("Cargo.toml".to_owned(), from.join("Cargo.toml"));
    for (name, path) in sources::source_files(from)?.into_iter().chain([manifest]) {
        let copy = to.join(name);
        if let Some(dir) = copy.parent() {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        fs::copy(&path, &copy)
            .with_context(|| format!("cannot copy {} to {}", path.display(), copy.display()))?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
