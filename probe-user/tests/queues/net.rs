//! Fills queues of the network namespace it runs in: by netlink, so that it needs no tools and
//! works in a guest.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto,
    socket_with,
};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;

/// A netlink message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap();
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn nested(self, kind: u16, inside: &Self) -> Self {
        self.attribute(kind | NESTED, &inside.0)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap();
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn open(protocol: Option<Protocol>) -> OwnedFd {
    let family = AddressFamily::NETLINK;
    let fd = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
    bind(&fd, &SocketAddrNetlink::new(0, 0)).unwrap();
    fd
}

/// Sends `messages` at once; the first error the kernel answers with, or its first approval.
fn ask(fd: &OwnedFd, messages: Vec<Message>) -> io::Result<()> {
    let bytes = messages
        .into_iter()
        .flat_map(Message::finish)
        .collect::<Vec<u8>>();
    sendto(
        fd,
        &bytes,
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = vec![0; 64 << 10];
    let (_, length) = recv(fd, answer.as_mut_slice(), RecvFlags::empty())?;
    assert!(length >= 20, "an answer");
    match i32::from_ne_bytes(answer[16..20].try_into().unwrap()) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

fn route(message: Message) -> io::Result<()> {
    ask(&open(None), vec![message])
}

fn index(device: &str) -> i32 {
    let name = CString::new(device).unwrap();
    // SAFETY: the name ends with NUL and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert!(index > 0, "no device {device}");
    i32::try_from(index).unwrap()
}

fn device(index: i32, flags: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed.extend_from_slice(&flags.to_ne_bytes());
    fixed
}

/// Turns a device on.
pub(crate) fn up(name: &str) {
    route(Message::new(16, ACK, &device(index(name), 1))).unwrap();
}

/// Removes a device and what waits to leave by it.
pub(crate) fn remove(name: &str) {
    route(Message::new(17, ACK, &device(index(name), 0))).unwrap();
}

/// Makes a pair of virtual Ethernet devices.
pub(crate) fn veth(name: &str, peer: &str) {
    let peer = Message(device(0, 0)).attribute(3, &zero_ended(peer));
    let data = Message::default().nested(1, &peer);
    let info = Message::default().attribute(1, b"veth\0").nested(2, &data);
    let message = Message::new(16, ACK | CREATE, &device(0, 0));
    route(message.attribute(3, &zero_ended(name)).nested(18, &info)).unwrap();
}

fn zero_ended(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}

/// Gives a device an address.
pub(crate) fn address(name: &str, address: Ipv4Addr) {
    let mut fixed = vec![2, 24, 0, 0];
    fixed.extend_from_slice(&index(name).to_ne_bytes());
    let message = Message::new(20, ACK | CREATE, &fixed);
    let octets = address.octets();
    route(message.attribute(2, &octets).attribute(1, &octets)).unwrap();
}

/// Makes the link-layer address of a neighbour known.
pub(crate) fn neighbour(name: &str, address: Ipv4Addr) {
    let mut fixed = vec![2, 0, 0, 0];
    fixed.extend_from_slice(&index(name).to_ne_bytes());
    fixed.extend_from_slice(&[0x80, 0, 0, 0]);
    let message = Message::new(28, ACK | CREATE, &fixed).attribute(1, &address.octets());
    route(message.attribute(2, &[2, 0, 0, 0, 0, 9])).unwrap();
}

fn qdisc(name: &str, kind: &str, options: &[u8]) -> io::Result<()> {
    let mut fixed = vec![0; 4];
    fixed.extend_from_slice(&index(name).to_ne_bytes());
    fixed.extend_from_slice(&0x8001_0000_u32.to_ne_bytes());
    fixed.extend_from_slice(&u32::MAX.to_ne_bytes());
    fixed.extend_from_slice(&[0; 4]);
    let message = Message::new(36, ACK | CREATE, &fixed).attribute(1, &zero_ended(kind));
    route(message.attribute(2, options))
}

/// Puts a qdisc on a device that holds what it gets, and returns its name: netem, or where the
/// kernel lacks that, tbf, which lets the first packet pass.
pub(crate) fn holding_qdisc(name: &str, limit_packets: u32) -> &'static str {
    let mut netem = vec![0; 24];
    netem[4..8].copy_from_slice(&limit_packets.to_ne_bytes());
    let delay_ns: i64 = 3_000_000_000_000;
    let netem = Message(netem).attribute(10, &delay_ns.to_ne_bytes());
    match qdisc(name, "netem", &netem.0) {
        Ok(()) => "netem",
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // One byte a second; the link layer is Ethernet, so that no rate table is needed.
            let mut parms = vec![0; 36];
            parms[1] = 1;
            parms[8..12].copy_from_slice(&1_u32.to_ne_bytes());
            parms[24..28].copy_from_slice(&(limit_packets * 2000).to_ne_bytes());
            let tbf = Message::default().attribute(1, &parms);
            qdisc(name, "tbf", &tbf.attribute(6, &2000_u32.to_ne_bytes()).0).unwrap();
            "tbf"
        }
        Err(error) => panic!("netem: {error}"),
    }
}

/// Sends datagrams of 1000 bytes, none of which must be lost for want of a send buffer.
pub(crate) fn send(to: SocketAddrV4, count: u32) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    force_buffer(&socket, libc::SO_SNDBUFFORCE);
    for _ in 0..count {
        // A device that is full refuses, which is what some tests are about.
        let _ = socket.send_to(&[0; 1000], to);
    }
}

fn force_buffer(socket: &impl std::os::fd::AsRawFd, option: i32) {
    let bytes: i32 = 256 << 20;
    // SAFETY: the option takes an int, and its address and length are given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            4,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A socket that gets the packets of nfqueue 0, with a rule that all IPv4 input goes there. Never
/// reads. `NotFound` where the kernel lacks both nftables' `queue` and the `NFQUEUE` target.
pub(crate) fn nfqueue_without_verdicts() -> io::Result<OwnedFd> {
    let holder = open(Some(netlink::NETFILTER));
    force_buffer(&holder, libc::SO_RCVBUFFORCE);
    let queue = [0, 0, 0, 0];
    let config = || Message::new(3 << 8 | 2, ACK, &queue);
    ask(&holder, vec![config().attribute(1, &[1, 0, 0, 0])]).unwrap();
    // What is known about a packet, without its content.
    ask(&holder, vec![config().attribute(2, &[0, 0, 0, 0, 1])]).unwrap();
    ask(
        &holder,
        vec![config().attribute(3, &30_000_u32.to_be_bytes())],
    )
    .unwrap();

    let numbers = Message::default()
        .attribute(1, &[0, 0])
        .attribute(2, &[0, 1]);
    match queue_all_input("queue", &numbers) {
        // The same by the older target, through the layer that serves iptables-nft.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let target = Message::default()
                .attribute(1, b"NFQUEUE\0")
                .attribute(2, &[0; 4])
                .attribute(3, &[0; 8]);
            queue_all_input("target", &target)?;
        }
        other => other?,
    }
    Ok(holder)
}

/// Makes an nftables rule of one expression for all IPv4 input.
fn queue_all_input(expression: &str, data: &Message) -> io::Result<()> {
    let nft = |kind: u16, flags| Message::new(10 << 8 | kind, flags | CREATE, &[2, 0, 0, 0]);
    let hook = Message::default()
        .attribute(1, &1_u32.to_be_bytes())
        .attribute(2, &0_u32.to_be_bytes());
    let table = nft(0, 0).attribute(1, b"t\0");
    let chain = nft(3, 0)
        .attribute(1, b"t\0")
        .attribute(3, b"in\0")
        .nested(4, &hook)
        .attribute(7, b"filter\0");
    let expression = Message::default()
        .attribute(1, &zero_ended(expression))
        .nested(2, data);
    let rule = nft(6, ACK)
        .attribute(1, b"t\0")
        .attribute(2, b"in\0")
        .nested(4, &Message::default().nested(1, &expression));
    let batch = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
    let messages = vec![batch(0x10), table, chain, rule, batch(0x11)];
    ask(&open(Some(netlink::NETFILTER)), messages)
}

/// A tun device that is up and that nobody reads.
pub(crate) fn tun(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags: u16 = 0x1001;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: `struct ifreq` is 40 bytes at most, and outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
    if result == 0 {
        Ok(file)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Connections, with their listeners and peers, which must be kept.
pub(crate) type Connections = (Vec<TcpListener>, Vec<TcpStream>);

/// A connection that nobody accepts, with so many bytes; and many that are closed while the peer
/// has no room for what it was sent, so that TCP holds enough to be looked at.
pub(crate) fn connections(unaccepted_bytes: usize, closed: usize) -> Connections {
    let never = TcpListener::bind("127.0.0.1:7001").unwrap();
    let mut unaccepted = TcpStream::connect("127.0.0.1:7001").unwrap();
    unaccepted.write_all(&vec![0; unaccepted_bytes]).unwrap();

    let slow = TcpListener::bind("127.0.0.1:7002").unwrap();
    let mut peers = vec![unaccepted];
    let mut orphans = Vec::new();
    for _ in 0..closed {
        let orphan = TcpStream::connect("127.0.0.1:7002").unwrap();
        orphan.set_nonblocking(true).unwrap();
        orphans.push(orphan);
        peers.push(slow.accept().unwrap().0);
    }
    // What the peer takes grows a few times before it is full.
    for _ in 0..5 {
        for orphan in &mut orphans {
            while orphan.write(&[0; 16384]).is_ok() {}
        }
        thread::sleep(Duration::from_millis(100));
    }
    (vec![never, slow], peers)
}

/// The first fragment of a datagram whose rest does not come.
pub(crate) fn fragment() {
    fs::write("/proc/sys/net/ipv4/ipfrag_time", "3000").unwrap();
    let udp = [0, 7, 0, 7, 0, 100, 0, 0];
    let mut packet = vec![0x45, 0, 0, 28, 0x12, 0x34, 0x20, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&[127, 0, 0, 1, 127, 0, 0, 1]);
    packet.extend_from_slice(&udp);
    let raw = Protocol::from_raw(255.try_into().unwrap());
    let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::RAW, flags, Some(raw)).unwrap();
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    sendto(&socket, &packet, SendFlags::empty(), &to).unwrap();
}

/// A packet for a neighbour that does not exist, asked for once in ten minutes.
pub(crate) fn unresolved(device: &str, to: Ipv4Addr) {
    let path = format!("/proc/sys/net/ipv4/neigh/{device}/retrans_time_ms");
    fs::write(path, "600000").unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(&[0; 100], SocketAddrV4::new(to, 9)).unwrap();
}
