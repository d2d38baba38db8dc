//! Where things are in the checkout.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::{cmd, tools};

/// The checkout that xtask belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
        }
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let json = cmd::output(
            tools::cargo()
                .args([
                    "metadata",
                    "--no-deps",
                    "--format-version",
                    "1",
                    "--manifest-path",
                ])
                .arg(manifest),
        )?;
        let metadata: Metadata =
            serde_json::from_str(&json).context("`cargo metadata` is not as documented")?;
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
        })
    }

    /// The committed BPF object.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.root.join("probe-user/bpf/oomprobe.bpf.o")
    }

    /// What the object was built from.
    pub(crate) fn bpf_lock(&self) -> PathBuf {
        self.root.join("probe-user/bpf/oomprobe.bpf.lock")
    }
}
