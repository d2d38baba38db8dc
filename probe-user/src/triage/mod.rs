//! `oomprobe triage`: one look at the node, in the order in which an experienced person looks.
//!
//! Reads files, and needs no privilege for most of it; only where slab fills the node it looks for
//! the sockets that hold it, with a BPF program. Two looks some seconds apart
//! give rates; what was not read is told, so that silence about it is not taken for health.

mod buffers;
pub(crate) mod cgroups;
pub(crate) mod collect;
mod disks;
mod findings;
mod kills;
pub(crate) mod pressure;
mod report;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::event::{Body, ConntrackTable, Event, Host, SlabCache, Time, Triage};
use crate::identity::names::Resolver;
use crate::incident::balance;
use crate::incident::who::Identities;
use crate::node::clock::{BootClock, boot_ns};
use crate::node::{Error, host, slabinfo, sysctl};

/// What to look at, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `/`, or where the host's root is mounted.
    pub host_root: PathBuf,
    /// CRI socket to ask instead of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// Time between the two looks.
    pub duration: Duration,
    /// Cgroups to list.
    pub top: usize,
}

/// Parts of the time between the two looks: at the end of each, what may soon be at its limit is
/// looked at once more, to tell steady growth from a step.
pub(crate) const PARTS: u32 = 5;

/// Slab caches listed.
const SLAB_CACHES: usize = 8;

/// Looks at the node. Fails only where there is no `/proc` to look at.
pub async fn run(options: &Options) -> Result<Event, Error> {
    let proc = options.host_root.join("proc");
    let mut node = collect::Node::open(&options.host_root);
    let mut first = node.look()?;
    let (slab, total) = (first.node.slab_unreclaimable_bytes, first.node.total_bytes);
    let start = Instant::now();
    let end = start + options.duration;
    let resolver = Rc::new(Resolver::new(
        &options.host_root,
        options.cri_socket.as_deref(),
    ));
    // Names are asked for one by one below; what the runtime tells at once need not be.
    let between = async {
        for part in 1..PARTS {
            sleep_until(start + options.duration * part / PARTS).await;
            node.again(&mut first);
        }
        sleep_until(end).await;
    };
    let (_, (), held) = tokio::join!(
        resolver.warm(end),
        between,
        buffers::look(options, slab, total),
    );
    let second = node.look()?;

    let mut triage = report::compare(&first, &second, options.top);
    triage.memory.overcommit_mode = node
        .told(sysctl::number(&proc, "vm/overcommit_memory"))
        .flatten();
    triage.memory.slab_caches = slab_caches(&mut node, &proc);
    triage.conntrack = conntrack(&mut node, &proc);
    triage.disks = disks::read(&options.host_root, &mut node);
    let log = kills::recent(&options.host_root.join("dev/kmsg"));
    triage.oom.recent = node.told(log).unwrap_or_default();
    let mut of_buffers = Vec::new();
    match held {
        Some(Ok(held)) => {
            of_buffers = held.findings;
            triage.socket_buffers = Some(held.balance);
        }
        Some(Err(why)) => node.missing("sockets", &why),
        None => {}
    }
    triage.not_read = node.not_read;

    let from_env = std::env::var("NODE_NAME").ok();
    let name = host::node_name(from_env.as_deref(), &proc).ok();
    name_all(&mut triage, &resolver, name.as_deref()).await;
    let mut found = findings::of(&triage);
    found.extend(
        pressure::findings(&first, &second, &HashMap::new(), &resolver, name.as_deref()).await,
    );
    found.extend(of_buffers);
    triage.findings = findings::ranked(found);
    triage.healthy = triage.findings.is_empty();

    let host = Host {
        name,
        boot_id: host::boot_id(&proc).ok(),
    };
    let boot_ns = boot_ns();
    let since_epoch = BootClock::now()
        .wall_time(boot_ns)
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let time = Time::from_unix_ns(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX));
    Ok(Event::new(
        time,
        boot_ns,
        0,
        host,
        Body::Triage(Box::new(triage)),
    ))
}

fn slab_caches(node: &mut collect::Node, proc: &Path) -> Vec<SlabCache> {
    let caches = node.told(slabinfo::read(proc)).unwrap_or_default();
    let biggest = caches.into_iter().take(SLAB_CACHES);
    biggest.map(|cache| balance::slab_cache(&cache)).collect()
}

fn conntrack(node: &mut collect::Node, proc: &Path) -> Option<ConntrackTable> {
    let table = node.told(sysctl::conntrack(proc)).flatten()?;
    Some(ConntrackTable {
        count: table.count,
        max: table.max,
    })
}

/// Adds pods and containers, within one deadline.
async fn name_all(triage: &mut Triage, resolver: &Rc<Resolver>, node_name: Option<&str>) {
    let top = triage.top.iter().map(|top| Some(&top.cgroup));
    let throttled = triage.cpu.throttled.iter().map(|one| Some(&one.cgroup));
    let killed = triage.oom.recent.iter().map(|kill| kill.cgroup.as_ref());
    let paths: Vec<Vec<u8>> = top
        .chain(throttled)
        .chain(killed)
        .filter_map(|cgroup| Some(cgroup?.path.as_ref()?.clone().into_bytes()))
        .collect();
    let names = Identities::resolve(resolver, node_name, paths).await;
    let who = |path: Option<&String>| {
        let who = names.of(path.map_or(b"", |path| path.as_bytes()));
        (who.k8s, who.container)
    };
    for top in &mut triage.top {
        (top.k8s, top.container) = who(top.cgroup.path.as_ref());
    }
    for throttled in &mut triage.cpu.throttled {
        (throttled.k8s, throttled.container) = who(throttled.cgroup.path.as_ref());
    }
    for kill in &mut triage.oom.recent {
        let cgroup = kill.cgroup.as_ref();
        (kill.k8s, kill.container) = who(cgroup.and_then(|cgroup| cgroup.path.as_ref()));
    }
}
