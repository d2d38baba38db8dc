//! What has to be read at once when a kill begins, before it fades: the limit's memory, the
//! node's, the victims' command lines, the other candidates, the kernel log.

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use probe_common::wire;

use super::{
    assemble::Incident,
    balance::{self, Beside},
    fold::Fold,
    limit::{self, FoundBy},
};
use crate::{
    event::{Before, KernelBalance, text},
    identity::hierarchy::Hierarchies,
    node::{
        clock,
        kmsg::{self, KmsgReader, OomReport},
        memcg::{MemcgFiles, MemcgReading, Version},
        meminfo::{Meminfo, MeminfoFile},
        process::{Cmdline, ProcessDir},
        psi::{Pressure, PressureFile},
        slabinfo::{self, Cache},
        zoneinfo,
    },
    ring::decode::{Body, Record},
};
use probe_common::wire::{LimitLevel, section};

/// Processes whose command line is read for one incident.
const MAX_CMDLINES: usize = 16;

/// Memory cgroups whose files are kept open: the last that were seen at their limit.
const MAX_OPEN_MEMCGS: usize = 64;

/// Slab caches that are kept of an incident.
const SLAB_CACHES: usize = 8;

/// Reports of the kernel log that may wait for their incident.
const MAX_REPORTS: usize = 64;

/// The limit owner and the levels around it.
#[derive(Clone, Debug)]
pub struct LimitOwner {
    /// Index into `levels`.
    pub index: usize,
    /// How it was found.
    pub found_by: FoundBy,
    /// Levels from the charged memcg up.
    pub levels: Vec<(LimitLevel, Vec<u8>)>,
}

impl LimitOwner {
    /// Path of the owner.
    pub fn path(&self) -> &[u8] {
        self.levels
            .get(self.index)
            .map(|(_, path)| path.as_slice())
            .unwrap_or_default()
    }

    /// Counters of the owner.
    pub fn level(&self) -> Option<&LimitLevel> {
        self.levels.get(self.index).map(|(level, _)| level)
    }
}

/// Everything read for one incident. `None` is what could not be read.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Whose limit it was; `None` for the node, or if no hook and no counter tells.
    pub limit: Option<LimitOwner>,
    /// The owner's usage and parts, and how long after the decision they were read, ns.
    pub memory: Option<(MemcgReading, u64)>,
    /// The node's memory, and how long after the decision it was read, ns.
    pub node: Option<(Meminfo, u64)>,
    /// Sum of the zones' `min` watermarks, pages.
    pub watermark_min_pages: Option<u64>,
    /// Where the node's memory is; read if it may have been all of it that ran out.
    pub balance: Option<KernelBalance>,
    /// The biggest slab caches, biggest first; read with it.
    pub slab_caches: Vec<Cache>,
    /// Pressure on cpu, memory, io.
    pub pressure: [Option<Pressure>; 3],
    /// Arguments by process id.
    pub cmdlines: BTreeMap<u32, Vec<String>>,
    /// Every process with memory, and the path of its memory cgroup.
    pub candidates: Vec<(wire::Task, Option<Vec<u8>>)>,
    /// What led up to it, as far as it was recorded.
    pub before: Option<Before>,
    /// The kernel log's report, where no hook gives the decision.
    pub log: Option<OomReport>,
}

impl Evidence {
    fn keep(&mut self, task: &wire::Task, cmdline: &Cmdline) {
        if !cmdline.args.is_empty() {
            let args = cmdline.args.iter().map(|arg| text(arg)).collect();
            self.cmdlines.insert(task.pid, args);
        }
    }
}

/// Reads evidence. Holds open what can be.
pub struct Collector {
    proc: PathBuf,
    sys: PathBuf,
    hierarchies: Option<Hierarchies>,
    meminfo: Option<MeminfoFile>,
    /// Of cpu, memory, io.
    pressure: [Option<PressureFile>; 3],
    watermark_min_pages: Option<u64>,
    memcgs: Vec<(Vec<u8>, MemcgFiles)>,
    kmsg: Option<KmsgReader>,
    log: kmsg::Assembler,
    /// Reports of the kernel log that no incident has claimed, oldest first.
    reports: VecDeque<OomReport>,
    /// By the path of the limit owner.
    fold: Fold<Option<Vec<u8>>>,
    buf: Vec<u8>,
}

impl Collector {
    /// `host_root` has the host's procfs and sysfs; `kmsg` is needed only where no hook gives the
    /// decision.
    pub fn new(
        host_root: &Path,
        hierarchies: Option<Hierarchies>,
        kmsg: Option<KmsgReader>,
    ) -> Self {
        let proc = host_root.join("proc");
        Self {
            sys: host_root.join("sys"),
            hierarchies,
            meminfo: MeminfoFile::open(&proc).ok(),
            pressure: ["cpu", "memory", "io"]
                .map(|resource| PressureFile::open(proc.join("pressure").join(resource)).ok()),
            // Set at boot and by an administrator: once is enough.
            watermark_min_pages: zoneinfo::min_pages(&proc).ok(),
            memcgs: Vec::new(),
            kmsg,
            log: kmsg::Assembler::default(),
            reports: VecDeque::new(),
            fold: Fold::new(),
            buf: Vec::new(),
            proc,
        }
    }

    /// Reads what fades first, as soon as an incident is open.
    pub fn open(&mut self, incident: &Incident) -> Evidence {
        let mut evidence = Evidence::default();
        if let Some(context) = incident.context() {
            evidence.limit = owner(context, None);
            self.read_memory(incident, &mut evidence);
        }
        if let Some(meminfo) = self.meminfo.as_mut().and_then(|file| file.read().ok()) {
            let delay_ns = clock::boot_ns().saturating_sub(incident.boot_ns);
            evidence.node = Some((meminfo, delay_ns));
        }
        evidence.watermark_min_pages = self.watermark_min_pages;
        for (slot, file) in evidence.pressure.iter_mut().zip(&self.pressure) {
            let read = file.as_ref().map(|file| file.read(&mut self.buf));
            *slot = read.and_then(|pressure| pressure.ok().flatten());
        }
        if let Some(record) = incident.context()
            && let Some(victim) = victim_of(record)
        {
            match record.arguments() {
                Some(arguments) => evidence.keep(victim, &Cmdline::parse(arguments)),
                // Last: the kernel holds the victim's lock until its report is on the console.
                None => self.process(victim, &mut evidence),
            }
        }
        if evidence.limit.is_none() {
            self.read_kernel_memory(&mut evidence);
        }
        evidence
    }

    /// Where the kernel's share of the node's memory is: takes milliseconds, and what a victim gives
    /// back is not among it.
    fn read_kernel_memory(&self, evidence: &mut Evidence) {
        let meminfo = evidence.node.as_ref().map(|(meminfo, _)| meminfo);
        evidence.balance = meminfo.and_then(|meminfo| {
            let beside = Beside::read_all(&self.proc, &self.sys);
            balance::of(meminfo, &beside)
        });
        evidence.slab_caches = slabinfo::read(&self.proc).unwrap_or_default();
        evidence.slab_caches.truncate(SLAB_CACHES);
    }

    fn read_memory(&mut self, incident: &Incident, evidence: &mut Evidence) {
        if let Some(owner) = &evidence.limit {
            let path = owner.path().to_owned();
            evidence.memory = self
                .memory(&path)
                .map(|reading| (reading, clock::boot_ns().saturating_sub(incident.boot_ns)));
        }
    }

    /// Whether a process is there and not merely waits to be reaped.
    pub fn is_alive(&self, task: &wire::Task) -> bool {
        let mut buf = Vec::new();
        ProcessDir::open_started_at(&self.proc, task.pid, task.start_boot_ns, &mut buf)
            .and_then(|dir| dir.stat(&mut buf))
            .is_ok_and(|stat| stat.state != b'Z')
    }

    /// Keeps up with the kernel log, so that a kill finds little left to read.
    pub fn follow_log(&mut self) {
        let Some(reader) = self.kmsg.as_mut() else {
            return;
        };
        // An error other than "nothing more" is transient (`EPIPE` is counted by the reader).
        while let Ok(Some(record)) = reader.next_record() {
            if let Some(report) = self.log.push(record) {
                keep(&mut self.reports, report);
            }
        }
        if let Some(report) = self.log.expire(clock::monotonic_ns() / 1000) {
            keep(&mut self.reports, report);
        }
    }

    /// Invocations that killed nobody, by the kernel log: with ns since boot, and how many of
    /// their kind were not reported before.
    pub fn fruitless(&mut self) -> Vec<(OomReport, u64, u64)> {
        self.follow_log();
        let suspended_ns = clock::boot_ns().saturating_sub(clock::monotonic_ns());
        let is_fruitless = |report: &OomReport| report.no_killable && report.victims.is_empty();
        let mut found = Vec::new();
        for _ in 0..self.reports.len() {
            let Some(report) = self.reports.pop_front() else {
                break;
            };
            if !is_fruitless(&report) {
                self.reports.push_back(report);
                continue;
            }
            let boot_ns = report.time_us.saturating_mul(1000) + suspended_ns;
            if let Some(folded) = self.fold.admit(report.limit_cgroup.clone(), boot_ns) {
                found.push((report, boot_ns, folded));
            }
        }
        found
    }

    /// Adds what is known once all victims are.
    pub fn close(&mut self, incident: &Incident, evidence: &mut Evidence) {
        for victim in incident.victims.iter().take(MAX_CMDLINES) {
            if !evidence.cmdlines.contains_key(&victim.task.pid) {
                self.process(&victim.task, evidence);
            }
        }
        if incident.decision.is_none() {
            evidence.log = self.log(incident);
            let first_guess = evidence.limit.as_ref().map(|owner| owner.path().to_owned());
            evidence.limit = incident
                .context()
                .and_then(|context| owner(context, evidence.log.as_ref()));
            let path = evidence.limit.as_ref().map(|owner| owner.path().to_owned());
            if path != first_guess {
                // The log corrected the inference: what was read is somebody else's memory.
                evidence.memory = None;
                self.read_memory(incident, evidence);
            }
        }
    }

    /// `MemAvailable` of the node.
    pub fn available_bytes(&mut self) -> Option<u64> {
        self.meminfo.as_mut()?.read().ok()?.available_bytes
    }

    /// Usage and parts of the memory cgroup at `path`, through files kept open.
    pub fn memory(&mut self, path: &[u8]) -> Option<MemcgReading> {
        let files = match self.memcgs.iter().position(|(known, _)| known == path) {
            Some(index) => {
                let entry = self.memcgs.remove(index);
                self.memcgs.push(entry);
                &mut self.memcgs.last_mut()?.1
            }
            None => self.open_memcg(path)?,
        };
        match files.read() {
            Ok(reading) => Some(reading),
            Err(error) if error.is_gone() => {
                // A cgroup of the same name may have taken its place.
                self.memcgs.pop();
                self.open_memcg(path)?.read().ok()
            }
            Err(_) => None,
        }
    }

    fn open_memcg(&mut self, path: &[u8]) -> Option<&mut MemcgFiles> {
        let dir = self.directory(path)?;
        let files = MemcgFiles::open(&dir, Version::of(&dir)?).ok()?;
        if self.memcgs.len() >= MAX_OPEN_MEMCGS {
            self.memcgs.remove(0);
        }
        self.memcgs.push((path.to_owned(), files));
        self.memcgs.last_mut().map(|(_, files)| files)
    }

    /// Where the memory cgroup at `path` is in this process's view.
    pub fn directory(&self, path: &[u8]) -> Option<PathBuf> {
        let mount = &self.hierarchies.as_ref()?.memory;
        let below = path.strip_prefix(mount.root.as_slice())?;
        let below = below.strip_prefix(b"/").unwrap_or(below);
        Some(mount.path.join(OsStr::from_bytes(below)))
    }

    fn process(&mut self, task: &wire::Task, evidence: &mut Evidence) {
        let Ok(dir) =
            ProcessDir::open_started_at(&self.proc, task.pid, task.start_boot_ns, &mut self.buf)
        else {
            return;
        };
        if let Ok(cmdline) = dir.cmdline(&mut self.buf) {
            evidence.keep(task, &cmdline);
        }
    }

    /// What the kernel log says of this incident.
    fn log(&mut self, incident: &Incident) -> Option<OomReport> {
        self.follow_log();
        let is_this = |report: &OomReport| {
            let tids: Vec<u32> = incident
                .victims
                .iter()
                .flat_map(|victim| [victim.task.tid, victim.task.pid])
                .collect();
            report
                .chosen
                .as_ref()
                .is_some_and(|chosen| tids.contains(&chosen.tid))
                || report
                    .victims
                    .iter()
                    .any(|victim| tids.contains(&victim.tid))
        };
        // Reports of incidents that are closed later stay.
        if let Some(index) = self.reports.iter().rposition(is_this) {
            return self.reports.remove(index);
        }
        self.log
            .in_progress()
            .filter(|report| is_this(report))
            .cloned()
    }
}

fn keep(reports: &mut VecDeque<OomReport>, report: OomReport) {
    if reports.len() >= MAX_REPORTS {
        reports.pop_front();
    }
    reports.push_back(report);
}

/// The victim that opened an incident.
fn victim_of(context: &Record) -> Option<&wire::Task> {
    match &context.body {
        Body::OomDecision(decision) => Some(&decision.victim),
        Body::MarkVictim(mark) => Some(&mark.victim),
        _ => None,
    }
}

/// The limit owner: named by the decision, else inferred from the trigger's ancestors.
fn owner(context: &Record, log: Option<&OomReport>) -> Option<LimitOwner> {
    let levels = context.limit_levels();
    let is_named = matches!(context.body, Body::OomDecision(_) | Body::OomEnd(_));
    let tag = if is_named {
        section::LIMIT_PATH
    } else {
        section::TRIGGER_PATH
    };
    let names = context.names(tag)?;
    let paths: Vec<Vec<u8>> = (0..levels.len()).map(|up| names.path(up)).collect();
    let (index, found_by) = if is_named {
        if levels.is_empty() {
            return None;
        }
        (0, FoundBy::OomControl)
    } else {
        let victim = context.names(section::VICTIM_PATH)?.path(0);
        let logged = log
            .filter(|log| log.constraint.is_some())
            .map(|log| log.limit_cgroup.as_deref());
        limit::infer(&levels, &paths, &victim, logged)?
    };
    Some(LimitOwner {
        index,
        found_by,
        levels: levels.into_iter().zip(paths).collect(),
    })
}
