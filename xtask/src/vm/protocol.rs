//! What host and guest say to each other on the guest's second serial port (ttyS1).
//!
//! Guest to host: [`HELLO`], then frames (kind, little-endian length, payload). One framed stream
//! instead of a port per purpose keeps stdout, stderr and the exit status in order without any
//! driver beyond the built-in 8250, and the kernel console (ttyS0) can never mix into it.
//! Host to guest: raw bytes, the terminal input of an interactive shell.
//!
//! This file is compiled into both ends: `xtask` and the guest's `/init` (`vm-init`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Where [`Spec`] lies in the guest.
pub(crate) const SPEC_PATH: &str = "etc/oomprobe-vm.json";

/// First bytes of the stream; firmware noise before it is skipped.
pub(crate) const HELLO: &[u8] = b"\noomprobe-vm 1\n";

/// Longest payload of a frame, in bytes.
pub(crate) const FRAME_MAX_BYTES: usize = 32 * 1024;

/// What `vm-init` is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// Program and arguments; the program is looked up in `PATH`.
    pub(crate) argv: Vec<String>,
    /// Environment on top of the guest's own `PATH`, `HOME` and `TERM`.
    pub(crate) env: BTreeMap<String, String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// Size of the terminal; present if the command gets one instead of pipes.
    pub(crate) terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TerminalSize {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// Meaning of a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Bytes of the command's standard output (or of its terminal).
    Stdout = b'o',
    /// Bytes of the command's standard error.
    Stderr = b'e',
    /// The command ended: its wait status (`waitpid(2)`), `i32`, little-endian. Always last.
    Exit = b'x',
    /// `vm-init` itself failed: UTF-8 text. Always last.
    Failure = b'f',
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::Exit, Self::Failure]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Writes one frame; `payload` is at most [`FRAME_MAX_BYTES`] long.
pub(crate) fn write_frame(out: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let len = u32::try_from(payload.len())
        .ok()
        .filter(|len| *len as usize <= FRAME_MAX_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "frame too long"))?;
    let mut frame = Vec::with_capacity(5 + payload.len());
    frame.push(kind as u8);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(payload);
    out.write_all(&frame)
}

/// Reads up to and including [`HELLO`]; an error of kind `UnexpectedEof` if it never comes.
pub(crate) fn read_hello(input: &mut impl Read) -> io::Result<()> {
    let mut last = Vec::with_capacity(HELLO.len() + 1);
    let mut byte = [0];
    while last != HELLO {
        input.read_exact(&mut byte)?;
        last.push(byte[0]);
        if last.len() > HELLO.len() {
            last.remove(0);
        }
    }
    Ok(())
}

/// Reads one frame; `None` at the end of the stream.
pub(crate) fn read_frame(input: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 5];
    if input.read(&mut head[..1])? == 0 {
        return Ok(None);
    }
    input.read_exact(&mut head[1..])?;
    let [kind, len @ ..] = head;
    let len = u32::from_le_bytes(len) as usize;
    let kind = Kind::from_byte(kind)
        .filter(|_| len <= FRAME_MAX_BYTES)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("not a frame on the guest's result port: {head:02x?}"),
            )
        })?;
    let mut payload = vec![0; len];
    input.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_noise_before_hello_and_any_byte_inside() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let mut wire = b"\x1bSeaBIOS\noomprobe-vm".to_vec();
        wire.extend_from_slice(HELLO);
        write_frame(&mut wire, Kind::Stdout, &every_byte).unwrap();
        write_frame(&mut wire, Kind::Exit, &256i32.to_le_bytes()).unwrap();

        let mut input = wire.as_slice();
        read_hello(&mut input).unwrap();
        assert_eq!(
            read_frame(&mut input).unwrap(),
            Some((Kind::Stdout, every_byte))
        );
        assert_eq!(
            read_frame(&mut input).unwrap(),
            Some((Kind::Exit, vec![0, 1, 0, 0]))
        );
        assert_eq!(read_frame(&mut input).unwrap(), None);
    }

    #[test]
    fn a_cut_or_foreign_stream_is_an_error() {
        assert!(read_hello(&mut &b"Kernel panic"[..]).is_err());
        assert!(read_frame(&mut &b"o\x05\0\0\0abc"[..]).is_err());
        assert!(read_frame(&mut &b"[    1.0] BUG: bad"[..]).is_err());
        assert!(read_frame(&mut &b"o\xff\xff\xff\xff"[..]).is_err());
        assert!(write_frame(&mut Vec::new(), Kind::Stdout, &vec![0; FRAME_MAX_BYTES + 1]).is_err());
    }
}
