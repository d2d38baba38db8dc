//! Queues that no file descriptor owns, with who should empty them.

use super::namer::Namer;
use crate::event::queues::{Kind, Namespace, Queue, Queues};
use crate::event::{Process, SkbExplained, SkbQueue, SkbSource};
use crate::leak::sockets::Owner;
use crate::verdict::queues::{self, Owner as Responsible};

/// Queues that are listed.
const MOST: usize = 64;

/// Names who should empty each queue, and judges it. Those that hold nothing are left out.
pub(super) async fn named(found: &Queues, namer: &mut Namer<'_>) -> Vec<SkbQueue> {
    let listed: Vec<&Queue> = found
        .found
        .iter()
        .filter(|queue| queue.packets != Some(0) || queue.bytes > Some(0))
        .take(MOST)
        .collect();
    let namespace = |queue: &Queue| -> Option<&Namespace> {
        let spaces = &found.looked_at.namespaces;
        spaces.iter().find(|space| Some(space.inode) == queue.netns)
    };
    let mut all: Vec<SkbQueue> = Vec::with_capacity(listed.len());
    for queue in listed {
        let process = queue.owners.first().map(|&pid| process(namer, pid));
        let first = namespace(queue).and_then(|space| space.pids.first());
        let pid = queue.owners.first().or(first);
        all.push(SkbQueue {
            queue: queue.clone(),
            process,
            cgroup: pid.and_then(|&pid| namer.cgroup_of(pid)),
            k8s: None,
            container: None,
            verdict: None,
        });
    }
    let told = namer
        .names(all.iter().filter_map(|queue| queue.cgroup.as_ref()))
        .await;
    for queue in &mut all {
        let who = told.of(queue.cgroup.as_ref());
        (queue.k8s, queue.container) = (who.k8s, who.container);
        let responsible = Responsible {
            process: queue.process.as_ref(),
            cgroup: queue.cgroup.as_ref(),
            k8s: queue.k8s.as_ref(),
            container: queue.container.as_ref(),
            namespace: namespace(&queue.queue),
        };
        queue.verdict = queues::judge(&queue.queue, responsible);
    }
    all
}

fn process(namer: &Namer<'_>, pid: u32) -> Process {
    namer.process(&Owner {
        pid,
        ..Owner::default()
    })
}

/// What queues explain of the slab: those whose packets are counted, each a buffer. A tun queue's
/// are not: they are an upper bound.
pub(super) fn explained(found: &Queues) -> SkbExplained {
    let counted = found
        .found
        .iter()
        .filter(|queue| !matches!(queue.kind, Kind::Tun { .. } | Kind::TcpOrphans { .. }));
    let sum =
        |of: fn(&Queue) -> Option<u64>| counted.clone().filter_map(of).fold(0, u64::saturating_add);
    SkbExplained {
        source: SkbSource::Queues,
        objects: Some(sum(|queue| queue.packets)),
        bytes: sum(|queue| queue.bytes),
    }
}
