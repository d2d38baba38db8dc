//! Outstanding since start: who allocates, and what is not freed.
//!
//! Hooks and table: [`crate::kernel::track`]. This is the side of it that groups and names.

mod held;
mod report;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::daemon::symbols::is_own;
use crate::event::{
    Body, Cgroup, Event, Outstanding, OutstandingCgroup, OutstandingStack, Refusal, text,
};
use crate::identity::hierarchy;
use crate::identity::names::Resolver;
use crate::identity::tree::Tree;
use crate::incident::who::{Identities, Who};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::kallsyms;
use crate::kernel::layout::{self, RequiredMissing};
use crate::kernel::loader::LoadError;
use crate::kernel::track::{Bounds, Sample, TrackError, Tracker};
use crate::node::clock::boot_ns;
use crate::node::slabinfo;

pub use crate::kernel::track::What;

use super::envelope::Envelope;
use report::{Groups, Key};

/// What to follow, and how to tell of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or where the host's root is mounted.
    pub host_root: PathBuf,
    /// CRI socket to ask instead of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// What to follow.
    pub what: What,
    /// One object of 2^`sample_bits` is followed, or fewer where there is no room for so many; of 0,
    /// all, and what finds no room is counted.
    pub sample_bits: u32,
    /// For how long. Without it, until `stop`.
    pub duration: Option<Duration>,
    /// Objects that are younger are only counted.
    pub min_age: Duration,
    /// Stacks and cgroups to tell of.
    pub top: usize,
}

/// Objects that are followed at most: some 100 bytes of kernel memory each. A sample is made sparser
/// where they are too few; all objects are all there is room for.
const OBJECTS: u32 = 65_536;
const OBJECTS_UNSAMPLED: u32 = 262_144;

/// Between two looks whether the table fills up. One of 64 objects would have to leak at 20 million a
/// second to fill its other half meanwhile.
pub const LOOK: Duration = Duration::from_millis(100);

/// Without an end that is known, growth is over the last period of this length or twice that.
const PERIOD: Duration = Duration::from_secs(60);

impl Options {
    fn min_age_ns(&self) -> u64 {
        u64::try_from(self.min_age.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Why nothing could be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's types cannot be read.
    #[error("cannot read this kernel's types: {0}; it needs CONFIG_DEBUG_INFO_BTF")]
    Btf(#[from] BtfError),
    /// The kernel lacks what no program can do without.
    #[error(transparent)]
    Layout(#[from] RequiredMissing),
    /// No hook works.
    #[error(transparent)]
    Track(#[from] TrackError),
    /// A map cannot be read.
    #[error("cannot read what was followed: {0}")]
    Map(#[from] aya::maps::MapError),
}

impl Error {
    /// Whether a privilege or a feature of the kernel is missing, rather than something failed.
    pub const fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Btf(_)
                | Self::Layout(_)
                | Self::Track(TrackError::NoHooks(_) | TrackError::Load(LoadError::Object(_)))
        )
    }
}

/// Follows until the time is over or `stop` is ready, then tells. `ready` is called once all hooks are
/// attached.
pub async fn run(
    options: &Options,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<Event, Error> {
    let mut follower = Follower::attach(options.clone())?;
    ready();
    let start = follower.start;
    let mut stop = pin!(stop);
    let end = options.duration.map(|duration| start + duration);
    let mut next = start + options.duration.map_or(PERIOD, |duration| duration / 2);
    loop {
        let wake = end.map_or(next, |end| next.min(end));
        let told_to_stop = tokio::select! {
            () = stop.as_mut() => true,
            () = sleep_until(wake) => false,
            () = sleep(LOOK) => {
                follower.keep_room()?;
                continue;
            }
        };
        if told_to_stop || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        follower.remember()?;
        next += options.duration.unwrap_or(PERIOD);
    }
    let envelope = Envelope::of(&options.host_root);
    let resolver = Rc::new(Resolver::new(
        &options.host_root,
        options.cri_socket.as_deref(),
    ));
    let body = follower.tell(&resolver, envelope.node_name()).await?;
    Ok(envelope.event(0, body))
}

/// Follows objects from when it is made, and tells of them as often as it is asked to.
pub struct Follower {
    options: Options,
    tracker: Tracker,
    start: Instant,
    slab_before: Option<u64>,
    middle: Middle,
}

impl Follower {
    /// Attaches all hooks.
    pub fn attach(options: Options) -> Result<Self, Error> {
        let btf = Btf::running()?;
        let layout = layout::resolve(&btf).layout()?;
        let bounds = Bounds {
            sample: Sample::of_bits(options.sample_bits),
            objects: if options.sample_bits == 0 {
                OBJECTS_UNSAMPLED
            } else {
                OBJECTS
            },
        };
        let proc = options.host_root.join("proc");
        let tracker = Tracker::attach(&layout, &btf, &options.what, bounds)?;
        Ok(Self {
            slab_before: slab_objects(&proc, &options.what),
            start: Instant::now(),
            middle: Middle::default(),
            tracker,
            options,
        })
    }

    /// Makes the sample sparser if the table fills up; to be called every [`LOOK`]. Who asked for all
    /// objects has asked for those that are rare, which a sample would miss: then what finds no room is
    /// counted.
    pub fn keep_room(&mut self) -> Result<(), Error> {
        if self.options.sample_bits > 0 {
            self.tracker.keep_room()?;
        }
        Ok(())
    }

    /// Growth is told from here on.
    pub fn remember(&mut self) -> Result<(), Error> {
        let scale = self.tracker.sample().scale();
        self.middle = Middle {
            at: Some(Instant::now()),
            sizes: groups(&self.tracker, &self.options)?.sizes(scale),
        };
        Ok(())
    }

    /// What is not freed, and who allocated it.
    pub async fn tell(
        &self,
        resolver: &Rc<Resolver>,
        node_name: Option<&str>,
    ) -> Result<Body, Error> {
        let options = &self.options;
        let now_ns = boot_ns();
        let mut objects = self.tracker.objects()?;
        let groups = Groups::of(objects.values(), now_ns, options.min_age_ns());
        let elapsed = self.start.elapsed();
        let slab_after = slab_objects(&options.host_root.join("proc"), &options.what);
        let slab_growth = self
            .slab_before
            .zip(slab_after)
            .and_then(|(then, now)| i64::try_from(i128::from(now) - i128::from(then)).ok());
        let told = Told {
            options,
            tracker: &self.tracker,
            groups: &groups,
            middle: &self.middle,
            now_ns,
        };
        let mut outstanding = told.outstanding()?;
        outstanding.duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        outstanding.slab_growth_objects = slab_growth;
        told.names(&mut outstanding, resolver, node_name).await;
        if options.what == What::Skb {
            // Names took their time: what was freed meanwhile may be somebody else's by now.
            let still = self.tracker.objects()?;
            objects.retain(|address, object| {
                let now = still.get(address);
                now.is_some_and(|now| now.since_boot_ns == object.since_boot_ns)
            });
            let sets = held::addresses(&outstanding, &groups, &objects, now_ns, options);
            held::add(&mut outstanding, sets, options, resolver, node_name).await;
        }
        Ok(match &options.what {
            What::Skb => Body::SkbOutstanding(Box::new(outstanding)),
            What::Cache(_) | What::Kmalloc(_) => Body::SlabOutstanding(Box::new(outstanding)),
        })
    }
}

/// Stacks as `flamegraph.pl` and its like take them: outermost function first, and objects.
pub fn folded(outstanding: &Outstanding) -> String {
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &outstanding.stacks {
        let frames = stack.stack.iter().rev().map(|frame| {
            let name = frame.split('+').next().unwrap_or(frame);
            name.replace([';', ' ', '\n'], "_")
        });
        let frames: Vec<String> = frames.collect();
        let line = if frames.is_empty() {
            "[no stack]".to_owned()
        } else {
            frames.join(";")
        };
        *lines.entry(line).or_default() += stack.objects;
    }
    let mut text = String::new();
    for (line, objects) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line} {objects}");
    }
    text
}

/// Sizes of the groups some time before the end, for all objects: the sample may have been denser.
#[derive(Default)]
struct Middle {
    at: Option<Instant>,
    sizes: HashMap<Key, u64>,
}

impl Middle {
    /// By how much a group that has so many objects `now` grew since then, per second.
    fn growth(&self, key: Key, objects: u64, now: Instant) -> Option<f64> {
        let seconds = now.duration_since(self.at?).as_secs_f64();
        let before = self.sizes.get(&key).copied().unwrap_or(0);
        let grown = i64::try_from(objects).ok()? - i64::try_from(before).ok()?;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate needs no more than 52 bits"
        )]
        let rate = grown as f64 / seconds.max(1e-9);
        Some((rate * 10.0).round() / 10.0)
    }
}

fn groups(tracker: &Tracker, options: &Options) -> Result<Groups, Error> {
    let objects = tracker.objects()?;
    Ok(Groups::of(
        objects.values(),
        boot_ns(),
        options.min_age_ns(),
    ))
}

/// What slabinfo counts of it.
fn slab_objects(proc: &Path, what: &What) -> Option<u64> {
    let name: &[u8] = match what {
        What::Skb => b"skbuff_head_cache",
        What::Cache(name) => name,
        What::Kmalloc(_) => return None,
    };
    let caches = slabinfo::read(proc).ok()?;
    let cache = caches.into_iter().find(|cache| cache.name == name)?;
    Some(cache.objects)
}

/// What the report is made from.
struct Told<'a> {
    options: &'a Options,
    tracker: &'a Tracker,
    groups: &'a Groups,
    middle: &'a Middle,
    now_ns: u64,
}

impl Told<'_> {
    /// What was asked for, if the sample was made sparser.
    fn asked(&self) -> Option<Sample> {
        let asked = Sample::of_bits(self.options.sample_bits);
        (asked != self.tracker.sample()).then_some(asked)
    }

    /// What is not seen for that.
    fn sparser(&self) -> Option<String> {
        self.asked().map(|asked| {
            format!(
                "stacks of few objects: the table of {} filled up, so that one of {} is followed and \
                 not one of {}",
                self.tracker.room(),
                self.tracker.sample().scale(),
                asked.scale()
            )
        })
    }

    /// All but names and times.
    fn outstanding(&self) -> Result<Outstanding, Error> {
        let (scale, groups) = (self.tracker.sample().scale(), self.groups);
        let bytes: u64 = groups.all.iter().map(|group| group.bytes).sum();
        let now = Instant::now();
        let stacks = groups.all.iter().take(self.options.top);
        let addresses: Vec<Vec<u64>> = stacks
            .clone()
            .map(|group| self.tracker.stack(group.stack_id))
            .collect();
        let names = symbols(&addresses);
        let stacks = stacks.zip(&addresses).map(|(group, addresses)| {
            let frames = addresses.iter().map(|at| {
                let name = names.get(at).cloned();
                name.unwrap_or_else(|| format!("{at:#x}"))
            });
            let stack: Vec<String> = frames.skip_while(|frame| is_own(frame)).collect();
            let since =
                std::time::Duration::from_nanos(self.now_ns.saturating_sub(group.oldest_boot_ns));
            OutstandingStack {
                in_interrupt: report::in_interrupt(&stack),
                stack,
                cgroup: cgroup(group.memcg_id),
                k8s: None,
                container: None,
                pid: group.process.as_ref().map(|(pid, _)| *pid),
                comm: group.process.as_ref().map(|(_, comm)| text(comm)),
                objects: group.objects * scale,
                bytes: known(group.bytes * scale),
                oldest_s: (since.as_secs_f64() * 10.0).round() / 10.0,
                growth_objects_per_s: self.middle.growth(group.key(), group.objects * scale, now),
                held_by: Vec::new(),
            }
        });
        let stacks: Vec<OutstandingStack> = stacks.collect();
        let cgroups = groups.by_cgroup().into_iter().take(self.options.top);
        let counts = self.tracker.counts()?;
        Ok(Outstanding {
            what: match &self.options.what {
                What::Skb => "skb".to_owned(),
                What::Cache(name) => text(name),
                What::Kmalloc(bytes) => format!("kmalloc-{bytes}"),
            },
            duration_ms: 0,
            sample: scale,
            sample_asked: self.asked().map(Sample::scale),
            objects: (groups.objects() + groups.young) * scale,
            young_objects: groups.young * scale,
            min_age_ms: u64::try_from(self.options.min_age.as_millis()).unwrap_or(u64::MAX),
            bytes: known(bytes * scale),
            followed_objects: groups.objects(),
            slab_growth_objects: None,
            ages: groups
                .ages
                .iter()
                .map(|age| crate::event::AgeCount {
                    objects: age.objects * scale,
                    ..*age
                })
                .collect(),
            stacks,
            stacks_total: groups.all.len() as u64,
            cgroups: cgroups
                .map(|(id, objects, bytes)| OutstandingCgroup {
                    cgroup: cgroup(id),
                    k8s: None,
                    container: None,
                    objects: objects * scale,
                    bytes: known(bytes * scale),
                })
                .collect(),
            accuracy: report::accuracy(&counts, self.tracker.skipped()),
            hooks: self.tracker.hooks.iter().map(ToString::to_string).collect(),
            refused: self
                .tracker
                .refused
                .iter()
                .map(|(hook, reason)| Refusal {
                    hook: hook.to_string(),
                    reason: reason.clone(),
                })
                .collect(),
            blind_spots: self
                .tracker
                .blind_spots()
                .map(str::to_owned)
                .chain(self.sparser())
                .collect(),
            map_bytes: self.tracker.map_bytes,
        })
    }

    /// Adds paths, pods and containers, within one deadline.
    async fn names(
        &self,
        outstanding: &mut Outstanding,
        resolver: &Rc<Resolver>,
        node_name: Option<&str>,
    ) {
        let host_root = &self.options.host_root;
        let Ok(hierarchies) = hierarchy::find(host_root) else {
            return;
        };
        let Ok(mut tree) = Tree::open(&hierarchies) else {
            return;
        };
        let hierarchy = hierarchies.memory.hierarchy;
        let of_stacks = outstanding.stacks.iter().map(|it| it.cgroup.as_ref());
        let of_cgroups = outstanding.cgroups.iter().map(|it| it.cgroup.as_ref());
        let mut paths: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for id in of_stacks.chain(of_cgroups).filter_map(|it| it?.id) {
            if let Some(found) = tree.path(hierarchy, id) {
                paths.insert(id, found.path.to_vec());
            }
        }
        let wanted = paths.values().cloned();
        let lookup = Identities::resolve(resolver, node_name, wanted);
        // It has a deadline of its own for each; all of them together must not take longer.
        let names = timeout(2 * crate::incident::who::DEADLINE, lookup).await;
        let names = names.unwrap_or_default();
        let fill = |cgroup: &mut Option<Cgroup>| -> Who {
            let Some(cgroup) = cgroup else {
                return Who::default();
            };
            let Some(path) = cgroup.id.and_then(|id| paths.get(&id)) else {
                return Who::default();
            };
            cgroup.path = Some(text(path));
            names.of(path)
        };
        for stack in &mut outstanding.stacks {
            let who = fill(&mut stack.cgroup);
            (stack.k8s, stack.container) = (who.k8s, who.container);
        }
        for cgroup in &mut outstanding.cgroups {
            let who = fill(&mut cgroup.cgroup);
            (cgroup.k8s, cgroup.container) = (who.k8s, who.container);
        }
    }
}

fn cgroup(id: u64) -> Option<Cgroup> {
    (id != 0).then_some(Cgroup {
        id: Some(id),
        path: None,
    })
}

/// No size is known where all are 0.
fn known(bytes: u64) -> Option<u64> {
    (bytes > 0).then_some(bytes)
}

/// Names of addresses, in one pass over the symbol table.
fn symbols(stacks: &[Vec<u64>]) -> HashMap<u64, String> {
    let mut addresses: Vec<u64> = stacks.iter().flatten().copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let names = kallsyms::symbolise(Path::new(kallsyms::KALLSYMS), &addresses);
    let names = names.unwrap_or_default().into_iter();
    addresses
        .iter()
        .zip(names)
        .filter_map(|(at, frame)| Some((*at, frame?.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparser_sample_is_no_shrinking_group() {
        let object = probe_common::outstanding::Outstanding {
            stack_id: 1,
            memcg_id: 7,
            ..bytemuck::Zeroable::zeroed()
        };
        let at = Instant::now();
        let middle = Middle {
            at: Some(at),
            sizes: Groups::of([object; 40].iter(), 0, 0).sizes(2),
        };
        let later = at + Duration::from_secs(10);
        // Of 80 there are 160, of which one in 8 is followed.
        let now = Groups::of([object; 20].iter(), 0, 0).sizes(8);
        assert_eq!(middle.growth((1, 7), now[&(1, 7)], later), Some(8.0));
        assert_eq!(middle.growth((2, 7), 30, later), Some(3.0));
        assert_eq!(Middle::default().growth((1, 7), 160, later), None);
    }

    #[test]
    fn folded_stacks_add_up_and_begin_with_the_outermost() {
        let stack = |frames: &[&str], objects| OutstandingStack {
            stack: frames.iter().map(|&frame| frame.to_owned()).collect(),
            objects,
            ..OutstandingStack::default()
        };
        let outstanding = Outstanding {
            stacks: vec![
                stack(&["__alloc_skb+0x1", "sock alloc+0x2"], 64),
                stack(&["__alloc_skb+0x9", "sock alloc+0x2"], 128),
                stack(&[], 1),
            ],
            ..Outstanding::default()
        };
        assert_eq!(
            folded(&outstanding),
            "[no stack] 1\nsock_alloc;__alloc_skb 192\n"
        );
    }
}
