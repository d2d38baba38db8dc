//! The hooks that follow objects from allocation to free, and what they wrote down.
//!
//! A ladder of its own: these programs run for every packet or object, so only who asks for them
//! attaches them. Rungs are tried best first; each says what it cannot see.

mod sample;

use std::os::{fd::AsFd as _, unix::net::UnixDatagram};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, StackTraceMap},
};
use probe_common::{
    layout::KernelLayout,
    outstanding::{CACHE_NAME_LEN, Count, MAX_LAST_STACKS, OWN_STACK_BITS, Outstanding, Tracking},
};

use super::{
    btf,
    ladder::{Hook, Need as Condition},
    loader::{LoadError, OBJECT, map, of_fdinfo, raise_memlock, skipped, try_program, unload},
};
pub use sample::Sample;

/// Stacks that are kept. Each has one place by its hash, so that most of them must stay free.
const STACKS: u32 = 16_384;

/// Caches whose name was compared: more than kernels have.
const CACHES: u32 = 4096;

/// The smallest ring on any architecture: a page.
const RING_BYTES: u32 = 64 << 10;

/// The map of the one word by which the programs know the sample.
const SAMPLE_MASK: &str = "SAMPLE_MASK";

/// Datagrams sent to find out which hooks see the same buffer.
const PROBES: u64 = 8;

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Socket buffers.
    Skb,
    /// Objects of the slab cache of this name.
    Cache(Vec<u8>),
    /// Objects of `kmalloc()` that take this many bytes, whichever of its caches they are in.
    Kmalloc(u32),
}

/// What of it, and in how much memory.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Which share of them is followed.
    pub sample: Sample,
    /// Objects there is room for.
    pub objects: u32,
}

/// Whether a rung can do without a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It cannot.
    Always,
    /// It can.
    IfThere,
    /// Only where it sees what no other hook does.
    IfAlone,
}

/// One program of a rung.
struct Place {
    program: &'static str,
    hook: Hook,
    need: Need,
    /// The function must have so many parameters, as the value it returns is read behind them.
    parameters: Option<usize>,
}

/// One way to follow objects.
struct Rung {
    places: &'static [Place],
    /// What the kernel's types must say for it, and what it means if they do not.
    needs: Option<Condition>,
    /// What it cannot see.
    blind: &'static [&'static str],
}

const fn place(program: &'static str, hook: Hook, need: Need) -> Place {
    Place {
        program,
        hook,
        need,
        parameters: None,
    }
}

const fn returns(
    program: &'static str,
    function: &'static str,
    parameters: usize,
    need: Need,
) -> Place {
    Place {
        program,
        hook: Hook::FExit(function),
        need,
        parameters: Some(parameters),
    }
}

use Hook::{FEntry, FExit, KProbe, KRetProbe, RawTp};
use Need::{Always, IfAlone, IfThere};

const SEGMENTED: &str = "buffers that skb_segment() takes apart while they live are no longer \
                         followed";
const GROWN: &str = "bytes are those at the allocation: pages that are added later are not in them";

/// What frees comes first in a rung, so that no object is taken up whose end is not seen.
const SKB: &[Rung] = &[
    Rung {
        places: &[
            place("skb_head_fe", FEntry("skb_release_head_state"), Always),
            place("skb_nostate_fe", FEntry("__consume_stateless_skb"), IfThere),
            place(
                "skb_stolen_fe",
                FEntry("napi_skb_free_stolen_head"),
                IfThere,
            ),
            place("skb_morph_fx", FExit("skb_morph"), IfThere),
            returns("skb_clone_fx", "skb_clone", 2, Always),
            returns("skb_slab_fx", "slab_build_skb", 1, IfThere),
            place("skb_around_fx", FExit("__build_skb_around"), Always),
            returns("skb_alloc_fx", "__alloc_skb", 4, IfAlone),
        ],
        needs: None,
        blind: &[SEGMENTED, GROWN],
    },
    Rung {
        places: &[
            place("skb_head_kp", KProbe("skb_release_head_state"), Always),
            place("skb_nostate_kp", KProbe("__consume_stateless_skb"), IfThere),
            place(
                "skb_stolen_kp",
                KProbe("napi_skb_free_stolen_head"),
                IfThere,
            ),
            place("skb_morph_kr", KRetProbe("skb_morph"), IfThere),
            place("skb_clone_kr", KRetProbe("skb_clone"), Always),
            place("skb_slab_kr", KRetProbe("slab_build_skb"), IfThere),
            place("skb_around_kp", KProbe("__build_skb_around"), Always),
            place("skb_alloc_kr", KRetProbe("__alloc_skb"), IfAlone),
        ],
        needs: None,
        blind: &[
            "a kprobe that an interrupt hits inside another is skipped",
            "older kernels cannot look behind a return probe: stacks of what it saw are missing",
            "returns are missed where too many tasks are in one function at a time",
            "bytes of buffers seen at __build_skb_around are not known",
            SEGMENTED,
        ],
    },
    Rung {
        places: &[
            place("kmc_free_rt", RawTp("kmem_cache_free"), Always),
            place("skb_consume_rt", RawTp("consume_skb"), IfThere),
            place("skb_kfree_rt", RawTp("kfree_skb"), IfThere),
            place("kmc_alloc_rt", RawTp("kmem_cache_alloc"), Always),
        ],
        needs: Some(CACHE_IS_TOLD),
        blind: &[
            "only buffers that skbuff_head_cache itself gave out: none of the per-CPU caches of \
             NAPI, no clone beside its original (skbuff_fclone_cache)",
            "many frees are seen only when the address is given out again: short-lived buffers \
             look outstanding for a while",
            "a free may be seen twice and then counts as one of an unknown object",
            "bytes are those of the buffer's head alone",
        ],
    },
];

const BORROWED: &str = "stacks of most objects: one in 64 has its own, the others that of an earlier \
                        one of the same thread at the same depth of its stack";

const CACHE_IS_TOLD: Condition = Condition {
    field: |layout| layout.kmem_cache_alloc__has_cache,
    why_not: "this kernel's tracepoint does not pass the cache",
};

const BULK_FREE: Place = place("kmc_bulk_fe", FEntry("kmem_cache_free_bulk"), IfThere);
const BULK: &str = "objects of larger bulk operations than 64";
const NO_BULK: &str = "bulk operations where fentry does not work: their frees are seen when the \
                       address is given out again";

const CACHE: &[Rung] = &[
    Rung {
        places: &[
            place("kmc_free_rt", RawTp("kmem_cache_free"), Always),
            BULK_FREE,
            returns("kmc_bulk_fx", "kmem_cache_alloc_bulk_noprof", 4, IfThere),
            // Its name before 6.10: no kernel has both.
            returns("kmc_bulk_fx", "kmem_cache_alloc_bulk", 4, IfThere),
            place("kmc_alloc_rt", RawTp("kmem_cache_alloc"), Always),
        ],
        needs: Some(CACHE_IS_TOLD),
        blind: &[BULK, NO_BULK],
    },
    Rung {
        places: &[
            place("kmc_free_rt", RawTp("kmem_cache_free"), Always),
            BULK_FREE,
            returns("kmc_bulk_fx", "kmem_cache_alloc_bulk", 4, IfThere),
            returns("kmc_node_fx", "kmem_cache_alloc_node", 3, IfThere),
            returns("kmc_alloc_fx", "kmem_cache_alloc", 2, Always),
        ],
        needs: None,
        blind: &[
            "of which cache a free is, before 6.1: those of all caches are counted",
            BULK,
        ],
    },
];

const KMALLOC: &[Rung] = &[Rung {
    places: &[
        place("kfree_rt", RawTp("kfree"), Always),
        BULK_FREE,
        place("kmalloc_node_rt", RawTp("kmalloc_node"), IfThere),
        place("kmalloc_rt", RawTp("kmalloc"), Always),
    ],
    needs: None,
    blind: &[
        "objects of all kmalloc caches of this size: charged to a cgroup, for DMA, randomised",
        "which frees are of this size: those of all sizes are counted, and of unknown objects",
        BULK,
        NO_BULK,
    ],
}];

impl What {
    const fn ladder(&self) -> &'static [Rung] {
        match self {
            Self::Skb => SKB,
            Self::Cache(_) => CACHE,
            Self::Kmalloc(_) => KMALLOC,
        }
    }

    fn tracking(&self) -> Tracking {
        let mut tracking = Tracking::NONE;
        let name: &[u8] = match self {
            Self::Skb => b"skbuff_head_cache",
            Self::Cache(name) => name,
            Self::Kmalloc(bytes) => {
                tracking.kmalloc_bytes = (*bytes).into();
                &[]
            }
        };
        // The programs read a name of this length with its NUL: a longer one is compared as far.
        let len = name.len().min(CACHE_NAME_LEN - 1);
        tracking.cache[..len].copy_from_slice(&name[..len]);
        tracking
    }
}

/// Why objects cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The object or its maps were refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No rung could be attached.
    #[error("no hooks to follow allocations with can be attached here ({0})")]
    NoHooks(String),
}

/// What was counted, by [`Count`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts([u64; Count::LEN as usize]);

impl Counts {
    /// One of them.
    pub fn get(&self, count: Count) -> u64 {
        self.0.get(count as usize).copied().unwrap_or(0)
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn with(mut self, count: Count, value: u64) -> Self {
        self.0[count as usize] = value;
        self
    }
}

/// The attached programs and their table. Dropping it detaches them.
pub struct Tracker {
    ebpf: Ebpf,
    objects: HashMap<MapData, u64, Outstanding>,
    stacks: StackTraceMap<MapData>,
    counts: PerCpuArray<MapData, u64>,
    rung: &'static Rung,
    /// Those that are attached.
    programs: Vec<&'static str>,
    sample_mask: Array<MapData, u32>,
    sample: Sample,
    most: u32,
    /// Objects taken out for a sparser sample.
    given_up: u64,
    /// Hooks in use.
    pub hooks: Vec<Hook>,
    /// Hooks that are not, and why.
    pub refused: Vec<(Hook, String)>,
    /// Bytes of kernel memory that table and stacks take.
    pub map_bytes: Option<u64>,
}

impl Tracker {
    /// Loads and attaches the best rung.
    pub fn attach(
        layout: &KernelLayout,
        own: &btf::Btf,
        what: &What,
        bounds: Bounds,
    ) -> Result<Self, TrackError> {
        let btf = Btf::from_sys_fs().map_err(LoadError::from)?;
        let mut refused = Vec::new();
        for rung in what.ladder() {
            let mut without = Vec::new();
            if rung.places.iter().any(|place| place.need == IfAlone) {
                // All of them, to see which see the same.
                let all = Bounds {
                    sample: Sample::ALL,
                    objects: 4096,
                };
                match Self::attach_rung(rung, layout, own, &btf, what, all, &[])? {
                    Ok(tracker) => without = tracker.seen_twice(),
                    Err(why) => {
                        refused.extend(why);
                        continue;
                    }
                }
            }
            match Self::attach_rung(rung, layout, own, &btf, what, bounds, &without)? {
                Ok(mut tracker) => {
                    refused.append(&mut tracker.refused);
                    tracker.refused = refused;
                    return Ok(tracker);
                }
                Err(why) => refused.extend(why),
            }
        }
        let reasons: Vec<String> = refused
            .iter()
            .map(|(hook, why)| format!("{hook}: {why}"))
            .collect();
        Err(TrackError::NoHooks(reasons.join("; ")))
    }

    /// Attaches all of a rung that it cannot do without, and what else is there; or says why not.
    fn attach_rung(
        rung: &'static Rung,
        layout: &KernelLayout,
        own: &btf::Btf,
        btf: &Btf,
        what: &What,
        bounds: Bounds,
        without: &[&str],
    ) -> Result<Result<Self, Vec<(Hook, String)>>, LoadError> {
        if let Some(condition) = rung.needs
            && (condition.field)(layout) != 1
        {
            let why = condition.why_not;
            let hook = rung.places.iter().rev().map(|place| place.hook).next();
            return Ok(Err(hook
                .map(|hook| (hook, why.to_owned()))
                .into_iter()
                .collect()));
        }
        let mut ebpf = load(layout, &what.tracking(), bounds.objects)?;
        let mut sample_mask: Array<_, u32> = map(&mut ebpf, SAMPLE_MASK, Array::try_from)?;
        sample_mask
            .set(0, bounds.sample.mask(), 0)
            .map_err(|source| LoadError::Map {
                name: SAMPLE_MASK,
                source,
            })?;
        let (mut hooks, mut refused, mut attached) = (Vec::new(), Vec::new(), Vec::new());
        for place in rung.places {
            if without.contains(&place.program) {
                let why = "another hook sees the same".to_owned();
                refused.push((place.hook, why));
                continue;
            }
            let result = place
                .fits(own)
                .and_then(|()| try_program(&mut ebpf, btf, place.program, place.hook));
            match result {
                Ok(()) => {
                    hooks.push(place.hook);
                    attached.push((place.program, place.hook));
                }
                Err(why) => {
                    refused.push((place.hook, why));
                    if place.need == Always {
                        unload(&mut ebpf, &attached);
                        return Ok(Err(refused));
                    }
                }
            }
        }
        let map_bytes = map_bytes(&ebpf, "OUTSTANDING").zip(map_bytes(&ebpf, "TRACK_STACKS"));
        Ok(Ok(Self {
            objects: map(&mut ebpf, "OUTSTANDING", HashMap::try_from)?,
            stacks: map(&mut ebpf, "TRACK_STACKS", StackTraceMap::try_from)?,
            counts: map(&mut ebpf, "TRACK_COUNTS", PerCpuArray::try_from)?,
            ebpf,
            rung,
            programs: attached.iter().map(|(program, _)| *program).collect(),
            sample_mask,
            sample: bounds.sample,
            most: bounds.objects,
            given_up: 0,
            hooks,
            refused,
            map_bytes: map_bytes.map(|(objects, stacks)| objects.saturating_add(stacks)),
        }))
    }

    /// Programs that see what another has seen already. Some kernels finish a buffer in a function
    /// that is hooked, others in a copy of it: who gets the address of a buffer that lives has shown
    /// that both hooks saw it.
    fn seen_twice(&self) -> Vec<&'static str> {
        let Ok((here, there)) = UnixDatagram::pair() else {
            return Vec::new();
        };
        let before = self.counts().unwrap_or_default().get(Count::Reused);
        let mut sent = 0;
        for _ in 0..PROBES {
            let mut byte = [0];
            if here.send(&[0]).is_ok() && there.recv(&mut byte).is_ok() {
                sent += 1;
            }
        }
        let after = self.counts().unwrap_or_default().get(Count::Reused);
        if sent > 0 && after.saturating_sub(before) >= sent {
            let alone = self.rung.places.iter().filter(|it| it.need == IfAlone);
            alone.map(|place| place.program).collect()
        } else {
            Vec::new()
        }
    }

    /// What the hooks in use cannot see, and what is not looked at for its cost.
    pub fn blind_spots(&self) -> impl Iterator<Item = &'static str> {
        let borrowed = (self.sample.bits() < OWN_STACK_BITS).then_some(BORROWED);
        self.rung.blind.iter().copied().chain(borrowed)
    }

    /// Which share of the objects is followed now.
    pub const fn sample(&self) -> Sample {
        self.sample
    }

    /// Objects there is room for.
    pub const fn room(&self) -> u32 {
        self.most
    }

    /// Makes the sample sparser if its table fills up; else it costs a look at the counts.
    pub fn keep_room(&mut self) -> Result<(), MapError> {
        let counts = self.counts()?;
        let ended = counts.get(Count::Reused) + counts.get(Count::Ended) + self.given_up;
        let live = counts.get(Count::Followed).saturating_sub(ended);
        let sparser = self.sample.with_room(live, self.most);
        if sparser == self.sample {
            return Ok(());
        }
        self.thin(sparser)
    }

    /// From the table of one sample to that of a sparser one.
    fn thin(&mut self, sparser: Sample) -> Result<(), MapError> {
        // The programs first: what they take up from here on is in it.
        self.sample_mask.set(0, sparser.mask(), 0)?;
        self.sample = sparser;
        // Found before the first is taken out: a walk starts again where what it stands at is gone.
        let mut outside = Vec::new();
        for address in self.objects.keys().take(2 * self.most as usize) {
            let address = address?;
            if !sparser.has(address) {
                outside.push(address);
            }
        }
        for address in outside {
            // One that is not there was freed just now.
            if self.objects.remove(&address).is_ok() {
                self.given_up += 1;
            }
        }
        Ok(())
    }

    /// Objects that are followed, by address. Bounded work even while they come and go.
    pub fn objects(&self) -> Result<std::collections::HashMap<u64, Outstanding>, MapError> {
        let mut found = std::collections::HashMap::new();
        // The walk starts again where the object it stands at is freed.
        for entry in self.objects.iter().take(2 * self.most as usize) {
            let (address, object) = entry?;
            // A program that ran while the sample was made sparser may have taken up one of the former.
            if self.sample.has(address) {
                found.insert(address, object);
            }
        }
        Ok(found)
    }

    /// What was counted since the start.
    pub fn counts(&self) -> Result<Counts, MapError> {
        let mut counts = Counts::default();
        for (index, count) in (0..).zip(&mut counts.0) {
            *count = self.counts.get(&index, 0)?.iter().sum();
        }
        Ok(counts)
    }

    /// Return addresses of a stack, innermost first; empty if it was not taken.
    pub fn stack(&self, stack_id: i32) -> Vec<u64> {
        let Ok(id) = u32::try_from(stack_id) else {
            return Vec::new();
        };
        let stack = self.stacks.get(&id, 0);
        stack.map_or(Vec::new(), |stack| {
            stack.frames().iter().map(|frame| frame.ip).collect()
        })
    }

    /// How often the kernel did not run one of the programs; `None` if it does not count that.
    pub fn skipped(&self) -> Option<u64> {
        let programs = self.programs.iter();
        programs
            .filter_map(|program| skipped(&self.ebpf, program))
            .reduce(u64::saturating_add)
    }
}

impl Place {
    /// Whether the value that a function returns is where the program looks for it.
    fn fits(&self, own: &btf::Btf) -> Result<(), String> {
        let (FExit(function), Some(wanted)) = (self.hook, self.parameters) else {
            return Ok(());
        };
        match own.parameters(function) {
            Ok(parameters) if parameters.len() == wanted => Ok(()),
            Ok(parameters) => Err(format!(
                "it has {} parameters, not {wanted}",
                parameters.len()
            )),
            Err(_) => Err(format!("this kernel has no function {function}")),
        }
    }
}

fn map_bytes(ebpf: &Ebpf, name: &str) -> Option<u64> {
    match ebpf.map(name)? {
        Map::HashMap(data) | Map::StackTraceMap(data) => of_fdinfo(data.fd().as_fd(), "memlock:"),
        _ => None,
    }
}

fn load(layout: &KernelLayout, tracking: &Tracking, objects: u32) -> Result<Ebpf, LoadError> {
    raise_memlock();
    Ok(EbpfLoader::new()
        .override_global("LAYOUT", layout, true)
        .override_global("TRACKING", tracking, true)
        .map_max_entries("OUTSTANDING", objects)
        .map_max_entries("TRACK_STACKS", STACKS)
        .map_max_entries("LAST_STACKS", MAX_LAST_STACKS)
        .map_max_entries("CACHES", CACHES)
        // What only `trace` needs is made as small as can be.
        .map_max_entries("CRITICAL", RING_BYTES)
        .map_max_entries("BULK", RING_BYTES)
        .map_max_entries("DEATHS", RING_BYTES)
        .map_max_entries("LIMITS", 1)
        .map_max_entries("STALLS", 1)
        .load(OBJECT)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_objects_is_attached_first_and_names_fit() {
        for rung in [SKB, CACHE, KMALLOC].into_iter().flatten() {
            let last = rung.places.iter().rposition(|it| is_end(it.program));
            let first = rung.places.iter().position(|it| !is_end(it.program));
            assert!(last < first, "{}", rung.places[0].program);
            for place in rung.places {
                assert!(place.program.len() <= 15, "{}", place.program);
            }
        }
    }

    fn is_end(program: &str) -> bool {
        [
            "head", "nostate", "stolen", "free", "consume", "kfree", "bulk_fe",
        ]
        .iter()
        .any(|part| program.contains(part))
    }

    #[test]
    fn names_are_ended_by_a_nul() {
        let long = What::Cache(vec![b'x'; 100]).tracking();
        assert_eq!(long.cache[CACHE_NAME_LEN - 2..], [b'x', 0]);
        assert_eq!(What::Kmalloc(1024).tracking().kmalloc_bytes, 1024);
        assert_eq!(&What::Skb.tracking().cache[..9], b"skbuff_he");
    }
}
