//! A census of socket buffers: what the slabs themselves say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Container, K8s, Process};

/// Socket buffers found in the slabs, whatever list they are on, by what they point to.
///
/// Numbers are estimates with `relative_error` unless `full`. Objects that the kernel keeps at hand
/// look alive: some hundreds for each processor, in the group that points to nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbCensus {
    /// True if all memory was looked at: the numbers are counts.
    pub full: bool,
    /// Standard error of `skbs`, as a share of it.
    pub relative_error: f64,
    /// How memory was read.
    pub read_by: CensusReader,
    /// Pages of the node.
    pub total_pages: u64,
    /// Pages looked at.
    pub sampled_pages: u64,
    /// Slabs of socket buffers among these.
    pub slabs: u64,
    /// Time it took, ms, the time to find out about the kernel's structures included.
    pub took_ms: u64,
    /// Socket buffers in use, of all caches but those for small data.
    pub skbs: u64,
    /// Their true sizes, bytes. What several share counts for each.
    pub bytes: u64,
    /// Of `skbs`, those that point to a socket or a device, were found in a socket's queue, or have a
    /// function that is called when they are freed.
    pub explained_skbs: u64,
    /// Of `skbs`, those that had changed when they were looked at once more: traffic.
    pub moving_skbs: u64,
    /// Of `skbs`, those that do not say whose they are, and whose queue there was no time to find:
    /// `--census full` has more.
    pub unfollowed_skbs: u64,
    /// Of `skbs`, those that point to nothing.
    pub unreferenced_skbs: u64,
    /// `explained_skbs` and `moving_skbs` by `skbs`. Null without any.
    pub explained_ratio: Option<f64>,
    /// Of `skbs`, those that wait in network namespaces which nobody can enter, as far as they are
    /// among the 256 biggest groups. Null if there are none, or if `not_read` says that it is not
    /// known.
    pub abandoned: Option<SkbAbandoned>,
    /// The biggest groups, biggest first.
    pub groups: Vec<SkbGroup>,
    /// How many there are.
    pub groups_total: u64,
}

/// A way to read the kernel's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CensusReader {
    /// `/proc/kcore`.
    #[default]
    Kcore,
    /// A BPF program that is run by hand.
    Bpf,
}

/// Socket buffers that closed sockets have sent, in network namespaces that no thread is in, that no
/// process has open, and that are mounted nowhere. They keep their sockets, and these the namespaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbAbandoned {
    /// How many namespaces.
    pub namespaces: u64,
    /// Inode of the one with most of them.
    pub netns: u64,
    /// How many buffers.
    pub skbs: u64,
    /// Their true sizes, bytes.
    pub bytes: u64,
    /// Standard error of `skbs`, as a share of it.
    pub relative_error: f64,
    /// Names of the devices in whose queues they are, at most 4.
    pub devices: Vec<String>,
}

/// Socket buffers that point to the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SkbGroup {
    /// How many.
    pub skbs: u64,
    /// Their true sizes, bytes. What several share counts for each.
    pub bytes: u64,
    /// Bytes that go back if these are freed: what several share is split between them.
    pub own_bytes: u64,
    /// Standard error of `skbs`, as a share of it.
    pub relative_error: f64,
    /// How many sockets: more than one only where they differ by nothing but their namespaces.
    pub sockets: u64,
    /// The queue of `socket` they are in: `receive`, `write`, `sent` or `error`. Null if it was
    /// not followed.
    pub queue: Option<String>,
    /// The socket they are in a queue of, or charged to; of several, one.
    pub socket: Option<CensusSocket>,
    /// Name of the device they came by or leave by.
    pub device: Option<String>,
    /// Kernel function that takes the charge back, as `sock_rfree`: tells what kind of charge.
    pub destructor: Option<String>,
    /// Who has the socket open.
    pub process: Option<Process>,
    /// Its cgroup; without a process the one that made the socket.
    pub cgroup: Option<Cgroup>,
    /// The pod of that cgroup.
    pub k8s: Option<K8s>,
    /// The container of that cgroup.
    pub container: Option<Container>,
}

/// A socket, as a census finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CensusSocket {
    /// Address family, as in `skb_holders`.
    pub family: String,
    /// Socket type, likewise.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kernel's name for its protocol, as `PACKET` or `UDP`.
    pub protocol: String,
    /// Inode number, as `/proc/<pid>/fd` shows it. Null if no file belongs to it: it was closed, or
    /// is in flight between processes.
    pub inode: Option<u64>,
    /// Inode number of its network namespace.
    pub netns: u64,
    /// Most that may be received and not read.
    pub rcvbuf_bytes: u64,
    /// Buffers in its receive queue.
    pub receive_skbs: u64,
}
