//! The daemon: one loop on one thread, from rings to the sink.
//!
//! Records are joined as they come; evidence is read the moment an incident opens; names are
//! looked up in tasks of their own, so that a slow runtime delays one event and nothing else;
//! the sink has its own thread behind a bounded queue, so that a slow reader delays nobody.

mod deaths;
mod kills;
mod leaks;
mod options;
mod outbox;
mod pressure;
pub(crate) mod process;
mod reconcile;
mod siblings;
pub(crate) mod symbols;
mod trust;

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    rc::Rc,
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use probe_common::{
    limits::DEATH_WAKEUP_NS,
    wire::{CgroupChange, Loss as WireLoss},
};
use tokio::{
    task::{JoinSet, LocalSet},
    time::{Instant, MissedTickBehavior, interval},
};

pub use deaths::Deaths;
use deaths::Morgue;
use kills::{Made, Watched};
use leaks::Leaks;
pub use options::{Filter, LEAK_WINDOW, Options};
pub use outbox::Ending;
use outbox::Outbox;
use pressure::Lookout;
use process::{Stop, protect_from_oom, release_memory};
use reconcile::Reconciler;
use symbols::Symbols;

use crate::{
    event::{Body, Host},
    identity::{
        hierarchy::{self, Hierarchies},
        names::Resolver,
        path as grammar,
        tree::Tree,
    },
    incident::{
        assemble::{Assembler, Hooks, Incident},
        evidence::{Collector, Evidence},
        explain::Context,
        who::DEADLINE,
    },
    kernel::{
        btf::Btf,
        facts::{Facts, Roots},
        kallsyms,
        ladder::{self, Signal},
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

/// When the ring of deaths is looked into once more after a wake-up: not every death wakes anybody.
const MOP_UP: Duration = Duration::from_nanos(2 * DEATH_WAKEUP_NS);

/// How often counters are read and compared.
const TICK: Duration = Duration::from_secs(1);

/// Longer than any run; the clock cannot count all that a user may ask for.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

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
        Box::pin(daemon.follow(stop)).await
    });
    // A look-up that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    result
}

struct Daemon {
    options: Options,
    started: Instant,
    probe: Probe,
    critical: Option<Reader>,
    bulk: Option<Reader>,
    dead: Option<Reader>,
    assembler: Assembler,
    collector: Collector,
    evidence: Option<(u64, Evidence)>,
    /// Memory pressure; `None` where there is no memory controller.
    lookout: Option<Lookout>,
    /// Looks at kernel memory; `None` until that is wanted.
    leaks: Option<Leaks>,
    morgue: Morgue,
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
    /// Runs that the kernel skipped, by program.
    skipped: BTreeMap<&'static str, u64>,
    decode_errors: u64,
    kills_written: u64,
}

impl Daemon {
    fn start<S: Sink + Send + 'static>(options: Options, sink: S) -> anyhow::Result<Self> {
        let started = Instant::now();
        let proc = options.host_root.join("proc");
        let sys = options.host_root.join("sys");
        let btf = Btf::running().context(BTF_REMEDY)?;
        let report = layout::resolve(&btf);
        let prefers_kprobe = ladder::prefers_kprobe(&btf);
        drop(btf);
        let kernel_layout = report.layout()?;
        let cpus = host::possible_cpus(&sys)
            .ok()
            .and_then(|cpus| u32::try_from(cpus).ok());
        let deaths = options.deaths.mode();
        let mut probe = Probe::attach(&kernel_layout, cpus.unwrap_or(0), deaths, prefers_kprobe)?;
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
            kernel_kill: has(Signal::SignalSent),
        };
        let hooked = has(Signal::LimitHit);
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
        let status = trust::status(&probe, &report, &facts, started);
        let now = clock::boot_ns();
        outbox.write(Body::ProbeStatus(status), now);
        let vmstat = Vmstat::open(&proc).ok();
        let morgue = Morgue::new(&options);

        let critical = Reader::new(probe.take_critical()?)?;
        let bulk = Reader::new(probe.take_bulk()?)?;
        let dead = Reader::new(probe.take_deaths()?)?;
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
            dead: Some(dead),
            assembler: Assembler::new(hooks),
            collector: Collector::new(&options.host_root, hierarchies.clone(), kmsg),
            evidence: None,
            lookout: Lookout::new(hierarchies.as_ref(), &proc, options.leak_window, hooked),
            leaks: None,
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
            morgue,
            losses: BTreeMap::new(),
            skipped: BTreeMap::new(),
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
        if let Some(every) = self.options.leaks {
            let leaks = Leaks::start(&self.options, Some(every));
            self.leaks = Some(leaks.context("cannot start to look at kernel memory")?);
        }
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
        let (Some(mut critical), Some(mut bulk), Some(mut dead)) =
            (self.critical.take(), self.bulk.take(), self.dead.take())
        else {
            anyhow::bail!("the rings were taken already");
        };
        let (mut records, mut rates) = (Vec::<Bytes>::new(), Vec::<Bytes>::new());
        let (mut deaths, mut mop_up) = (Vec::<Bytes>::new(), None);
        while !self.enough() {
            let deadline = self.assembler.deadline().map(at);
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
                () = sleep_until(self.morgue.due_ns().map(at)) => {
                    self.release_deaths(Some(clock::boot_ns()));
                }
                made = self.morgue.next() => self.died(made),
                Some(made) = self.looking_up.join_next(), if !self.looking_up.is_empty() => {
                    self.made(made);
                }
                _ = tick.tick() => {
                    self.logged();
                    self.count_losses();
                    // One that was held up in the kernel has missed its turn.
                    mop_up.get_or_insert_with(Instant::now);
                }
                seen = pressure::next(self.lookout.as_mut()) => self.seen(seen),
                seen = leaks::next(self.leaks.as_mut()) => self.leak_seen(seen),
                _ = heartbeat.tick(), if beats => self.beat(),
                read = bulk.read(&mut rates) => {
                    read.context("cannot read the ring of rates")?;
                    self.take(&mut rates);
                }
                read = dead.read(&mut deaths) => {
                    read.context("cannot read the ring of deaths")?;
                    mop_up = Some(Instant::now() + MOP_UP);
                    // A victim's death comes after the kill, by another ring.
                    critical.drain(&mut records);
                    self.take(&mut records);
                    self.take(&mut deaths);
                }
                () = sleep_until(mop_up) => {
                    critical.drain(&mut records);
                    self.take(&mut records);
                    mop_up = dead.take_batch(&mut deaths).then(Instant::now);
                    self.take(&mut deaths);
                }
            }
        }
        // Nothing that was seen is lost: what is in the rings, open or being looked up goes out.
        critical.drain(&mut records);
        bulk.drain(&mut records);
        dead.drain(&mut records);
        self.take(&mut records);
        let steps = self.assembler.finish(clock::boot_ns());
        self.steps(steps);
        self.report_settled(None);
        self.release_deaths(None);
        while let Some(made) = self.morgue.rest().await {
            self.died(made);
        }
        while let Some(made) = self.looking_up.join_next().await {
            self.made(made);
        }
        self.tell_counted(clock::boot_ns(), true);
        while let Some(named) = pressure::named(self.lookout.as_mut()).await {
            self.named(named);
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
            self.cgroup(change, &record);
            return;
        }
        if let RecordBody::LimitHit(hit) = &record.body {
            self.limit_hit(&record, hit);
            return;
        }
        if let RecordBody::Death(_) = &record.body {
            self.death(&record);
            return;
        }
        let steps = self.assembler.push(record);
        self.steps(steps);
    }

    fn cgroup(&mut self, change: &CgroupChange, record: &Record) {
        let path = record.full_path().unwrap_or_default();
        let is_new = change.change == 1;
        if let Some(tree) = &mut self.tree {
            if is_new {
                tree.created(change.hierarchy, change.id, path);
            } else {
                tree.removed(change.hierarchy, change.id, path);
            }
        }
        if !self.is_memory(change.hierarchy) {
            return;
        }
        if is_new {
            if let Some(lookout) = &mut self.lookout {
                lookout.sampling.created(path, record.header.time_boot_ns);
            }
            self.prewarm(path);
        } else {
            self.memcg_removed(change.id, path);
        }
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
}

const BTF_REMEDY: &str = "oomprobe reads kernel structures by the kernel's own BTF: it needs a \
                          kernel built with CONFIG_DEBUG_INFO_BTF (every current distribution \
                          kernel) and /sys mounted";

/// A time in ns since boot.
fn at(boot_ns: u64) -> Instant {
    Instant::now() + Duration::from_nanos(boot_ns.saturating_sub(clock::boot_ns()))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
