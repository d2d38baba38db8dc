//! Where the kubelet keeps container logs: `/var/log/pods/<ns>_<pod>_<uid>/<container>/<n>.log`,
//! which the runtime writes, and a link by container id in `/var/log/containers`, which the
//! kubelet makes (pkg/kubelet/kuberuntime, legacy.go and kuberuntime_container_linux.go).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The longest name of a link, so that `.log` still fits into a file name (255 bytes).
const LINK_STEM_MAX_BYTES: usize = 251;

/// The logs of one pod. Dropping it removes them and every directory made for them.
pub(crate) struct PodLogs {
    /// Deepest last.
    made_directories: Vec<PathBuf>,
    pod_directory: PathBuf,
    links_directory: PathBuf,
    links: Vec<PathBuf>,
}

impl PodLogs {
    /// Makes the directories of a pod below `root` (`/var/log` on a node).
    pub(crate) fn create(root: &Path, namespace: &str, pod: &str, uid: &str) -> Result<Self> {
        let mut logs = Self {
            made_directories: Vec::new(),
            pod_directory: root.join("pods").join(format!("{namespace}_{pod}_{uid}")),
            links_directory: root.join("containers"),
            links: Vec::new(),
        };
        for directory in [logs.pod_directory.clone(), logs.links_directory.clone()] {
            logs.make(&directory)?;
        }
        Ok(logs)
    }

    /// The sandbox's `log_directory`.
    pub(crate) fn directory(&self) -> &Path {
        &self.pod_directory
    }

    /// Makes the container's directory; returns its `log_path`, relative to [`Self::directory`].
    pub(crate) fn prepare(&mut self, container: &str, attempt: u32) -> Result<String> {
        self.make(&self.pod_directory.join(container))?;
        Ok(format!("{container}/{attempt}.log"))
    }

    /// Links the log by container id, as the kubelet does once the container was started. `stem`
    /// is `<pod>_<namespace>_<container>-<id>`; a long one loses the tail of the id.
    pub(crate) fn link(&mut self, stem: &str, log_path: &str) -> Result<()> {
        let stem = &stem[..stem.len().min(LINK_STEM_MAX_BYTES)];
        let link = self.links_directory.join(format!("{stem}.log"));
        // Another run of the tests may have taken the directory it had made away with it.
        self.make(&self.links_directory.clone())?;
        symlink(self.pod_directory.join(log_path), &link)
            .with_context(|| format!("cannot make {}", link.display()))?;
        self.links.push(link);
        Ok(())
    }

    fn make(&mut self, directory: &Path) -> Result<()> {
        if let Some(parent) = directory.parent().filter(|parent| !parent.exists()) {
            self.make(parent)?;
        }
        match fs::create_dir(directory) {
            Ok(()) => self.made_directories.push(directory.to_path_buf()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", directory.display()));
            }
        }
        Ok(())
    }
}

impl Drop for PodLogs {
    fn drop(&mut self) {
        for link in &self.links {
            // Gone already is as good.
            let _ = fs::remove_file(link);
        }
        let _ = fs::remove_dir_all(&self.pod_directory);
        for directory in self.made_directories.iter().rev() {
            // Another pod's logs may be in a shared directory by this time: that one stays.
            let _ = fs::remove_dir(directory);
        }
    }
}
