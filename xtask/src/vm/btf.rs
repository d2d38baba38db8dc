//! Takes the kernel's type information (ELF section `.BTF`) out of a bootable image.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

/// The raw `.BTF` section of the kernel in a bzImage: what the running kernel shows as /sys/kernel/btf/vmlinux.
pub(super) fn extract(image: &[u8]) -> Result<Vec<u8>> {
    let vmlinux = decompress(payload(image)?)?;
    let file = object::File::parse(vmlinux.as_slice()).context("the image holds no ELF file")?;
    let section = file
        .section_by_name(".BTF")
        .context("the kernel has no .BTF section")?;
    Ok(section.data()?.to_vec())
}

/// The compressed kernel inside a bzImage, see Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| {
        let bytes = image
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(|bytes| u32::from_le_bytes(bytes) as usize)
            .context("truncated image")
    };
    ensure!(
        image.get(0x202..0x206) == Some(b"HdrS".as_slice()),
        "not a Linux boot image"
    );
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let end = start.saturating_add(word(0x24c)?);
    image.get(start..end).context("truncated image")
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    // Behind all but gzip, which records it itself, the build appends the uncompressed size.
    let without_size = payload
        .len()
        .checked_sub(4)
        .and_then(|end| payload.get(..end));
    let (tool, data) = match payload {
        [0x1f, 0x8b, ..] => ("gzip", Some(payload)),
        [0xfd, b'7', b'z', ..] => ("xz", without_size),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", without_size),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", without_size),
        _ => bail!(
            "unknown compression of the image: {:02x?}",
            payload.get(..4)
        ),
    };
    decompress_with(tool, data.context("truncated image")?)
}

/// Runs `data` through `tool -dc`.
fn decompress_with(tool: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut process = Command::new(tool)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {tool}"))?;
    let mut input = process
        .stdin
        .take()
        .with_context(|| format!("stdin of {tool}"))?;
    let output = thread::scope(|scope| {
        // Fails only if the tool ends early, which its status tells.
        scope.spawn(move || input.write_all(data));
        process.wait_with_output()
    })
    .with_context(|| format!("run {tool}"))?;
    ensure!(
        output.status.success(),
        "{tool} cannot decompress it: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_refused() {
        assert!(extract(b"").is_err());
        assert!(extract(&[0; 4096]).is_err());
        let mut cut = vec![0; 0x250];
        cut[0x202..0x206].copy_from_slice(b"HdrS");
        cut[0x24c] = 0xff;
        assert!(extract(&cut).unwrap_err().to_string().contains("truncated"));
    }

    #[test]
    fn the_payload_is_found_behind_the_setup_sectors() {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 0x10;
        image[0x24c] = 3;
        image[0x410..0x413].copy_from_slice(b"abc");
        assert_eq!(payload(&image).unwrap(), b"abc");
    }
}
