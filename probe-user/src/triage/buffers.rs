//! Who holds socket buffers, where slab that cannot be given back fills the node.
//!
//! The only part of a triage that is more than reading files, and only there: it finds sockets by a
//! BPF iterator where that is allowed.

use std::time::Duration;

use super::Options;
use super::findings::is_slab_large;
use crate::event::SkbHolders;
use crate::leak::holders::{self, Observer, Thoroughness};

/// Between the two looks that tell what is read and what is not, unless the triage itself is shorter.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Looks, if so much unreclaimable slab of all the memory is a reason to, bytes; what prevents it is
/// told.
pub(super) async fn look(
    options: &Options,
    slab: Option<u64>,
    total: u64,
) -> Option<Result<SkbHolders, String>> {
    if !is_slab_large(slab?, total) {
        return None;
    }
    // Descriptors of others are for root only.
    if !rustix::process::geteuid().is_root() {
        return Some(Err("not permitted; run as root".to_owned()));
    }
    let mut observer = Observer::open(holders::Options {
        host_root: options.host_root.clone(),
        cri_socket: options.cri_socket.clone(),
        duration: BETWEEN_LOOKS.min(options.duration),
        top: options.top,
        census: Thoroughness::Off,
        progress: |_| {},
    });
    Some(observer.look().await.map_err(|no_way| no_way.to_string()))
}
