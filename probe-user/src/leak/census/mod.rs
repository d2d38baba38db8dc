//! Who holds socket buffers, from below: a census of the slabs they live in.
//!
//! Sockets that can be enumerated are most holders, not all: buffers also hang in nfqueue, in
//! qdiscs, in tun rings, in sockets that are closed but not gone, or nowhere at all. But each is
//! an object of a slab cache, and says itself whose it is: socket, device, destructor. So a sample
//! of all pages of memory is looked at, through `/proc/kcore` or a BPF program; pages that are slabs
//! of these caches are read, free objects left out, and the rest counted by holder.
//!
//! Nothing is written, nothing is loaded, and nothing is believed: memory changes while it is read,
//! so every pointer is checked before it is followed, every loop is bounded, and of each holder
//! some buffers are looked at again at the end.
//!
//! - [`kcore`] and [`bpf`] read memory, [`layout`] says where things are in it, [`caches`] finds the caches.
//! - [`estimate`] chooses what to look at and says how far off the totals may be.
//! - [`slab`] tells objects in use, [`skb`] reads one, [`queue`] finds the queue of one that does
//!   not say, [`socket`] reads what is to be said of a holder.

use std::time::{Duration, Instant};

pub mod bpf;
pub mod caches;
pub mod error;
pub mod estimate;
pub mod kcore;
pub mod layout;
pub mod memory;
pub mod own;
pub mod queue;
pub mod report;
mod scan;
pub mod skb;
pub mod slab;
pub mod socket;
mod source;

pub use error::CensusError;
pub use report::{CacheCount, Census, Count, Group, Progress, Reader};
pub use socket::{Device, SocketFacts};

use source::Source;

/// Time for a sample: with its report under 0.3 s, and two thirds of it where no long queues have to be
/// followed.
const SAMPLE_TIME: Duration = Duration::from_millis(270);
/// Time for looking at all memory.
const FULL_TIME: Duration = Duration::from_secs(120);
/// Holders that are listed.
const MAX_GROUPS: usize = 256;

/// How thoroughly to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Time for all of it. The last third is for finding queues; and where it takes long to learn where
    /// things are, a sixth more may be needed for pages, and one for queues.
    pub time_limit: Duration,
    /// Pages after which no more are looked at; `None` for all.
    pub max_pages: Option<u64>,
    /// Holders to list; those of least memory beyond are added up.
    pub max_groups: usize,
    /// Which pages are looked at first.
    pub seed: u64,
}

impl Options {
    /// As much as can be seen at once; all of a small node.
    pub const fn sample(seed: u64) -> Self {
        Self {
            time_limit: SAMPLE_TIME,
            max_pages: None,
            max_groups: MAX_GROUPS,
            seed,
        }
    }

    /// All of it, unless the pages alone take more than a minute.
    pub const fn full() -> Self {
        Self {
            time_limit: FULL_TIME,
            max_pages: None,
            max_groups: MAX_GROUPS,
            seed: 0,
        }
    }
}

/// Takes a census of the running kernel's socket buffers. Needs root with CAP_SYS_RAWIO for
/// `/proc/kcore`, or with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN where that is missing or masked;
/// and CAP_SYSLOG for addresses.
///
/// `progress` is called about ten times a second.
pub fn take(options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Census, CensusError> {
    let started = Instant::now();
    let source = Source::open()?;
    let setup = started.elapsed();
    let mut name = |addresses: &[u64]| source.names(addresses);
    let mut census = source.scan().all_of(options, started, progress, &mut name);
    census.setup_ms = scan::millis(setup);
    census.read_by = source.read_by;
    Ok(census)
}

/// Who holds these buffers, most memory first: for each of `sets`, addresses of `struct sk_buff`. What
/// is no buffer any more is left out. Lists are followed for at most `within` in all.
pub fn holders_of(sets: &[Vec<u64>], within: Duration) -> Result<Vec<Vec<Group>>, CensusError> {
    let source = Source::open()?;
    let end = Instant::now() + within;
    let options = || Options {
        time_limit: end.saturating_duration_since(Instant::now()),
        ..Options::full()
    };
    let holders = |addresses: &Vec<u64>| {
        let mut name = |addresses: &[u64]| source.names(addresses);
        let census = source.scan().these(addresses, &options(), &mut name);
        census.groups
    };
    Ok(sets.iter().map(holders).collect())
}

#[cfg(test)]
mod tests;
