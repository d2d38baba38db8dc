//! Every socket that a process has open and that holds something, in every network namespace.
//!
//! [`open`] asks the BPF iterator over open files; [`files`] reads `/proc` where the kernel has
//! none. A [`Look`] keeps only sockets that hold something: a node may have a million that do not.

pub mod files;
pub mod open;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use probe_common::limits::COMM_LEN;

/// Owners of one socket that are kept; the rest is a number.
const MAX_OWNERS: usize = 8;

/// Sockets kept in one look; what more there is is counted. Some 400 bytes each.
const MAX_SOCKETS: usize = 1 << 17;

/// Address families (include/linux/socket.h).
pub mod family {
    /// Unix domain.
    pub const UNIX: u16 = 1;
    /// IPv4.
    pub const INET: u16 = 2;
    /// IPv6.
    pub const INET6: u16 = 10;
    /// Messages from and to the kernel.
    pub const NETLINK: u16 = 16;
    /// Whole packets, as captures take them.
    pub const PACKET: u16 = 17;
}

/// `IPPROTO_TCP`.
pub const TCP: u16 = 6;
/// `SOCK_STREAM`.
pub const STREAM: u16 = 1;
/// `TCP_LISTEN`.
pub const LISTEN: u8 = 10;

/// A process that has the socket open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Process id.
    pub pid: u32,
    /// When it was started, ns since boot. `None` if it was not told.
    pub start_boot_ns: Option<u64>,
    /// Its name, up to the first NUL; empty if it was not told.
    pub comm: [u8; COMM_LEN],
}

/// A socket. What was not told is `None`. Bytes of buffers are "true sizes", with the memory around
/// the data, unless the look was [`Way::Files`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Inode number.
    pub inode: u64,
    /// `AF_*`.
    pub family: u16,
    /// `SOCK_*`.
    pub kind: u16,
    /// `IPPROTO_*`, `NETLINK_*`, `ETH_P_*`.
    pub protocol: u16,
    /// `TCP_*` states; other families borrow them.
    pub state: u8,
    /// Network namespace.
    pub netns: u32,
    /// AF_PACKET: index of the interface, 0 for all.
    pub ifindex: Option<u32>,
    /// AF_NETLINK: port id.
    pub portid: Option<u32>,
    /// Internet families.
    pub local: Option<SocketAddr>,
    /// Internet families, connected.
    pub remote: Option<SocketAddr>,
    /// Who has it open: at most `MAX_OWNERS`, the process that was started first in front.
    pub owners: Vec<Owner>,
    /// How many have it open.
    pub owners_total: u64,
    /// kernfs id of the cgroup that made it, on the v2 hierarchy.
    pub creator: Option<u64>,
    /// Buffers received and not read.
    pub receive_skbs: Option<u64>,
    /// The same in bytes, those that wait for the socket's lock included. AF_UNIX: what its peers
    /// were charged for.
    pub receive_bytes: Option<u64>,
    /// Buffers with errors and time stamps.
    pub error_skbs: Option<u64>,
    /// TCP: buffers not sent yet.
    pub write_skbs: Option<u64>,
    /// TCP: bytes not sent or not acknowledged.
    pub write_bytes: Option<u64>,
    /// Not TCP: bytes sent and still in a queue further on; AF_UNIX: only what is in no socket that
    /// somebody has open.
    pub sent_bytes: Option<u64>,
    /// `SO_RCVBUF`, as the kernel counts: twice what was asked for.
    pub rcvbuf_bytes: Option<u64>,
    /// `SO_SNDBUF`, likewise.
    pub sndbuf_bytes: Option<u64>,
    /// Dropped for want of room since it was made.
    pub drops: Option<u64>,
    /// TPACKET rings.
    pub ring_bytes: u64,
    /// Listening: connections that wait to be accepted.
    pub accept_queue: u64,
    /// TCP: how often the oldest segment was sent again without an answer.
    pub retransmits: u8,
    /// TCP: probes of a closed window that nobody answered.
    pub probes_out: u8,
    /// TCP: how often the timer of either was doubled. Above 0 without unanswered ones, the peer
    /// answers and keeps its window closed.
    pub backoff: u8,
    /// The process that was noted last.
    pub(crate) last_owner: u32,
    /// What tells one look from the next whether something was read.
    pub(crate) mark: Option<Mark>,
}

/// Changes when something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Address of the buffer that is next to be read: queues are first in, first out.
    Oldest(u64),
    /// TCP: sequence number up to which it was read.
    Copied(u32),
}

impl Socket {
    /// Whether it is a TCP connection or listens for them.
    pub fn is_tcp(&self) -> bool {
        matches!(self.family, family::INET | family::INET6)
            && self.kind == STREAM
            && self.protocol == TCP
    }

    /// Bytes of buffers in its own queues.
    pub fn bytes(&self) -> u64 {
        let parts = [self.receive_bytes, self.write_bytes];
        parts.into_iter().flatten().fold(0, u64::saturating_add)
    }

    /// Buffers in its own queues, as far as they are counted.
    pub fn skbs(&self) -> Option<u64> {
        let received = self.receive_skbs?;
        let others = [self.error_skbs, self.write_skbs];
        Some(
            others
                .into_iter()
                .flatten()
                .fold(received, u64::saturating_add),
        )
    }

    /// At 90 % of its receive buffer or more: it does not grow any further.
    pub fn is_saturated(&self) -> bool {
        match (self.receive_bytes, self.rcvbuf_bytes) {
            // What its peers sent does not count against the receiver's own limit.
            _ if self.family == family::UNIX => false,
            (Some(bytes), Some(limit)) if limit > 0 => {
                u128::from(bytes) * 10 >= u128::from(limit) * 9
            }
            _ => false,
        }
    }

    fn holds_something(&self) -> bool {
        let counts = [
            self.receive_skbs,
            self.receive_bytes,
            self.error_skbs,
            self.write_skbs,
            self.write_bytes,
            self.sent_bytes,
        ];
        counts.into_iter().flatten().any(|count| count > 0) || self.ring_bytes > 0
    }

    /// Notes one more process that has it open.
    fn add_owner(&mut self, owner: Owner) {
        // A process comes with all its descriptors before the next one does.
        if self.owners_total > 0 && self.last_owner == owner.pid {
            return;
        }
        self.last_owner = owner.pid;
        self.owners_total += 1;
        // There is seldom another.
        self.owners.reserve_exact(1);
        self.owners.push(owner);
        self.owners
            .sort_by_key(|owner| (owner.start_boot_ns.unwrap_or(u64::MAX), owner.pid));
        self.owners.truncate(MAX_OWNERS);
    }
}

/// How the sockets were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the BPF iterator over open files.
    Iterator,
    /// By `/proc/<pid>/net` and `/proc/<pid>/fd`.
    Files,
}

/// What one look found.
#[derive(Clone, Debug)]
pub struct Look {
    /// How.
    pub way: Way,
    /// When, ns since boot.
    pub boot_ns: u64,
    /// Descriptors of sockets that were looked at.
    pub descriptors: u64,
    /// Those that hold something, by address, or by inode number if [`Way::Files`].
    pub sockets: HashMap<u64, Socket>,
    /// Network namespaces of all sockets, also of those that hold nothing; of [`Way::Files`] none.
    pub namespaces: HashSet<u32>,
    /// Sockets that hold something and that there was no room for.
    pub not_kept: u64,
    /// What could not be looked at, and why.
    pub not_read: Vec<(String, String)>,
    /// Every process of the node was looked at: a socket without an owner has none.
    pub sees_all: bool,
}

impl Look {
    fn new(way: Way) -> Self {
        Self {
            way,
            boot_ns: crate::node::clock::boot_ns(),
            descriptors: 0,
            sockets: HashMap::new(),
            namespaces: HashSet::new(),
            not_kept: 0,
            not_read: Vec::new(),
            sees_all: false,
        }
    }

    /// What a later look is compared with.
    pub fn into_past(self) -> Past {
        let mark = |(key, socket): (u64, Socket)| {
            let was = Was {
                inode: socket.inode,
                bytes: socket.bytes(),
                has_received: socket.receive_skbs.unwrap_or(0) > 0,
                drops: socket.drops,
                mark: socket.mark,
            };
            (key, was)
        };
        Past {
            boot_ns: self.boot_ns,
            sockets: self.sockets.into_iter().map(mark).collect(),
        }
    }
}

/// What is remembered of an earlier look.
#[derive(Clone, Debug)]
pub struct Past {
    /// When it was, ns since boot.
    pub boot_ns: u64,
    sockets: HashMap<u64, Was>,
}

/// A socket as it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Was {
    inode: u64,
    pub(super) bytes: u64,
    has_received: bool,
    pub(super) drops: Option<u64>,
    mark: Option<Mark>,
}

impl Past {
    /// The socket that is at `key` now, if it held something then.
    pub(super) fn of(&self, key: u64, now: &Socket) -> Option<&Was> {
        // Addresses are used again.
        self.sockets.get(&key).filter(|was| was.inode == now.inode)
    }
}

impl Was {
    /// Whether nothing was read since; `None` if that cannot be told, or nothing was there to be
    /// read.
    pub(super) fn is_unread(&self, now: &Socket) -> Option<bool> {
        if !self.has_received || now.receive_skbs? == 0 {
            return None;
        }
        Some(now.mark? == self.mark?)
    }
}

fn address(family: u16, bytes: [u8; 16], port: u16) -> Option<SocketAddr> {
    let address: IpAddr = match family {
        family::INET => {
            let [a, b, c, d, ..] = bytes;
            [a, b, c, d].into()
        }
        family::INET6 => std::net::Ipv6Addr::from(bytes).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}
