//! From the record of a death to its `process_death`.
//!
//! A death waits a moment for those that go with it; then names and the runtime's word are looked up
//! in a task of its own; what needs the daemon's memory (OOM kills, earlier deaths) is added last.

use std::{num::NonZeroUsize, path::Path, rc::Rc, time::Duration};

use lru::LruCache;
use probe_common::{
    layout::deaths,
    wire::{self, Sent},
};
use tokio::{task::JoinSet, time::Instant};

use super::{Daemon, Options};
use crate::{
    event::{Before, Body, DeathCause, OomKill, ProcessRole, RuntimeStatus, Via, text},
    identity::{Claim, Orchestrator, names::Resolver, path as grammar},
    incident::{
        assemble::{Incident, Role},
        death::{self, Death, Findings, Held, Released},
        explain,
        who::{DEADLINE, Identities},
    },
    node::{self, kmsg::FaultLog, kubelet, meminfo::Meminfo, process::ProcessDir},
    ring::decode::{Record, comm},
    verdict::death::{
        EarlierOom, Facts, FailedExec, NodeState, OomPart, process_death,
        restarts::{History, RestartKey, label, oom_label},
    },
};

/// OOM victims whose deaths may still come, and containers with an OOM kill behind them.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// Deaths being looked up at the same time.
const MAX_LOOKING_UP: usize = 4096;

/// How long the answer to whether a container has processes is good for.
const SURVIVAL_KEPT: Duration = Duration::from_millis(200);

/// Which deaths are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deaths {
    /// None.
    #[default]
    Off,
    /// In containers, by signal or with a non-zero exit code; and of every container's first
    /// process.
    Containers,
    /// Of every process.
    All,
}

impl Deaths {
    /// As the BPF programs know it.
    pub(super) const fn mode(self) -> u32 {
        match self {
            Self::Off => deaths::OFF,
            Self::Containers => deaths::CONTAINERS,
            Self::All => deaths::ALL,
        }
    }
}

/// What the daemon keeps about deaths.
pub(super) struct Morgue {
    held: Held<Early>,
    looking_up: JoinSet<Made>,
    victims: LruCache<(u32, u64), (String, OomPart)>,
    /// The last OOM kill by container id, and when.
    kills: LruCache<String, (EarlierOom, u64)>,
    /// OOM kills in a few words, by incident.
    labels: LruCache<String, String>,
    /// The last command that failed in a container, by its id, and when it ended.
    failed: LruCache<String, (FailedExec, u64)>,
    history: History,
    survival: LruCache<Vec<u8>, (Instant, Option<bool>)>,
    faults: Option<FaultLog>,
    eviction_threshold_bytes: Option<u64>,
}

/// What was read when the record came, before it faded.
#[derive(Debug)]
struct Early {
    claim: Claim,
    findings: Findings,
    before: Option<Before>,
    available_bytes: Option<u64>,
}

/// A death with names and the runtime's word.
pub(super) struct Made {
    death: Death,
    early: Early,
    identities: Identities,
}

impl Morgue {
    pub(super) fn new(options: &Options) -> Self {
        let proc = options.host_root.join("proc");
        let total_bytes = Meminfo::read(&proc)
            .ok()
            .and_then(|memory| memory.total_bytes);
        let faults = (options.deaths != Deaths::Off)
            .then(|| FaultLog::open(Path::new("/dev/kmsg")).ok())
            .flatten();
        Self {
            eviction_threshold_bytes: total_bytes
                .and_then(|total| kubelet::eviction_threshold_bytes(&options.host_root, total)),
            held: Held::default(),
            looking_up: JoinSet::new(),
            victims: LruCache::new(REMEMBERED),
            kills: LruCache::new(REMEMBERED),
            labels: LruCache::new(REMEMBERED),
            failed: LruCache::new(REMEMBERED),
            history: History::default(),
            survival: LruCache::new(REMEMBERED),
            faults,
        }
    }

    /// When a death that waits is due, ns since boot.
    pub(super) fn due_ns(&self) -> Option<u64> {
        self.held.due_ns()
    }

    /// The next death whose names are known; pends if none is looked up.
    pub(super) async fn next(&mut self) -> Result<Made, tokio::task::JoinError> {
        match self.looking_up.join_next().await {
            Some(made) => made,
            None => std::future::pending().await,
        }
    }

    /// The same, `None` once there are no more.
    pub(super) async fn rest(&mut self) -> Option<Result<Made, tokio::task::JoinError>> {
        self.looking_up.join_next().await
    }
}

impl Daemon {
    /// A process died.
    pub(super) fn death(&mut self, record: &Record) {
        let Some(mut death) = Death::of(record) else {
            return;
        };
        if !death.has_path
            && let Some(path) = self.path_of(&death.task)
        {
            (death.path, death.has_path) = (path, true);
        }
        let claim = grammar::parse(&death.path);
        if self.options.deaths != Deaths::All && !is_container(&claim) {
            if death.has_path {
                // From now on the kernel does not tell of this cgroup.
                self.probe.dull(death.task.memcg_id);
            } else {
                self.outbox.lost("death_in_unknown_cgroup", 1);
            }
            return;
        }
        let tells_of_container = death.is_namespace_init() || death.is_from_runtime();
        let before = tells_of_container
            .then(|| self.before_death(&death.path, death.struck_boot_ns()))
            .flatten();
        let mut findings = Findings::default();
        for (index, sent) in [death.sent, death.request].iter().enumerate() {
            if let Some(sent) = sent {
                findings.sender_paths[index] = self.path_of(&sent.sender);
                if tells_of_container && sent.sender.pid != death.task.pid {
                    findings.sender_cmdlines[index] = self.cmdline_of(sent);
                }
            }
        }
        let early = Early {
            before,
            available_bytes: tells_of_container
                .then(|| self.available_at_stop(&death))
                .flatten(),
            findings,
            claim,
        };
        let container = early.claim.container_id.clone().unwrap_or_default();
        if self.morgue.held.push(container, death, early).is_err() {
            self.outbox.lost("death_backlog_full", 1);
        }
    }

    /// Looks up deaths whose time has come, or, with no `now_ns`, all.
    pub(super) fn release_deaths(&mut self, now_ns: Option<u64>) {
        while let Some(released) = self.morgue.held.pop(now_ns) {
            self.look_up(released, now_ns.is_some());
        }
    }

    fn look_up(&mut self, released: Released<Early>, may_wait: bool) {
        let Released {
            death,
            with: mut early,
            others,
        } = released;
        if self.morgue.looking_up.len() >= MAX_LOOKING_UP {
            self.outbox.lost("death_backlog_full", 1);
            return;
        }
        early.findings.others = others;
        if let Some(container) = &early.claim.container_id {
            // What was executed in a container that ended a moment later did not end it.
            let is_executed = death.is_from_runtime() && !death.is_namespace_init();
            let is_outlived = is_executed && self.morgue.held.has_init_of(container);
            if !is_outlived {
                early.findings.container_survived = self.survived(&death.path, &early.claim);
            }
        }
        if let Some(faults) = &mut self.morgue.faults
            && death.signal().is_some_and(is_crash)
        {
            let thread = death.sent.map_or(death.task, |sent| sent.sender);
            early.findings.logged = faults
                .of(thread.tid, comm(&thread), death.struck_boot_ns())
                .map(|fault| (fault.instruction, fault.mapping.clone()));
        }
        let is_end = death::role(&death, early.findings.container_survived) == ProcessRole::Init;
        let asked = early.claim.container_id.clone().filter(|_| {
            is_end
                && may_wait
                && early.claim.role.is_none()
                && early.claim.orchestrator == Orchestrator::Kubernetes
        });
        if is_end && let Some(root) = container_root(&death.path, &early.claim) {
            early.findings.siblings_asked = self.siblings_asked(&death, root);
        }
        let (resolver, node_name) = (Rc::clone(&self.resolver), self.node_name.clone());
        self.morgue.looking_up.spawn_local(async move {
            let paths = death::paths(&death, &early.findings);
            let wants_sandbox = death.request.is_some()
                || matches!(death.via, Via::Kill | Via::Sigqueue | Via::CgroupKill);
            let (identities, runtime) = tokio::join!(
                Identities::resolve(&resolver, node_name.as_deref(), paths),
                runtime_status(&resolver, asked, wants_sandbox),
            );
            early.findings.runtime = runtime;
            Made {
                death,
                early,
                identities,
            }
        });
    }

    /// Writes a death whose names are known.
    pub(super) fn died(&mut self, made: Result<Made, tokio::task::JoinError>) {
        let Ok(made) = made else {
            self.outbox.lost("event_task_failed", 1);
            return;
        };
        let Made {
            death,
            mut early,
            identities,
        } = made;
        let who = identities.of(&death.path);
        if !self
            .options
            .filter
            .wants_about(who.k8s.as_ref(), who.container.as_ref())
        {
            return;
        }
        let link = self.oom_of(&death);
        early.findings.incident = link.as_ref().map(|(incident, _)| incident.clone());
        let mut event = death::process_death(&self.context, &death, &early.findings, &identities);
        event.before = early.before.take().filter(|_| link.is_none());
        let process = explain::process(&self.context, &death.task, None);
        let earlier_oom = early
            .claim
            .container_id
            .as_ref()
            .and_then(|id| self.morgue.kills.peek(id))
            .filter(|(earlier, _)| Some(&earlier.incident) != event.incident.as_ref())
            .filter(|(_, at)| *at <= death.boot_ns)
            .map(|(earlier, at)| EarlierOom {
                ms_before: (death.boot_ns - at) / 1_000_000,
                ..earlier.clone()
            });
        let asked_ns = asked_boot_ns(&death);
        let failed_exec = early
            .claim
            .container_id
            .as_ref()
            .and_then(|id| self.morgue.failed.peek(id))
            .filter(|(_, at)| *at <= asked_ns)
            .map(|(failed, at)| FailedExec {
                ms_before: (asked_ns - at) / 1_000_000,
                ..failed.clone()
            });
        let facts = Facts {
            process: &process,
            k8s: who.k8s.as_ref(),
            container: who.container.as_ref(),
            death: &event,
            oom: link.map(|(_, part)| part),
            earlier_oom: earlier_oom.as_ref(),
            failed_exec: failed_exec.as_ref(),
            node: NodeState {
                available_bytes: early.available_bytes,
                eviction_threshold_bytes: self.morgue.eviction_threshold_bytes,
            },
        };
        let verdict = process_death(&facts);
        let in_words = event
            .incident
            .as_ref()
            .and_then(|incident| self.morgue.labels.get(incident).cloned())
            .unwrap_or_else(|| label(&facts, &verdict));
        event.kubernetes_says_oomkilled = verdict
            .kubernetes_will_report
            .as_ref()
            .and_then(|report| report.oom_killed);
        if event.role == Some(ProcessRole::Init)
            && let Some(key) = RestartKey::of(who.k8s.as_ref(), who.container.as_ref())
        {
            let history = &mut self.morgue.history;
            event.restarts = Some(history.add(key, death.boot_ns, verdict.cause, &in_words));
        }
        if event.role == Some(ProcessRole::Exec)
            && event.exit_code != 0
            && let Some(id) = early.claim.container_id
        {
            let failed = FailedExec {
                comm: text(comm(&death.task)),
                exit_code: event.exit_code,
                was_late: verdict.cause == DeathCause::RuntimeStop,
                ms_before: 0,
            };
            self.morgue.failed.put(id, (failed, death.boot_ns));
        }
        event.verdict = verdict;
        self.outbox.write_of(
            who,
            process,
            Body::ProcessDeath(Box::new(event)),
            death.boot_ns,
        );
    }

    /// Remembers the victims of an incident until their deaths are told.
    pub(super) fn remember_victims(&mut self, incident: &Incident) {
        if self.options.deaths == Deaths::Off {
            return;
        }
        let id = self.context.incident_id(incident);
        for victim in &incident.victims {
            let Some(part) = part(victim.role) else {
                continue;
            };
            let task = &victim.task;
            self.morgue
                .victims
                .put((task.pid, task.start_boot_ns), (id.clone(), part));
            let claim = grammar::parse(&victim.cgroup.path(0));
            if let Some(container) = claim.container_id {
                let kill = EarlierOom {
                    incident: id.clone(),
                    comm: text(comm(task)),
                    ms_before: 0,
                };
                self.morgue.kills.put(container, (kill, incident.boot_ns));
            }
        }
    }

    /// Remembers an OOM kill in a few words, for the deaths of its victims.
    pub(super) fn remember_kill(&mut self, kill: &OomKill) {
        if self.options.deaths != Deaths::Off {
            self.morgue
                .labels
                .put(kill.incident.clone(), oom_label(kill));
        }
    }

    fn oom_of(&mut self, death: &Death) -> Option<(String, OomPart)> {
        let key = (death.task.pid, death.task.start_boot_ns);
        self.morgue.victims.pop(&key).or_else(|| {
            // Victims of a group may be gone for long before the last one is killed.
            let open = self.assembler.open()?;
            let mut victims = open.victims.iter();
            let victim =
                victims.find(|victim| (victim.task.pid, victim.task.start_boot_ns) == key)?;
            Some((self.context.incident_id(open), part(victim.role)?))
        })
    }

    /// What was available on the node when the container was asked to stop: by its end it, or
    /// another one of its pod, may have given back what the node was short of.
    fn available_at_stop(&mut self, death: &Death) -> Option<u64> {
        self.available_before(asked_boot_ns(death))
            .or_else(|| self.collector.available_bytes())
    }

    fn path_of(&mut self, task: &wire::Task) -> Option<Vec<u8>> {
        let hierarchy = self.context.memory_hierarchy;
        let located = self.tree.as_mut()?.path(hierarchy, task.memcg_id)?;
        Some(located.path.to_vec())
    }

    fn cmdline_of(&self, sent: &Sent) -> Option<Vec<String>> {
        let proc = self.options.host_root.join("proc");
        let (pid, start) = (sent.sender.pid, sent.sender.start_boot_ns);
        let mut buf = Vec::new();
        let dir = ProcessDir::open_started_at(&proc, pid, start, &mut buf).ok()?;
        let cmdline = dir.cmdline(&mut buf).ok()?;
        let args: Vec<String> = cmdline.args.iter().map(|arg| text(arg)).collect();
        Some(args).filter(|args| !args.is_empty())
    }

    /// Whether the container of the process that was at `path` has processes.
    fn survived(&mut self, path: &[u8], claim: &Claim) -> Option<bool> {
        let root = container_root(path, claim)?;
        let now = Instant::now();
        if let Some((at, survived)) = self.morgue.survival.get(root)
            && now.duration_since(*at) < SURVIVAL_KEPT
        {
            return *survived;
        }
        let survived = self
            .collector
            .directory(root)
            .map(|dir| node::cgroup::is_populated(&dir));
        self.morgue.survival.put(root.to_vec(), (now, survived));
        survived
    }
}

/// When it was asked to stop, else struck.
fn asked_boot_ns(death: &Death) -> u64 {
    let request = death.request.map(|request| request.time_boot_ns);
    request.unwrap_or_else(|| death.struck_boot_ns())
}

/// `None` for one that was dying already.
fn part(role: Role) -> Option<OomPart> {
    match role {
        Role::AlreadyExiting => None,
        Role::Chosen => Some(OomPart::Chosen),
        Role::Group | Role::SharesMm => Some(OomPart::TakenAlong),
    }
}

fn is_container(claim: &Claim) -> bool {
    claim.container_id.is_some()
        || claim.pod_uid.is_some()
        || !matches!(
            claim.orchestrator,
            Orchestrator::Systemd | Orchestrator::None
        )
}

fn is_crash(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP
    )
}

/// The outermost cgroup on the way to `path` that is of the same container.
fn container_root<'a>(path: &'a [u8], claim: &Claim) -> Option<&'a [u8]> {
    let container = claim.container_id.as_ref()?;
    let ends = (1..path.len()).filter(|&end| path[end] == b'/');
    ends.chain([path.len()])
        .map(|end| &path[..end])
        .find(|prefix| grammar::parse(prefix).container_id.as_ref() == Some(container))
}

/// What the runtime says of a container that has ended.
async fn runtime_status(
    resolver: &Resolver,
    container: Option<String>,
    wants_sandbox: bool,
) -> Option<RuntimeStatus> {
    let deadline = Instant::now() + DEADLINE;
    let ended = resolver.ended(&container?, wants_sandbox, deadline).await?;
    Some(RuntimeStatus {
        exit_code: ended.exit_code,
        reason: ended.reason,
        sandbox_stopped: ended.sandbox_stopped,
        grace_period_ms: ended
            .grace_period
            .map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
    })
}
