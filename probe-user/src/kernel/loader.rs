//! Loads the BPF object and, signal by signal, the first rung of the ladder the kernel takes.

use std::{
    fs::File,
    io,
    mem::size_of,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
};

use aya::{
    Btf, BtfError, Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, FEntry, FExit, Iter, KProbe, Program, ProgramError, RawTracePoint},
};
use probe_common::{
    layout::{KernelLayout, Settings, deaths},
    limits::{LRU_ENTRIES_PER_CPU, MAX_DULL, MAX_RSS_CPUS, MAX_SENT, MAX_VICTIMS},
    wire::{self, Loss, STOP_SIGNALS, Sent, sent_key},
};

use super::{
    ladder::{Hook, LADDER, Rung, Signal},
    pressure::PressureMaps,
};

/// The object `cargo xtask build-ebpf` made.
pub(super) static OBJECT: &[u8] =
    include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/oomprobe.bpf.o"));

/// The embedded BPF object.
pub const fn object() -> &'static [u8] {
    OBJECT
}

/// Lines of the verifier's log that a refusal carries; the decisive one is near the end.
const VERIFIER_LINES: usize = 6;

/// Looked for before a kprobe program is loaded: the verifier takes up to 100 ms for one that
/// could not be attached.
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe/type";

const NO_FUNCTION: &str = "this kernel has no function";
const NO_KPROBES: &str = "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)";

/// First guess at the bytes of one pass over the candidates, some 500 processes: `read_to_end()`
/// starts with 32 bytes otherwise, and each read has the kernel set up its walk again.
const CANDIDATES_BYTES: usize = 64 << 10;

/// Most candidates read in one pass: bounds memory on a node with very many processes.
const MAX_CANDIDATES: usize = 65_536;

/// Name of the map of [`Settings`].
const SETTINGS: &str = "SETTINGS";

/// A signal and what became of each of its rungs.
pub type Surveyed = (Signal, Vec<(Hook, Result<(), String>)>);

/// Why the probe could not be set up at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's own types cannot be read.
    #[error("cannot read this kernel's BTF")]
    Btf(#[from] aya::BtfError),
    /// The object as a whole was refused: maps, or BPF itself.
    #[error("the kernel refused oomprobe's BPF maps")]
    Object(#[from] EbpfError),
    /// A map of the object cannot be used.
    #[error("BPF map {name} cannot be used")]
    Map {
        /// Which.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// The object and this program are not of one build.
    #[error("the BPF object has no {0}: it was not built from these sources")]
    Missing(&'static str),
    /// A signal without which nothing can be traced is not served.
    #[error("no hook for {signal} can be attached ({refused})")]
    Essential {
        /// Its name.
        signal: &'static str,
        /// Each hook with its reason.
        refused: String,
    },
}

/// Which hook serves a signal.
#[derive(Clone, Debug)]
pub struct Served {
    /// The signal.
    pub signal: Signal,
    /// The hook in use; `None` if all were refused.
    pub hook: Option<Hook>,
    /// Better hooks and why each was refused, best first.
    pub refused: Vec<(Hook, String)>,
}

/// The attached programs and their maps. Dropping it detaches everything.
pub struct Probe {
    ebpf: Ebpf,
    lost: PerCpuArray<MapData, u64>,
    settings: Array<MapData, Settings>,
    pressure: PressureMaps,
    critical: Option<RingBuf<MapData>>,
    bulk: Option<RingBuf<MapData>>,
    deaths: Option<RingBuf<MapData>>,
    dull: HashMap<MapData, u64, u8>,
    sent: HashMap<MapData, u64, Sent>,
    /// Every signal of the ladder, in its order.
    pub served: Vec<Served>,
}

impl Probe {
    /// Loads and attaches.
    ///
    /// `cpus` is the number of possible CPUs, `deaths` which deaths are told: one of
    /// [`probe_common::layout::deaths`]; `prefers_kprobe` what
    /// [`prefers_kprobe`](super::ladder::prefers_kprobe) says.
    pub fn attach(
        layout: &KernelLayout,
        cpus: u32,
        deaths: u32,
        prefers_kprobe: bool,
    ) -> Result<Self, LoadError> {
        let mut ebpf = load(layout, cpus, deaths)?;
        let lost = map(&mut ebpf, "LOST", PerCpuArray::try_from)?;
        let critical = map(&mut ebpf, "CRITICAL", RingBuf::try_from)?;
        let bulk = map(&mut ebpf, "BULK", RingBuf::try_from)?;
        let deaths = map(&mut ebpf, "DEATHS", RingBuf::try_from)?;
        let dull = map(&mut ebpf, "DULL", HashMap::try_from)?;
        let sent = map(&mut ebpf, "SENT", HashMap::try_from)?;
        let mut settings: Array<MapData, Settings> = map(&mut ebpf, SETTINGS, Array::try_from)?;
        let pressure = PressureMaps::take(&mut ebpf)?;

        let btf = Btf::from_sys_fs()?;
        let mut served: Vec<Served> = Vec::with_capacity(LADDER.len());
        let mut known = Settings::default();
        for (signal, rungs) in LADDER {
            let is_served = |other| served.iter().any(|s| s.signal == other && s.hook.is_some());
            let mut result = match indistinct(*signal, is_served) {
                Some(why) => Served {
                    signal: *signal,
                    hook: None,
                    refused: hooks(rungs).map(|hook| (hook, why.clone())).collect(),
                },
                None => serve(&mut ebpf, &btf, layout, *signal, on(rungs, prefers_kprobe)),
            };
            match (signal, result.hook) {
                (Signal::OomDecision, Some(_)) => known.has_decision = 1,
                (Signal::LimitHit, Some(_)) => known.has_limit_hit = 1,
                (Signal::HighThrottle | Signal::RefaultWait, Some(_)) => known.stalls_nest = 1,
                (_, Some(_)) => {}
                (_, None) => {
                    let stand_in = served.iter().find(|s| Some(s.signal) == signal.stand_in());
                    result.hook = stand_in.and_then(|served| served.hook);
                }
            }
            settings.set(0, known, 0).map_err(|source| LoadError::Map {
                name: SETTINGS,
                source,
            })?;
            if signal.is_essential() && result.hook.is_none() {
                let refused: Vec<String> = result
                    .refused
                    .iter()
                    .map(|(hook, why)| format!("{hook}: {why}"))
                    .collect();
                return Err(LoadError::Essential {
                    signal: signal.name(),
                    refused: refused.join("; "),
                });
            }
            served.push(result);
        }
        Ok(Self {
            ebpf,
            lost,
            settings,
            pressure,
            critical: Some(critical),
            bulk: Some(bulk),
            deaths: Some(deaths),
            dull,
            sent,
            served,
        })
    }

    /// The ring of OOM kills and the exits of their victims. It can be taken once.
    pub fn take_critical(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        self.critical.take().ok_or(LoadError::Missing("CRITICAL"))
    }

    /// The ring of rates and life cycle. It can be taken once.
    pub fn take_bulk(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        self.bulk.take().ok_or(LoadError::Missing("BULK"))
    }

    /// The ring of deaths. It can be taken once. Not every death wakes who waits for it
    /// ([`probe_common::limits::DEATH_WAKEUP_NS`]).
    pub fn take_deaths(&mut self) -> Result<RingBuf<MapData>, LoadError> {
        self.deaths.take().ok_or(LoadError::Missing("DEATHS"))
    }

    /// The hook that serves `signal`.
    pub fn hook(&self, signal: Signal) -> Option<Hook> {
        self.served
            .iter()
            .find(|served| served.signal == signal)?
            .hook
    }

    /// Tells the programs where the per-CPU parts of counters are; until then rss is approximate.
    pub fn set_per_cpu(&mut self, per_cpu_offset: u64) -> Result<(), MapError> {
        let mut settings = self.settings.get(&0, 0)?;
        settings.per_cpu_offset = per_cpu_offset;
        self.settings.set(0, settings, 0)
    }

    /// Deaths in this memory cgroup (kernfs id) are of no interest: the programs need not record
    /// them. They may all the same, as they remember a bounded number of cgroups.
    pub fn dull(&mut self, memcg_id: u64) {
        // Refused only for want of memory: what it would have kept away comes through.
        let _ = self.dull.insert(memcg_id, 0, 0);
    }

    /// What asked the process `pid`, which runs, to stop. If it was long ago, that may have been
    /// another process of the same id.
    pub fn requests(&self, pid: u32) -> Vec<Sent> {
        let keys = STOP_SIGNALS.iter().map(|signal| sent_key(pid, *signal));
        keys.filter_map(|key| self.sent.get(&key, 0).ok()).collect()
    }

    /// Losses counted in the kernel since the start, by reason.
    pub fn losses(&self) -> Result<[(Loss, u64); Loss::ALL.len()], MapError> {
        let mut out = Loss::ALL.map(|reason| (reason, 0));
        for (reason, total) in &mut out {
            *total = self.lost.get(&(*reason as u32), 0)?.iter().sum();
        }
        Ok(out)
    }

    /// How often the kernel did not run an attached program, by its name, with its hook: another
    /// task had been stopped in the middle of the same program on that CPU, where tracepoints can be
    /// preempted, or in a BPF system call, for a kprobe. An upper bound of what was missed, as most runs find nothing to tell.
    /// Kernels that do not count it (`recursion_misses` in fdinfo, `bpf_prog_show_fdinfo()`,
    /// kernel/bpf/syscall.c) add nothing.
    pub fn skipped(&self) -> Vec<(&'static str, Hook, u64)> {
        let hooks = LADDER.iter().flat_map(|(_, rungs)| rungs.iter());
        let programs = hooks.flat_map(|rung| rung.programs.iter());
        programs
            .filter_map(|(name, hook)| Some((*name, *hook, skipped(&self.ebpf, name)?)))
            .filter(|(_, _, count)| *count > 0)
            .collect()
    }

    /// What was counted of limit hits and stalls, to read and to clear.
    pub fn pressure(&mut self) -> &mut PressureMaps {
        &mut self.pressure
    }

    /// Every process of the node that has memory, in one pass of the task iterator. One whose
    /// leader exited before its threads may appear several times.
    pub fn candidates(&mut self) -> io::Result<Vec<wire::Task>> {
        if self.hook(Signal::Candidates).is_none() {
            return Ok(Vec::new());
        }
        let program = self
            .ebpf
            .program_mut("candidates")
            .ok_or(io::ErrorKind::NotFound)?;
        let program: &mut Iter = program.try_into().map_err(io::Error::other)?;
        let link = program.attach().map_err(io::Error::other)?;
        let file = program
            .take_link(link)
            .map_err(io::Error::other)?
            .into_file()
            .map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(CANDIDATES_BYTES);
        let most = (MAX_CANDIDATES * size_of::<wire::Task>()) as u64;
        io::Read::read_to_end(&mut io::Read::take(file, most), &mut bytes)?;
        Ok(bytes
            .chunks_exact(size_of::<wire::Task>())
            .map(bytemuck::pod_read_unaligned)
            .collect())
    }
}

/// How often the kernel did not run the program called `name`; `None` if it does not count that.
pub(super) fn skipped(ebpf: &Ebpf, name: &str) -> Option<u64> {
    let fd = ebpf.program(name)?.fd().ok()?;
    of_fdinfo(fd.as_fd(), "recursion_misses:")
}

/// A number that the kernel tells about an open program or map.
pub(super) fn of_fdinfo(fd: BorrowedFd<'_>, key: &str) -> Option<u64> {
    let fd = fd.as_raw_fd();
    let file = File::open(format!("/proc/self/fdinfo/{fd}")).ok()?;
    // Longer than any: asked for some twenty programs a second, and each read is a text of its own.
    let mut text = [0; 1024];
    let len = file.read_at(&mut text, 0).ok()?;
    let info = std::str::from_utf8(&text[..len]).ok()?;
    let value = info.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().parse().ok()
}

/// Loads and attaches every rung of every signal, one at a time, and takes each back: what this
/// kernel allows, for `oomprobe doctor`.
pub fn survey(
    layout: &KernelLayout,
    cpus: u32,
    prefers_kprobe: bool,
) -> Result<Vec<Surveyed>, LoadError> {
    let mut ebpf = load(layout, cpus, deaths::CONTAINERS)?;
    let btf = Btf::from_sys_fs()?;
    let mut surveyed: Vec<Surveyed> = Vec::with_capacity(LADDER.len());
    for (signal, rungs) in LADDER {
        let is_served = |other| {
            let mut others = surveyed.iter().filter(|(signal, _)| *signal == other);
            others.any(|(_, rungs)| rungs.iter().any(|(_, result)| result.is_ok()))
        };
        if let Some(why) = indistinct(*signal, is_served) {
            let refused = hooks(rungs).map(|hook| (hook, Err(why.clone())));
            surveyed.push((*signal, refused.collect()));
            continue;
        }
        let rungs = on(rungs, prefers_kprobe).filter_map(|rung| {
            let result = try_rung(&mut ebpf, &btf, layout, rung);
            if result.is_ok() {
                unload(&mut ebpf, rung.programs);
            }
            Some((rung.hook()?, result))
        });
        let mut rungs: Vec<_> = rungs.collect();
        let works = |(_, result): &&(Hook, Result<(), String>)| result.is_ok();
        if !rungs.iter().any(|rung| works(&rung)) {
            let stand_in = surveyed.iter().find(|s| Some(s.0) == signal.stand_in());
            rungs.extend(
                stand_in
                    .and_then(|(_, rungs)| rungs.iter().find(works))
                    .cloned(),
            );
        }
        surveyed.push((*signal, rungs));
    }
    Ok(surveyed)
}

/// Creates the maps; the programs are loaded one by one.
fn load(layout: &KernelLayout, cpus: u32, deaths: u32) -> Result<Ebpf, LoadError> {
    raise_memlock();
    // Each CPU may keep 128 entries of an LRU map for itself: a map of few entries would be used up
    // by many CPUs, which then give up what they only just put in.
    let entries = |least: u32| least.max(cpus.saturating_mul(LRU_ENTRIES_PER_CPU));
    let (victims, sent, dull) = (entries(MAX_VICTIMS), entries(MAX_SENT), entries(MAX_DULL));
    let cpus = if cpus <= MAX_RSS_CPUS { cpus } else { 0 };
    Ok(EbpfLoader::new()
        .override_global("LAYOUT", layout, true)
        .override_global("CPUS", &cpus, true)
        .override_global("TOLD_DEATHS", &deaths, true)
        .map_max_entries("VICTIMS", victims)
        .map_max_entries("SENT", sent)
        .map_max_entries("DULL", dull)
        .load(OBJECT)?)
}

pub(super) fn map<T>(
    ebpf: &mut Ebpf,
    name: &'static str,
    convert: impl FnOnce(aya::maps::Map) -> Result<T, MapError>,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    convert(map).map_err(|source| LoadError::Map { name, source })
}

/// Tries the rungs of one signal until one holds.
fn serve(
    ebpf: &mut Ebpf,
    btf: &Btf,
    layout: &KernelLayout,
    signal: Signal,
    rungs: impl Iterator<Item = &'static Rung>,
) -> Served {
    let mut refused = Vec::new();
    for rung in rungs {
        let Some(name) = rung.hook() else { continue };
        match try_rung(ebpf, btf, layout, rung) {
            Ok(()) => {
                return Served {
                    signal,
                    hook: Some(name),
                    refused,
                };
            }
            Err(why) => refused.push((name, why)),
        }
    }
    Served {
        signal,
        hook: None,
        refused,
    }
}

/// The rungs that make sense where a kprobe is preferred to a tracepoint, or where it is not.
fn on(rungs: &'static [Rung], prefers_kprobe: bool) -> impl Iterator<Item = &'static Rung> {
    let makes_sense = move |rung: &&Rung| prefers_kprobe || !rung.only_if_preferred;
    rungs.iter().filter(makes_sense)
}

fn hooks(rungs: &[Rung]) -> impl Iterator<Item = Hook> {
    rungs.iter().filter_map(Rung::hook)
}

/// Why what the hooks of `signal` observe could be another one.
fn indistinct(signal: Signal, is_served: impl Fn(Signal) -> bool) -> Option<String> {
    let other = signal
        .told_apart_by()
        .iter()
        .find(|&&other| !is_served(other))?;
    Some(format!(
        "it could not be told from {}, which no hook serves",
        other.name()
    ))
}

/// Attaches all programs of a rung, or none.
fn try_rung(ebpf: &mut Ebpf, btf: &Btf, layout: &KernelLayout, rung: &Rung) -> Result<(), String> {
    if let Some(need) = rung.needs
        && (need.field)(layout) != 1
    {
        return Err(need.why_not.to_owned());
    }
    for (index, (name, hook)) in rung.programs.iter().enumerate() {
        if let Err(why) = try_program(ebpf, btf, name, *hook) {
            unload(ebpf, rung.programs.get(..=index).unwrap_or_default());
            return Err(why);
        }
    }
    Ok(())
}

/// Loads and attaches one program, or says why it cannot be.
pub(super) fn try_program(
    ebpf: &mut Ebpf,
    btf: &Btf,
    name: &str,
    hook: Hook,
) -> Result<(), String> {
    match ebpf.program_mut(name) {
        _ if is_kprobe(hook) && !Path::new(KPROBE_PMU).exists() => Err(NO_KPROBES.to_owned()),
        Some(program) => attach(program, hook, btf)
            .map_err(|error| missing(hook, &error).unwrap_or_else(|| reason(&error))),
        None => Err(format!("the BPF object has no program {name}")),
    }
}

/// Why a hook on a function that this kernel does not have was refused.
fn missing(hook: Hook, error: &ProgramError) -> Option<String> {
    let (Hook::FEntry(function)
    | Hook::FExit(function)
    | Hook::KProbe(function)
    | Hook::KRetProbe(function)) = hook
    else {
        return None;
    };
    let is_missing = match error {
        ProgramError::Btf(BtfError::UnknownBtfTypeName { .. }) => true,
        ProgramError::SyscallError(error) => {
            is_kprobe(hook) && error.io_error.raw_os_error() == Some(libc::ENOENT)
        }
        _ => false,
    };
    is_missing.then(|| format!("{NO_FUNCTION} {function}"))
}

/// Whether attaching takes the kernel's kprobe PMU.
fn is_kprobe(hook: Hook) -> bool {
    matches!(hook, Hook::KProbe(_) | Hook::KRetProbe(_))
}

fn attach(program: &mut Program, hook: Hook, btf: &Btf) -> Result<(), ProgramError> {
    match hook {
        Hook::FEntry(target) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(target, btf)?;
            program.attach()?;
        }
        Hook::FExit(target) => {
            let program: &mut FExit = program.try_into()?;
            program.load(target, btf)?;
            program.attach()?;
        }
        Hook::KProbe(target) | Hook::KRetProbe(target) => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(target, 0)?;
        }
        Hook::TpBtf(target) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(target, btf)?;
            program.attach()?;
        }
        Hook::RawTp(target) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(target)?;
        }
        Hook::Iter(target) => {
            let program: &mut Iter = program.try_into()?;
            program.load(target, btf)?;
            // One attachment per pass; this one only proves that it can be done.
            let link = program.attach()?;
            program.detach(link)?;
        }
    }
    Ok(())
}

/// Takes programs back, which drops their links, so that another rung may have them.
pub(super) fn unload(ebpf: &mut Ebpf, programs: &[(&str, Hook)]) {
    for (name, _) in programs {
        // Refused only for one that was not loaded.
        let _ = match ebpf.program_mut(name) {
            Some(Program::FEntry(program)) => program.unload(),
            Some(Program::FExit(program)) => program.unload(),
            Some(Program::KProbe(program)) => program.unload(),
            Some(Program::BtfTracePoint(program)) => program.unload(),
            Some(Program::RawTracePoint(program)) => program.unload(),
            Some(Program::Iter(program)) => program.unload(),
            _ => Ok(()),
        };
    }
}

/// A refusal in one line: the error itself and, if the verifier spoke, its last words.
pub(super) fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = lines
                .get(lines.len().saturating_sub(VERIFIER_LINES)..)
                .unwrap_or_default();
            if last.is_empty() {
                io_error.to_string()
            } else {
                format!("{io_error}; verifier: {}", last.join(" | "))
            }
        }
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(inner) = source {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                source = inner.source();
            }
            text
        }
    }
}

/// Kernels before 5.11 charge maps and programs to `RLIMIT_MEMLOCK`. What cannot be raised shows
/// when the first map is refused.
pub(super) fn raise_memlock() {
    let infinite = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid struct; the call has no other effect.
    unsafe {
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const infinite);
    }
}
