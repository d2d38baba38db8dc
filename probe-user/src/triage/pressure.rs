//! Pressure on memory between two looks, as [`crate::verdict::pressure`] judges it.

use std::collections::HashMap;
use std::rc::Rc;

use super::cgroups::Unit;
use super::collect::Look;
use crate::event::{Cgroup, Finding};
use crate::identity::names::Resolver;
use crate::incident::who::{Identities, Who};
use crate::pressure::sample::{CgroupSample, Settings};
use crate::verdict;
use crate::verdict::pressure::{CgroupWindow, Stalls, Window};

/// What hooks measured of the stalls of each cgroup between the two looks, by kernfs id.
pub(crate) type StallsById = HashMap<u64, Stalls>;

/// Names are looked up only for cgroups that something was found about.
pub(crate) async fn findings(
    first: &Look,
    second: &Look,
    stalls: &StallsById,
    resolver: &Rc<Resolver>,
    node_name: Option<&str>,
) -> Vec<Finding> {
    let before: HashMap<u64, &Unit> = first.units.iter().map(|unit| (unit.id, unit)).collect();
    let pairs: Vec<(Cgroup, Settings, Vec<CgroupSample>)> = second
        .units
        .iter()
        .filter_map(|unit| {
            let first = before.get(&unit.id)?;
            let between = first.between.iter().copied();
            let samples = std::iter::once(first.sample).chain(between);
            let samples = samples.chain([unit.sample]).collect();
            Some((unit.cgroup(), unit.settings, samples))
        })
        .collect();
    let path = |cgroup: &Cgroup| cgroup.path.clone().unwrap_or_default().into_bytes();
    let judge = |names: &Identities| {
        let who: Vec<Who> = pairs.iter().map(|pair| names.of(&path(&pair.0))).collect();
        let cgroups: Vec<CgroupWindow<'_>> = pairs
            .iter()
            .zip(&who)
            .map(|((cgroup, settings, samples), who)| CgroupWindow {
                cgroup,
                k8s: who.k8s.as_ref(),
                container: who.container.as_ref(),
                settings: *settings,
                samples,
                stalls: cgroup.id.and_then(|id| stalls.get(&id)).copied(),
            })
            .collect();
        verdict::pressure::findings(&Window {
            node: (first.node, second.node),
            cgroups: &cgroups,
            page_bytes: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
        })
    };
    let found = judge(&Identities::default());
    let about = found.iter().filter_map(|finding| finding.cgroup.as_ref());
    let names = Identities::resolve(resolver, node_name, about.map(path)).await;
    judge(&names)
}
