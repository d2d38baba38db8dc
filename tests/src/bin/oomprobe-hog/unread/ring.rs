//! A capture whose frames are in pages that it shares with the kernel (`TPACKET_V3`,
//! Documentation/networking/packet_mmap.rst): memory that is no socket buffer.

use std::os::fd::AsRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use super::network::{self, LOOPBACK};
use super::tap;

const BLOCK_BYTES: u32 = 1 << 20;
const FRAME_BYTES: u32 = 2048;

/// Has the ring full, and more frames come than fit.
pub(super) fn ring(mib: u32) -> Result<ExitCode> {
    network::own()?;
    let (receiver, sender) = (tap::open(tap::PROTOCOL)?, tap::open(0)?);
    let blocks = (mib << 20) / BLOCK_BYTES;
    let frames = blocks * (BLOCK_BYTES / FRAME_BYTES);
    let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
    set(&receiver, libc::PACKET_VERSION, &version).context("PACKET_VERSION")?;
    let request = libc::tpacket_req3 {
        tp_block_size: BLOCK_BYTES,
        tp_block_nr: blocks,
        tp_frame_size: FRAME_BYTES,
        tp_frame_nr: frames,
        tp_retire_blk_tov: 0,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    set(&receiver, libc::PACKET_RX_RING, &request).context("PACKET_RX_RING")?;
    let loopback = network::index(LOOPBACK)?;
    // Frames are as long as they are in this version: more of them fit.
    for _ in 0..frames * 4 {
        tap::send(&sender, loopback)?;
    }
    super::hold(receiver, 0)
}

/// Sets an option of packet sockets.
fn set<T>(socket: &impl std::os::fd::AsFd, option: i32, value: &T) -> Result<()> {
    // SAFETY: the value is of the length told, and outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            libc::socklen_t::try_from(size_of::<T>())?,
        )
    };
    Errno::result(done)?;
    Ok(())
}
