//! What closed sockets left in network namespaces that nobody can enter.
//!
//! A packet that waits in a queue of a device is charged to its socket, which lives on for it after
//! it was closed and keeps its network namespace, and so the device. If the device never lets it
//! go, all of them stay for good.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::event::{NotRead, SkbAbandoned};
use crate::leak::census::{Census, Group};
use crate::leak::queues::{Namespace, abandoned};
use crate::leak::sockets::{Look, Way};
use crate::pressure::series::approx;

/// Devices that are named.
const DEVICES: usize = 4;

/// Time for asking all processes.
const WITHIN: Duration = Duration::from_secs(2);

/// Counts them. `known` are namespaces that can be entered.
pub(super) fn count(
    census: &Census,
    look: &Look,
    known: &[Namespace],
    proc: &Path,
    not_read: &mut Vec<NotRead>,
) -> Option<SkbAbandoned> {
    let known: BTreeSet<u64> = known.iter().map(|namespace| namespace.inode).collect();
    let open: BTreeSet<u64> = look.namespaces.iter().copied().map(u64::from).collect();
    let may_be: BTreeSet<u64> = (census.groups.iter().filter_map(left_behind))
        .filter(|netns| !known.contains(netns) && !open.contains(netns))
        .collect();
    if may_be.is_empty() {
        return None;
    }
    let left = match look.way {
        Way::Files => Err("whose sockets are open is only known by the BPF iterator".to_owned()),
        Way::Iterator if !look.sees_all => {
            Err("not all processes of the node are seen: needs its PID namespace".to_owned())
        }
        Way::Iterator => {
            abandoned(proc, may_be, Instant::now() + WITHIN).map_err(|error| error.to_string())
        }
    };
    match left {
        Ok(left) => sum(&census.groups, &left),
        Err(why) => {
            not_read.push(NotRead {
                what: "who can enter the network namespaces of closed sockets".to_owned(),
                why,
            });
            None
        }
    }
}

/// The namespace of a closed socket that has sent these, if they are still in it: what came out of it
/// by another device will leave.
fn left_behind(group: &Group) -> Option<u64> {
    let (socket, device) = (group.socket.as_ref()?, group.device.as_ref()?);
    let inside = device.netns_inode == Some(socket.netns_inode);
    (socket.inode.is_none() && inside).then_some(socket.netns_inode.into())
}

fn sum(groups: &[Group], namespaces: &BTreeSet<u64>) -> Option<SkbAbandoned> {
    let mut all = SkbAbandoned::default();
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    let mut square = 0.0;
    for group in groups {
        let Some(netns) = left_behind(group).filter(|netns| namespaces.contains(netns)) else {
            continue;
        };
        all.skbs = all.skbs.saturating_add(group.objects);
        all.bytes = all.bytes.saturating_add(group.bytes);
        let size = sizes.entry(netns).or_default();
        *size = size.saturating_add(group.bytes);
        square += (group.relative_error * approx(group.objects)).powi(2);
        let device = group.device.as_ref().map(|device| &device.name);
        let is_new = device.filter(|name| !all.devices.contains(name));
        all.devices
            .extend(is_new.filter(|_| all.devices.len() < DEVICES).cloned());
    }
    all.namespaces = sizes.len() as u64;
    all.netns = sizes.into_iter().max_by_key(|(_, bytes)| *bytes)?.0;
    all.relative_error = square.sqrt() / approx(all.skbs.max(1));
    Some(all)
}
