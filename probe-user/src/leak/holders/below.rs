//! A census of the slabs, with who holds what it found.

use std::collections::HashMap;

use super::namer::Namer;
use super::shown::{family_name, kind_name};
use crate::event::{CensusReader, CensusSocket, SkbCensus, SkbGroup};
use crate::leak::census::{Census, Count, Group, Reader};
use crate::leak::sockets::{Look, Owner};
use crate::pressure::series::approx;

/// Groups that are listed.
const MOST: usize = 16;

/// The census in the words of the report. Owners come from the look at sockets.
pub(super) async fn named(census: &Census, look: &Look, namer: &mut Namer<'_>) -> SkbCensus {
    let groups = put_together(&census.groups);
    let groups_total = groups.len() as u64 + census.other.groups;
    let mut groups = described(&groups, MOST, look, namer);
    let told = namer
        .names(groups.iter().filter_map(|group| group.cgroup.as_ref()))
        .await;
    for group in &mut groups {
        let who = told.of(group.cgroup.as_ref());
        (group.k8s, group.container) = (who.k8s, who.container);
    }
    let listed = |wanted: fn(&Group) -> bool| {
        let groups = census.groups.iter().filter(|group| wanted(group));
        groups.fold(Count::default(), |sum, group| Count {
            groups: sum.groups + 1,
            objects: sum.objects.saturating_add(group.objects),
            bytes: sum.bytes.saturating_add(group.bytes),
        })
    };
    let (all, explained) = (listed(|_| true), listed(is_explained));
    let parts = [all, census.other, census.moving, census.unfollowed];
    let sum = |part: fn(&Count) -> u64| parts.iter().map(part).fold(0, u64::saturating_add);
    let (skbs, bytes) = (sum(|count| count.objects), sum(|count| count.bytes));
    let known = explained.objects.saturating_add(census.moving.objects);
    SkbCensus {
        full: census.full,
        relative_error: census.relative_error,
        read_by: match census.read_by {
            Reader::Kcore => CensusReader::Kcore,
            Reader::Bpf => CensusReader::Bpf,
        },
        total_pages: census.total_pages,
        sampled_pages: census.sampled_pages,
        slabs: census.hit_pages,
        took_ms: census.setup_ms.saturating_add(census.took_ms),
        skbs,
        bytes,
        explained_skbs: explained.objects,
        moving_skbs: census.moving.objects,
        unfollowed_skbs: census.unfollowed.objects,
        unreferenced_skbs: all.objects.saturating_sub(explained.objects),
        explained_ratio: (skbs > 0).then(|| super::balance::share(known, skbs)),
        abandoned: None,
        groups,
        groups_total,
    }
}

/// The biggest of these groups for each of `sets`, at most `most`, without the names of pods and without
/// what points to nothing.
pub(super) fn biggest(
    sets: &[Vec<Group>],
    most: usize,
    look: &Look,
    namer: &mut Namer<'_>,
) -> Vec<Vec<SkbGroup>> {
    let mut of = |groups: &Vec<Group>| {
        let found: Vec<Group> = groups
            .iter()
            .filter(|group| is_explained(group))
            .cloned()
            .collect();
        described(&put_together(&found), most, look, namer)
    };
    sets.iter().map(&mut of).collect()
}

fn described(groups: &[Alike], most: usize, look: &Look, namer: &mut Namer<'_>) -> Vec<SkbGroup> {
    let sockets = look.sockets.values();
    let owners: HashMap<u64, &Owner> = sockets
        .filter_map(|socket| Some((socket.inode, socket.owners.first()?)))
        .collect();
    let groups = groups.iter().take(most);
    groups.map(|group| public(group, &owners, namer)).collect()
}

/// One for those that differ by nothing that can be told: sockets that no file belongs to and no
/// cgroup made, of one kind, whose buffers are of the same device and charge. Biggest first.
fn put_together(groups: &[Group]) -> Vec<Alike> {
    let mut all: Vec<Alike> = Vec::new();
    let mut seen = HashMap::new();
    for group in groups {
        let socket = group.socket.as_ref();
        let nameless = socket.is_some_and(|socket| {
            socket.inode.is_none() && socket.cgroup_id.is_none_or(|id| id <= 1)
        });
        let key = nameless.then(|| {
            let kind = socket.map(|socket| (socket.family, socket.kind, &socket.protocol_name));
            let device = group.device.as_ref().map(|device| &device.name);
            (kind, device, &group.destructor, group.queue)
        });
        let known = key.as_ref().and_then(|key| seen.get(key)).copied();
        if let Some(alike) = known.and_then(|index: usize| all.get_mut(index)) {
            alike.add(group);
            continue;
        }
        if let Some(key) = key {
            seen.insert(key, all.len());
        }
        all.push(Alike {
            group: group.clone(),
            sockets: u64::from(socket.is_some()),
        });
    }
    all.sort_by_key(|alike| std::cmp::Reverse(alike.group.bytes));
    all
}

/// Groups of a census that cannot be told apart.
struct Alike {
    group: Group,
    sockets: u64,
}

impl Alike {
    fn add(&mut self, more: &Group) {
        let sum = &mut self.group;
        // Errors of parts that have nothing to do with each other.
        let error = |group: &Group| group.relative_error * approx(group.objects);
        let both = error(sum).hypot(error(more));
        sum.objects = sum.objects.saturating_add(more.objects);
        sum.bytes = sum.bytes.saturating_add(more.bytes);
        sum.own_bytes = sum.own_bytes.saturating_add(more.own_bytes);
        sum.relative_error = both / approx(sum.objects.max(1));
        self.sockets += 1;
    }
}

/// Whether it is known where the buffers are, or at least that something waits for them: who sets a
/// function to be called when a buffer is freed (SCTP for its chunks) has it in its own books.
pub(super) fn is_explained(group: &Group) -> bool {
    group.socket.is_some()
        || group.device.is_some()
        || group.queue.is_some()
        || group.destructor.is_some()
}

fn public(alike: &Alike, owners: &HashMap<u64, &Owner>, namer: &mut Namer<'_>) -> SkbGroup {
    let group = &alike.group;
    let socket = group.socket.as_ref();
    let owner = socket
        .and_then(|socket| socket.inode)
        .and_then(|inode| owners.get(&inode));
    let made_by = socket.and_then(|socket| socket.cgroup_id);
    SkbGroup {
        skbs: group.objects,
        bytes: group.bytes,
        own_bytes: group.own_bytes,
        relative_error: group.relative_error,
        sockets: alike.sockets,
        queue: group.queue.map(|queue| queue.name().to_owned()),
        socket: socket.map(|socket| CensusSocket {
            family: family_name(socket.family),
            kind: kind_name(socket.kind),
            protocol: socket.protocol_name.clone(),
            inode: socket.inode,
            netns: socket.netns_inode.into(),
            rcvbuf_bytes: socket.rcvbuf_bytes.into(),
            receive_skbs: socket.receive_queue_len.into(),
        }),
        device: group.device.as_ref().map(|device| device.name.clone()),
        destructor: group.destructor.clone(),
        process: owner.map(|owner| namer.process(owner)),
        cgroup: owner
            .and_then(|owner| namer.cgroup_of(owner.pid))
            .or_else(|| namer.creator(made_by?)),
        k8s: None,
        container: None,
    }
}
