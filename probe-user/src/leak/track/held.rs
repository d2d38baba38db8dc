//! "Allocated here" joined with "held there now": who holds the buffers of each stack.

use std::collections::HashMap;
use std::rc::Rc;

use probe_common::outstanding::Outstanding as Object;

use super::Options;
use super::report::{Groups, Key};
use crate::event::Outstanding;
use crate::identity::names::Resolver;
use crate::leak::holders::of_buffers;
use crate::pressure::series::approx;

/// Buffers of a stack whose holders are looked for: what most of them are held by is the same.
const BUFFERS: usize = 2048;

/// Stacks of which that is done, those of most buffers.
const STACKS: usize = 16;

/// Holders of a stack that are told.
const HOLDERS: usize = 3;

/// Addresses of some buffers of each of the first stacks that are told.
pub(super) fn addresses(
    outstanding: &Outstanding,
    groups: &Groups,
    objects: &HashMap<u64, Object>,
    now_ns: u64,
    options: &Options,
) -> Vec<Vec<u64>> {
    let stacks = outstanding.stacks.len().min(STACKS);
    let listed = groups.all.iter().take(stacks).enumerate();
    let places: HashMap<Key, usize> = listed.map(|(place, group)| (group.key(), place)).collect();
    let mut sets = vec![Vec::new(); places.len()];
    for (address, object) in objects {
        let is_old = now_ns.saturating_sub(object.since_boot_ns) >= options.min_age_ns();
        let place = places.get(&(object.stack_id, object.memcg_id));
        if let Some(set) = place.filter(|_| is_old).and_then(|at| sets.get_mut(*at))
            && set.len() < BUFFERS
        {
            set.push(*address);
        }
    }
    sets
}

/// Adds who holds what each stack allocated; `sets` are the addresses of some buffers of each.
pub(super) async fn add(
    outstanding: &mut Outstanding,
    sets: Vec<Vec<u64>>,
    options: &Options,
    resolver: &Rc<Resolver>,
    node_name: Option<&str>,
) {
    if sets.iter().all(Vec::is_empty) {
        return;
    }
    let looked_at: Vec<u64> = sets.iter().map(|set| set.len() as u64).collect();
    let held = of_buffers(sets, HOLDERS, &options.host_root, resolver, node_name).await;
    let held = match held {
        Ok(held) => held,
        Err(why) => {
            let blind_spot = format!("who holds them now: {why}");
            outstanding.blind_spots.push(blind_spot);
            return;
        }
    };
    let stacks = outstanding.stacks.iter_mut().zip(held).zip(looked_at);
    for ((stack, mut held), looked_at) in stacks {
        for group in &mut held {
            let all = |part| scaled(part, stack.objects, looked_at);
            if looked_at < stack.objects {
                group.relative_error = 1.0 / approx(group.skbs.max(1)).sqrt();
            }
            (group.skbs, group.bytes) = (all(group.skbs), all(group.bytes));
            group.own_bytes = all(group.own_bytes);
        }
        stack.held_by = held;
    }
}

/// What `part` of so many that were looked at stands for of `all`.
fn scaled(part: u64, all: u64, looked_at: u64) -> u64 {
    let scaled = u128::from(part) * u128::from(all) / u128::from(looked_at.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
