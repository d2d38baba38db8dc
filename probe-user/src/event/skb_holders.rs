//! `skb_holders`: who holds socket buffers, and how much of the slab that explains.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Container, Finding, K8s, NotRead, Process, SkbCensus, queues::Queue};

/// Who holds socket buffers (`struct sk_buff`) now, whoever allocated them and however long ago.
///
/// Bytes are "true sizes": the data with the memory around it, as the kernel accounts them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbHolders {
    /// The node's OOM kill that made oomprobe look. Null for all other looks.
    pub incident: Option<String>,
    /// Time between the two looks that were compared, ms. Null after a single look, which cannot
    /// tell whether a queue is read, nor growth.
    pub duration_ms: Option<u64>,
    /// How long one look took, ms.
    pub look_ms: u64,
    /// How sockets were found.
    pub method: HolderMethod,
    /// Why not by the better method. Null if it was that one.
    pub method_why: Option<String>,
    /// Descriptors of sockets that were looked at: of a socket that many processes have open, all.
    pub descriptors: u64,
    /// What is wrong, most serious first: the verdicts of the holders, also of those not listed.
    pub findings: Vec<Finding>,
    /// The biggest, biggest first.
    pub holders: Vec<SkbHolder>,
    /// How many there are, however little they hold.
    pub holders_total: u64,
    /// Queues with something in them that no file descriptor owns, most first.
    pub queues: Vec<SkbQueue>,
    /// Network namespaces whose queues were looked at.
    pub namespaces: u64,
    /// What the slabs themselves say. Null if they were not looked into.
    pub census: Option<SkbCensus>,
    /// What the slab caches say, and how much of it is explained.
    pub balance: SkbBalance,
    /// The report before this one. Null in the first of a series.
    pub before: Option<Box<SkbBefore>>,
    /// What could not be looked at, and why.
    pub not_read: Vec<NotRead>,
}

/// An earlier report, as far as the next one needs it to tell what changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbBefore {
    /// How long ago it was made, ms.
    pub age_ms: u64,
    /// What the slab caches said, and how much of it was explained.
    pub balance: SkbBalance,
    /// Holders it listed that hold nothing now, as they were: closed, or read.
    pub gone: Vec<SkbHolder>,
}

/// How sockets were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HolderMethod {
    /// By a BPF iterator over the open files of all processes.
    #[default]
    OpenFiles,
    /// By `/proc/<pid>/net`: bytes only, and nothing of unix sockets.
    ProcNet,
}

/// A process, and those of its sockets of one kind that hold something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbHolder {
    /// Who has them open; of several, the one that was started first.
    pub process: Option<Process>,
    /// Its cgroup.
    pub cgroup: Option<Cgroup>,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// How many processes have the biggest of the sockets open.
    pub owners: u64,
    /// Others of them, at most 7.
    pub shared_with: Vec<Process>,
    /// Who made the sockets, if that was another cgroup than the one that has them open now. Null
    /// also where cgroups are on v1 only.
    pub creator: Option<SkbCreator>,
    /// The biggest of the sockets.
    pub socket: HeldSocket,
    /// How many there are.
    pub sockets: u64,
    /// Buffers they hold, as far as the kernel counts them: of TCP, not those that are sent and not
    /// acknowledged. Null where only bytes are told.
    pub skbs: Option<u64>,
    /// Bytes of buffers in their own queues: received and not read, and of TCP also not
    /// acknowledged. What several taps share is counted for each.
    pub bytes: u64,
    /// Of `bytes`, received and not read.
    pub receive_bytes: u64,
    /// Of `bytes`, not sent or not acknowledged (TCP).
    pub write_bytes: u64,
    /// Sent, and still in a queue further on (a qdisc, a device, a peer nobody has open). Not in
    /// `bytes`.
    pub sent_bytes: u64,
    /// Pages of TPACKET rings: no buffers, and not in the slab. Not in `bytes`.
    pub ring_bytes: u64,
    /// Sockets whose receive buffer is full to 90 % or more: they do not grow any further.
    pub saturated_sockets: u64,
    /// Sockets of which nothing was read between the two looks, though there was something. Null
    /// after a single look.
    pub unread_sockets: Option<u64>,
    /// Bytes received and not read in these.
    pub unread_bytes: Option<u64>,
    /// Bytes not sent or not acknowledged in sockets whose peer does not answer (TCP).
    pub unanswered_bytes: u64,
    /// The same where the peer answers, but does not take more: it does not read (TCP).
    pub closed_window_bytes: u64,
    /// Packets or messages dropped for want of room since the sockets were made.
    pub drops: Option<u64>,
    /// Of these, between the two looks.
    pub new_drops: Option<u64>,
    /// How fast `bytes` grew between the two looks, bytes per second.
    pub growth_bytes_per_s: Option<f64>,
    /// What is wrong with it. Null if nothing is.
    pub verdict: Option<Finding>,
}

/// A queue that no file descriptor owns, and who should empty it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbQueue {
    /// The queue.
    #[serde(flatten)]
    pub queue: Queue,
    /// The process that should empty it.
    pub process: Option<Process>,
    /// Its cgroup; without one, that of the first process in the queue's network namespace.
    pub cgroup: Option<Cgroup>,
    /// The pod of that cgroup.
    pub k8s: Option<K8s>,
    /// The container of that cgroup.
    pub container: Option<Container>,
    /// What is wrong with it. Null if nothing is.
    pub verdict: Option<Finding>,
}

/// Who made a socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbCreator {
    /// The cgroup, on the v2 hierarchy.
    pub cgroup: Cgroup,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
}

/// A socket that holds buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldSocket {
    /// Address family: `packet`, `netlink`, `unix`, `inet`, `inet6`, or its number.
    pub family: String,
    /// `stream`, `dgram`, `raw`, `seqpacket`, `packet`, or its number.
    #[serde(rename = "type")]
    pub kind: String,
    /// Protocol: `tcp`, `udp`, `route`, `netfilter`, of packet sockets as `all` or `0x88cc`, of unix
    /// sockets the type.
    pub protocol: String,
    /// State of a TCP connection, as `ESTABLISHED`.
    pub state: Option<String>,
    /// Local address and port.
    pub local: Option<String>,
    /// Remote address and port.
    pub remote: Option<String>,
    /// Packet sockets: index of the interface. Null for all interfaces.
    pub ifindex: Option<u32>,
    /// Netlink: port id.
    pub portid: Option<u32>,
    /// Inode number, as `/proc/<pid>/fd` shows it.
    pub inode: u64,
    /// Inode number of its network namespace, as `/proc/<pid>/ns/net` shows it.
    pub netns: u64,
    /// Buffers received and not read.
    pub receive_skbs: Option<u64>,
    /// Bytes received and not read.
    pub receive_bytes: Option<u64>,
    /// Bytes not sent or not acknowledged (TCP).
    pub write_bytes: Option<u64>,
    /// Buffers with errors and time stamps.
    pub error_skbs: Option<u64>,
    /// Most that may be received and not read: twice what `SO_RCVBUF` was set to.
    pub rcvbuf_bytes: Option<u64>,
    /// Most that may be sent and not freed: twice what `SO_SNDBUF` was set to.
    pub sndbuf_bytes: Option<u64>,
    /// True if its receive buffer is full to 90 % or more.
    pub saturated: bool,
    /// Connections that wait to be accepted. Their buffers are not counted, as nobody has them open.
    pub accept_queue: u64,
    /// How often the oldest TCP segment was sent again without an answer.
    pub retransmits: u32,
    /// Probes of a closed TCP window without an answer.
    pub probes: u32,
    /// How often the time between them was doubled.
    pub backoff: u32,
    /// Dropped for want of room since it was made.
    pub drops: Option<u64>,
}

/// How much of the slab is explained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbBalance {
    /// Unreclaimable slab of the node (`SUnreclaim`).
    pub slab_unreclaimable_bytes: Option<u64>,
    /// Socket buffers in use by `/proc/slabinfo`: of `skbuff_head_cache`, which is never merged.
    /// Null if it cannot be read.
    pub slab_objects: Option<u64>,
    /// How many of these may be free in truth: objects that processors keep at hand count as used.
    pub noise_objects: Option<u64>,
    /// By how much `slab_objects` grew between the two looks.
    pub slab_growth_objects: Option<i64>,
    /// The caches of socket buffers.
    pub caches: Vec<SkbCache>,
    /// What was found, by where it was found. The parts do not overlap.
    pub explained_by: Vec<SkbExplained>,
    /// Sum of `explained_by`: buffers that live in `skbuff_head_cache`.
    pub explained_objects: Option<u64>,
    /// Sum of `explained_by`, bytes of buffers with their data.
    pub explained_bytes: u64,
    /// `explained_objects` by `slab_objects`, at most 1. Null if there are no more objects than
    /// noise.
    pub explained_ratio: Option<f64>,
    /// Objects that nothing explains, noise included.
    pub unexplained_objects: Option<u64>,
}

/// A slab cache of socket buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkbCache {
    /// Name in the kernel's source.
    pub name: String,
    /// Objects in use. Null if `/proc/slabinfo` does not list it, under any name.
    pub objects: Option<u64>,
    /// Bytes of its slabs.
    pub bytes: Option<u64>,
    /// Caches the kernel has merged it with: `objects` and `bytes` are of all of them.
    pub shared_with: Vec<String>,
}

/// Buffers that were found in one way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkbExplained {
    /// Where.
    pub source: SkbSource,
    /// Buffers that live in `skbuff_head_cache`: of TCP, what was received. Null where only bytes
    /// are told.
    pub objects: Option<u64>,
    /// Bytes of all buffers, with their data.
    pub bytes: u64,
}

/// Where buffers were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkbSource {
    /// In the queues of sockets that a process has open.
    #[default]
    Sockets,
    /// In queues that no file descriptor owns, as far as their packets are counted.
    Queues,
}
