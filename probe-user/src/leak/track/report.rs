//! From the table of objects to groups: pure.

use std::collections::{BTreeMap, HashMap};

use probe_common::outstanding::{Count, Outstanding as Object};

use crate::event::{AgeCount, TrackAccuracy};
use crate::kernel::track::Counts;

/// Ages by which objects are told, s.
const AGES_S: [u64; 6] = [0, 1, 10, 60, 600, 3600];

/// Stack and memory cgroup.
pub(super) type Key = (i32, u64);

/// Objects and name of each process.
type Processes<'a> = BTreeMap<u32, (u64, &'a [u8])>;

/// Objects of one stack and cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// Key of the stack.
    pub stack_id: i32,
    /// kernfs id of the cgroup.
    pub memcg_id: u64,
    /// Followed objects.
    pub objects: u64,
    /// Their bytes, as far as known.
    pub bytes: u64,
    /// When the oldest was made.
    pub oldest_boot_ns: u64,
    /// Process of most of them, with its name.
    pub process: Option<(u32, Vec<u8>)>,
}

impl Group {
    pub(super) const fn key(&self) -> Key {
        (self.stack_id, self.memcg_id)
    }
}

/// The followed objects at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Groups {
    /// Most objects first.
    pub all: Vec<Group>,
    /// By age of those in them.
    pub ages: Vec<AgeCount>,
    /// Objects that are too young to be in them.
    pub young: u64,
}

impl Groups {
    /// Groups objects that are at least `min_age_ns` old at `now_ns`.
    pub(super) fn of<'a>(
        objects: impl Iterator<Item = &'a Object>,
        now_ns: u64,
        min_age_ns: u64,
    ) -> Self {
        let mut groups: HashMap<Key, (Group, Processes<'_>)> = HashMap::new();
        let mut ages = AGES_S.map(|from_s| AgeCount { from_s, objects: 0 });
        let mut young = 0;
        for object in objects {
            let age_ns = now_ns.saturating_sub(object.since_boot_ns);
            if age_ns < min_age_ns {
                young += 1;
                continue;
            }
            let seconds = age_ns / 1_000_000_000;
            if let Some(age) = ages.iter_mut().rev().find(|age| age.from_s <= seconds) {
                age.objects += 1;
            }
            let key = (object.stack_id, object.memcg_id);
            let (group, processes) = groups.entry(key).or_insert_with(|| {
                let group = Group {
                    stack_id: object.stack_id,
                    memcg_id: object.memcg_id,
                    oldest_boot_ns: object.since_boot_ns,
                    ..Group::default()
                };
                (group, BTreeMap::new())
            });
            group.objects += 1;
            group.bytes = group.bytes.saturating_add(object.bytes.into());
            group.oldest_boot_ns = group.oldest_boot_ns.min(object.since_boot_ns);
            let comm = object.comm.split(|byte| *byte == 0).next();
            let process = processes.entry(object.tgid).or_default();
            *process = (process.0 + 1, comm.unwrap_or_default());
        }
        let mut groups: Vec<Group> = groups
            .into_values()
            .map(|(mut group, processes)| {
                let most = processes.into_iter().max_by_key(|(_, (count, _))| *count);
                group.process = most.map(|(pid, (_, comm))| (pid, comm.to_vec()));
                group
            })
            .collect();
        groups.sort_by_key(|group| {
            (
                std::cmp::Reverse(group.objects),
                group.stack_id,
                group.memcg_id,
            )
        });
        Self {
            all: groups,
            ages: ages.into_iter().filter(|age| age.objects > 0).collect(),
            young,
        }
    }

    /// Followed objects in the groups.
    pub(super) fn objects(&self) -> u64 {
        self.all.iter().map(|group| group.objects).sum()
    }

    /// Objects of each group, where one that is followed stands for `scale`.
    pub(super) fn sizes(&self, scale: u64) -> HashMap<Key, u64> {
        let sizes = self.all.iter();
        sizes
            .map(|group| (group.key(), group.objects * scale))
            .collect()
    }

    /// Objects and bytes by cgroup, most objects first.
    pub(super) fn by_cgroup(&self) -> Vec<(u64, u64, u64)> {
        let mut cgroups: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for group in &self.all {
            let (objects, bytes) = cgroups.entry(group.memcg_id).or_default();
            *objects += group.objects;
            *bytes = bytes.saturating_add(group.bytes);
        }
        let mut cgroups: Vec<_> = cgroups
            .into_iter()
            .map(|(id, (objects, bytes))| (id, objects, bytes))
            .collect();
        cgroups.sort_by_key(|(id, objects, _)| (std::cmp::Reverse(*objects), *id));
        cgroups
    }
}

/// How far the numbers can be trusted.
pub(super) fn accuracy(counts: &Counts, skipped_runs: Option<u64>) -> TrackAccuracy {
    let (followed, reused) = (counts.get(Count::Followed), counts.get(Count::Reused));
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio needs no more than 52 bits"
    )]
    let miss_ratio = (followed > 0).then(|| reused as f64 / followed as f64);
    TrackAccuracy {
        allocated: counts.get(Count::Allocated),
        freed: counts.get(Count::Freed),
        followed,
        reused,
        miss_ratio,
        unknown_frees: counts.get(Count::UnknownFree),
        no_room: counts.get(Count::NoRoom),
        busy: counts.get(Count::Busy),
        stack_collisions: counts.get(Count::StackCollision),
        stack_failures: counts.get(Count::StackFailed),
        bulk_cut: counts.get(Count::BulkCut),
        skipped_runs,
    }
}

/// Frames of an interrupt: whoever was interrupted has nothing to do with what it allocates.
const INTERRUPT: [&str; 9] = [
    "handle_softirqs",
    "__do_softirq",
    "do_softirq",
    "run_ksoftirqd",
    "__irq_exit_rcu",
    "irq_exit_rcu",
    "asm_common_interrupt",
    "asm_sysvec_",
    "__sysvec_",
];

/// Whether an interrupt allocated. A softirq that runs at the end of a system call of the task's own
/// (`__local_bh_enable_ip`) counts as the task's: its packet is what it works on, as on loopback.
pub(super) fn in_interrupt<S: AsRef<str>>(stack: &[S]) -> bool {
    let has = |start: &str| stack.iter().any(|frame| frame.as_ref().starts_with(start));
    INTERRUPT.iter().any(|start| has(start)) && !has("__local_bh_enable_ip")
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn object(stack_id: i32, memcg_id: u64, age_s: u64, tgid: u32) -> Object {
        let mut comm = [0; 16];
        comm[..3].copy_from_slice(b"hog");
        Object {
            since_boot_ns: 1000 * S - age_s * S,
            memcg_id,
            stack_id,
            bytes: 1280,
            tgid,
            pad: 0,
            comm,
        }
    }

    #[test]
    fn groups_by_stack_and_cgroup_and_leaves_out_the_young() {
        let objects = [
            object(1, 7, 5, 10),
            object(1, 7, 70, 11),
            object(1, 7, 80, 11),
            object(2, 7, 5, 10),
            object(1, 8, 5, 10),
            object(1, 8, 5, 12),
            object(3, 9, 0, 10),
        ];
        let groups = Groups::of(objects.iter(), 1000 * S, S);
        assert_eq!(groups.young, 1);
        assert_eq!(groups.objects(), 6);
        let first = &groups.all[0];
        assert_eq!((first.stack_id, first.memcg_id), (1, 7));
        assert_eq!((first.objects, first.bytes), (3, 3 * 1280));
        assert_eq!(first.oldest_boot_ns, 920 * S);
        assert_eq!(first.process, Some((11, b"hog".to_vec())));
        assert_eq!(groups.by_cgroup()[0], (7, 4, 4 * 1280));
        assert_eq!(groups.sizes(64)[&(1, 8)], 2 * 64);
        let ages: Vec<_> = groups
            .ages
            .iter()
            .map(|it| (it.from_s, it.objects))
            .collect();
        assert_eq!(ages, [(1, 4), (60, 2)]);
        // A clock that went back makes objects young, not ancient.
        assert_eq!(Groups::of(objects.iter(), 0, S).young, 7);
    }

    #[test]
    fn the_miss_rate_is_known_from_reuse() {
        let counts = Counts::default();
        assert_eq!(accuracy(&counts, None).miss_ratio, None);
        let counts = counts.with(Count::Followed, 200).with(Count::Reused, 1);
        assert_eq!(accuracy(&counts, Some(3)).miss_ratio, Some(0.005));
    }

    #[test]
    fn interrupts_are_told_from_a_task_s_own_softirq() {
        let nic = [
            "napi_build_skb+0x1",
            "handle_softirqs+0x2",
            "asm_common_interrupt+0x3",
        ];
        assert!(in_interrupt(&nic));
        let own = [
            "skb_clone+0x1",
            "__do_softirq+0x2",
            "__local_bh_enable_ip+0x3",
            "udp_sendmsg",
        ];
        assert!(!in_interrupt(&own));
        assert!(!in_interrupt(&[
            "__alloc_skb+0x1",
            "unix_dgram_sendmsg+0x2"
        ]));
    }
}
