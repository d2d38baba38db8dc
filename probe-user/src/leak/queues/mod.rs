//! Socket buffers in queues that no file descriptor owns: no look at sockets finds them.
//!
//! The kernel's own interfaces are asked in each network namespace of the node: procfs and
//! netlink; nothing is loaded into the kernel. Of these queues it tells nobody, and only a census
//! of the slabs sees what is in them: transmit rings of drivers, rings of macvtap and of vhost,
//! packets held by IPsec, WireGuard, macvlan, ipvlan, wifi, ppp, bonding and Open vSwitch or for a
//! socket by sockmap, kcm, MPTCP, SCTP and vsock, and fragments held by connection tracking.
//! The audit queue is not asked for: while it is full, the kernel makes who asks wait for up to a
//! minute, uninterruptibly (`audit_receive`, kernel/audit.c).
//! Namespaces that no process is in and that are mounted nowhere are not found; see [`abandoned`].

mod abandoned;
mod assemble;
mod link;
mod neighbour;
mod netlink;
mod netns;
mod nfqueue;
mod owners;
mod protocols;
mod qdisc;
mod reading;
mod tcp;
mod visit;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

pub use abandoned::{Unknown, abandoned};

pub use crate::event::queues::{Copy, Kind, LookedAt, Moved, Namespace, Queue, Queues};

use crate::event::NotRead;
use nfqueue::NETLINK_NETFILTER;
use reading::Reading;
use visit::Visited;

/// Looks at the queues of all network namespaces of the node below `host_root`, until
/// `deadline` at most. Takes half a second where anything is queued, to see whether it moves.
pub fn look(host_root: &Path, deadline: Instant) -> Queues {
    let start = Instant::now();
    let proc = host_root.join("proc");
    let mut not_read = Vec::new();
    let namespaces = netns::find(host_root, deadline, &mut not_read);
    let visited = visit::all(&namespaces, host_root, deadline);
    not_read.extend(failures(&visited));

    let wanted = sockets_to_find(&visited);
    let has_tun = readings(&visited).any(|reading| reading.links.iter().any(|link| link.is_tun));
    let owners = if wanted.is_empty() && !has_tun {
        owners::Owners::default()
    } else {
        owners::find(&proc, &wanted, deadline, &mut not_read)
    };
    let mut found: Vec<Queue> = visited
        .readings
        .iter()
        .flat_map(|(&inode, (first, second))| {
            assemble::namespace(inode, first, second.as_ref(), &owners)
        })
        .collect();
    let netns_of = |pid| netns::of(&proc, pid);
    found.extend(assemble::tuns(&visited.readings, &owners.tuns, netns_of));
    if let Some(any) = readings(&visited).find(|reading| !reading.neighbour_tables.is_empty()) {
        found.extend(assemble::proxies(&any.neighbour_tables));
    }
    found.extend(softnet(&visited, &mut not_read));
    found.sort_by_key(|queue| (Reverse(queue.packets), Reverse(queue.bytes)));

    let entered = namespaces
        .into_iter()
        .filter(|namespace| visited.readings.contains_key(&namespace.inode));
    Queues {
        found,
        looked_at: LookedAt {
            namespaces: entered.collect(),
            duration_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
        not_looked_at: not_read,
    }
}

fn readings(visited: &Visited) -> impl Iterator<Item = &Reading> {
    visited.readings.values().map(|(first, _)| first)
}

/// Sockets whose processes are of interest.
fn sockets_to_find(visited: &Visited) -> BTreeSet<u64> {
    let mut wanted = BTreeSet::new();
    for (first, second) in visited.readings.values() {
        let reading = second.as_ref().unwrap_or(first);
        let ports: BTreeSet<u32> = reading
            .nfqueues
            .iter()
            .filter(|queue| queue.packets > 0)
            .map(|queue| queue.port_id)
            .collect();
        wanted.extend(reading.sockets.iter().filter_map(|socket| {
            (socket.protocol == NETLINK_NETFILTER && ports.contains(&socket.port_id))
                .then_some(socket.inode)
        }));
        let unaccepted = first.tcp.unaccepted.values();
        wanted.extend(
            unaccepted
                .filter(|unaccepted| unaccepted.received_bytes > 0)
                .filter_map(|unaccepted| unaccepted.listener_inode),
        );
    }
    wanted
}

fn softnet(visited: &Visited, not_read: &mut Vec<NotRead>) -> Vec<Queue> {
    let limit_packets = readings(visited).find_map(|reading| reading.backlog_limit_packets);
    let cpus = reading::file("softnet_stat", &mut Vec::new(), protocols::parse_softnet);
    let mut tell = |why: &str| {
        not_read.push(NotRead {
            what: "softnet backlogs".to_owned(),
            why: why.to_owned(),
        });
    };
    let cpus = match cpus {
        Ok(Some(cpus)) => cpus,
        Ok(None) => {
            tell("no /proc/net/softnet_stat");
            return Vec::new();
        }
        Err(error) => {
            tell(&error.to_string());
            return Vec::new();
        }
    };
    if cpus.iter().any(|cpu| cpu.packets.is_none()) {
        tell("this kernel does not tell their length");
    }
    let waiting = cpus.into_iter().filter_map(|softnet| {
        let packets = softnet.packets.filter(|&packets| packets > 0)?;
        Some(Queue {
            packets: Some(packets),
            limit_packets,
            drops: Some(softnet.drops),
            ..Queue::new(Kind::SoftnetBacklog { cpu: softnet.cpu })
        })
    });
    waiting.collect()
}

/// What failed in the same way in many namespaces is told once.
fn failures(visited: &Visited) -> Vec<NotRead> {
    let mut by_reason: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for (inode, why) in &visited.not_entered {
        by_reason.entry(("", why)).or_default().insert(*inode);
    }
    for (&inode, (reading, _)) in &visited.readings {
        for (what, why) in &reading.failed {
            by_reason.entry((what, why)).or_default().insert(inode);
        }
    }
    let told = by_reason.into_iter().map(|((what, why), inodes)| NotRead {
        what: match what {
            "" => names(&inodes),
            what => format!("{what} of {}", names(&inodes)),
        },
        why: why.to_owned(),
    });
    told.collect()
}

fn names(inodes: &BTreeSet<u64>) -> String {
    match inodes.first() {
        Some(first) if inodes.len() > 1 => {
            format!("{} network namespaces (net:[{first}], …)", inodes.len())
        }
        Some(first) => format!("network namespace net:[{first}]"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests;
