//! OOM kills to measure: a process that takes more memory than its scratch cgroup may have.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::bench::cgroup::Scratch;

/// Limit of the scratch cgroup: large enough to start a program in, soon reached.
pub(super) const LIMIT_BYTES: u64 = 8 << 20;

/// Moves itself into the cgroup and doubles a string until the kernel ends it: memory of its own,
/// touched in user space, as in most kills.
const VICTIM: &str = "echo 0 > \"$1/cgroup.procs\" && x=0123456789 && while :; do x=$x$x; done";

impl Scratch {
    /// Has one process killed and returns its pid.
    pub(super) fn kill(&self) -> Result<u32> {
        let mut victim = Command::new("sh")
            .args(["-c", VICTIM, "sh"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start `sh`")?;
        let pid = victim.id();
        let status = victim.wait().context("cannot wait for the victim")?;
        if status.signal() != Some(libc::SIGKILL) {
            bail!("the process that was to be OOM-killed ended by itself ({status})");
        }
        Ok(pid)
    }
}
