//! Scratch cgroups in the hierarchy of the memory controller, v1 or v2, removed when dropped.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::until;

/// Top-level names are this, the pid of the run, and a number.
const SCRATCH_PREFIX: &str = "oomprobe-test-";

/// How long the members of a cgroup may take to die.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which interface the memory controller has here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes` and friends.
    V1,
    /// `memory.max` and friends.
    V2,
}

/// Where the memory controller's hierarchy is mounted.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Interface of the controller.
    pub version: Version,
    mount: PathBuf,
    /// Path of the mount's root inside the hierarchy: `/` unless only a part is mounted.
    root: PathBuf,
}

impl Hierarchy {
    /// Looks for the memory controller in `/proc/self/mountinfo`; v1 wins where both are mounted,
    /// as it does in the kernel.
    pub fn find() -> Result<Self> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (&[_, _, _, root, mount, ..], &[kind, _, options, ..]) = (&left[..], &right[..])
            else {
                continue;
            };
            let here = |version| Self {
                version,
                mount: mount.into(),
                root: root.into(),
            };
            match kind {
                "cgroup" if options.split(',').any(|option| option == "memory") => {
                    return Ok(here(Version::V1));
                }
                "cgroup2" => unified = Some(here(Version::V2)),
                _ => {}
            }
        }
        let unified = unified.context("no cgroup hierarchy is mounted")?;
        let controllers = unified.mount.join("cgroup.controllers");
        let offered =
            fs::read_to_string(&controllers).with_context(|| controllers.display().to_string())?;
        if !offered.split_whitespace().any(|name| name == "memory") {
            bail!("{}: no memory controller", controllers.display());
        }
        Ok(unified)
    }

    /// Removes what runs left behind that were killed before they could.
    pub fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.mount).context("cgroup mount")? {
            let entry = entry?;
            let name = entry.file_name();
            let owner = name
                .to_str()
                .and_then(|name| name.strip_prefix(SCRATCH_PREFIX));
            if let Some((pid, _)) = owner.and_then(|owner| owner.split_once('-'))
                && !Path::new("/proc").join(pid).exists()
            {
                remove(&entry.path(), Instant::now() + PATIENCE)?;
            }
        }
        Ok(())
    }

    /// A new top-level cgroup whose name no one else uses.
    pub fn scratch(&self) -> Result<Cgroup> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{SCRATCH_PREFIX}{}-{number}", std::process::id());
        if self.version == Version::V2 {
            enable(&self.mount, "memory")?;
        }
        let scratch = Cgroup::create(self, self.mount.join(name))?;
        // Before 5.11 a v1 group does not limit its children unless told so.
        let hierarchical = scratch.file("memory.use_hierarchy");
        if self.version == Version::V1 && fs::read_to_string(&hierarchical)?.trim() == "0" {
            fs::write(&hierarchical, "1").context("memory.use_hierarchy")?;
        }
        Ok(scratch)
    }
}

fn enable(directory: &Path, controller: &str) -> Result<()> {
    let control = directory.join("cgroup.subtree_control");
    fs::write(&control, format!("+{controller}"))
        .with_context(|| format!("{}: enable {controller}", control.display()))
}

/// One cgroup directory. Dropping it kills its members, waits until they are gone, and removes it
/// with everything below.
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    directory: PathBuf,
}

impl Cgroup {
    fn create(hierarchy: &Hierarchy, directory: PathBuf) -> Result<Self> {
        fs::create_dir(&directory).with_context(|| format!("mkdir {}", directory.display()))?;
        Ok(Self {
            hierarchy: hierarchy.clone(),
            directory,
        })
    }

    /// A new cgroup below this one.
    pub fn child(&self, name: impl AsRef<OsStr>) -> Result<Self> {
        if self.hierarchy.version == Version::V2 {
            enable(&self.directory, "memory")?;
        }
        Self::create(&self.hierarchy, self.directory.join(name.as_ref()))
    }

    /// Interface of the memory controller.
    pub fn version(&self) -> Version {
        self.hierarchy.version
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its path as the kernel prints it: from the root of the hierarchy.
    pub fn kernel_path(&self) -> OsString {
        let below = self
            .directory
            .strip_prefix(&self.hierarchy.mount)
            .unwrap_or(&self.directory);
        let mut path = self.hierarchy.root.join(below).into_os_string().into_vec();
        if path.first() != Some(&b'/') {
            path.insert(0, b'/');
        }
        OsString::from_vec(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        let file = self.file(name);
        fs::write(&file, value).with_context(|| format!("{} = {value}", file.display()))
    }

    /// Limits memory, swap included where swap is accounted.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let (limit, swap, swap_value) = match self.hierarchy.version {
            Version::V1 => (
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                bytes.to_string(),
            ),
            Version::V2 => ("memory.max", "memory.swap.max", "0".to_owned()),
        };
        self.write(limit, &bytes.to_string())?;
        if self.file(swap).exists() {
            self.write(swap, &swap_value)?;
        }
        Ok(())
    }

    /// v2: an OOM kill takes all members.
    pub fn set_oom_group(&self) -> Result<()> {
        self.write("memory.oom.group", "1")
    }

    /// v2: confines the members to the memory of these NUMA nodes.
    pub fn set_mems(&self, nodes: &str) -> Result<()> {
        let parent = self.directory.parent().context("cgroup without parent")?;
        enable(parent, "cpuset")?;
        self.write("cpuset.mems", nodes)
    }

    /// `oom_kill` of `memory.oom_control` (v1: victims in this group) or of `memory.events` (v2:
    /// in this group and below).
    pub fn oom_kills(&self) -> Result<u64> {
        let file = self.file(match self.hierarchy.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        });
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        counter(&text, "oom_kill").with_context(|| format!("{}: no oom_kill", file.display()))
    }

    /// Pids of the processes directly in it.
    pub fn members(&self) -> Result<Vec<i32>> {
        let text = fs::read_to_string(self.file("cgroup.procs")).context("cgroup.procs")?;
        text.lines()
            .map(|line| line.parse().context("cgroup.procs"))
            .collect()
    }

    /// Kills all members, here and below, and removes the directories.
    pub fn remove(&self) -> Result<()> {
        remove(&self.directory, Instant::now() + PATIENCE)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.directory.exists()
            && let Err(error) = self.remove()
        {
            eprintln!("left behind: {error:#}");
        }
    }
}

fn remove(directory: &Path, deadline: Instant) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path(), deadline)?;
        }
    }
    until(deadline, &format!("{} empty", directory.display()), || {
        let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
        for pid in procs.lines().filter_map(|line| line.parse().ok()) {
            // It may be gone by itself; a next look tells.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // A dying member still counts although `cgroup.procs` no longer lists it.
        Ok((procs.is_empty() && fs::remove_dir(directory).is_ok()).then_some(()))
    })
}

fn counter(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then(|| value.trim().parse().ok())?)
}

/// The directories a kubelet with the cgroupfs driver makes for one Burstable pod.
#[derive(Debug)]
pub struct Pod {
    /// `kubepods`.
    pub kubepods: Cgroup,
    /// `kubepods/burstable`.
    pub qos: Cgroup,
    /// `kubepods/burstable/pod<uid>`.
    pub pod: Cgroup,
    /// UID of the pod.
    pub uid: String,
}

impl Pod {
    /// Makes the directories below `parent`. The UID is made from `seed`.
    pub fn create(parent: &Cgroup, seed: u32) -> Result<Self> {
        let kubepods = parent.child("kubepods")?;
        let qos = kubepods.child("burstable")?;
        let uid = format!("{seed:08x}-5eed-4ce4-a0ba-{:012x}", std::process::id());
        let pod = qos.child(format!("pod{uid}"))?;
        Ok(Self {
            kubepods,
            qos,
            pod,
            uid,
        })
    }

    /// The directory of a container; its id is made from `seed`.
    pub fn container(&self, seed: u8) -> Result<Container> {
        let id = format!("{seed:02x}").repeat(32);
        Ok(Container {
            cgroup: self.pod.child(&id)?,
            id,
            pod_uid: self.uid.clone(),
        })
    }
}

/// One container's cgroup and what its path says.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub cgroup: Cgroup,
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// UID of its pod.
    pub pod_uid: String,
}

/// A directory name of 255 bytes, the longest there is, with bytes that are no UTF-8 and ones
/// that drive terminals. A newline is refused by the kernel (`cgroup_mkdir()`).
pub fn hostile_name() -> OsString {
    let mut name = b"\x1b[2J\x1b]0;owned\x07 \xff\xfe\t\r\"\\'<b>{}".to_vec();
    name.resize(255, b'x');
    OsString::from_vec(name)
}

/// Whether the kernel refuses a newline in a name, which keeps `/proc/<pid>/cgroup` parseable.
pub fn newline_is_refused(parent: &Cgroup) -> bool {
    let name = OsStr::from_bytes(b"line\nbreak");
    fs::create_dir(parent.directory.join(name)).is_err()
}
