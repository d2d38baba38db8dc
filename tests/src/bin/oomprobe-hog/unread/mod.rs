//! Socket buffers that nobody takes out of their queues: kernel memory that no process's numbers
//! show.
//!
//! Each says `holds PID INODE COUNT` for a socket, who has which and how many packets wait in it, or
//! `queues NETNS COUNT` for a queue that no socket has. All but [`Unread::Capture`] are in network
//! namespaces of their own, so that nothing else sends to them.

mod crowd;
mod netlink;
pub(super) mod network;
mod queues;
mod ring;
mod sockets;
mod stream;
mod subscriber;
pub(super) mod tap;

use std::os::fd::{AsFd, AsRawFd as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::wait_to_be_killed;

pub(super) use tap::Tap;

/// As much as the kernel allows: it doubles the number.
const RECEIVE_BUFFER: usize = (1 << 30) - 1;
/// With its share of the kernel's own data, a packet of this size takes a kilobyte.
const PAYLOAD: [u8; 600] = [1; 600];

/// What is not read.
#[derive(Clone, Copy, Subcommand)]
pub(super) enum Unread {
    /// A stream, written to until the sender's buffer of so many bytes is full
    Unix { bytes: usize },
    /// A subscriber to news of devices, which fill a buffer of so many bytes and more
    Netlink { bytes: usize },
    /// UDP, in another network namespace than the process
    Udp {
        packets: u32,
        /// It is read, and as many more come
        #[arg(long)]
        read: bool,
    },
    /// So many bytes over TCP, in pieces of this size
    Tcp {
        bytes: usize,
        piece: usize,
        /// It is read, and as many more come
        #[arg(long)]
        read: bool,
    },
    /// Copies of all UDP that comes in
    Raw { packets: u32 },
    /// UDP, by two processes that have one socket
    Shared { packets: u32 },
    /// UDP, by no process: the descriptor was sent and not received
    InFlight { packets: u32 },
    /// A capture of all IPv4 of the caller's loopback device, of at most so many bytes
    Capture { bytes: usize },
    /// A capture by a ring of so many MiB, which is full
    Ring { mib: u32 },
    /// Packets in a queueing discipline, whose sender has exited
    Qdisc { packets: u32 },
    /// Packets for the reader of a tun device
    Tun { packets: u32 },
    /// Packets that wait for a verdict
    Nfqueue { packets: u32 },
    /// So many sockets of each of so many processes, some of which have one with packets in it.
    /// Each says `child PID` when it has them
    Crowd {
        processes: u32,
        sockets: usize,
        holders: u32,
        packets: u32,
    },
    /// Sockets and processes that come and go, as fast as so many processes can
    Churn { processes: u32 },
}

impl Unread {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self {
            Self::Unix { bytes } => sockets::unix(bytes),
            Self::Netlink { bytes } => subscriber::netlink(bytes),
            Self::Udp { packets, read } => sockets::udp(packets, read),
            Self::Tcp { bytes, piece, read } => stream::tcp(bytes, piece, read),
            Self::Raw { packets } => sockets::raw(packets),
            Self::Shared { packets } => sockets::shared(packets),
            Self::InFlight { packets } => sockets::in_flight(packets),
            Self::Capture { bytes } => tap::capture(bytes),
            Self::Ring { mib } => ring::ring(mib),
            Self::Qdisc { packets } => queues::qdisc(packets),
            Self::Tun { packets } => queues::tun(packets),
            Self::Nfqueue { packets } => queues::nfqueue(packets),
            Self::Crowd {
                processes,
                sockets,
                holders,
                packets,
            } => crowd::crowd(processes, sockets, holders, packets),
            Self::Churn { processes } => crowd::churn(processes),
        }
    }
}

/// Says what is held, and holds it.
fn hold(socket: impl AsFd, packets: u32) -> Result<ExitCode> {
    tell(std::process::id(), &socket, packets)?;
    Ok(wait_to_be_killed())
}

fn tell(pid: u32, socket: impl AsFd, packets: u32) -> Result<()> {
    let inode = fstat(socket).context("inode of the socket")?.st_ino;
    println!("holds {pid} {inode} {packets}");
    Ok(())
}

/// Packets that the kernel dropped for want of room, by `SO_MEMINFO`.
fn drops(socket: impl AsFd) -> Result<u32> {
    /// One more than `SK_MEMINFO_DROPS`, the last.
    const FIELDS: usize = 9;
    let mut fields = [0_u32; FIELDS];
    let mut length = libc::socklen_t::try_from(size_of_val(&fields))?;
    // SAFETY: both pointers outlive the call, and the kernel writes at most `length` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            fields.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    Errno::result(done).context("SO_MEMINFO")?;
    fields.last().copied().context("SO_MEMINFO has no fields")
}

/// Fails if the kernel dropped packets for the socket instead of queueing them.
fn all_were_queued(socket: impl AsFd) -> Result<()> {
    let drops = drops(socket)?;
    ensure!(drops == 0, "{drops} packets dropped");
    Ok(())
}
