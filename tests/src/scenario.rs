//! Runs scenarios: checks what each needs, gives it a scratch cgroup, the kernel's word and a
//! tracer, bounds its time, and reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::cgroup::{Cgroup, Hierarchy, Version};
use crate::deadline::until;
use crate::death::Death;
use crate::expect::{Expected, Role, names_victim};
use crate::hog;
use crate::meminfo;
use crate::modules;
use crate::oracle::{Kill, Oracle};
use crate::tracer::Tracer;
use crate::unified::Unified;

/// A guest without KVM is that much slower.
const GUEST_FACTOR: u32 = 6;

/// Time to clean up after a scenario ran out of its own.
const GRACE: Duration = Duration::from_secs(30);

/// The machine turned out not to have what a scenario needs, or not enough of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unmet(pub String);

/// A fact about the machine without which a scenario cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Memory controller on the unified hierarchy.
    CgroupV2,
    /// A machine that is ours alone.
    Guest,
    /// Not one made for the tests: what takes a minute here may take an hour there.
    NoGuest,
    /// `CAP_SYS_RESOURCE`: protect a process from the OOM killer.
    SysResource,
    /// Memory on a second NUMA node.
    SecondNode,
    /// So many processors.
    Processors(usize),
    /// No swap, so that memory ends where it is said to end.
    NoSwap,
    /// At most this much memory, so that using it all takes seconds.
    MemoryAtMostMib(u64),
    /// The magic SysRq key.
    Sysrq,
    /// The v1 freezer, mounted or mountable.
    FreezerV1,
    /// `cgroup.kill`: the unified hierarchy, on any mount.
    CgroupKill,
    /// This module of the kernel. Of kernels that are no longer the newest, the archive may have the
    /// image and no modules.
    Module(&'static str),
    /// This program, at this path.
    Program(&'static str),
    /// The tracer itself is what is tested.
    Tracer,
}

impl Need {
    /// Why it is not met here.
    fn missing(self, runner: &Runner) -> Option<String> {
        let absent = |met: bool, why: &str| (!met).then(|| why.to_owned());
        match self {
            Self::CgroupV2 => absent(
                runner.hierarchy.version == Version::V2,
                "the memory controller is on cgroup v1",
            ),
            Self::Guest => absent(runner.options.guest, "only in a guest (--guest)"),
            Self::NoGuest => absent(!runner.options.guest, "too slow in a guest"),
            Self::SysResource => absent(has_sys_resource(), "CAP_SYS_RESOURCE is missing"),
            Self::SecondNode => absent(
                nodes_with_memory().contains([',', '-']),
                "there is one NUMA node only",
            ),
            Self::Processors(count) => absent(
                thread::available_parallelism().is_ok_and(|there| there.get() >= count),
                &format!("fewer than {count} processors"),
            ),
            Self::NoSwap => absent(
                meminfo::bytes("SwapTotal").is_ok_and(|bytes| bytes == 0),
                "there is swap",
            ),
            Self::MemoryAtMostMib(mib) => absent(
                meminfo::bytes("MemTotal").is_ok_and(|bytes| bytes >> 20 <= mib),
                &format!("more than {mib} MiB of memory"),
            ),
            Self::Sysrq => absent(
                Path::new("/proc/sysrq-trigger").exists(),
                "no /proc/sysrq-trigger",
            ),
            Self::FreezerV1 => absent(
                fs::read_to_string("/proc/cgroups").is_ok_and(|text| text.contains("freezer")),
                "no freezer controller for cgroup v1",
            ),
            Self::CgroupKill => match Unified::create("probe") {
                Ok(Some(cgroup)) => absent(cgroup.can_be_killed(), "no cgroup.kill (5.14)"),
                Ok(None) => Some("the unified hierarchy is not mounted".to_owned()),
                Err(error) => Some(format!("{error:#}")),
            },
            Self::Module(name) => {
                absent(modules::load(name), &format!("this kernel has no {name}"))
            }
            Self::Program(path) => absent(Path::new(path).exists(), &format!("no {path}")),
            Self::Tracer => absent(runner.options.oomprobe.is_some(), "needs the tracer"),
        }
    }
}

fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"));
    effective
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|set| set >> CAP_SYS_RESOURCE & 1 == 1)
}

fn nodes_with_memory() -> String {
    fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default()
}

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// What it cannot do without.
    pub needs: &'static [Need],
    /// Disturbs the whole machine: runs only when it is named, in a guest of its own.
    pub guest_exclusive: bool,
    /// Takes minutes: runs only when it is named, or in guests of a kernel that is named.
    pub slow: bool,
    /// Time it may take on a machine with virtualisation; a guest gets more.
    pub seconds: u32,
    /// What it does.
    pub run: fn(&mut Context) -> Result<()>,
}

impl Scenario {
    /// One that needs nothing special.
    pub const fn new(
        name: &'static str,
        about: &'static str,
        run: fn(&mut Context) -> Result<()>,
    ) -> Self {
        Self {
            name,
            about,
            needs: &[],
            guest_exclusive: false,
            slow: false,
            seconds: 60,
            run,
        }
    }

    /// Needs these facts.
    #[must_use]
    pub const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// Takes minutes.
    #[must_use]
    pub const fn slow(mut self) -> Self {
        self.slow = true;
        self
    }

    /// Disturbs the whole machine.
    #[must_use]
    pub const fn guest_exclusive(mut self) -> Self {
        self.guest_exclusive = true;
        self
    }

    /// Takes longer than most.
    #[must_use]
    pub const fn seconds(mut self, seconds: u32) -> Self {
        self.seconds = seconds;
        self
    }
}

/// What a scenario works with.
#[derive(Debug)]
pub struct Context {
    /// An empty cgroup of its own.
    pub scratch: Arc<Cgroup>,
    /// Interface of the memory controller.
    pub version: Version,
    /// The kernel's word since the scenario began.
    pub oracle: Oracle,
    /// End of its time.
    pub deadline: Instant,
    /// This machine is a guest made for the tests, and slow.
    pub is_guest: bool,
    oomprobe: Option<PathBuf>,
    tracer: Option<Arc<Tracer>>,
}

impl Context {
    /// The program under test.
    pub fn oomprobe(&self) -> Result<&Path> {
        self.oomprobe
            .as_deref()
            .context("this scenario needs the tracer")
    }

    /// A tracer of its own, which is then the one that events are looked for in.
    pub fn start_tracer(&mut self, arguments: &[&str]) -> Result<Arc<Tracer>> {
        let tracer = Arc::new(Tracer::start(self.oomprobe()?, arguments)?);
        self.tracer = Some(Arc::clone(&tracer));
        Ok(tracer)
    }

    /// The tracer, if there is one.
    pub fn tracer(&self) -> Option<&Tracer> {
        self.tracer.as_deref()
    }

    /// Checks one kill against the kernel's report and against exactly one event.
    pub fn check(&mut self, expected: &Expected) -> Result<()> {
        let mut kills = Vec::new();
        for victim in &expected.victims {
            if victim.role != Role::SharesMm {
                kills.push(self.oracle.wait_kill(victim.tid, self.deadline)?);
            }
        }
        let chosen = &expected.victims[0];
        let summary = self
            .oracle
            .summaries
            .iter()
            .find(|summary| summary.tid == chosen.tid);
        expected.check_kernel(&kills[0], summary)?;
        self.oracle.check_vmstat(self.deadline)?;

        let Some(tracer) = self.tracer.clone() else {
            return Ok(());
        };
        let event = tracer.wait_for("oom_kill event", self.deadline, |event| {
            names_victim(event, chosen.pid)
        })?;
        expected.check_event(&event, &kills)?;
        for victim in &expected.victims {
            check_seen_once(&tracer, victim.pid)?;
        }
        tracer.check_stream()
    }

    /// Checks one death against exactly one event, which is returned if there is a tracer.
    pub fn check_death(&self, expected: &Death) -> Result<Option<Value>> {
        let Some(tracer) = &self.tracer else {
            return Ok(None);
        };
        let told = |event: &Value| expected.is_told_by(event);
        let event = tracer.wait_for(&expected.name(), self.deadline, told)?;
        expected.check(&event)?;
        let count = tracer.events().iter().filter(|event| told(event)).count();
        ensure!(count == 1, "{count} events: {}", expected.name());
        tracer.check_stream()?;
        Ok(Some(event))
    }

    /// Checks that no event tells of this death. One that came after it, and is told, shows that
    /// nothing is still on its way.
    pub fn check_no_death(&self, unexpected: &Death, after: &Death) -> Result<()> {
        self.check_death(after)?;
        let events = self.tracer().map(Tracer::events).unwrap_or_default();
        let told = events.iter().find(|event| unexpected.is_told_by(event));
        ensure!(told.is_none(), "should not be told: {told:?}");
        Ok(())
    }

    /// Checks that each of these kernel kills is in exactly one event.
    pub fn check_all(&self, kills: &[Kill]) -> Result<()> {
        let Some(tracer) = &self.tracer else {
            return Ok(());
        };
        for kill in kills {
            tracer.wait_for(&format!("kill of {}", kill.tid), self.deadline, |event| {
                names_victim(event, kill.tid)
            })?;
            check_seen_once(tracer, kill.tid)?;
        }
        tracer.check_stream()
    }

    /// Checks that the kernel counts as many kills for `cgroup` as it logged of these threads: the
    /// chosen process of a group kill may be counted, and logged, twice.
    pub fn check_counted(&mut self, cgroup: &Cgroup, tids: &[i32]) -> Result<()> {
        let (mut counted, mut logged) = (0, 0);
        let agree = until(self.deadline, "cgroup's count equal to the log", || {
            self.oracle.read()?;
            logged = self
                .oracle
                .kills
                .iter()
                .filter(|kill| tids.contains(&kill.tid))
                .count();
            counted = cgroup.oom_kills()?;
            Ok((counted == logged as u64).then_some(()))
        });
        agree.with_context(|| format!("cgroup: {counted} kills, log: {logged}"))
    }
}

fn check_seen_once(tracer: &Tracer, pid: i32) -> Result<()> {
    let events = tracer.events();
    // A victim that is slow to die may be marked once more: an event of its own, but no kill.
    let seen = |event: &&Value| names_victim(event, pid) && event["outcome"] != "marked_exiting";
    let count = events.iter().filter(seen).count();
    ensure!(count == 1, "{count} oom_kill events name {pid}");
    Ok(())
}

/// How a run is done.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// This machine is a guest made for the tests.
    pub guest: bool,
    /// The program under test; without it only the kernel's reports are checked.
    pub oomprobe: Option<PathBuf>,
}

/// How a scenario ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All it claims is so.
    Passed,
    /// Something is not; the reason says what.
    Failed,
    /// It could not run here; the reason says why.
    Skipped,
}

/// Result of one scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub scenario: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it failed or was skipped.
    pub reason: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Runs scenarios one after another with one tracer.
#[derive(Debug)]
pub struct Runner {
    options: Options,
    hierarchy: Hierarchy,
    tracer: Option<Arc<Tracer>>,
}

impl Runner {
    /// Checks what every scenario needs.
    pub fn new(options: Options) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the scenarios need root");
        hog::binary()?;
        if options.guest && has_sys_resource() {
            // In a node OOM the witness must not be the victim. Workloads set their own.
            fs::write("/proc/self/oom_score_adj", "-1000").context("oom_score_adj")?;
        }
        let hierarchy = Hierarchy::find()?;
        hierarchy.sweep()?;
        Ok(Self {
            options,
            hierarchy,
            tracer: None,
        })
    }

    /// Runs one. `named`: it was asked for by name.
    pub fn run(&mut self, scenario: &Scenario, named: bool) -> Report {
        let start = Instant::now();
        let (outcome, reason) = match self.obstacle(scenario, named) {
            Some(reason) => (Outcome::Skipped, Some(reason)),
            None => match self.attempt(scenario) {
                Ok(()) => (Outcome::Passed, None),
                Err(error) if error.is::<Unmet>() => (Outcome::Skipped, Some(format!("{error:#}"))),
                Err(error) => (Outcome::Failed, Some(format!("{error:#}"))),
            },
        };
        Report {
            scenario: scenario.name,
            outcome,
            reason,
            seconds: start.elapsed().as_secs_f64(),
        }
    }

    fn obstacle(&self, scenario: &Scenario, named: bool) -> Option<String> {
        if let Some(reason) = scenario.needs.iter().find_map(|need| need.missing(self)) {
            return Some(reason);
        }
        if scenario.slow && !named {
            return Some("takes minutes: runs when it is named".to_owned());
        }
        let alone = scenario.guest_exclusive && !named;
        alone.then(|| "disturbs the whole machine: runs alone, when named by --only".to_owned())
    }

    /// The tracer that serves many scenarios. One that has ended is replaced: the scenario that
    /// ended it has failed.
    fn tracer(&mut self) -> Result<Option<Arc<Tracer>>> {
        let Some(oomprobe) = &self.options.oomprobe else {
            return Ok(None);
        };
        if self.tracer.as_ref().is_none_or(|tracer| tracer.has_ended()) {
            self.tracer = Some(Arc::new(Tracer::start(oomprobe, &[])?));
        }
        Ok(self.tracer.clone())
    }

    fn attempt(&mut self, scenario: &Scenario) -> Result<()> {
        let factor = if self.options.guest { GUEST_FACTOR } else { 1 };
        let timeout = Duration::from_secs(1) * scenario.seconds * factor;
        // Those that test the tracer start it their own way.
        let shared = if scenario.needs.contains(&Need::Tracer) {
            None
        } else {
            self.tracer()?
        };
        let scratch = Arc::new(self.hierarchy.scratch()?);
        let mut context = Context {
            scratch: Arc::clone(&scratch),
            version: self.hierarchy.version,
            oracle: Oracle::begin()?,
            deadline: Instant::now() + timeout,
            is_guest: self.options.guest,
            oomprobe: self.options.oomprobe.clone(),
            tracer: shared,
        };
        let run = scenario.run;
        let (sender, result) = channel();
        let thread = thread::spawn(move || {
            let outcome = run(&mut context);
            // Its processes and cgroups are gone before the result is known.
            drop(context);
            let _ = sender.send(outcome);
        });
        match result.recv_timeout(timeout + GRACE) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => {
                let _ = thread.join();
                bail!("panicked")
            }
            Err(RecvTimeoutError::Timeout) => {
                // Whatever it waits for, it does so on a process in its cgroup.
                scratch.remove()?;
                let late = result.recv_timeout(GRACE);
                bail!("hung for {timeout:?}; after its processes were killed: {late:?}")
            }
        }
    }

    /// Stops the shared tracer, which must end cleanly.
    pub fn finish(&mut self) -> Option<Report> {
        let tracer = self.tracer.take()?;
        let start = Instant::now();
        let result = tracer.stop();
        Some(Report {
            scenario: "shared_tracer_ends_cleanly",
            outcome: if result.is_ok() {
                Outcome::Passed
            } else {
                Outcome::Failed
            },
            reason: result.err().map(|error| format!("{error:#}")),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}
