//! `oomprobe skb`: who holds socket buffers now.
//!
//! Three ways that know nothing of each other: sockets that processes have open ([`super::sockets`]),
//! queues that no file owns ([`queued`]), and the slabs themselves ([`below`]).

mod abandoned;
mod before;
mod below;
mod namer;
mod of_buffers;
mod queued;
mod shown;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::balance::{self, Caches};
use super::census::{self, Census, CensusError};
use super::envelope::Envelope;
use super::queues;
use super::sockets::{Look, Owner, Past, Socket, Way, family, files, open};
use crate::event::{
    Body, Cgroup, Event, Finding, HolderMethod, NotRead, SkbCreator, SkbExplained, SkbHolder,
    SkbHolders, SkbSource,
};
use crate::identity::names::Resolver;
use crate::kernel::btf::Btf;
use crate::kernel::layout;
use crate::kernel::open_files::{OpenFiles, PassError};
use crate::node::clock::boot_ns;
use crate::node::host;
use crate::node::meminfo::Meminfo;
use crate::verdict;
use namer::Namer;
pub(super) use of_buffers::of_buffers;
use tokio::task::JoinHandle;

/// As often as this a segment or a probe must have gone unanswered: the third time comes after a
/// second at the earliest, and after more on most paths.
const UNANSWERED: u8 = 3;

/// What to look at, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or where the host's root is mounted.
    pub host_root: PathBuf,
    /// CRI socket to ask instead of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// Time between two looks; zero for a single one.
    pub duration: Duration,
    /// Holders to list.
    pub top: usize,
    /// How thoroughly to look into the slabs.
    pub census: Thoroughness,
    /// Told how far the census is.
    pub progress: fn(census::Progress),
}

/// How thoroughly to look into the slabs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Thoroughness {
    /// Not at all
    Off,
    /// A random sample of memory, in 0.2 to 0.3 s
    #[default]
    Sample,
    /// All of it, within a minute
    Full,
}

/// Time for looking at queues.
const QUEUES_WITHIN: Duration = Duration::from_secs(10);

/// Neither way to find sockets is open.
#[derive(Debug, thiserror::Error)]
#[error("{iterator}; and {} cannot be read: {files}", proc.display())]
pub struct NoWay {
    iterator: String,
    proc: PathBuf,
    files: std::io::Error,
}

/// Reports, with what goes around an event.
pub struct Reports {
    envelope: Envelope,
    observer: Observer,
    seq: u64,
}

impl Reports {
    /// Loads what is needed.
    pub fn open(options: Options) -> Self {
        Self {
            envelope: Envelope::of(&options.host_root),
            observer: Observer::open(options),
            seq: 0,
        }
    }

    /// The next one.
    pub async fn next(&mut self) -> Result<Event, NoWay> {
        let held = self.observer.look().await?;
        let body = Body::SkbHolders(Box::new(held));
        let event = self.envelope.event(self.seq, body);
        self.seq += 1;
        Ok(event)
    }
}

/// Looks as often as it is told to.
pub struct Observer {
    options: Options,
    eyes: Eyes,
    resolver: Rc<Resolver>,
    node_name: Option<String>,
    last: Option<before::Last>,
}

impl Observer {
    /// Loads what a look needs.
    pub fn open(options: Options) -> Self {
        let proc = options.host_root.join("proc");
        let node_name = std::env::var("NODE_NAME").ok();
        Self {
            eyes: Eyes::open(&proc),
            resolver: Rc::new(Resolver::new(
                &options.host_root,
                options.cri_socket.as_deref(),
            )),
            node_name: host::node_name(node_name.as_deref(), &proc).ok(),
            last: None,
            options,
        }
    }

    /// Looks once, or twice with the time between.
    pub async fn look(&mut self) -> Result<SkbHolders, NoWay> {
        let options = &self.options;
        let proc = options.host_root.join("proc");
        let sys = options.host_root.join("sys");
        let caches_before = Caches::read(&proc, &sys).ok();
        let start = Instant::now();
        let mut now = self.eyes.look()?;
        let look_ms = start.elapsed().as_millis();
        let root = options.host_root.clone();
        let queues = tokio::task::spawn_blocking(move || {
            queues::look(&root, Instant::now() + QUEUES_WITHIN)
        });
        let census = start_census(options);
        let mut before = None;
        if !options.duration.is_zero() {
            let end = tokio::time::Instant::now() + options.duration;
            // Names are asked for one by one below; what the runtime tells at once need not be.
            let (_, ()) = tokio::join!(self.resolver.warm(end), tokio::time::sleep_until(end));
            // Not both at once in memory.
            before = Some(now.into_past());
            now = self.eyes.look()?;
        }
        let caches = Caches::read(&proc, &sys);

        let mut report = SkbHolders {
            duration_ms: before
                .as_ref()
                .map(|before| now.boot_ns.saturating_sub(before.boot_ns) / 1_000_000),
            look_ms: u64::try_from(look_ms).unwrap_or(u64::MAX),
            method: match now.way {
                Way::Iterator => HolderMethod::OpenFiles,
                Way::Files => HolderMethod::ProcNet,
            },
            method_why: self.eyes.why_not.clone(),
            descriptors: now.descriptors,
            not_read: not_read(&now),
            ..SkbHolders::default()
        };
        let caches =
            caches.map_err(|error| missing(&mut report, "slab caches", &error.to_string()));
        let mut found = vec![explained(&now)];
        let queues = queues
            .await
            .map_err(|error| missing(&mut report, "queues", &error.to_string()));
        found.extend(queues.as_ref().ok().map(queued::explained));
        let cpus = host::possible_cpus(&sys).ok();
        report.balance = balance::draw(
            caches_before.as_ref(),
            caches.ok(),
            found,
            cpus.and_then(|cpus| u64::try_from(cpus).ok()),
        );
        report.balance.slab_unreclaimable_bytes = Meminfo::read(&proc)
            .ok()
            .and_then(|meminfo| meminfo.slab_unreclaimable_bytes);

        let mut groups = group(&now, before.as_ref(), report.duration_ms);
        report.holders_total = groups.len() as u64;
        let last = self.last.take();
        report.before = last.map(|last| Box::new(last.before(&groups)));
        // Findings come from what is big: names are asked for only of as many.
        groups.truncate(options.top.max(FINDINGS_AMONG));
        let mut namer = Namer::open(
            &options.host_root,
            &self.resolver,
            self.node_name.as_deref(),
        );
        name_all(&mut groups, &mut namer).await;
        let mut namespaces = Vec::new();
        if let Ok(queues) = queues {
            report.namespaces = queues.looked_at.namespaces.len() as u64;
            report.queues = queued::named(&queues, &mut namer).await;
            report.not_read.extend(queues.not_looked_at);
            namespaces = queues.looked_at.namespaces;
        }
        if let Some(census) = census {
            match census.await {
                Ok(Ok(census)) => {
                    let mut below = below::named(&census, &now, &mut namer).await;
                    let not_read = &mut report.not_read;
                    below.abandoned = abandoned::count(&census, &now, &namespaces, &proc, not_read);
                    report.census = Some(below);
                }
                Ok(Err(why)) => missing(&mut report, "slabs", &why.to_string()),
                Err(why) => missing(&mut report, "slabs", &why.to_string()),
            }
        }
        let judge = |group: &mut Group| {
            group.holder.verdict = verdict::holders::judge(&group.holder, report.duration_ms);
        };
        groups.iter_mut().for_each(judge);
        report.findings = findings(&report, &groups, now.sees_all);
        groups.truncate(options.top);
        self.last = Some(before::Last::of(&report.balance, &groups));
        report.holders = groups.into_iter().map(|group| group.holder).collect();
        Ok(report)
    }
}

/// What is wrong, most serious first. `sees_all`: a socket without an owner has none.
fn findings(report: &SkbHolders, groups: &[Group], sees_all: bool) -> Vec<Finding> {
    let of_queues = report.queues.iter().filter_map(|it| it.verdict.clone());
    let noise = report.balance.noise_objects;
    let lost = report
        .census
        .as_ref()
        .and_then(|census| verdict::holders::unreferenced(census, noise));
    let census = report.census.as_ref();
    let abandoned = census.and_then(verdict::holders::abandoned);
    let census = census.filter(|_| sees_all);
    let unopened = census.map(verdict::holders::unopened).unwrap_or_default();
    let of_holders = groups.iter().filter_map(|it| it.holder.verdict.clone());
    let all = of_queues
        .chain(lost)
        .chain(abandoned)
        .chain(unopened)
        .chain(of_holders);
    let mut all: Vec<Finding> = all.collect();
    all.sort_by_key(|finding| std::cmp::Reverse((finding.severity, finding.confidence)));
    all
}

/// Starts to count what is in the slabs; `None` if that is not wanted.
fn start_census(options: &Options) -> Option<JoinHandle<Result<Census, CensusError>>> {
    let how = match options.census {
        Thoroughness::Off => return None,
        Thoroughness::Sample => census::Options::sample(boot_ns()),
        Thoroughness::Full => census::Options::full(),
    };
    let mut progress = options.progress;
    Some(tokio::task::spawn_blocking(move || {
        census::take(&how, &mut progress)
    }))
}

/// Biggest holders that are judged, also if fewer are listed.
const FINDINGS_AMONG: usize = 64;

fn missing(report: &mut SkbHolders, what: &str, why: &str) {
    report.not_read.push(NotRead {
        what: what.to_owned(),
        why: why.to_owned(),
    });
}

fn not_read(look: &Look) -> Vec<NotRead> {
    let mut all: Vec<NotRead> = look
        .not_read
        .iter()
        .map(|(what, why)| NotRead {
            what: what.clone(),
            why: why.clone(),
        })
        .collect();
    if look.not_kept > 0 {
        all.push(NotRead {
            what: format!("{} more descriptors of sockets", look.not_kept),
            why: "more sockets hold something than are kept in memory".to_owned(),
        });
    }
    all
}

/// The way sockets are looked for.
struct Eyes {
    proc: PathBuf,
    iterator: Option<OpenFiles>,
    /// Why the iterator is not used.
    why_not: Option<String>,
}

impl Eyes {
    fn open(proc: &Path) -> Self {
        let iterator = load();
        let why_not = iterator.as_ref().err().map(told);
        Self {
            proc: proc.to_owned(),
            iterator: iterator.ok(),
            why_not,
        }
    }

    fn look(&mut self) -> Result<Look, NoWay> {
        if let Some(iterator) = &mut self.iterator {
            match open::look(iterator) {
                Ok(look) => return Ok(look),
                Err(error) => {
                    self.why_not = Some(told(&error));
                    self.iterator = None;
                }
            }
        }
        files::look(&self.proc).map_err(|files| NoWay {
            iterator: self.why_not.clone().unwrap_or_default(),
            proc: self.proc.clone(),
            files,
        })
    }
}

/// Loads the iterator for the running kernel.
fn load() -> Result<OpenFiles, PassError> {
    let btf = Btf::running().map_err(|error| PassError::Refused(error.to_string()))?;
    let layout = layout::resolve(&btf)
        .layout()
        .map_err(|error| PassError::Refused(error.to_string()))?;
    drop(btf);
    OpenFiles::load(&layout)
}

/// An error with its causes, in one line.
fn told(error: &PassError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// What sockets explain. Of TCP only what was received is counted as single buffers: what is sent is
/// in pairs, in a cache of their own.
fn explained(look: &Look) -> SkbExplained {
    let mut objects = Some(0_u64);
    let mut bytes = 0_u64;
    for socket in look.sockets.values() {
        let received = socket.receive_skbs.map(|skbs| {
            let errors = socket.error_skbs.unwrap_or(0);
            skbs.saturating_add(errors)
        });
        objects = objects.zip(received).map(|(sum, more)| sum + more);
        bytes = bytes.saturating_add(socket.bytes());
    }
    if look.way == Way::Files {
        objects = None;
    }
    SkbExplained {
        source: SkbSource::Sockets,
        objects,
        bytes,
    }
}

/// What makes sockets one holder: who has them open (pid, start), who made them, and their kind.
type Key = (Option<(u32, Option<u64>)>, Option<u64>, u16, u16, u16);

/// Sockets of one process and kind.
struct Group {
    key: Key,
    owners: Vec<Owner>,
    creator: Option<u64>,
    biggest: u64,
    had_bytes: u64,
    holder: SkbHolder,
}

/// Puts sockets of one process and kind together, biggest first.
fn group(now: &Look, before: Option<&Past>, duration_ms: Option<u64>) -> Vec<Group> {
    let mut groups: HashMap<Key, Group> = HashMap::new();
    for (address, socket) in &now.sockets {
        let owner = socket.owners.first();
        let protocol = match socket.family {
            // One capture may have a socket for each protocol and interface.
            family::PACKET => 0,
            _ => socket.protocol,
        };
        let key = (
            owner.map(|owner| (owner.pid, owner.start_boot_ns)),
            socket.creator,
            socket.family,
            socket.kind,
            protocol,
        );
        let group = groups.entry(key).or_insert_with(|| Group {
            key,
            owners: Vec::new(),
            creator: socket.creator,
            biggest: 0,
            had_bytes: 0,
            holder: SkbHolder {
                skbs: Some(0),
                drops: Some(0),
                new_drops: before.map(|_| 0),
                unread_sockets: before.map(|_| 0),
                unread_bytes: before.map(|_| 0),
                ..SkbHolder::default()
            },
        });
        group.add(*address, socket, now, before);
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    for group in &mut groups {
        group.holder.growth_bytes_per_s = duration_ms
            .filter(|&ms| ms > 0)
            .map(|ms| rate(group.had_bytes, group.holder.bytes, ms));
    }
    groups.sort_by_key(|group| {
        let size = group.holder.bytes.saturating_add(group.holder.ring_bytes);
        std::cmp::Reverse((size, group.holder.skbs, group.holder.socket.inode))
    });
    groups
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate needs no more than 52 bits"
)]
fn rate(before: u64, now: u64, ms: u64) -> f64 {
    ((now as f64 - before as f64) * 1e3 / ms as f64).round()
}

impl Group {
    fn add(&mut self, address: u64, socket: &Socket, now: &Look, before: Option<&Past>) {
        let holder = &mut self.holder;
        let add = |sum: &mut u64, more: Option<u64>| *sum = sum.saturating_add(more.unwrap_or(0));
        let sum = |sum: Option<u64>, more: Option<u64>| Some(sum?.saturating_add(more?));
        holder.sockets += 1;
        holder.skbs = sum(holder.skbs, socket.skbs());
        add(&mut holder.bytes, Some(socket.bytes()));
        add(&mut holder.receive_bytes, socket.receive_bytes);
        add(&mut holder.write_bytes, socket.write_bytes);
        add(&mut holder.sent_bytes, socket.sent_bytes);
        add(&mut holder.ring_bytes, Some(socket.ring_bytes));
        holder.drops = sum(holder.drops, socket.drops);
        holder.saturated_sockets += u64::from(socket.is_saturated());
        if socket.retransmits >= UNANSWERED || socket.probes_out >= UNANSWERED {
            add(&mut holder.unanswered_bytes, socket.write_bytes);
        } else if socket.backoff >= UNANSWERED {
            add(&mut holder.closed_window_bytes, socket.write_bytes);
        }
        if let Some(before) = before {
            let was = before.of(address, socket);
            add(&mut self.had_bytes, was.map(|was| was.bytes));
            let new = was.and_then(|was| socket.drops?.checked_sub(was.drops?));
            add(holder.new_drops.get_or_insert(0), new);
            match was.and_then(|was| was.is_unread(socket)) {
                Some(true) => {
                    add(holder.unread_sockets.get_or_insert(0), Some(1));
                    add(holder.unread_bytes.get_or_insert(0), socket.receive_bytes);
                }
                // Files do not show it.
                None if now.way == Way::Files => {
                    (holder.unread_sockets, holder.unread_bytes) = (None, None);
                }
                Some(false) | None => {}
            }
        }
        // Of equals always the same one, whatever the order.
        let size = (
            socket.bytes().saturating_add(socket.ring_bytes),
            socket.skbs(),
        );
        let biggest = now.sockets.get(&self.biggest).map(|biggest| {
            let size = biggest.bytes().saturating_add(biggest.ring_bytes);
            ((size, biggest.skbs()), biggest.inode)
        });
        if biggest.is_none_or(|biggest| (size, socket.inode) > biggest) {
            self.biggest = address;
            holder.socket = shown::socket(socket);
            holder.owners = socket.owners_total;
            self.owners.clone_from(&socket.owners);
        }
    }
}

/// Adds processes, cgroups, pods and containers, within one deadline.
async fn name_all(groups: &mut [Group], namer: &mut Namer<'_>) {
    let mut creators: Vec<Option<Cgroup>> = Vec::with_capacity(groups.len());
    for group in &mut *groups {
        let mut owners = group.owners.iter().map(|owner| namer.process(owner));
        group.holder.process = owners.next();
        group.holder.shared_with = owners.collect();
        let owner = group.owners.first();
        let cgroup = owner.and_then(|owner| namer.cgroup_of(owner.pid));
        let creator = group.creator.and_then(|id| namer.creator(id));
        creators.push(creator.filter(|creator| differs(creator, cgroup.as_ref())));
        group.holder.cgroup = cgroup;
    }
    let cgroups = groups
        .iter()
        .filter_map(|group| group.holder.cgroup.as_ref());
    let told = namer.names(cgroups.chain(creators.iter().flatten())).await;
    for (group, creator) in groups.iter_mut().zip(creators) {
        let owner = told.of(group.holder.cgroup.as_ref());
        (group.holder.k8s, group.holder.container) = (owner.k8s, owner.container);
        group.holder.creator = creator.map(|cgroup| {
            let who = told.of(Some(&cgroup));
            SkbCreator {
                cgroup,
                k8s: who.k8s,
                container: who.container,
            }
        });
    }
}

/// Whether a socket was made in another cgroup than its owner is in. A path of another hierarchy
/// that has no counterpart on v2 does not tell.
fn differs(creator: &Cgroup, owner: Option<&Cgroup>) -> bool {
    let Some(owner) = owner else { return true };
    match (&creator.path, &owner.path) {
        (Some(made_in), Some(path)) => made_in != path,
        _ => creator.id.is_some() && creator.id != owner.id,
    }
}

#[cfg(test)]
mod tests;
