//! Who holds certain socket buffers: those that were allocated somewhere and are not freed.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::namer::Namer;
use super::{Eyes, below};
use crate::event::SkbGroup;
use crate::identity::names::Resolver;
use crate::leak::census;

/// Time for following lists to the sockets they hang in, of all sets.
const WITHIN: Duration = Duration::from_secs(2);

/// The biggest holders of each of `sets`, addresses of `struct sk_buff`; at most `most` of each. Fails,
/// with the reason, where the kernel's memory or its sockets cannot be read.
pub(in crate::leak) async fn of_buffers(
    sets: Vec<Vec<u64>>,
    most: usize,
    host_root: &Path,
    resolver: &Rc<Resolver>,
    node_name: Option<&str>,
) -> Result<Vec<Vec<SkbGroup>>, String> {
    let found = tokio::task::spawn_blocking(move || census::holders_of(&sets, WITHIN)).await;
    let found = found
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let mut eyes = Eyes::open(&host_root.join("proc"));
    let look = eyes.look().map_err(|error| error.to_string())?;
    let mut namer = Namer::open(host_root, resolver, node_name);
    let mut holders = below::biggest(&found, most, &look, &mut namer);
    let cgroups = holders.iter().flatten();
    let told = namer
        .names(cgroups.filter_map(|group| group.cgroup.as_ref()))
        .await;
    for group in holders.iter_mut().flatten() {
        let who = told.of(group.cgroup.as_ref());
        (group.k8s, group.container) = (who.k8s, who.container);
    }
    Ok(holders)
}
