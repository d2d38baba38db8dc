//! Sockets that nobody reads.

use std::fs::File;
use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, send, sendmsg,
    setsockopt, socket, socketpair,
    sockopt::{RcvBufForce, SndBufForce},
};

use super::{PAYLOAD, RECEIVE_BUFFER, all_were_queued, hold, network, tell};
use crate::processes::spawn;
use crate::wait_to_be_killed;

pub(super) fn unix(bytes: usize) -> Result<ExitCode> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (sender, receiver) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
        .context("a pair of sockets")?;
    // The kernel doubles it.
    setsockopt(&sender, SndBufForce, &(bytes / 2)).context("SO_SNDBUFFORCE")?;
    let mut packets = 0;
    loop {
        match send(sender.as_raw_fd(), &PAYLOAD, MsgFlags::empty()) {
            // What is only partly taken is a packet too.
            Ok(_) => packets += 1,
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error).context("fill the socket"),
        }
    }
    hold(receiver, packets)
}

pub(super) fn udp(packets: u32, is_read: bool) -> Result<ExitCode> {
    let home = File::open("/proc/self/ns/net").context("own network namespace")?;
    let (receiver, sender) = filled(packets)?;
    setns(home, CloneFlags::CLONE_NEWNET).context("back to the own network namespace")?;
    if !is_read {
        return hold(receiver, packets);
    }
    tell(std::process::id(), &receiver, packets)?;
    println!("ready");
    loop {
        sender.send(&PAYLOAD).context("send")?;
        receiver.recv(&mut [0; PAYLOAD.len()]).context("recv")?;
    }
}

pub(super) fn raw(packets: u32) -> Result<ExitCode> {
    network::own()?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let receiver = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Udp)
        .context("raw socket")?;
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    for _ in 0..packets {
        // Nobody is there, which a sender that is not connected is not told.
        sender
            .send_to(&PAYLOAD, (Ipv4Addr::LOCALHOST, 9))
            .context("send")?;
    }
    all_were_queued(&receiver)?;
    hold(receiver, packets)
}

pub(super) fn shared(packets: u32) -> Result<ExitCode> {
    let (receiver, _) = filled(packets)?;
    let child = spawn(|| Ok(()))?;
    tell(u32::try_from(child.as_raw())?, &receiver, packets)?;
    hold(receiver, packets)
}

pub(super) fn in_flight(packets: u32) -> Result<ExitCode> {
    let (receiver, _) = filled(packets)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (sender, _other_end) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
        .context("a pair of sockets")?;
    let descriptor = [receiver.as_raw_fd()];
    sendmsg::<()>(
        sender.as_raw_fd(),
        &[IoSlice::new(b"1")],
        &[ControlMessage::ScmRights(&descriptor)],
        MsgFlags::empty(),
        None,
    )
    .context("send the socket")?;
    tell(std::process::id(), &receiver, packets)?;
    drop(receiver);
    Ok(wait_to_be_killed())
}

/// A UDP socket with so many packets in it, and the one that they are from, in a new network
/// namespace, in which this process is from here on.
fn filled(packets: u32) -> Result<(UdpSocket, UdpSocket)> {
    network::own()?;
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    setsockopt(&receiver, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    let address = receiver.local_addr().context("address of the socket")?;
    sender.connect(address).context("connect")?;
    for _ in 0..packets {
        sender.send(&PAYLOAD).context("send")?;
    }
    all_were_queued(&receiver)?;
    Ok((receiver, sender))
}
