//! What a census found.

use serde::Serialize;

use super::{
    queue::Queue,
    socket::{Device, SocketFacts},
};

/// Socket buffers of the node, by what holds them.
///
/// Numbers of objects and bytes are estimates of totals; where `full` is set they are counts. They
/// include up to some hundreds of objects per processor that are free but kept at hand (active
/// slabs, sheaves, `napi_alloc_cache`), as slabinfo's do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Census {
    /// What each cache holds; compare with `active_objs` of `/proc/slabinfo`.
    pub caches: Vec<CacheCount>,
    /// Holders, those of most memory first.
    pub groups: Vec<Group>,
    /// Buffers of groups that are not listed, because there are more than were asked for.
    pub other: Count,
    /// Buffers that were gone or elsewhere when looked at again: traffic, not held.
    pub moving: Count,
    /// Buffers that do not say whose they are, and whose queue there was no time to find.
    pub unfollowed: Count,
    /// Pages of the node.
    pub total_pages: u64,
    /// Pages looked at.
    pub sampled_pages: u64,
    /// Slabs of socket buffers among them.
    pub hit_pages: u64,
    /// Slabs that changed each time they were read.
    pub changing_slabs: u64,
    /// Standard error of the number of buffers, as a share of it.
    pub relative_error: f64,
    /// Time to learn where everything is, milliseconds.
    pub setup_ms: u64,
    /// Time of the census itself, milliseconds.
    pub took_ms: u64,
    /// All pages were looked at: nothing is estimated.
    pub full: bool,
    /// How memory was read.
    pub read_by: Reader,
}

/// A way to read kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// `/proc/kcore`.
    Kcore,
    /// A BPF program that is run by hand.
    Bpf,
}

/// A number of buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Groups they are in.
    pub groups: u64,
    /// Buffers.
    pub objects: u64,
    /// Bytes they are charged with (`truesize`).
    pub bytes: u64,
}

/// Objects of one cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CacheCount {
    /// Name of the cache. Where the kernel merged it with others, theirs are among its objects.
    pub name: &'static str,
    /// Objects in use.
    pub objects: u64,
    /// Those that are no socket buffers: of merged caches, or free and kept at hand. 0 for the
    /// cache of small data, whose objects are not looked into.
    pub not_buffers: u64,
    /// Size of an object with padding.
    pub object_bytes: u64,
    /// Standard error of `objects`, as a share of it.
    pub relative_error: f64,
}

/// Buffers that the same thing holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// Function that gives the charge back when a buffer is freed, such as `sock_rfree`; `None` if
    /// there is none, as for UDP.
    pub destructor: Option<String>,
    /// Device the buffers came from or go to.
    pub device: Option<Device>,
    /// The queue they were found in by following it; `None` if that was not needed or failed.
    pub queue: Option<Queue>,
    /// With `queue`, the socket it is a queue of; else the socket they are charged to. For AF_UNIX
    /// without `queue` that is the sender, not the holder.
    pub socket: Option<SocketFacts>,
    /// Buffers.
    pub objects: u64,
    /// Bytes they are charged with (`truesize`); each that shares its data counts all of it.
    pub bytes: u64,
    /// Bytes of memory that go back if only these are freed and all others that share their data
    /// too: what several share is split between them.
    pub own_bytes: u64,
    /// Standard error of `objects`, as a share of it.
    pub relative_error: f64,
}

/// How far a census has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages looked at.
    pub sampled_pages: u64,
    /// Pages that will be looked at, if time suffices.
    pub wanted_pages: u64,
    /// Buffers found so far.
    pub objects: u64,
}
