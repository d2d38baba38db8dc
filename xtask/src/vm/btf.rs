//! Takes the kernel's type information (ELF section `.BTF`) out of a bootable image.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};

/// The raw `.BTF` section of `vmlinuz`: what the running kernel shows as /sys/kernel/btf/vmlinux.
pub(super) fn extract(vmlinuz: &[u8]) -> Result<Vec<u8>> {
    let vmlinux = decompress(payload(vmlinuz)?)?;
    let file = object::File::parse(vmlinux.as_slice()).context("the image holds no ELF file")?;
    let section = file.section_by_name(".BTF").context("the kernel has no .BTF section")?;
    Ok(section.data()?.to_vec())
}

/// The compressed kernel inside a bzImage, see Documentation/arch/x86/boot.rst.
fn payload(vmlinuz: &[u8]) -> Result<&[u8]> {
    let word = |at: usize| {
        let bytes = vmlinuz.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).context("truncated image")
    };
    ensure!(vmlinuz.get(0x202..0x206) == Some(b"HdrS".as_slice()), "not a Linux boot image");
    let setup_sectors = match vmlinuz[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let end = start.saturating_add(word(0x24c)?);
    vmlinuz.get(start..end).context("truncated image")
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    // The build appends the uncompressed size, which these tools report as trailing garbage
    // after having written everything: what they wrote counts, not how they ended.
    let command: &[&str] = match payload {
        [0xfd, b'7', b'z', ..] => &["xz", "-dcq", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dcq"],
        [0x1f, 0x8b, ..] => &["gzip", "-dcq"],
        _ => bail!("unknown compression of the image: {:02x?}", payload.get(..4)),
    };
    let mut tool = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("run {}", command[0]))?;
    let mut input = tool.stdin.take().context("stdin of the decompressor")?;
    thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        tool.wait_with_output()
    })
    .map(|output| output.stdout)
    .with_context(|| format!("run {}", command[0]))
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
