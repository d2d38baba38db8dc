//! A container image made by hand: a static busybox, and whatever static binaries a test adds.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The image every pod of these tests runs, sandboxes included. The domain is reserved
/// (RFC 2606): a runtime that tried to pull it would find nobody.
pub(crate) const IMAGE: &str = "oomprobe.test/busybox:1";

/// A `docker save` archive with two layers: busybox with a link for each of its applets, and
/// `binaries` in `/bin` under their own file names.
pub(crate) fn archive(busybox: &Path, binaries: &[&Path]) -> Result<Vec<u8>> {
    let mut layers = vec![busybox_layer(busybox)?];
    if !binaries.is_empty() {
        layers.push(binaries_layer(binaries)?);
    }
    let digests: Vec<String> = layers
        .iter()
        .map(|layer| format!("{:x}", Sha256::digest(layer)))
        .collect();
    let diff_ids: Vec<String> = digests
        .iter()
        .map(|digest| format!("sha256:{digest}"))
        .collect();
    let names: Vec<String> = digests
        .iter()
        .map(|digest| format!("{digest}.tar"))
        .collect();

    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": go_architecture()?,
        "os": "linux",
        // What the sandbox ("pause") container runs; other containers bring their own command.
        "config": { "Entrypoint": ["/bin/sleep", "2147483647"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))?;
    let manifest = serde_json::to_vec(&serde_json::json!([
        { "Config": "config.json", "RepoTags": [IMAGE], "Layers": names }
    ]))?;

    let mut tar = Builder::new(Vec::new());
    for (name, layer) in names.iter().zip(&layers) {
        append(&mut tar, name, 0o644, layer)?;
    }
    append(&mut tar, "config.json", 0o644, &config)?;
    append(&mut tar, "manifest.json", 0o644, &manifest)?;
    Ok(tar.into_inner()?)
}

fn busybox_layer(busybox: &Path) -> Result<Vec<u8>> {
    let listed = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    ensure!(
        listed.status.success(),
        "{} --list failed",
        busybox.display()
    );
    let applets = String::from_utf8(listed.stdout)?;

    let mut tar = Builder::new(Vec::new());
    for name in ["bin/", "tmp/"] {
        let mut directory = header(EntryType::Directory, 0o777, 0);
        tar.append_data(&mut directory, name, std::io::empty())?;
    }
    let program =
        fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    append(&mut tar, "bin/busybox", 0o755, &program)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let mut link = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut link, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

fn binaries_layer(binaries: &[&Path]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for path in binaries {
        let program = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .with_context(|| format!("{} has no usable file name", path.display()))?;
        append(&mut tar, &format!("bin/{name}"), 0o755, &program)?;
    }
    Ok(tar.into_inner()?)
}

fn append(tar: &mut Builder<Vec<u8>>, name: &str, mode: u32, data: &[u8]) -> Result<()> {
    let mut file = header(EntryType::Regular, mode, data.len() as u64);
    tar.append_data(&mut file, name, data)?;
    Ok(())
}

/// Owner root and time zero (the default): the same files make the same image.
fn header(kind: EntryType, mode: u32, size_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size_bytes);
    header
}

/// This machine's architecture in the image specification's (Go's) words.
fn go_architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image for architecture {other}"),
    }
}
