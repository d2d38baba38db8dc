//! Packets in queues that no socket has. All are in network namespaces of their own.

use std::fs::OpenOptions;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Command, ExitCode, exit};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    SockProtocol, setsockopt,
    sockopt::{RcvBufForce, SndBufForce},
};
use nix::sys::wait::{WaitStatus, waitpid};

use super::netlink::{Attributes, Netlink, message};
use super::network::{self, LOOPBACK};
use super::{PAYLOAD, RECEIVE_BUFFER, wait_to_be_killed};
use crate::processes::spawn;

/// More packets than were asked for, so that a queue of that length is surely full.
const SURPLUS: u32 = 64;

/// Says what waits in a queue, and lets it wait.
fn hold(packets: u32) -> Result<ExitCode> {
    println!("queues {} {packets}", network::inode()?);
    Ok(wait_to_be_killed())
}

fn send(to: Ipv4Addr, packets: u32) -> Result<()> {
    let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("UDP socket")?;
    // What waits further on is charged to the sender.
    setsockopt(&sender, SndBufForce, &RECEIVE_BUFFER).context("SO_SNDBUFFORCE")?;
    for _ in 0..packets {
        sender.send_to(&PAYLOAD, (to, 9)).context("send")?;
    }
    Ok(())
}

/// In a qdisc that delays each packet by almost an hour. Whoever sent them has exited.
pub(super) fn qdisc(packets: u32) -> Result<ExitCode> {
    /// `TCA_NETEM_LATENCY64` (include/uapi/linux/pkt_sched.h), ns.
    const LATENCY64: u16 = 10;
    const HOUR_NS: i64 = 3_000_000_000_000;
    const HANDLE: u32 = 0x8001_0000;
    /// `TC_H_ROOT`
    const ROOT: u32 = u32::MAX;
    network::own()?;
    // `struct tcmsg`: family, padding, interface, handle, parent, info.
    let mut fixed = vec![0; 4];
    fixed.extend(network::index(LOOPBACK)?.to_ne_bytes());
    fixed.extend(HANDLE.to_ne_bytes());
    fixed.extend(ROOT.to_ne_bytes());
    fixed.extend([0; 4]);
    // `struct tc_netem_qopt`: latency, limit, then loss and the like.
    let mut options = vec![0; 24];
    options[4..8].copy_from_slice(&(packets * 2).to_ne_bytes());
    let options = Attributes::default()
        .with(LATENCY64, &HOUR_NS.to_ne_bytes())?
        .behind(&options);
    let rest = Attributes::default()
        .with(libc::TCA_KIND, b"netem\0")?
        .with(libc::TCA_OPTIONS, &options)?;
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE;
    let netem = message(libc::RTM_NEWQDISC, flags, &fixed, rest)?;
    Netlink::open(SockProtocol::NetlinkRoute, 0)?
        .ask(&[netem])
        .context("netem")?;

    let sender = spawn(|| {
        send(Ipv4Addr::LOCALHOST, packets)?;
        exit(0)
    })?;
    let end = waitpid(sender, None).context("wait for the sender")?;
    ensure!(end == WaitStatus::Exited(sender, 0), "the sender: {end:?}");
    hold(packets)
}

/// In a tun device that nobody reads from, as many as it takes.
pub(super) fn tun(packets: u32) -> Result<ExitCode> {
    const DEVICE: &str = "tun7";
    const PATH: &str = "/dev/net/tun";
    network::own()?;
    // The file is made with the module.
    let _ = Command::new("modprobe").arg("tun").status();
    let device = OpenOptions::new().read(true).write(true).open(PATH);
    let device = device.context(PATH)?;
    let mut request = network::request(DEVICE)?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags.try_into()?;
    // SAFETY: the request outlives the call, and is of the type that this ioctl takes.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(made).context("TUNSETIFF")?;
    network::set_queue_length(DEVICE, packets)?;
    let peer = Ipv4Addr::new(10, 8, 0, 2);
    network::set_addresses(DEVICE, Ipv4Addr::new(10, 8, 0, 1), peer)?;
    network::up(DEVICE)?;
    send(peer, packets + SURPLUS)?;
    hold(packets)
}

/// In an nfqueue whose process gives no verdict. A copy of each waits in its socket.
pub(super) fn nfqueue(packets: u32) -> Result<ExitCode> {
    /// Attributes of a configuration (include/uapi/linux/netfilter/nfnetlink_queue.h).
    const PARAMETERS: u16 = 2;
    const MOST: u16 = 3;
    network::own()?;
    let holder = Netlink::open(SockProtocol::NetlinkNetFilter, 0)?;
    setsockopt(&holder, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let kind = subsystem(libc::NFNL_SUBSYS_QUEUE, libc::NFQNL_MSG_CONFIG)?;
    let command = [u8::try_from(libc::NFQNL_CFG_CMD_BIND)?, 0, 0, 0];
    // How much of each packet is copied, then what.
    let copies = [0, 0, 0, 0, u8::try_from(libc::NFQNL_COPY_META)?];
    let limit = (packets + SURPLUS).to_be_bytes();
    for (attribute, value) in [
        (u16::try_from(libc::NFQA_CFG_CMD)?, &command[..]),
        (PARAMETERS, &copies),
        (MOST, &limit),
    ] {
        let rest = Attributes::default().with(attribute, value)?;
        // `struct nfgenmsg`: family, version, queue.
        let configure = message(kind, libc::NLM_F_ACK, &[0, 0, 0, 0], rest)?;
        holder.ask(&[configure]).context("nfqueue")?;
    }
    queue_all_input()?;
    send(Ipv4Addr::LOCALHOST, packets)?;
    super::all_were_queued(&holder)?;
    super::tell(std::process::id(), &holder, packets)?;
    hold(packets)
}

/// Makes an nftables rule: all IPv4 input goes to nfqueue 0. What its messages contain is in
/// include/uapi/linux/netfilter/nf_tables.h.
fn queue_all_input() -> Result<()> {
    const IPV4: [u8; 4] = [2, 0, 0, 0];
    let new = |kind, flags, rest| {
        let kind = subsystem(libc::NFNL_SUBSYS_NFTABLES, kind)?;
        message(kind, libc::NLM_F_CREATE | flags, &IPV4, rest)
    };
    let table = || Attributes::default().with(1, b"t\0");
    let hook = Attributes::default()
        .with(1, &1_u32.to_be_bytes())?
        .with(2, &0_u32.to_be_bytes())?;
    let chain = table()?
        .with(3, b"in\0")?
        .nesting(4, &hook)?
        .with(7, b"filter\0")?;
    // One queue, number 0.
    let numbers = Attributes::default().with(1, &[0, 0])?.with(2, &[0, 1])?;
    let expression = Attributes::default()
        .with(1, b"queue\0")?
        .nesting(2, &numbers)?;
    let expressions = Attributes::default().nesting(1, &expression)?;
    let rule = table()?.with(2, b"in\0")?.nesting(4, &expressions)?;
    let batch = |kind: i32| {
        let nftables = u16::try_from(libc::NFNL_SUBSYS_NFTABLES)?.to_be_bytes();
        let fixed = [0, 0, nftables[0], nftables[1]];
        message(kind.try_into()?, 0, &fixed, Attributes::default())
    };
    let messages = [
        batch(libc::NFNL_MSG_BATCH_BEGIN)?,
        new(libc::NFT_MSG_NEWTABLE, 0, table()?)?,
        new(libc::NFT_MSG_NEWCHAIN, 0, chain)?,
        new(libc::NFT_MSG_NEWRULE, libc::NLM_F_ACK, rule)?,
        batch(libc::NFNL_MSG_BATCH_END)?,
    ];
    let netfilter = Netlink::open(SockProtocol::NetlinkNetFilter, 0)?;
    netfilter.ask(&messages).context("nftables rule")
}

/// The type of a netfilter message.
fn subsystem(subsystem: i32, kind: i32) -> Result<u16> {
    Ok(u16::try_from(subsystem << 8 | kind)?)
}
