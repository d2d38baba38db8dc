//! Packets of all sorts that are read at once, in a network namespace of their own: what a busy and
//! healthy node does with socket buffers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::unread::{network, tap};

const PAYLOAD: [u8; 600] = [1; 600];

/// All packets (linux/if_ether.h), of which a capture gets clones.
const ETH_P_ALL: u16 = 3;

/// One of each sort.
struct Traffic {
    udp: (UdpSocket, UdpSocket),
    tcp: (TcpStream, TcpStream),
    stream: (UnixStream, UnixStream),
    datagram: (UnixDatagram, UnixDatagram),
    netlink: OwnedFd,
    /// Gets a clone of each packet of the others, twice: as it leaves and as it comes.
    capture: OwnedFd,
    /// Gets a clone of each UDP packet.
    raw: OwnedFd,
}

/// Passes a packet of each sort so often, closes everything and ends.
pub(super) fn traffic(rounds: u32) -> Result<ExitCode> {
    network::own()?;
    let mut traffic = Traffic::open()?;
    for round in 0..rounds {
        traffic.pass().with_context(|| format!("round {round}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Traffic {
    fn open() -> Result<Self> {
        let local = (Ipv4Addr::LOCALHOST, 0);
        let udp = (UdpSocket::bind(local)?, UdpSocket::bind(local)?);
        udp.0.connect(udp.1.local_addr()?)?;
        let listener = TcpListener::bind(local)?;
        let tcp = TcpStream::connect(listener.local_addr()?)?;
        let open = |family, kind, protocol| {
            socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).context("socket")
        };
        let (inet, netlink) = (AddressFamily::Inet, AddressFamily::Netlink);
        Ok(Self {
            udp,
            tcp: (tcp, listener.accept()?.0),
            stream: UnixStream::pair()?,
            datagram: UnixDatagram::pair()?,
            netlink: open(netlink, SockType::Raw, SockProtocol::NetlinkRoute)?,
            capture: tap::open(ETH_P_ALL)?,
            raw: open(inet, SockType::Raw, SockProtocol::Udp)?,
        })
    }

    fn pass(&mut self) -> Result<()> {
        let mut buffer = PAYLOAD;
        self.udp.0.send(&PAYLOAD).context("UDP")?;
        self.udp.1.recv(&mut buffer).context("UDP")?;
        self.tcp.0.write_all(&PAYLOAD).context("TCP")?;
        self.tcp.1.read_exact(&mut buffer).context("TCP")?;
        self.stream.0.write_all(&PAYLOAD).context("unix stream")?;
        self.stream
            .1
            .read_exact(&mut buffer)
            .context("unix stream")?;
        self.datagram.0.send(&PAYLOAD).context("unix datagram")?;
        self.datagram.1.recv(&mut buffer).context("unix datagram")?;
        dump_links(&self.netlink)?;
        drain(&self.capture).context("capture")?;
        drain(&self.raw).context("raw")
    }
}

/// Has the kernel list the devices, which takes a packet or two and one that says it is the last.
fn dump_links(netlink: &OwnedFd) -> Result<()> {
    const LENGTH: u32 = 32;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP)?;
    let mut request = LENGTH.to_ne_bytes().to_vec();
    request.extend(libc::RTM_GETLINK.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    // Sequence number and sender, then an ifinfomsg, all of it zero: of any family and device.
    request.resize(LENGTH as usize, 0);
    let fd = netlink.as_raw_fd();
    send(fd, &request, MsgFlags::empty()).context("ask for devices")?;
    let mut answer = [0; 1 << 14];
    loop {
        let length = recv(fd, &mut answer, MsgFlags::empty()).context("devices")?;
        ensure!(length >= 16, "an answer of {length} bytes");
        // The last message is alone (NLMSG_DONE).
        if answer[4..6] == u16::try_from(libc::NLMSG_DONE)?.to_ne_bytes() {
            return Ok(());
        }
    }
}

/// Reads all that waits.
fn drain(socket: impl AsFd) -> Result<()> {
    let mut buffer = [0; 2048];
    let fd = socket.as_fd().as_raw_fd();
    loop {
        match recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
