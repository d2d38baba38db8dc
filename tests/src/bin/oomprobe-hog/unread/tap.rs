//! Captures (`AF_PACKET`), of frames that only they get.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::RcvBufForce};

use super::network::{self, LOOPBACK};
use super::{RECEIVE_BUFFER, tell};
use crate::wait_to_be_killed;

/// For experiments (IEEE 802): no protocol of the kernel takes such frames, or answers them.
pub(super) const PROTOCOL: u16 = 0x88b5;
/// With the kernel's own data, a frame of this size takes a kilobyte, and 256 bytes beside it.
const FRAME: [u8; 600] = [1; 600];

/// A capture in a network namespace of its own.
#[derive(Clone, Copy, Args)]
pub(crate) struct Tap {
    /// How many wait in it
    frames: u32,
    /// It is read: frames are replaced by new ones for ever, the oldest first
    #[arg(long)]
    read: bool,
    /// So many captures, each of which gets all of them
    #[arg(long, default_value_t = 1)]
    sockets: u32,
}

impl Tap {
    pub(crate) fn run(self) -> Result<ExitCode> {
        network::own()?;
        let sender = open(0)?;
        let receivers: Result<Vec<OwnedFd>> = (0..self.sockets).map(|_| open(PROTOCOL)).collect();
        let receivers = receivers?;
        for receiver in &receivers {
            setsockopt(receiver, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
        }
        let loopback = network::index(LOOPBACK)?;
        for _ in 0..self.frames {
            send(&sender, loopback)?;
        }
        for receiver in &receivers {
            let held = received(receiver)?;
            ensure!(held == self.frames, "{held} of {} frames came", self.frames);
            tell(std::process::id(), receiver, held)?;
        }
        if !self.read {
            return Ok(wait_to_be_killed());
        }
        println!("ready");
        loop {
            send(&sender, loopback)?;
            for receiver in &receivers {
                recv(
                    receiver.as_raw_fd(),
                    &mut [0; FRAME.len()],
                    MsgFlags::empty(),
                )
                .context("recv")?;
            }
        }
    }
}

/// Gets what others send, and never reads it.
pub(super) fn capture(bytes: usize) -> Result<ExitCode> {
    // Bound before it hears anything.
    let receiver = open(0)?;
    // The kernel doubles it.
    setsockopt(&receiver, RcvBufForce, &(bytes / 2)).context("SO_RCVBUFFORCE")?;
    let address = address(u16::try_from(libc::ETH_P_IP)?, network::index(LOOPBACK)?)?;
    // SAFETY: the address is of the size told, and outlives the call.
    let done = unsafe {
        let length = libc::socklen_t::try_from(size_of_val(&address))?;
        libc::bind(receiver.as_raw_fd(), (&raw const address).cast(), length)
    };
    Errno::result(done).context("bind")?;
    super::hold(receiver, 0)
}

/// Opens one that gets frames of `protocol`; of 0, none.
pub(crate) fn open(protocol: u16) -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers; the descriptor is nobody else's.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be()));
        let fd = Errno::result(fd).context("packet socket")?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn address(protocol: u16, device: i32) -> Result<libc::sockaddr_ll> {
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = device;
    Ok(address)
}

/// Sends a frame that comes in again at once.
pub(super) fn send(socket: &OwnedFd, loopback: i32) -> Result<()> {
    let mut frame = FRAME;
    frame[12..14].copy_from_slice(&PROTOCOL.to_be_bytes());
    let to = address(0, loopback)?;
    // SAFETY: both buffers are of the sizes told.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            libc::socklen_t::try_from(size_of_val(&to))?,
        )
    };
    Errno::result(sent).map(drop).context("send a frame")
}

/// Frames that came and were not dropped (packet(7)).
fn received(socket: impl AsFd) -> Result<u32> {
    let mut told = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = libc::socklen_t::try_from(size_of_val(&told))?;
    // SAFETY: the buffer is of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).context("PACKET_STATISTICS")?;
    Ok(told.tp_packets.saturating_sub(told.tp_drops))
}
