//! `oomprobe demo`: one contained OOM kill, traced and explained.

use std::{
    cell::Cell,
    fs,
    io::{self, Write, stdout},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{Common, Output, colour, exit, obstacle};
use crate::{
    daemon::{self, Deaths, Filter, Options},
    event::{Body, Event},
    identity::hierarchy,
    sink::{Error, Sink, json::Json, terminal::Terminal},
};

/// Limit of the scratch cgroup.
const LIMIT_BYTES: u64 = 32 << 20;

/// How long the kill may take; on an idle machine it is milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait for a dying process to leave its cgroup.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// Arguments of `oomprobe demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Makes a cgroup with a limit of 32 MiB, lets a process of its own allocate more in it, and shows
the event of the kill. Nothing else is touched and nothing is left behind. Needs root.")]
pub struct Args {
    /// How to write the events [default: pretty]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

/// Arguments of the process that gets killed.
#[derive(Debug, clap::Args)]
pub struct HogArgs {
    /// Bytes to allocate at most.
    #[arg(long, default_value_t = LIMIT_BYTES * 4)]
    bytes: u64,
}

/// Runs the demonstration. Fails if its own kill was not seen.
pub fn run(args: &Args, common: Common) -> anyhow::Result<ExitCode> {
    if let Some(missing) = obstacle(&common) {
        eprintln!("oomprobe: cannot trace here: {missing}");
        return Ok(ExitCode::from(exit::UNSUPPORTED));
    }
    let scratch = Scratch::make(&common.host_root)?;
    let path = scratch.path.clone();
    let seen = Arc::new(AtomicBool::new(false));
    let out: Box<dyn Sink + Send> = match args.output.unwrap_or(Output::Pretty) {
        Output::Json => Box::new(Json::new(stdout())),
        Output::Pretty => Box::new(Terminal::new(stdout(), colour())),
    };
    let sink = OnlyMine {
        out,
        path,
        incident: None,
        seen: Arc::clone(&seen),
    };
    let options = Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        heartbeat: Duration::ZERO,
        duration: Some(PATIENCE),
        count: Some(1),
        leak_window: daemon::LEAK_WINDOW,
        leaks: None,
        deaths: Deaths::Off,
        filter: Filter {
            cgroup: Some(scratch.path.clone()),
            ..Filter::default()
        },
    };
    eprintln!(
        "oomprobe demo: a process allocates in {} until its limit of {} MiB kills it",
        scratch.dir.display(),
        LIMIT_BYTES >> 20
    );
    let hog: Rc<Cell<Option<Child>>> = Rc::default();
    let failed: Rc<Cell<Option<anyhow::Error>>> = Rc::default();
    let (started, problem, dir) = (Rc::clone(&hog), Rc::clone(&failed), scratch.dir.clone());
    daemon::run(options, sink, move || match start_hog(&dir) {
        Ok(child) => started.set(Some(child)),
        Err(error) => problem.set(Some(error)),
    })?;
    if let Some(mut child) = hog.take() {
        // It is dead already unless something went wrong.
        let _ = child.kill();
        child
            .wait()
            .context("cannot wait for the process of the demonstration")?;
    }
    drop(scratch);
    if let Some(error) = failed.take() {
        return Err(error);
    }
    if !seen.load(Ordering::Acquire) {
        eprintln!(
            "oomprobe: the kill of the demonstration was not seen; `oomprobe doctor` tells which \
             hooks work here"
        );
        return Ok(ExitCode::from(exit::FAILURE));
    }
    Ok(ExitCode::SUCCESS)
}

/// Allocates, touching every page, until the limit is hit. Exits 1 if it never is.
pub fn hog(args: &HogArgs) -> anyhow::Result<ExitCode> {
    const STEP: usize = 1 << 20;
    // It inherits the tracer's protection; a kill of a protected process would be no example.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    // Waits for the go: it must be in its cgroup first.
    let mut go = String::new();
    io::stdin().read_line(&mut go)?;
    let mut kept = Vec::new();
    for round in 0..args.bytes / (STEP as u64) {
        // Not zero: the kernel gives the zero page for what is only read.
        kept.push(vec![u8::try_from(round % 255 + 1).unwrap_or(1); STEP]);
    }
    eprintln!(
        "oomprobe: {} MiB allocated and not killed: the limit does not work",
        kept.len()
    );
    Ok(ExitCode::from(exit::FAILURE))
}

fn start_hog(dir: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(program)
        .arg("demo-hog")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the process of the demonstration")?;
    fs::write(dir.join("cgroup.procs"), child.id().to_string())
        .with_context(|| format!("cannot move a process into {}", dir.display()))?;
    if let Some(stdin) = &mut child.stdin {
        stdin
            .write_all(b"go\n")
            .context("cannot start the allocation")?;
    }
    Ok(child)
}

/// Lets the demonstration's own events through, and the first status.
struct OnlyMine {
    out: Box<dyn Sink + Send>,
    path: String,
    incident: Option<String>,
    seen: Arc<AtomicBool>,
}

impl Sink for OnlyMine {
    fn write(&mut self, event: &Event) -> Result<(), Error> {
        let mine = match &event.body {
            Body::OomKill(kill) => {
                let mine = kill.victims.iter().any(|victim| {
                    victim
                        .cgroup
                        .as_ref()
                        .and_then(|cgroup| cgroup.path.as_ref())
                        == Some(&self.path)
                });
                if mine {
                    self.incident = Some(kill.incident.clone());
                    self.seen.store(true, Ordering::Release);
                }
                mine
            }
            Body::OomOutcome(outcome) => self.incident.as_ref() == Some(&outcome.incident),
            Body::ProcessDeath(_)
            | Body::MemcgLimit(_)
            | Body::ReclaimStall(_)
            | Body::Pressure(_)
            | Body::LeakSuspect(_)
            | Body::Triage(_)
            | Body::SkbHolders(_)
            | Body::SlabUsage(_)
            | Body::SkbOutstanding(_)
            | Body::SlabOutstanding(_)
            | Body::ProbeStatus(_)
            | Body::Heartbeat(_) => false,
            Body::Loss(_) | Body::Gap(_) => true,
        };
        if mine { self.out.write(event) } else { Ok(()) }
    }
}

/// A cgroup with a limit, removed when dropped.
struct Scratch {
    /// In this process's view.
    dir: PathBuf,
    /// From the hierarchy's root.
    path: String,
}

impl Scratch {
    fn make(host_root: &Path) -> anyhow::Result<Self> {
        let mount = hierarchy::find(host_root)?.memory;
        if !mount.root.is_empty() && mount.root != b"/" {
            bail!(
                "only a part of the cgroup tree is visible here: run the demonstration outside \
                 the container, or with the host's cgroup namespace"
            );
        }
        let name = format!("oomprobe-demo-{}", std::process::id());
        let dir = mount.path.join(&name);
        fs::create_dir(&dir).with_context(|| {
            format!(
                "cannot make the scratch cgroup {}: the demonstration needs root",
                dir.display()
            )
        })?;
        let scratch = Self {
            dir,
            path: format!("/{name}"),
        };
        scratch.limit()?;
        Ok(scratch)
    }

    fn limit(&self) -> anyhow::Result<()> {
        let bytes = LIMIT_BYTES.to_string();
        let v1 = self.dir.join("memory.limit_in_bytes");
        if v1.exists() {
            fs::write(&v1, &bytes).with_context(|| format!("cannot set {}", v1.display()))?;
            // Absent without swap accounting.
            let _ = fs::write(self.dir.join("memory.memsw.limit_in_bytes"), &bytes);
            return Ok(());
        }
        let v2 = self.dir.join("memory.max");
        if !v2.exists() {
            bail!(
                "the memory controller is not enabled for children of {}; remedy: echo +memory > \
                 {}/cgroup.subtree_control",
                self.dir.parent().unwrap_or(&self.dir).display(),
                self.dir.parent().unwrap_or(&self.dir).display()
            );
        }
        fs::write(&v2, &bytes).with_context(|| format!("cannot set {}", v2.display()))?;
        // Absent where there is no swap.
        let _ = fs::write(self.dir.join("memory.swap.max"), "0");
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let deadline = std::time::Instant::now() + CLEAN_UP;
        while let Err(error) = fs::remove_dir(&self.dir) {
            // The dead process may still be leaving.
            if std::time::Instant::now() >= deadline {
                eprintln!("oomprobe: cannot remove {}: {error}", self.dir.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
