//! `oomprobe slab`: which kernel caches are big or grow, and where the rest of the kernel's memory is.
//!
//! Reads files only. Several looks over some seconds give growth; what was not read is told, so that
//! silence about it is not taken for health.

mod caches;
mod cgroups;
mod findings;
mod profile;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::event::{AllocationSite, Body, Event, NotRead, SlabTrace, SlabUsage, text};
use crate::identity::hierarchy;
use crate::identity::names::Resolver;
use crate::incident::balance;
use crate::incident::who::Identities;
use crate::node::meminfo::Meminfo;
use crate::node::slabinfo::{self, Cache};
use crate::node::vmstat::Vmstat;
use crate::node::{Error, vmallocinfo, zoneinfo};
use crate::triage::collect;

use caches::{Grown, Sysfs, difference, per_second};
use profile::Profile;

use super::envelope::Envelope;

/// What to look at, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or where the host's root is mounted.
    pub host_root: PathBuf,
    /// CRI socket to ask instead of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// Time between the first and the last look.
    pub duration: Duration,
    /// Caches and cgroups to list.
    pub top: usize,
}

/// Parts of the look: what grows in each of them grows steadily.
const PARTS: u32 = 5;

/// Traces of one cache that are told, and callers of vmalloc.
const TRACES: usize = 3;
const VMALLOC: usize = 5;

/// Looks, and reports with what goes around an event.
pub async fn run(options: &Options) -> Result<Event, Error> {
    let envelope = Envelope::of(&options.host_root);
    let resolver = Rc::new(Resolver::new(
        &options.host_root,
        options.cri_socket.as_deref(),
    ));
    let usage = look(options, &resolver, envelope.node_name()).await?;
    Ok(envelope.event(0, Body::SlabUsage(Box::new(usage))))
}

/// Looks at the kernel's memory. Fails only where there is no `/proc` to look at.
pub async fn look(
    options: &Options,
    resolver: &Rc<Resolver>,
    node_name: Option<&str>,
) -> Result<SlabUsage, Error> {
    let proc = options.host_root.join("proc");
    let sys = options.host_root.join("sys");
    let mut node = collect::Node::open(&options.host_root);
    let start = Instant::now();
    let end = start + options.duration;
    let first = node.look()?;
    let profile = Profile::read(&proc);
    let mut looks: Vec<Vec<Cache>> = Vec::new();
    looks.extend(node.told(slabinfo::read(&proc)));
    let between = async {
        for part in 1..PARTS {
            sleep_until(start + options.duration * part / PARTS).await;
            // One that cannot be read is no look.
            looks.extend(slabinfo::read(&proc));
        }
        sleep_until(end).await;
    };
    let (_, ()) = tokio::join!(resolver.warm(end), between);
    looks.extend(slabinfo::read(&proc));
    let seconds = start.elapsed().as_secs_f64();
    let last = node.look()?;

    let meminfo = Meminfo::read(&proc)?;
    let per_cpu_pages = node.told(zoneinfo::per_cpu_pages(&proc));
    let areas = node.told(vmallocinfo::read(&proc)).unwrap_or_default();
    let vmstat = Vmstat::open(&proc).ok();
    let beside = balance::Beside::read(&sys, vmstat.as_ref(), per_cpu_pages, &areas);
    let sysfs = match Sysfs::open(&sys) {
        Ok(sysfs) => Some(sysfs),
        Err((path, error)) => {
            node.missing(&path.to_string_lossy(), &error.to_string());
            None
        }
    };

    let grown = Grown::join(&looks);
    let caches_total = grown.len() as u64;
    let grown = caches::ranked(grown, options.top);
    let mut usage = SlabUsage {
        duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        slab_reclaimable_bytes: meminfo.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: meminfo.slab_unreclaimable_bytes,
        slab_unreclaimable_growth_bytes_per_s: first
            .node
            .slab_unreclaimable_bytes
            .zip(last.node.slab_unreclaimable_bytes)
            .map(|(then, now)| per_second(difference(now, then), seconds)),
        caches: grown
            .iter()
            .map(|cache| cache.usage(sysfs.as_ref(), seconds))
            .collect(),
        caches_total,
        balance: balance::of(&meminfo, &beside),
        vmalloc: areas.iter().take(VMALLOC).map(site).collect(),
        profile: Profile::read(&proc).since(&profile, seconds, options.top),
        ..SlabUsage::default()
    };
    if let Some(sysfs) = &sysfs {
        usage.traces = traces(&sys, sysfs, &grown, &mut node.not_read);
    }
    let host_root = &options.host_root;
    if let Ok(found) = hierarchy::find(host_root) {
        let cgroups = cgroups::top(&found, &first.units, &last.units, seconds, options.top);
        usage.cgroups = cgroups;
    }
    usage.not_read = node.not_read;

    let paths: Vec<Vec<u8>> = usage
        .cgroups
        .iter()
        .filter_map(|it| Some(it.cgroup.path.as_ref()?.clone().into_bytes()))
        .collect();
    let names = Identities::resolve(resolver, node_name, paths).await;
    for charged in &mut usage.cgroups {
        let path = charged.cgroup.path.as_ref();
        let who = names.of(path.map_or(b"", |path| path.as_bytes()));
        (charged.k8s, charged.container) = (who.k8s, who.container);
    }
    usage.findings = findings::of(&usage, &grown, seconds);
    usage.healthy = usage.findings.is_empty();
    Ok(usage)
}

fn site(holder: &vmallocinfo::Holder) -> AllocationSite {
    AllocationSite {
        site: text(&holder.function),
        bytes: holder.bytes,
        count: holder.areas,
        growth_bytes_per_s: None,
    }
}

/// Traces of the listed caches that keep them.
fn traces(
    sys: &std::path::Path,
    sysfs: &Sysfs,
    caches: &[Grown],
    not_read: &mut Vec<NotRead>,
) -> Vec<SlabTrace> {
    let mut all = Vec::new();
    for grown in caches {
        let name = &grown.cache.name;
        match profile::traces(sys, sysfs, name, TRACES) {
            Ok(traces) => all.extend(traces),
            Err(why) => not_read.push(NotRead {
                what: format!("alloc_traces of {}", text(name)),
                why,
            }),
        }
    }
    all
}
