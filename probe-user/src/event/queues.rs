//! Queues of socket buffers that no file descriptor owns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NotRead;

/// Socket buffers in queues that no file descriptor owns, in all network namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queues {
    /// Queues with something in them, and those of which the kernel does not tell; most first.
    pub found: Vec<Queue>,
    /// What was looked at.
    pub looked_at: LookedAt,
    /// What was not, and why. Nothing is known about these.
    pub not_looked_at: Vec<NotRead>,
}

/// How much was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LookedAt {
    /// How long it took, ms.
    pub duration_ms: u64,
    /// Network namespaces that could be entered.
    pub namespaces: Vec<Namespace>,
}

/// A network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Namespace {
    /// Inode of its nsfs file, its name for `lsns` and `readlink /proc/<pid>/ns/net`.
    pub inode: u64,
    /// Processes in it.
    pub processes: u64,
    /// Of those the first by pid, at most 8: a pod's are those of its own namespace.
    pub pids: Vec<u32>,
    /// Where it is mounted, as seen by pid 1 (`/run/netns/cni-…`).
    pub mounted_at: Option<String>,
}

/// One queue. What the kernel does not tell is null.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// What kind of queue, with what only this kind has.
    #[serde(flatten)]
    pub kind: Kind,
    /// Inode of its network namespace. Null for queues of the whole node, and for a tun device
    /// that was not found.
    pub netns: Option<u64>,
    /// Network device.
    pub device: Option<String>,
    /// Packets in it.
    pub packets: Option<u64>,
    /// Bytes in it, as this kind of queue counts them: of the packets, not of the memory they
    /// take, but for fragments.
    pub bytes: Option<u64>,
    /// Most packets it takes.
    pub limit_packets: Option<u64>,
    /// Most bytes it takes.
    pub limit_bytes: Option<u64>,
    /// Packets it did not take since it was made.
    pub drops: Option<u64>,
    /// What came out of it during the look.
    pub moved: Option<Moved>,
    /// Processes that should empty it.
    pub owners: Vec<u32>,
}

/// What became of a queue between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Moved {
    /// Time between the readings, ms.
    pub interval_ms: u64,
    /// Packets that were in it at the first.
    pub packets_before: Option<u64>,
    /// Packets that came out: verdicts of an nfqueue, packets that a qdisc gave to its device,
    /// packets that were read from a tun device.
    pub left_packets: u64,
    /// Packets that it did not take.
    pub dropped_packets: u64,
}

/// Kinds of queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Packets that wait for the verdict of a process (`NFQUEUE`, nftables `queue`). A copy of
    /// each is queued in the process' netlink socket until it is read: a second socket buffer.
    Nfqueue {
        /// Number of the queue.
        queue: u32,
        /// Netlink port of the process.
        port_id: u32,
        /// Inode of its netlink socket.
        socket_inode: Option<u64>,
        /// Memory of the copies that the socket holds, bytes. They are in the socket's own
        /// receive queue and not part of this one.
        socket_rmem_bytes: Option<u64>,
        /// What the copies contain.
        copy: Copy,
        /// Packets dropped because the process' netlink socket did not take the copy.
        socket_drops: u64,
        /// Packets numbered since the queue was made (32 bits).
        numbered: u64,
    },
    /// Queueing discipline of a device: with all that is queued below it.
    Qdisc {
        /// Its name (`netem`, `fq_codel`, …).
        discipline: String,
        /// Its handle, as `tc` prints it (`8001:`).
        handle: String,
        /// The delay that a netem qdisc was told to add, ns.
        delay_ns: Option<u64>,
    },
    /// Packets for the process that has a tun or tap device open. The kernel does not tell their
    /// number: `packets` is what the qdisc handed over less what was read or dropped. As the qdisc
    /// counts a segmented packet (GSO) several times there may be fewer, and it is null where that
    /// makes it more than there can be.
    Tun {
        /// Open files that read from the device.
        files: u64,
        /// Packets read from the device since it was made.
        read_packets: Option<u64>,
    },
    /// Packets received and not yet looked at, on one CPU.
    SoftnetBacklog {
        /// The CPU.
        cpu: u64,
    },
    /// Fragments of datagrams that are not complete. Bytes are their socket buffers' memory.
    Fragments {
        /// IP version: 4 or 6.
        ip: u8,
        /// Datagrams.
        datagrams: u64,
    },
    /// TCP connections that were closed, and whose data the peer has not acknowledged. Bytes are
    /// of the data.
    TcpOrphans {
        /// Connections.
        sockets: u64,
    },
    /// Data received on TCP connections that the listening process has not accepted.
    TcpUnaccepted {
        /// Port of the listener.
        port: u16,
        /// Connections.
        sockets: u64,
        /// Inode of the listening socket.
        listener_inode: Option<u64>,
    },
    /// Packets for neighbours whose link-layer address is asked for. `limit_bytes` is for all of
    /// them; the kernel does not tell how much is queued.
    NeighbourUnresolved {
        /// Neighbours.
        entries: u64,
    },
    /// Requests that a proxy delays before it answers them.
    NeighbourProxy {
        /// Name of the table (`arp_cache`, `ndisc_cache`).
        table: String,
    },
}

/// What of a packet an nfqueue copies to its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// Nothing: the process is never told.
    #[default]
    None,
    /// What is known about it.
    Meta,
    /// That, and its content.
    Packet,
}

impl Queue {
    /// An empty queue of this kind, of which nothing else is known.
    pub(crate) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            netns: None,
            device: None,
            packets: None,
            bytes: None,
            limit_packets: None,
            limit_bytes: None,
            drops: None,
            moved: None,
            owners: Vec::new(),
        }
    }
}
