//! Real pods under a real containerd, made as the kubelet makes them, without Kubernetes.
//!
//! [`Containerd::start`] runs a containerd of its own; [`PodSpec::run`] makes a pod in it and
//! [`Pod::start`] a container. Dropping each takes it away again, so a test that fails leaves
//! nothing behind.
//!
//! containerd, its shims and its mounts live in a private mount namespace: the machine's own
//! containerd is not touched, and no mount outlives the processes. Pods' cgroups and logs are where
//! the kubelet has them.

mod cgroup;
mod cri;
mod image;
mod logs;
mod pod;
mod proto;

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

pub use cri::{ContainerStatus, Cri, ExecOutput, ListedContainer};
pub use pod::{Container, ContainerSpec, PidNamespace, Pod, PodSpec};
pub use proto::ContainerState;

use crate::deadline::{soon, until};

/// Where containerd 1.x keeps shim sockets and runc's state, whatever its configuration says.
const SHIM_STATE: &CStr = c"/run/containerd";

/// Debian packages this module needs, for whoever lacks them.
const PACKAGES: &str = "containerd runc busybox-static";

/// A private containerd. Dropping it stops it and everything it started.
pub struct Containerd {
    cri: Arc<Cri>,
    process: Child,
    /// `/proc/<pid>/ns/mnt` of containerd and its shims.
    mount_namespace: PathBuf,
    /// The mount point for [`SHIM_STATE`] was made here.
    made_shim_state: bool,
    directory: TempDir,
}

impl Containerd {
    /// Starts containerd and gives it an image with busybox and, in `/bin`, the static `binaries`;
    /// returns when pods can be made. Needs root.
    pub fn start(binaries: &[&Path]) -> Result<Self> {
        // SAFETY: geteuid takes no arguments and cannot fail.
        let user = unsafe { libc::geteuid() };
        ensure!(user == 0, "pods need root: run the tests as root");
        let programs = Programs::find()?;
        // A unix socket's path is limited to 107 bytes: no long TMPDIR.
        let directory = tempfile::Builder::new()
            .prefix("oomprobe-pods-")
            .tempdir_in("/tmp")?;
        let root = directory.path();
        let config = root.join("config.toml");
        fs::write(&config, configuration(root)?)?;
        let log = File::create(log_file(root))?;

        let made_shim_state = match fs::create_dir(shim_state()) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context("cannot make a mount point for shim state"),
        };
        let cri = Arc::new(Cri::new(&socket_file(root))?);
        let mut command = Command::new(&programs.containerd);
        command
            .arg("--config")
            .arg(&config)
            // containerd finds runc and its shim there.
            .env("PATH", SEARCH_PATH.join(":"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // SAFETY: between fork and exec only async-signal-safe system calls run.
        unsafe { command.pre_exec(enter_private_mounts) };
        let process = command
            .spawn()
            .context("cannot start containerd in its own mount namespace")?;
        let mut containerd = Self {
            cri,
            mount_namespace: mount_namespace_of(process.id())?,
            process,
            made_shim_state,
            directory,
        };
        containerd.wait_ready()?;
        containerd.import_image(&programs, binaries)?;
        Ok(containerd)
    }

    /// The CRI (and containerd) socket.
    pub fn socket(&self) -> PathBuf {
        socket_file(self.directory.path())
    }

    /// The CRI client that pods are made with.
    pub fn cri(&self) -> Arc<Cri> {
        self.cri.clone()
    }

    /// What containerd has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(log_file(self.directory.path())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait_ready(&mut self) -> Result<()> {
        until(soon(), "containerd ready", || {
            if let Some(status) = self.process.try_wait()? {
                bail!("containerd ended with {status}");
            }
            // Not listening yet is not an error.
            Ok(self.cri.ready().unwrap_or(false).then_some(()))
        })
        .with_context(|| format!("containerd's log:\n{}", self.log()))
    }

    fn import_image(&self, programs: &Programs, binaries: &[&Path]) -> Result<()> {
        let archive = self.directory.path().join("image.tar");
        fs::write(&archive, image::archive(&programs.busybox, binaries)?)?;
        let output = Command::new(&programs.ctr)
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&archive)
            .output()
            .context("cannot run ctr")?;
        ensure!(
            output.status.success(),
            "ctr images import: {}\ncontainerd's log:\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        // The CRI plugin hears of an image by an event.
        until(soon(), "the imported image over CRI", || {
            Ok(self.cri.has_image(image::IMAGE)?.then_some(()))
        })
    }

    fn remove_pods(&self) -> Result<()> {
        for id in self.cri.list_pod_sandboxes()? {
            self.cri.stop_pod_sandbox(&id)?;
            self.cri.remove_pod_sandbox(&id)?;
        }
        Ok(())
    }

    /// Ends containerd, then every process left in its mount namespace: shims that outlived it.
    fn stop(&mut self) -> Result<()> {
        if self.process.try_wait()?.is_none() {
            signal(self.process.id(), libc::SIGTERM)?;
        }
        let ended = until(soon(), "containerd's end", || {
            Ok(self.process.try_wait()?)
        });
        if ended.is_err() {
            self.process.kill()?;
            self.process.wait()?;
        }
        until(soon(), "an end of containerd's shims", || {
            let shims = processes_in(&self.mount_namespace)?;
            for pid in &shims {
                // It may have ended since.
                let _ = signal(*pid, libc::SIGKILL);
            }
            Ok(shims.is_empty().then_some(()))
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Err(error) = self.remove_pods() {
            eprintln!("cannot remove leftover pods: {error:#}");
        }
        if let Err(error) = self.stop() {
            eprintln!("cannot stop containerd: {error:#}");
        }
        if self.made_shim_state {
            // Only an empty directory: another containerd may have moved in.
            let _ = fs::remove_dir(shim_state());
        }
    }
}

/// Where programs are looked for. Root's PATH under `cargo test` may lack `sbin`.
const SEARCH_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

struct Programs {
    containerd: PathBuf,
    ctr: PathBuf,
    busybox: PathBuf,
}

impl Programs {
    fn find() -> Result<Self> {
        // runc and the shim are started by containerd; their absence is better told here.
        for started_by_containerd in ["runc", "containerd-shim-runc-v2"] {
            find_program(started_by_containerd)?;
        }
        Ok(Self {
            containerd: find_program("containerd")?,
            ctr: find_program("ctr")?,
            busybox: find_program("busybox")?,
        })
    }
}

fn find_program(name: &str) -> Result<PathBuf> {
    SEARCH_PATH
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} not found: apt-get install {PACKAGES}"))
}

fn shim_state() -> &'static Path {
    Path::new(OsStr::from_bytes(SHIM_STATE.to_bytes()))
}

fn socket_file(root: &Path) -> PathBuf {
    root.join("containerd.sock")
}

fn log_file(root: &Path) -> PathBuf {
    root.join("containerd.log")
}

/// containerd 1.6 configuration, version 2. `restrict_oom_score_adj`: without CAP_SYS_RESOURCE
/// nobody may lower a score, and the kubelet asks for -998 for a sandbox.
fn configuration(root: &Path) -> Result<String> {
    let root = root
        .to_str()
        .context("the temporary directory's name is not UTF-8")?;
    Ok(format!(
        r#"version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
  address = "{root}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{root}/cni/bin"
  conf_dir = "{root}/cni/conf"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
        image = image::IMAGE,
    ))
}

/// Makes the calling process's mounts its own and hides the shim state of any other containerd.
fn enter_private_mounts() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; mount gets NUL-terminated strings and no data.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                SHIM_STATE.as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                std::ptr::null(),
            ) == 0
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn mount_namespace_of(pid: u32) -> Result<PathBuf> {
    let link = format!("/proc/{pid}/ns/mnt");
    fs::read_link(&link).with_context(|| format!("cannot read {link}"))
}

fn processes_in(mount_namespace: &Path) -> Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // A process that ended meanwhile has no namespace any more.
    Ok(pids
        .filter(|pid| mount_namespace_of(*pid).is_ok_and(|one| one == mount_namespace))
        .collect())
}

fn signal(pid: u32, signal: i32) -> Result<()> {
    let pid = libc::pid_t::try_from(pid)?;
    // SAFETY: kill takes no pointers; the pid is containerd's or was just seen in its namespace.
    let sent = unsafe { libc::kill(pid, signal) };
    ensure!(
        sent == 0,
        "cannot signal process {pid}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
