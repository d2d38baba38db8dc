//! `skb_outstanding`, `slab_outstanding`: what was allocated and not freed since oomprobe started.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Cgroup, Container, K8s, Refusal, SkbGroup};

/// Objects that were allocated while oomprobe followed them and are not freed yet, by allocation
/// stack and by who ran then. Who allocated a socket buffer is seldom who holds it: `skb_holders`
/// tells that. Only one object of `sample` is followed; numbers of objects and bytes are scaled up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outstanding {
    /// What was followed: `skb`, or the cache.
    pub what: String,
    /// For how long, ms.
    pub duration_ms: u64,
    /// One object of so many is followed, by its address; at the end, if the sample was made sparser.
    pub sample: u64,
    /// One of so many was asked for and filled the table. Null if that is `sample`.
    pub sample_asked: Option<u64>,
    /// Objects that are not freed, `young_objects` included.
    pub objects: u64,
    /// Of those, objects younger than `min_age_ms`: on their way, most likely.
    pub young_objects: u64,
    /// Age from which an object is told of, ms.
    pub min_age_ms: u64,
    /// Bytes of those that are told of, as far as known: at their allocation. Null if of none.
    pub bytes: Option<u64>,
    /// Objects that were followed and are told of: the relative error of the numbers is one by the
    /// square root of it.
    pub followed_objects: u64,
    /// By how much slabinfo's count of objects rose meanwhile, for comparison. Null if it cannot be
    /// read. Socket buffers: `skbuff_head_cache`, with those that processors keep for reuse.
    pub slab_growth_objects: Option<i64>,
    /// Those that are told of, by age.
    pub ages: Vec<AgeCount>,
    /// By stack and cgroup, most objects first.
    pub stacks: Vec<OutstandingStack>,
    /// How many different ones there are.
    pub stacks_total: u64,
    /// By cgroup of the task that ran, most objects first.
    pub cgroups: Vec<OutstandingCgroup>,
    /// How far the numbers can be trusted.
    pub accuracy: TrackAccuracy,
    /// Hooks in use.
    pub hooks: Vec<String>,
    /// Hooks that are not.
    pub refused: Vec<Refusal>,
    /// What these hooks cannot see.
    pub blind_spots: Vec<String>,
    /// Kernel memory that following takes, bytes.
    pub map_bytes: Option<u64>,
}

/// Objects of an age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgeCount {
    /// At least so old, s; younger than the next.
    pub from_s: u64,
    /// So many.
    pub objects: u64,
}

/// Objects of one allocation stack and cgroup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutstandingStack {
    /// Functions, innermost first. Empty if the stack was not taken.
    pub stack: Vec<String>,
    /// True if an interrupt allocated them: process and cgroup are of whoever was interrupted.
    pub in_interrupt: bool,
    /// Memory cgroup of the task that ran. Null if it is not known, or gone.
    pub cgroup: Option<Cgroup>,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// Process of most of them.
    pub pid: Option<u32>,
    /// Its name.
    pub comm: Option<String>,
    /// Objects.
    pub objects: u64,
    /// Bytes, as far as known.
    pub bytes: Option<u64>,
    /// Age of the oldest, s.
    pub oldest_s: f64,
    /// By how much their number grew since the middle of the run, per second.
    pub growth_objects_per_s: Option<f64>,
    /// Who holds them now, most bytes first, at most three: of socket buffers, read from the buffers
    /// themselves, for the first 16 stacks. What was found in no queue is left out. Empty where that
    /// cannot be read, and of other objects.
    pub held_by: Vec<SkbGroup>,
}

/// Objects by cgroup of the task that ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OutstandingCgroup {
    /// The cgroup. Null if it is not known.
    pub cgroup: Option<Cgroup>,
    /// Its pod.
    pub k8s: Option<K8s>,
    /// Its container.
    pub container: Option<Container>,
    /// Objects.
    pub objects: u64,
    /// Bytes, as far as known.
    pub bytes: Option<u64>,
}

/// How far the numbers can be trusted. Counts are of the whole run and, but for the first two, of
/// followed objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrackAccuracy {
    /// Objects allocated, followed or not.
    pub allocated: u64,
    /// Objects freed, followed or not.
    pub freed: u64,
    /// Objects taken up.
    pub followed: u64,
    /// Objects whose address was given out again before their end was seen: frees that the hooks
    /// missed.
    pub reused: u64,
    /// `reused` by `followed`: the miss rate of these hooks, here and now.
    pub miss_ratio: Option<f64>,
    /// Frees of objects that are not known: older than oomprobe, or their allocation was missed.
    pub unknown_frees: u64,
    /// Objects there was no room for.
    pub no_room: u64,
    /// Objects or frees given up as they interrupted another operation on the table.
    pub busy: u64,
    /// Stacks that were given up for another with the same place in their table.
    pub stack_collisions: u64,
    /// Stacks that could not be taken.
    pub stack_failures: u64,
    /// Objects of bulk operations too large to be followed.
    pub bulk_cut: u64,
    /// Times the kernel did not run a program, as another run of it was interrupted. Null if it does
    /// not count that.
    pub skipped_runs: Option<u64>,
}
