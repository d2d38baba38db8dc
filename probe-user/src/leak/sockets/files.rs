//! A look by `/proc`, for kernels without an iterator over open files and for those who may not
//! load one: `/proc/<pid>/net` of one process of each network namespace, and the links in
//! `/proc/<pid>/fd`.
//!
//! It loads no kernel module, as a question over sock_diag would. It tells less: no number of
//! buffers, no limits, nothing of unix sockets, and of TCP the data without the memory around it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use probe_common::limits::COMM_LEN;

use super::{LISTEN, Look, MAX_SOCKETS, Owner, STREAM, Socket, TCP, Way, address, family};
use crate::node::process::ProcessDir;

const SOCK_DGRAM: u16 = 2;
const SOCK_RAW: u16 = 3;
const UDP: u16 = 17;

/// Reads one file of `/proc/<pid>/net`: a line to a socket, if the line is one.
type Parse = fn(&[&str]) -> Option<Socket>;

/// What the kernel prints (net/packet/af_packet.c, net/netlink/af_netlink.c, net/ipv4/udp.c, …).
const FILES: &[(&str, Parse)] = &[
    ("packet", packet),
    ("netlink", netlink),
    ("udp", |words| inet(words, family::INET, SOCK_DGRAM, UDP)),
    ("udp6", |words| inet(words, family::INET6, SOCK_DGRAM, UDP)),
    ("raw", |words| inet(words, family::INET, SOCK_RAW, 0)),
    ("raw6", |words| inet(words, family::INET6, SOCK_RAW, 0)),
    ("tcp", |words| inet(words, family::INET, STREAM, TCP)),
    ("tcp6", |words| inet(words, family::INET6, STREAM, TCP)),
];

/// Reads `<proc>`. Fails if not even its list of processes can be read.
pub fn look(proc: &Path) -> io::Result<Look> {
    let mut look = Look::new(Way::Files);
    let mut namespaces: HashMap<u32, u32> = HashMap::new();
    let mut forbidden = 0_u64;
    let pids: Vec<u32> = fs::read_dir(proc)?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for &pid in &pids {
        if let Some(netns) = link_number(&proc.join(format!("{pid}/ns/net")), "net:[") {
            namespaces.entry(netns).or_insert(pid);
        }
    }
    for (&netns, pid) in &namespaces {
        for (name, parse) in FILES {
            // What this kernel does not have is no loss: IPv6, for one.
            let Ok(bytes) = fs::read(proc.join(format!("{pid}/net/{name}"))) else {
                continue;
            };
            let content = String::from_utf8_lossy(&bytes);
            for line in content.lines().skip(1) {
                let words: Vec<&str> = line.split_ascii_whitespace().collect();
                let Some(socket) = parse(&words) else {
                    continue;
                };
                if !socket.holds_something() || socket.inode == 0 {
                    continue;
                }
                if look.sockets.len() >= MAX_SOCKETS {
                    look.not_kept += 1;
                    continue;
                }
                let socket = Socket { netns, ..socket };
                look.sockets.insert(socket.inode, socket);
            }
        }
    }
    let mut buffer = Vec::new();
    for pid in pids {
        match descriptors(proc, pid, &mut look, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => forbidden += 1,
            // It has ended.
            Ok(()) | Err(_) => {}
        }
    }
    let mut missing = |what: &str, why: &str| look.not_read.push((what.to_owned(), why.to_owned()));
    missing("unix sockets", "/proc does not show their queues");
    missing("buffers", "/proc shows bytes only, not how many buffers");
    if forbidden > 0 {
        let what = format!("open files of {forbidden} processes");
        missing(&what, "not permitted; run as root");
    }
    Ok(look)
}

/// Notes the process as owner of its sockets.
fn descriptors(proc: &Path, pid: u32, look: &mut Look, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut owner: Option<Owner> = None;
    for entry in fs::read_dir(proc.join(format!("{pid}/fd")))?.flatten() {
        let Some(inode) = link_number(&entry.path(), "socket:[") else {
            continue;
        };
        look.descriptors += 1;
        if let Some(socket) = look.sockets.get_mut(&inode) {
            let owner = owner.get_or_insert_with(|| {
                let process = ProcessDir::open(proc, pid).ok();
                let stat = process.as_ref().and_then(|dir| dir.stat(buffer).ok());
                let name = process.and_then(|dir| dir.comm(buffer).ok());
                let mut comm = [0; COMM_LEN];
                for (to, from) in comm.iter_mut().zip(name.unwrap_or_default()) {
                    *to = from;
                }
                Owner {
                    pid,
                    start_boot_ns: stat.map(|stat| stat.start_boot_ns),
                    comm,
                }
            });
            socket.add_owner(*owner);
        }
    }
    Ok(())
}

/// The number in a link such as `socket:[123]`.
fn link_number<T: std::str::FromStr>(link: &Path, start: &str) -> Option<T> {
    let target = fs::read_link(link).ok()?;
    let number = target.to_str()?.strip_prefix(start)?.strip_suffix(']')?;
    number.parse().ok()
}

/// `sk RefCnt Type Proto Iface R Rmem User Inode`
fn packet(words: &[&str]) -> Option<Socket> {
    let [_, _, kind, protocol, ifindex, _, rmem, _, inode] = words else {
        return None;
    };
    Some(Socket {
        family: family::PACKET,
        kind: kind.parse().ok()?,
        protocol: u16::from_str_radix(protocol, 16).ok()?,
        ifindex: Some(ifindex.parse().ok()?),
        receive_bytes: Some(rmem.parse().ok()?),
        inode: inode.parse().ok()?,
        ..Socket::default()
    })
}

/// `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`
fn netlink(words: &[&str]) -> Option<Socket> {
    let [_, protocol, portid, _, rmem, _, _, _, drops, inode] = words else {
        return None;
    };
    Some(Socket {
        family: family::NETLINK,
        kind: SOCK_RAW,
        protocol: protocol.parse().ok()?,
        portid: Some(portid.parse().ok()?),
        receive_bytes: Some(rmem.parse().ok()?),
        drops: Some(drops.parse().ok()?),
        inode: inode.parse().ok()?,
        ..Socket::default()
    })
}

/// `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ref
/// pointer drops`; of TCP the last is something else.
fn inet(words: &[&str], family: u16, kind: u16, protocol: u16) -> Option<Socket> {
    let (sent, received) = words.get(4)?.split_once(':')?;
    let (sent, received) = (hex(sent)?, hex(received)?);
    let local = socket_address(words.get(1)?, family)?;
    let remote = socket_address(words.get(2)?, family)?;
    let state = u8::from_str_radix(words.get(3)?, 16).ok()?;
    let mut socket = Socket {
        family,
        kind,
        protocol: if kind == SOCK_RAW {
            local.port()
        } else {
            protocol
        },
        state,
        local: Some(local),
        remote: (remote.port() != 0).then_some(remote),
        inode: words.get(9)?.parse().ok()?,
        ..Socket::default()
    };
    if kind == STREAM {
        if state == LISTEN {
            socket.accept_queue = received;
        } else {
            socket.receive_bytes = Some(received);
            socket.write_bytes = Some(sent);
            let retransmits = hex(words.get(6)?)?;
            socket.retransmits = u8::try_from(retransmits).unwrap_or(u8::MAX);
        }
    } else {
        socket.receive_bytes = Some(received);
        socket.sent_bytes = Some(sent);
        socket.drops = words.get(12).and_then(|drops| drops.parse().ok());
    }
    Some(socket)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// `0100007F:0050`: words of the machine's byte order, and a number.
fn socket_address(text: &str, family: u16) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = ip.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let mut bytes = [0; 16];
    let words = if family == family::INET6 { 4 } else { 1 };
    for index in 0..words {
        bytes[index * 4..index * 4 + 4].copy_from_slice(&word(index)?);
    }
    let whole = if family == family::INET6 {
        Ipv6Addr::from(bytes).octets()
    } else {
        let [a, b, c, d, ..] = bytes;
        let mut v4 = [0; 16];
        v4[..4].copy_from_slice(&Ipv4Addr::new(a, b, c, d).octets());
        v4
    };
    address(family, whole, port)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A `/proc` with one process that has these sockets open.
    fn proc(files: &[(&str, &str)], inodes: &[u64]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("7");
        for dir in ["ns", "net", "fd"] {
            fs::create_dir_all(process.join(dir)).unwrap();
        }
        symlink("net:[4026531840]", process.join("ns/net")).unwrap();
        fs::write(process.join("comm"), "scope\n").unwrap();
        for (name, content) in files {
            fs::write(process.join("net").join(name), content).unwrap();
        }
        for (fd, inode) in inodes.iter().enumerate() {
            let link = process.join(format!("fd/{fd}"));
            symlink(format!("socket:[{inode}]"), link).unwrap();
        }
        proc
    }

    #[test]
    fn what_the_kernel_prints() {
        let files = [
            (
                "packet",
                "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                 0000000000000000 3      3    0003   0     1 2147482880 0      501\n\
                 0000000000000000 3      3    88cc   2     1 0      0      502\n",
            ),
            (
                "netlink",
                "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    \
                 Inode\n\
                 0000000000000000 12  4242       00000007 212992   0        0     2        917      \
                 503\n",
            ),
            (
                "udp",
                "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
                 timeout inode ref pointer drops\n\
                  88: 0100007F:2710 00000000:0000 07 00000000:00034000 00:00000000 00000000     0   \
                 0 504 2 0000000000000000 31\n",
            ),
            (
                "tcp",
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
                 timeout inode\n\
                   0: 0100007F:0050 0200007F:1F90 01 00010000:00000000 01:00000014 00000005     0   \
                 0 505 1 0000000000000000 20 4 30 10 -1\n\
                   1: 00000000:0016 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0   \
                 0 506 1 0000000000000000 100 0 0 10 0\n\
                 torn\n",
            ),
        ];
        let proc = proc(&files, &[501, 502, 503, 504, 505, 506]);
        let look = look(proc.path()).unwrap();
        assert_eq!(look.descriptors, 6);
        let mut inodes: Vec<_> = look.sockets.keys().copied().collect();
        inodes.sort_unstable();
        assert_eq!(inodes, [501, 503, 504, 505]);
        let packet = &look.sockets[&501];
        assert_eq!((packet.bytes(), packet.skbs()), (2_147_482_880, None));
        assert_eq!((packet.protocol, packet.netns), (3, 4_026_531_840));
        assert_eq!(packet.owners[0].comm, *b"scope\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(packet.owners[0].start_boot_ns, None);
        let netlink = &look.sockets[&503];
        assert_eq!((netlink.portid, netlink.drops), (Some(4242), Some(917)));
        let udp = &look.sockets[&504];
        assert_eq!((udp.bytes(), udp.drops), (0x34000, Some(31)));
        assert_eq!(udp.local.unwrap().to_string(), "127.0.0.1:10000");
        let tcp = &look.sockets[&505];
        assert_eq!((tcp.write_bytes, tcp.retransmits), (Some(0x10000), 5));
        assert_eq!(tcp.remote.unwrap().to_string(), "127.0.0.2:8080");
        assert!(look.not_read.iter().any(|(what, _)| what == "unix sockets"));
    }

    #[test]
    fn reads_this_machine() {
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..10 {
            sender
                .send_to(&[1; 400], receiver.local_addr().unwrap())
                .unwrap();
        }
        let inode: u64 = link_number(
            Path::new(&format!("/proc/self/fd/{}", receiver.as_raw_fd())),
            "socket:[",
        )
        .unwrap();
        let look = look(Path::new("/proc")).unwrap();
        let socket = &look.sockets[&inode];
        assert!(socket.bytes() >= 4000, "{socket:?}");
        assert_eq!(socket.local, Some(receiver.local_addr().unwrap()));
        let pid = std::process::id();
        assert!(socket.owners.iter().any(|owner| owner.pid == pid));
    }
}
