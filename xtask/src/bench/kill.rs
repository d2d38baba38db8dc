//! OOM kills to measure: a process that takes more memory than its scratch cgroup may have.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::cmd;

/// Limit of the scratch cgroup: large enough to start a program in, soon reached.
const LIMIT_BYTES: u64 = 8 << 20;

/// How long the cgroup may stay busy after its last member died.
const PATIENCE: Duration = Duration::from_secs(10);

/// Moves itself into the cgroup and doubles a string until the kernel ends it: memory of its own,
/// touched in user space, as in most kills.
const VICTIM: &str = "echo 0 > \"$1/cgroup.procs\" && x=0123456789 && while :; do x=$x$x; done";

/// A memory cgroup with a small limit, removed when dropped.
pub(super) struct Scratch {
    dir: PathBuf,
    /// `v1` or `v2`.
    pub(super) version: &'static str,
}

impl Scratch {
    pub(super) fn create() -> Result<Self> {
        let (mount, version) = memory_mount()?;
        if version == "v2" {
            let control = mount.join("cgroup.subtree_control");
            fs::write(&control, "+memory").with_context(|| control.display().to_string())?;
        }
        let dir = mount.join(format!("oomprobe-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
        let scratch = Self { dir, version };
        let (limit, swap, swap_bytes) = match version {
            "v1" => (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                LIMIT_BYTES,
            ),
            _ => ("memory.max", "memory.swap.max", 0),
        };
        scratch.write(limit, LIMIT_BYTES)?;
        // Absent where swap is not accounted.
        if scratch.dir.join(swap).exists() {
            scratch.write(swap, swap_bytes)?;
        }
        Ok(scratch)
    }

    fn write(&self, file: &str, value: u64) -> Result<()> {
        let file = self.dir.join(file);
        fs::write(&file, value.to_string()).with_context(|| format!("{} = {value}", file.display()))
    }

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

impl Drop for Scratch {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // A victim is charged until the reaper or its exit has freed the last page.
        while let Err(error) = fs::remove_dir(&self.dir) {
            if Instant::now() >= deadline {
                cmd::status(
                    "Warning",
                    format_args!("left behind: {}: {error}", self.dir.display()),
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where the memory controller's hierarchy is mounted, and its version.
fn memory_mount() -> Result<(PathBuf, &'static str)> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    find_memory(&mounts, |v2| {
        fs::read_to_string(v2.join("cgroup.controllers"))
            .is_ok_and(|offered| offered.split_whitespace().any(|name| name == "memory"))
    })
    .context("no cgroup hierarchy with the memory controller is mounted")
}

fn find_memory(
    mounts: &str,
    has_memory: impl Fn(&Path) -> bool,
) -> Option<(PathBuf, &'static str)> {
    mounts.lines().find_map(|line| {
        let mut columns = line.split(' ').skip(1);
        let (mount, kind, options) = (columns.next()?, columns.next()?, columns.next()?);
        let mount = PathBuf::from(mount);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some((mount, "v1")),
            "cgroup2" if has_memory(&mount) => Some((mount, "v2")),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_with_the_memory_controller_is_found() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n";
        assert_eq!(
            find_memory(hybrid, |_| false),
            Some(("/sys/fs/cgroup/memory".into(), "v1"))
        );
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(
            find_memory(unified, |_| true),
            Some(("/sys/fs/cgroup".into(), "v2"))
        );
        assert_eq!(find_memory(unified, |_| false), None);
    }
}
