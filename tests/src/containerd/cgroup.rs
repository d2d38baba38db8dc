//! Pod cgroups as the kubelet's `cgroupfs` driver makes them: the same path in every hierarchy
//! that is mounted (v1, hybrid or v2), the limit in the one that has the memory controller.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::deadline::{soon, until};

/// One mounted cgroup hierarchy.
struct Hierarchy {
    mountpoint: PathBuf,
    v2: bool,
    /// Has the memory controller.
    memory: bool,
}

/// The cgroup of a pod. Dropping it kills what is left inside and removes it.
pub(crate) struct PodCgroup {
    hierarchies: Vec<Hierarchy>,
    /// From the root of the hierarchies, with a leading slash.
    path: String,
}

impl PodCgroup {
    /// Makes `path` and its missing ancestors, limited to `memory_limit_bytes` if that is given.
    pub(crate) fn create(path: String, memory_limit_bytes: Option<u64>) -> Result<Self> {
        let pod = Self {
            hierarchies: hierarchies()?,
            path,
        };
        for hierarchy in &pod.hierarchies {
            let directory = hierarchy.make(&pod.path)?;
            if let Some(limit) = memory_limit_bytes.filter(|_| hierarchy.memory) {
                let file = if hierarchy.v2 {
                    "memory.max"
                } else {
                    "memory.limit_in_bytes"
                };
                write(&directory.join(file), &limit.to_string())?;
            }
        }
        Ok(pod)
    }

    /// Path from the root of the hierarchies, as the kernel prints it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Memory that is charged to it, kernel memory included.
    pub(crate) fn memory_bytes(&self) -> Result<u64> {
        let hierarchy = self.hierarchies.iter().find(|one| one.memory);
        let hierarchy = hierarchy.context("no memory controller")?;
        let name = if hierarchy.v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        let file = hierarchy.at(&self.path).join(name);
        let text = fs::read_to_string(&file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        text.trim().parse().context(name)
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|one| one.at(&self.path))
    }

    /// Kills every process inside, sub-cgroups included. Says whether there was any.
    fn kill_all(&self) -> bool {
        let mut found = false;
        for pid in self
            .directories()
            .flat_map(|directory| tasks_below(&directory))
        {
            found = true;
            // SAFETY: kill takes no pointers. The pid was just read from this pod's own cgroup.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        found
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let what = format!("an end of the processes in {}", self.path);
        let emptied = until(soon(), &what, || Ok((!self.kill_all()).then_some(())));
        if let Err(error) = emptied {
            eprintln!("{error:#}");
        }
        for hierarchy in &self.hierarchies {
            if let Err(error) = remove_tree(&hierarchy.at(&self.path)) {
                eprintln!("{error:#}");
            }
            // The QoS class and `kubepods` go too, unless another pod is in them.
            let mut ancestor = Path::new(&self.path);
            while let Some(parent) = ancestor.parent().filter(|one| *one != Path::new("/")) {
                if fs::remove_dir(hierarchy.at(&parent.to_string_lossy())).is_err() {
                    break;
                }
                ancestor = parent;
            }
        }
    }
}

impl Hierarchy {
    fn at(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path.trim_start_matches('/'))
    }

    /// Makes `path`. On v2 each level must hand its controllers to the next.
    fn make(&self, path: &str) -> Result<PathBuf> {
        let mut directory = self.mountpoint.clone();
        for component in path.split('/').filter(|one| !one.is_empty()) {
            if self.v2 {
                delegate(&directory)?;
            }
            directory.push(component);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error)
                        .with_context(|| format!("cannot make cgroup {}", directory.display()));
                }
                _ => {}
            }
        }
        if self.v2 {
            delegate(&directory)?;
        }
        Ok(directory)
    }
}

/// Enables for the children of a v2 cgroup every controller the cgroup has itself.
fn delegate(directory: &Path) -> Result<()> {
    let available = fs::read_to_string(directory.join("cgroup.controllers"))
        .with_context(|| format!("cannot read the controllers of {}", directory.display()))?;
    for controller in available.split_whitespace() {
        write(
            &directory.join("cgroup.subtree_control"),
            &format!("+{controller}"),
        )?;
    }
    Ok(())
}

fn write(file: &Path, value: &str) -> Result<()> {
    fs::write(file, value).with_context(|| format!("cannot write {value} to {}", file.display()))
}

fn tasks_below(directory: &Path) -> Vec<libc::pid_t> {
    let mut pids: Vec<_> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        // 0 is a process that our pid namespace cannot see, and kill(0) would be ourselves.
        .filter(|pid| *pid > 0)
        .collect();
    for child in subdirectories(directory) {
        pids.extend(tasks_below(&child));
    }
    pids
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a cgroup and all below it. One that is gone already is fine: the runtime removes its
/// containers' cgroups itself.
fn remove_tree(directory: &Path) -> Result<()> {
    for child in subdirectories(directory) {
        remove_tree(&child)?;
    }
    let what = format!("removal of cgroup {}", directory.display());
    until(soon(), &what, || match fs::remove_dir(directory) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context(what.clone()),
        _ => Ok(Some(())),
    })
}

/// All mounted hierarchies, from /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else {
            continue;
        };
        let mountpoint = mount.split(' ').nth(4).map(PathBuf::from);
        let (Some(kind), Some(mountpoint)) = (filesystem.split(' ').next(), mountpoint) else {
            continue;
        };
        let (v2, memory) = match kind {
            "cgroup" => (
                false,
                filesystem
                    .rsplit(' ')
                    .next()
                    .is_some_and(|options| options.split(',').any(|one| one == "memory")),
            ),
            "cgroup2" => (
                true,
                fs::read_to_string(mountpoint.join("cgroup.controllers"))
                    .is_ok_and(|all| all.split_whitespace().any(|one| one == "memory")),
            ),
            _ => continue,
        };
        found.push(Hierarchy {
            mountpoint,
            v2,
            memory,
        });
    }
    if !found.iter().any(|one| one.memory) {
        bail!("no cgroup hierarchy with the memory controller is mounted");
    }
    Ok(found)
}
