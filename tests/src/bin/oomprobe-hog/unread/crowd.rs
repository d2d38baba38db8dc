//! Many sockets, and sockets that come and go.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{ExitCode, exit};

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt::RcvBufForce,
};
use nix::sys::wait::waitpid;
use nix::unistd::pause;

use super::{PAYLOAD, RECEIVE_BUFFER, network};
use crate::processes::spawn;
use crate::wait_to_be_killed;

/// Descriptors that a process has besides its sockets, at most.
const OTHERS: u64 = 64;

pub(super) fn crowd(
    processes: u32,
    sockets: usize,
    holders: u32,
    packets: u32,
) -> Result<ExitCode> {
    network::own()?;
    allow_descriptors(u64::try_from(sockets)? + OTHERS)?;
    for number in 0..processes {
        spawn(|| {
            let _before = empty(sockets / 2)?;
            let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
            let _after = empty((sockets - sockets / 2).saturating_sub(1))?;
            if number < holders {
                fill(&receiver, packets)?;
                super::tell(std::process::id(), &receiver, packets)?;
            }
            println!("child {}", std::process::id());
            loop {
                pause();
            }
        })?;
    }
    let ended = waitpid(None, None).context("wait for children")?;
    bail!("one of them should live: {ended:?}")
}

/// Raises the limit of open files, where that needs no privilege or there is one.
fn allow_descriptors(count: u64) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
        .with_context(|| format!("a limit of {count} open files"))
}

fn empty(count: usize) -> Result<Vec<OwnedFd>> {
    let kind = SockType::Datagram;
    let open = |_| socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None);
    let all: Result<Vec<OwnedFd>, _> = (0..count).map(open).collect();
    all.context("one more socket")
}

fn fill(receiver: &UdpSocket, packets: u32) -> Result<()> {
    setsockopt(receiver, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    let address = receiver.local_addr().context("address of the socket")?;
    for _ in 0..packets {
        sender.send_to(&PAYLOAD, address).context("send")?;
    }
    super::all_were_queued(receiver)
}

pub(super) fn churn(processes: u32) -> Result<ExitCode> {
    network::own()?;
    for _ in 0..processes {
        spawn(|| {
            loop {
                let family = spawn(short_life)?;
                waitpid(family, None).context("wait for a child")?;
            }
        })?;
    }
    Ok(wait_to_be_killed())
}

/// Fills sockets, closes some, hands the rest on to a child, and is gone.
fn short_life() -> Result<()> {
    const SOCKETS: usize = 16;
    const PACKETS: u32 = 20;
    let mut sockets = Vec::with_capacity(SOCKETS);
    for _ in 0..SOCKETS {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
        fill(&receiver, PACKETS)?;
        sockets.push(receiver);
    }
    sockets.truncate(SOCKETS / 2);
    let heir = spawn(|| exit(0))?;
    drop(sockets);
    waitpid(heir, None).context("wait for a child")?;
    exit(0)
}
