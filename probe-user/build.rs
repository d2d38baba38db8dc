//! Refuses a BPF object that was not built from the sources beside it, and tells the crate which
//! object it embeds.

use std::{fs, path::Path};

#[path = "bpf/sources.rs"]
mod sources;

const REBUILD: &str = "run `cargo xtask build-ebpf`";

fn main() {
    match check() {
        Ok(object_sha256) => {
            // As much as tells one object from another, for `--version`.
            let short = object_sha256.get(..12).unwrap_or(&object_sha256);
            println!("cargo::rustc-env=OOMPROBE_BPF_ID={short}");
        }
        // Fails the build with just this sentence; an exit code would add a dump of all output.
        Err(problem) => println!("cargo::error={problem}"),
    }
}

/// The hash of the object, if it is the one that the sources were built to.
fn check() -> Result<String, String> {
    let read = |path: &str| {
        println!("cargo::rerun-if-changed={path}");
        fs::read(path).map_err(|error| format!("probe-user/{path}: {error}: {REBUILD}"))
    };
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=bpf/sources.rs");
    let object_sha256 = sources::sha256(&read("bpf/oomprobe.bpf.o")?);
    let lock = String::from_utf8(read("bpf/oomprobe.bpf.lock")?)
        .map_err(|error| error.to_string())
        .and_then(|text| sources::Lock::parse(&text))
        .map_err(|problem| format!("probe-user/bpf/oomprobe.bpf.lock: {problem}: {REBUILD}"))?;
    if lock.object_sha256 != object_sha256 {
        return Err(format!(
            "probe-user/bpf/oomprobe.bpf.o is not the object that oomprobe.bpf.lock describes: \
             {REBUILD}"
        ));
    }
    // The published crate comes without the BPF sources: nothing there can differ.
    let workspace = Path::new("..");
    if !workspace.join("probe-ebpf").exists() {
        return Ok(object_sha256);
    }
    for source in sources::SOURCES {
        println!("cargo::rerun-if-changed=../{source}");
    }
    let sources_sha256 = sources::hash_sources(workspace)
        .map_err(|error| format!("cannot read the BPF sources: {error}"))?;
    if lock.sources_sha256 != sources_sha256 {
        return Err(format!(
            "the BPF sources changed but probe-user/bpf/oomprobe.bpf.o was not rebuilt: {REBUILD}"
        ));
    }
    Ok(object_sha256)
}
