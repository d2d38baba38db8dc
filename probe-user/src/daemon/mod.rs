//! The daemon: one loop on one thread, from rings to the sink.
//!
//! Records are joined as they come; evidence is read the moment an incident opens; names are
//! looked up in tasks of their own, so that a slow runtime delays one event and nothing else;
//! the sink has its own thread behind a bounded queue, so that a slow reader delays nobody.

mod options;
mod outbox;
mod process;
mod reconcile;
mod symbols;

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use probe_common::wire::Loss as WireLoss;
use tokio::{
    task::{JoinSet, LocalSet},
    time::{Instant, MissedTickBehavior, interval},
};

pub use options::{Filter, Options};
pub use outbox::Ending;
use outbox::Outbox;
use process::{Stop, protect_from_oom, release_memory};
use reconcile::Reconciler;
use symbols::Symbols;

use crate::{
    event::{self, Body, Heartbeat, Host, Loss, OomOutcome, ProbeStatus, SignalStatus},
    identity::{
        hierarchy::{self, Hierarchies},
        names::Resolver,
        path as grammar,
        tree::Tree,
    },
    incident::{
        assemble::{Assembler, Hooks, Incident, Step},
        evidence::{Collector, Evidence, LimitOwner},
        explain::{self, Context},
        who::{DEADLINE, Identities},
    },
    kernel::{
        btf::Btf,
        facts::{Facts, Roots},
        kallsyms,
        ladder::Signal,
        layout,
        loader::Probe,
    },
    node::{
        clock::{self, BootClock},
        host,
        kmsg::{KmsgReader, Start},
        vmstat::Vmstat,
    },
    ring::{
        decode::{Body as RecordBody, Record},
        reader::Reader,
    },
    sink::Sink,
};

/// How often counters are read and compared.
const TICK: Duration = Duration::from_secs(1);

/// Longer than any run; the clock cannot count all that a user may ask for.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// From the exit of the last victim to the reading of what its end gave back: the kernel reports
/// an exit before it frees the memory (from 6.16 on), and uncharges in batches.
const UNCHARGE: Duration = Duration::from_millis(100);

/// Attaches, follows, reports until told to stop, and drains. Calls `ready` once, when hooks are
/// attached and the first event is out.
pub fn run<S: Sink + Send + 'static>(
    options: Options,
    sink: S,
    ready: impl FnOnce() + 'static,
) -> anyhow::Result<Ending> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .context("cannot start the runtime")?;
    let local = LocalSet::new();
    let result = local.block_on(&runtime, async move {
        // Before the first event says that we are ready: from then on a signal means "drain".
        let stop = Stop::new()?;
        let daemon = Daemon::start(options, sink)?;
        ready();
        daemon.follow(stop).await
    });
    // A look-up that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    result
}

/// An `oom_kill` event with the names that a look-up task found.
struct Made {
    number: u64,
    boot_ns: u64,
    kill: event::OomKill,
}

struct Daemon {
    options: Options,
    started: Instant,
    probe: Probe,
    critical: Option<Reader>,
    bulk: Option<Reader>,
    assembler: Assembler,
    collector: Collector,
    evidence: Option<(u64, Evidence)>,
    /// Incidents whose victims are gone, and when their memory will be given back too.
    leaving: VecDeque<(Instant, Box<Incident>)>,
    /// By incident, from its `oom_kill` to its `oom_outcome`.
    watched: BTreeMap<u64, Watched>,
    tree: Option<Tree>,
    hierarchies: Option<Hierarchies>,
    resolver: Rc<Resolver>,
    node_name: Option<String>,
    context: Rc<Context>,
    symbols: Rc<Symbols>,
    outbox: Outbox,
    reconciler: Reconciler,
    looking_up: JoinSet<Made>,
    losses: BTreeMap<WireLoss, u64>,
    decode_errors: u64,
    kills_written: u64,
}

/// What the outcome of an incident needs of its `oom_kill`.
struct Watched {
    usage_bytes: Option<u64>,
    limit_path: Option<Vec<u8>>,
    /// The first process of a container is among the victims.
    container_died: bool,
    /// Whether the `oom_kill` was written; `None` while its names are looked up.
    wanted: Option<bool>,
    /// The outcome, if it was known first.
    outcome: Option<(OomOutcome, u64)>,
}

impl Daemon {
    fn start<S: Sink + Send + 'static>(options: Options, sink: S) -> anyhow::Result<Self> {
        let started = Instant::now();
        let proc = options.host_root.join("proc");
        let sys = options.host_root.join("sys");
        let report = layout::resolve(&Btf::running().context(BTF_REMEDY)?);
        let kernel_layout = report.layout()?;
        let cpus = host::possible_cpus(&sys)
            .ok()
            .and_then(|cpus| u32::try_from(cpus).ok());
        let mut probe = Probe::attach(&kernel_layout, cpus.unwrap_or(0))?;
        // The kernel's types were needed until here: some 20 MiB that nobody needs any more.
        release_memory();
        protect_from_oom(&proc);

        let hierarchies = hierarchy::find(&options.host_root).ok();
        let tree = hierarchies
            .as_ref()
            .and_then(|found| Tree::open(found).ok());
        let facts = Facts::gather(&Roots {
            proc: proc.clone(),
            sys: sys.clone(),
        });
        let has = |signal| probe.hook(signal).is_some();
        let hooks = Hooks {
            end: has(Signal::OomEnd),
            kernel_kill: has(Signal::KernelKill),
        };
        let kmsg = if has(Signal::OomDecision) {
            None
        } else {
            KmsgReader::open(Path::new("/dev/kmsg"), Start::End).ok()
        };
        let context = Rc::new(Context {
            clock: BootClock::now(),
            page_bytes: u64::try_from(rustix::param::page_size()).unwrap_or(4096),
            boot_id: host::boot_id(&proc).ok(),
            memory_hierarchy: hierarchies
                .as_ref()
                .map_or(hierarchy::UNIFIED, |found| found.memory.hierarchy),
            hooks: probe
                .served
                .iter()
                .map(|served| (served.signal, served.hook))
                .collect(),
        });
        let node_env = std::env::var("NODE_NAME").ok();
        let node_name = host::node_name(node_env.as_deref(), &proc).ok();
        let host = Host {
            name: node_name.clone(),
            boot_id: context.boot_id.clone(),
        };
        let mut outbox = Outbox::new(sink, host, Rc::clone(&context));
        let status = status(&probe, &report, &facts, started);
        let now = clock::boot_ns();
        outbox.write(Body::ProbeStatus(status), now);
        let vmstat = Vmstat::open(&proc).ok();

        let critical = Reader::new(probe.take_critical()?)?;
        let bulk = Reader::new(probe.take_bulk()?)?;
        let table = Path::new(kallsyms::KALLSYMS);
        let (symbols, per_cpu_offset) = Symbols::warm(table, "__per_cpu_offset");
        if let Some(address) = per_cpu_offset {
            // Without it rss is approximate, which every event says of itself.
            let _ = probe.set_per_cpu(address);
        }
        Ok(Self {
            started,
            critical: Some(critical),
            bulk: Some(bulk),
            assembler: Assembler::new(hooks),
            collector: Collector::new(&proc, hierarchies.clone(), kmsg),
            evidence: None,
            leaving: VecDeque::new(),
            watched: BTreeMap::new(),
            tree,
            resolver: Rc::new(Resolver::new(
                &options.host_root,
                options.cri_socket.as_deref(),
            )),
            node_name,
            context,
            symbols: Rc::new(symbols),
            outbox,
            reconciler: Reconciler::new(vmstat, now),
            hierarchies,
            looking_up: JoinSet::new(),
            losses: BTreeMap::new(),
            decode_errors: 0,
            kills_written: 0,
            probe,
            options,
        })
    }

    async fn follow(mut self, mut stop: Stop) -> anyhow::Result<Ending> {
        let resolver = Rc::clone(&self.resolver);
        tokio::task::spawn_local(async move {
            // Only warms a cache: failures show with the names that are then missing.
            let _ = resolver.warm(Instant::now() + DEADLINE).await;
        });
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let period = self.options.heartbeat;
        let mut heartbeat = interval(period.clamp(Duration::from_millis(1), FOREVER));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        heartbeat.reset();
        let beats = !self.options.heartbeat.is_zero();
        let end = self
            .options
            .duration
            .map(|duration| self.started + duration.min(FOREVER));
        let (Some(mut critical), Some(mut bulk)) = (self.critical.take(), self.bulk.take()) else {
            anyhow::bail!("the rings were taken already");
        };
        let (mut records, mut rates) = (Vec::<Bytes>::new(), Vec::<Bytes>::new());
        while !self.enough() {
            let deadline = self.assembler.deadline().map(|at| {
                Instant::now() + Duration::from_nanos(at.saturating_sub(clock::boot_ns()))
            });
            tokio::select! {
                biased;
                () = self.outbox.closed() => break,
                () = stop.requested() => break,
                () = sleep_until(end) => break,
                read = critical.read(&mut records) => {
                    read.context("cannot read the ring of kills")?;
                    self.take(&mut records);
                }
                () = sleep_until(deadline) => {
                    let steps = self.assembler.tick(clock::boot_ns());
                    self.steps(steps);
                }
                () = sleep_until(self.leaving.front().map(|(due, _)| *due)) => {
                    self.report_settled(Some(Instant::now()));
                }
                Some(made) = self.looking_up.join_next(), if !self.looking_up.is_empty() => {
                    self.made(made);
                }
                _ = tick.tick() => {
                    self.collector.follow_log();
                    self.count_losses();
                }
                _ = heartbeat.tick(), if beats => self.beat(),
                read = bulk.read(&mut rates) => {
                    read.context("cannot read the ring of rates")?;
                    self.take(&mut rates);
                }
            }
        }
        // Nothing that was seen is lost: what is in the rings, open or being looked up goes out.
        critical.drain(&mut records);
        bulk.drain(&mut records);
        self.take(&mut records);
        let steps = self.assembler.finish(clock::boot_ns());
        self.steps(steps);
        self.report_settled(None);
        while let Some(made) = self.looking_up.join_next().await {
            self.made(made);
        }
        self.count_losses();
        Ok(self.outbox.finish())
    }

    /// Whether `--count` is reached and its outcomes are out.
    fn enough(&self) -> bool {
        self.options
            .count
            .is_some_and(|count| self.kills_written >= count)
            && self
                .watched
                .values()
                .all(|watched| watched.wanted != Some(true))
    }

    fn take(&mut self, records: &mut Vec<Bytes>) {
        for bytes in records.drain(..) {
            match Record::decode(&bytes) {
                Ok(record) => self.record(record),
                Err(_) => self.decode_errors += 1,
            }
        }
    }

    fn record(&mut self, record: Record) {
        if let RecordBody::Cgroup(change) = &record.body {
            let path = record.full_path().unwrap_or_default();
            if let Some(tree) = &mut self.tree {
                match change.change {
                    1 => tree.created(change.hierarchy, change.id, path),
                    _ => tree.removed(change.hierarchy, change.id, path),
                }
            }
            if change.change == 1 && self.is_memory(change.hierarchy) {
                self.prewarm(path);
            }
            return;
        }
        let steps = self.assembler.push(record);
        self.steps(steps);
    }

    fn is_memory(&self, hierarchy: u32) -> bool {
        self.hierarchies
            .as_ref()
            .is_some_and(|found| found.memory.hierarchy == hierarchy)
    }

    /// Looks a new container's names up before anything happens to it. The runtime knows it only
    /// a moment after its cgroup was made.
    fn prewarm(&self, path: &[u8]) {
        let claim = grammar::parse(path);
        if claim.container_id.is_none() {
            return;
        }
        let resolver = Rc::clone(&self.resolver);
        tokio::task::spawn_local(async move {
            for delay_ms in [500, 1500, 4000] {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                let names = resolver.names(&claim, Instant::now() + DEADLINE).await;
                if names.known.is_some() {
                    break;
                }
            }
        });
    }

    fn steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Opened(number) => self.opened(number),
                Step::Closed(incident) => self.closed(*incident),
                Step::Settled(incident) => {
                    self.leaving
                        .push_back((Instant::now() + UNCHARGE, incident));
                }
            }
        }
    }

    fn opened(&mut self, number: u64) {
        // The record that opened it is in it by now, also if it was closed at once.
        if let Some(open) = self.assembler.open().filter(|open| open.number == number) {
            let evidence = self.collector.open(open);
            self.evidence = Some((number, evidence));
        }
    }

    fn closed(&mut self, incident: Incident) {
        let own = self
            .evidence
            .take_if(|(number, _)| *number == incident.number);
        let mut evidence = match own {
            Some((_, evidence)) => evidence,
            None => self.collector.open(&incident),
        };
        if incident.unlisted > 0 {
            self.outbox.lost("victim_unlisted", incident.unlisted);
        }
        self.collector.close(&incident, &mut evidence);
        if let Ok(tasks) = self.probe.candidates() {
            let hierarchy = self.context.memory_hierarchy;
            evidence.candidates = tasks
                .into_iter()
                .map(|task| {
                    let located = self
                        .tree
                        .as_mut()
                        .and_then(|t| t.path(hierarchy, task.memcg_id));
                    (task, located.map(|located| located.path.to_vec()))
                })
                .collect();
        }
        explain::choose_candidates(&self.context, &incident, &mut evidence);
        if !incident.victims.is_empty() {
            let level = evidence.limit.as_ref().and_then(|owner| owner.level());
            self.watched.insert(
                incident.number,
                Watched {
                    usage_bytes: level
                        .map(|level| level.usage_pages.saturating_mul(self.context.page_bytes)),
                    limit_path: evidence.limit.as_ref().map(|owner| owner.path().to_owned()),
                    container_died: incident.victims.iter().any(|victim| {
                        let parent = evidence.parents.get(&victim.task.pid).map(Vec::as_slice);
                        explain::is_init(&victim.task, parent) == Some(true)
                    }),
                    wanted: None,
                    outcome: None,
                },
            );
        }
        self.reconciler
            .saw(&incident, evidence.limit.as_ref().map(LimitOwner::path));
        let (context, resolver) = (Rc::clone(&self.context), Rc::clone(&self.resolver));
        let (node_name, symbols) = (self.node_name.clone(), Rc::clone(&self.symbols));
        self.looking_up.spawn_local(async move {
            let paths = explain::paths(&incident, &evidence);
            let stack = incident.context().map(Record::stack).unwrap_or_default();
            let (identities, stack) = tokio::join!(
                Identities::resolve(&resolver, node_name.as_deref(), paths),
                symbols.names(&stack, Instant::now() + DEADLINE),
            );
            Made {
                number: incident.number,
                boot_ns: incident.boot_ns,
                kill: explain::oom_kill(&context, &incident, &evidence, &identities, stack),
            }
        });
    }

    /// Reports on incidents whose victims have been gone for a moment, or on all.
    fn report_settled(&mut self, now: Option<Instant>) {
        while let Some((due, incident)) = self.leaving.pop_front() {
            if now.is_some_and(|now| now < due) {
                self.leaving.push_front((due, incident));
                return;
            }
            self.settled(&incident);
        }
    }

    fn settled(&mut self, incident: &Incident) {
        self.reconciler.saw_late(incident);
        let Some(watched) = self.watched.get_mut(&incident.number) else {
            return;
        };
        let after = watched
            .limit_path
            .as_deref()
            .and_then(|path| self.collector.memory(path))
            .map(|reading| reading.usage_bytes);
        let survived = incident.victims.first().and_then(|victim| {
            let path = victim.cgroup.path(0);
            grammar::parse(&path).container_id?;
            if watched.container_died {
                // The rest of it is still on its way out.
                return Some(false);
            }
            let dir = self.collector.directory(&path)?;
            // A container that is gone has no processes, and soon no cgroup.
            Some(std::fs::read(dir.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty()))
        });
        let outcome = explain::oom_outcome(
            &self.context,
            incident,
            |task| self.collector.is_alive(task),
            watched.usage_bytes,
            after,
            survived,
        );
        watched.outcome = Some((outcome, clock::boot_ns()));
        self.write_outcome(incident.number);
    }

    /// Writes the outcome of an incident as soon as it is known and the `oom_kill` is out.
    fn write_outcome(&mut self, number: u64) {
        let is_due = self
            .watched
            .get(&number)
            .is_some_and(|watched| watched.wanted.is_some() && watched.outcome.is_some());
        if !is_due {
            return;
        }
        if let Some(Watched {
            wanted: Some(true),
            outcome: Some((outcome, boot_ns)),
            ..
        }) = self.watched.remove(&number)
        {
            self.outbox.write(Body::OomOutcome(outcome), boot_ns);
        }
    }

    fn made(&mut self, made: Result<Made, tokio::task::JoinError>) {
        // Tasks do not panic on purpose and are never aborted; if one did, its event is missing
        // and the sequence is not: count it.
        let Ok(made) = made else {
            self.outbox.lost("event_task_failed", 1);
            return;
        };
        let is_wanted = self
            .options
            .count
            .is_none_or(|count| self.kills_written < count)
            && self.options.filter.wants_kill(&made.kill);
        if is_wanted {
            self.kills_written += 1;
            self.outbox
                .write(Body::OomKill(Box::new(made.kill)), made.boot_ns);
        }
        if let Some(watched) = self.watched.get_mut(&made.number) {
            watched.wanted = Some(is_wanted);
        }
        self.write_outcome(made.number);
    }

    /// Reports what was lost since the last time, and what the kernel counted but nobody saw.
    fn count_losses(&mut self) {
        let now = clock::boot_ns();
        for (reason, total) in self.probe.losses().into_iter().flatten() {
            let known = self.losses.entry(reason).or_default();
            let count = total.saturating_sub(*known);
            *known = total;
            if count > 0 {
                let ring = match reason {
                    WireLoss::CriticalRingFull => Some("critical".to_owned()),
                    WireLoss::BulkRingFull => Some("bulk".to_owned()),
                    _ => None,
                };
                let reason = reason.name().to_owned();
                self.outbox.write(
                    Body::Loss(Loss {
                        reason,
                        count,
                        total,
                        ring,
                    }),
                    now,
                );
            }
        }
        if self.decode_errors > 0 {
            self.outbox.lost(
                "undecodable_record",
                std::mem::take(&mut self.decode_errors),
            );
        }
        let quiet = self.assembler.open().is_none() && self.looking_up.is_empty();
        let seen = self.assembler.kernel_kills();
        for gap in self
            .reconciler
            .check(seen, quiet, &self.collector, &self.context)
        {
            self.outbox.write(Body::Gap(gap), now);
        }
    }

    fn beat(&mut self) {
        let lost = self
            .losses
            .iter()
            .map(|(reason, count)| (reason.name().to_owned(), *count))
            .chain(self.outbox.losses())
            .collect();
        let beat = Heartbeat {
            uptime_s: self.started.elapsed().as_secs(),
            events: self.outbox.counts(),
            lost,
            kernel_oom_kills: self.reconciler.kernel_kills(),
            seen_oom_kills: self.assembler.kernel_kills(),
        };
        self.outbox.write(Body::Heartbeat(beat), clock::boot_ns());
    }
}

const BTF_REMEDY: &str = "oomprobe reads kernel structures by the kernel's own BTF: it needs a \
                          kernel built with CONFIG_DEBUG_INFO_BTF (every current distribution \
                          kernel) and /sys mounted";

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn status(
    probe: &Probe,
    report: &layout::LayoutReport,
    facts: &Facts,
    started: Instant,
) -> ProbeStatus {
    ProbeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        attached: true,
        signals: probe
            .served
            .iter()
            .map(|served| SignalStatus {
                signal: served.signal.name().to_owned(),
                hook: served.hook.map(|hook| hook.to_string()),
                refused: served
                    .refused
                    .iter()
                    .map(|(hook, reason)| event::Refusal {
                        hook: hook.to_string(),
                        reason: reason.clone(),
                    })
                    .collect(),
            })
            .collect(),
        layout_absent: report
            .absent()
            .map(|field| field.field.to_owned())
            .collect(),
        kernel: facts.for_event(),
        ready_ms: Some(started.elapsed().as_secs_f64() * 1000.0),
    }
}
