//! The file systems the kubelet watches, and from when on it calls them full.

use std::path::Path;

use super::collect::Node;
use crate::event::Disk;
use crate::node::disk;

/// Where the kubelet and pods' logs are (`nodefs`).
const NODE: [&str; 3] = ["var/lib/kubelet", "var/log", ""];

/// Where runtimes keep images and the containers' own layers (`imagefs`).
const IMAGES: [&str; 3] = ["var/lib/containerd", "var/lib/containers", "var/lib/docker"];

/// The kubelet's default `nodefs.available` (kubelet config, `evictionHard`), percent.
const NODEFS_PERCENT: u64 = 10;

/// Its default `imagefs.available`, percent.
const IMAGEFS_PERCENT: u64 = 15;

/// Without a kubelet nobody acts on a full disk before it is full.
const NO_KUBELET_PERCENT: u64 = 3;

/// Reads each file system once.
pub(super) fn read(host_root: &Path, node: &mut Node) -> Vec<Disk> {
    let kubelet = host_root.join(NODE[0]).is_dir();
    let mut found: Vec<(u64, Disk)> = Vec::new();
    let all = NODE.iter().map(|path| (path, NODEFS_PERCENT));
    for (path, percent) in all.chain(IMAGES.iter().map(|path| (path, IMAGEFS_PERCENT))) {
        let shown = format!("/{path}");
        let room = match disk::room(&host_root.join(path)) {
            Ok(Some(room)) => room,
            Ok(None) => continue,
            Err(error) => {
                node.missing(&shown, &error.to_string());
                continue;
            }
        };
        let threshold_percent = if kubelet { percent } else { NO_KUBELET_PERCENT };
        if let Some((_, disk)) = found.iter_mut().find(|(device, _)| *device == room.device) {
            disk.paths.push(shown);
            disk.threshold_percent = disk.threshold_percent.max(threshold_percent);
            continue;
        }
        let disk = Disk {
            paths: vec![shown],
            total_bytes: room.total_bytes,
            available_bytes: room.available_bytes,
            inodes: room.inodes,
            inodes_available: room.inodes_available,
            threshold_percent,
            kubelet,
        };
        found.push((room.device, disk));
    }
    found.into_iter().map(|(_, disk)| disk).collect()
}
