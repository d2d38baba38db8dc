//! Keeps what concerns one pod, in the few fields that a story needs.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::digest::{self, End, Kill, MOST_VICTIMS, container_of};
use super::{Error, HeldUp, Hole, MOST_DEATHS, Query, Span, Story, Subject, pattern, timeline};
use crate::event::label;
use crate::event::{
    Body, Container, Event, K8s, LimitEvent, OomKill, OomOutcome, Outcome, ProcessDeath, StallKind,
    Time, Victim,
};

/// Events kept of those that lead up to deaths.
const MOST_SIGNS: usize = 10_000;
const MOST_HOLES: usize = 100;
/// Pods, namespaces and uids remembered for what an error or the head says.
const MOST_NAMES: usize = 50;

/// Takes events in the order they were written and keeps what its pod's story needs.
#[derive(Debug)]
pub struct Collector {
    query: Query,
    pub(super) subject: Subject,
    span: Span,
    kills: VecDeque<Kill>,
    ends: VecDeque<End>,
    outcomes: HashMap<String, Ended>,
    signs: VecDeque<Sign>,
    holes: VecDeque<Hole>,
    namespaces: BTreeSet<String>,
    pods: BTreeSet<String>,
    more_pods: bool,
    left_out: Dropped,
    last: Option<Last>,
}

/// What became of a kill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) container_survived: Option<bool>,
    pub(super) late_victims: u32,
}

/// Something that may lead up to a death.
#[derive(Clone, Debug)]
pub(super) struct Sign {
    pub(super) time: Time,
    pub(super) of: Of,
    pub(super) what: Saw,
}

/// Whom a sign is of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Of {
    Container(String),
    Pod,
    Node,
}

#[derive(Clone, Debug)]
pub(super) enum Saw {
    Hits(LimitEvent, u64),
    Stall {
        kind: StallKind,
        ms: f64,
    },
    Pressure {
        held_up: Option<HeldUp>,
        said: Option<String>,
    },
    Leak {
        growth_bytes_per_s: f64,
        said: String,
    },
    OomWithoutKill,
}

/// What was dropped for want of room.
#[derive(Debug, Default)]
struct Dropped {
    count: u64,
    newest: Option<Time>,
}

/// The event before, to notice what is missing between.
#[derive(Debug)]
struct Last {
    boot_id: Option<String>,
    seq: u64,
    time: Time,
}

impl Collector {
    /// Collects what `query` asks for.
    pub fn new(query: Query) -> Self {
        Self {
            query,
            subject: Subject::default(),
            span: Span::default(),
            kills: VecDeque::new(),
            ends: VecDeque::new(),
            outcomes: HashMap::new(),
            signs: VecDeque::new(),
            holes: VecDeque::new(),
            namespaces: BTreeSet::new(),
            pods: BTreeSet::new(),
            more_pods: false,
            left_out: Dropped::default(),
            last: None,
        }
    }

    /// Looks at the next event.
    pub fn push(&mut self, event: &Event) {
        self.span.from = Some(
            self.span
                .from
                .map_or(event.time, |from| from.min(event.time)),
        );
        self.span.to = Some(self.span.to.map_or(event.time, |to| to.max(event.time)));
        self.watch_for_holes(event);
        let time = event.time;
        match &event.body {
            Body::OomKill(kill) => self.oom_kill(event, kill),
            Body::OomOutcome(outcome) => self.outcome(outcome),
            Body::ProcessDeath(death) => {
                if self.is_wanted(event.k8s.as_ref(), event.container.as_ref()) {
                    self.count(event);
                    self.keep_end(event, death);
                }
            }
            Body::MemcgLimit(hit) => self.sign(event, || Saw::Hits(hit.event, hit.new)),
            Body::ReclaimStall(stall) => {
                self.sign(event, || Saw::Stall {
                    kind: stall.stall,
                    ms: Duration::from_nanos(stall.new_ns).as_secs_f64() * 1000.0,
                });
            }
            Body::Pressure(pressure) => self.sign(event, || Saw::Pressure {
                held_up: digest::held_up(pressure),
                said: pressure.findings.first().map(|found| found.summary.clone()),
            }),
            Body::LeakSuspect(leak) => self.sign(event, || Saw::Leak {
                growth_bytes_per_s: leak.growth_bytes_per_s,
                said: leak.summary.clone(),
            }),
            Body::Loss(loss) => self.hole(
                time,
                match &loss.hook {
                    Some(hook) => format!(
                        "up to {} calls of {hook} were not looked at ({})",
                        loss.count, loss.reason
                    ),
                    None => format!("{} records were lost ({})", loss.count, loss.reason),
                },
            ),
            Body::Gap(gap) => self.hole(
                time,
                format!(
                    "{} of {} that {} counted were not seen",
                    gap.missing, gap.expected, gap.counter
                ),
            ),
            Body::Triage(_)
            | Body::SkbHolders(_)
            | Body::SlabUsage(_)
            | Body::SkbOutstanding(_)
            | Body::SlabOutstanding(_)
            | Body::ProbeStatus(_)
            | Body::Heartbeat(_) => {}
        }
    }

    /// The story of what was pushed.
    pub fn tell(self) -> Result<Story, Error> {
        if self.span.events == 0 {
            return Err(Error::NoSuchPod {
                wanted: wanted(&self.query),
                pods: self.pods.into_iter().collect(),
                more: self.more_pods,
            });
        }
        if self.query.namespace.is_none() && self.namespaces.len() > 1 {
            return Err(Error::Ambiguous {
                pod: self.query.pod,
                namespaces: self.namespaces.into_iter().collect(),
            });
        }
        Ok(self.tell_anyway())
    }

    /// The same of a pod that was followed live until then: that nothing happened is an answer too.
    pub fn tell_live(mut self, until: Time) -> Result<Story, Error> {
        self.span.to = self.span.to.max(Some(until));
        if self.span.events == 0 {
            self.subject.name = Some(self.query.pod.clone());
            self.subject.namespace.clone_from(&self.query.namespace);
            return Ok(self.tell_anyway());
        }
        self.tell()
    }

    fn tell_anyway(self) -> Story {
        let mut span = self.span;
        let from = self.query.since.and_then(|since| {
            let since = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            Some(Time::from_unix_ns(span.to?.unix_ns().saturating_sub(since)))
        });
        span.from = span.from.max(from);
        let is_in = |time: Time| from.is_none_or(|from| time >= from);
        let mut left_out = match self.left_out.newest {
            Some(newest) if is_in(newest) => self.left_out.count,
            _ => 0,
        };
        let mut deaths = timeline::deaths(self.kills, self.ends, &self.outcomes, self.signs.into());
        deaths.retain(|death| is_in(death.time));
        let surplus = deaths.len().saturating_sub(MOST_DEATHS);
        deaths.drain(..surplus);
        left_out += surplus as u64;
        let holes: Vec<_> = self
            .holes
            .into_iter()
            .filter(|hole| is_in(hole.time))
            .collect();
        Story {
            containers: timeline::containers(&deaths),
            pattern: pattern::find(&deaths, left_out, &span, !holes.is_empty()),
            pod: self.subject,
            span,
            deaths,
            left_out,
            holes,
            ..Story::default()
        }
    }

    fn oom_kill(&mut self, event: &Event, kill: &OomKill) {
        // Of a kill above pods every victim's pod counts, not only the chosen one's.
        let mine: Vec<&Victim> = kill
            .killed()
            .filter(|victim| self.is_wanted(victim.k8s.as_ref(), victim.container.as_ref()))
            .collect();
        let limit = kill.limit.as_ref();
        let is_owner =
            limit.is_some_and(|limit| self.is_wanted(limit.k8s.as_ref(), limit.container.as_ref()));
        if mine.is_empty() && !is_owner {
            return;
        }
        self.count(event);
        if kill.outcome != Outcome::Killed {
            let of = limit.map_or(Of::Pod, |limit| {
                of(limit.k8s.as_ref(), limit.container.as_ref())
            });
            return self.keep_sign(Sign {
                time: event.time,
                of,
                what: Saw::OomWithoutKill,
            });
        }
        let mut by_container: Vec<(Option<String>, Vec<&Victim>)> = Vec::new();
        let of_owner = kill
            .killed()
            .filter(|_| mine.is_empty() && self.query.container.is_none());
        for victim in mine.iter().copied().chain(of_owner) {
            let key = container_of(victim.k8s.as_ref(), victim.container.as_ref());
            match by_container.iter_mut().find(|(of, _)| *of == key) {
                Some((_, victims)) => victims.push(victim),
                None => by_container.push((key, vec![victim])),
            }
        }
        for (_, victims) in by_container {
            if let Some(kept) = digest::kill(event, kill, &victims) {
                push_bounded(&mut self.kills, kept, MOST_DEATHS, |old| {
                    self.outcomes
                        .remove(old.death.incident.as_deref().unwrap_or_default());
                    self.left_out.add(old.death.time);
                });
            }
        }
    }

    fn outcome(&mut self, outcome: &OomOutcome) {
        // It follows its kill within seconds.
        let is_mine = |kill: &Kill| kill.death.incident.as_ref() == Some(&outcome.incident);
        if self.kills.iter().rev().take(MOST_VICTIMS).any(is_mine) {
            let ended = Ended {
                container_survived: outcome.container_survived,
                late_victims: outcome.late_victims,
            };
            self.outcomes.insert(outcome.incident.clone(), ended);
        }
    }

    fn keep_end(&mut self, event: &Event, death: &ProcessDeath) {
        let end = digest::end(event, death);
        push_bounded(&mut self.ends, end, MOST_DEATHS, |old| {
            // With an incident it is in the list of kills too, and counted there.
            if old.death.incident.is_none() {
                self.left_out.add(old.death.time);
            }
        });
    }

    fn sign(&mut self, event: &Event, saw: impl FnOnce() -> Saw) {
        let of = if event.k8s.is_none() {
            let cgroup = match &event.body {
                Body::ReclaimStall(stall) => &stall.cgroup,
                Body::Pressure(pressure) => &pressure.cgroup,
                _ => return,
            };
            if cgroup.is_some() {
                return;
            }
            Of::Node
        } else {
            if !self.is_wanted_pod_or_container(event.k8s.as_ref(), event.container.as_ref()) {
                return;
            }
            self.count(event);
            of(event.k8s.as_ref(), event.container.as_ref())
        };
        self.keep_sign(Sign {
            time: event.time,
            of,
            what: saw(),
        });
    }

    fn keep_sign(&mut self, sign: Sign) {
        push_bounded(&mut self.signs, sign, MOST_SIGNS, |_| ());
    }

    fn hole(&mut self, time: Time, what: String) {
        push_bounded(&mut self.holes, Hole { time, what }, MOST_HOLES, |_| ());
    }

    fn watch_for_holes(&mut self, event: &Event) {
        let is_same_boot = |last: &&Last| last.boot_id == event.host.boot_id;
        let hole = match (&event.body, self.last.as_ref().filter(is_same_boot)) {
            (Body::ProbeStatus(status), _) if !status.attached => {
                Some("oomprobe could not attach: kills were not seen".to_owned())
            }
            (Body::ProbeStatus(_), Some(last)) => event.time.since(last.time).map(|time| {
                format!(
                    "oomprobe was started anew: {} before it were not looked at",
                    label::seconds(time.as_secs_f64())
                )
            }),
            (_, Some(last)) if event.seq > last.seq.saturating_add(1) => Some(format!(
                "events {} to {} of the run are not in the capture: lost, or filtered away",
                last.seq + 1,
                event.seq - 1
            )),
            _ => None,
        };
        if let Some(what) = hole {
            self.hole(event.time, what);
        }
        self.last = Some(Last {
            boot_id: event.host.boot_id.clone(),
            seq: event.seq,
            time: event.time,
        });
    }

    /// An event about the pod was seen.
    fn count(&mut self, event: &Event) {
        self.span.events += 1;
        if let Some(node) = &event.host.name
            && self.subject.nodes.len() < MOST_NAMES
            && !self.subject.nodes.contains(node)
        {
            self.subject.nodes.push(node.clone());
        }
    }

    fn is_wanted(&mut self, k8s: Option<&K8s>, container: Option<&Container>) -> bool {
        let Some(k8s) = k8s else { return false };
        self.is_pod(k8s)
            && self
                .query
                .container
                .as_ref()
                .is_none_or(|wanted| is_container(wanted, k8s, container))
    }

    /// A pod's own limits and pressure concern each of its containers.
    fn is_wanted_pod_or_container(
        &mut self,
        k8s: Option<&K8s>,
        container: Option<&Container>,
    ) -> bool {
        let is_pods_own = container.is_none() && k8s.is_some_and(|k8s| k8s.container.is_none());
        if is_pods_own {
            k8s.is_some_and(|k8s| self.is_pod(k8s))
        } else {
            self.is_wanted(k8s, container)
        }
    }

    fn is_pod(&mut self, k8s: &K8s) -> bool {
        let (name, uid) = (k8s.pod.name.as_ref(), k8s.pod.uid.as_ref());
        let namespace = k8s.namespace.name.as_ref();
        let is_named = name == Some(&self.query.pod) || uid == Some(&self.query.pod);
        let is_elsewhere = self.query.namespace.is_some()
            && namespace.is_some()
            && namespace != self.query.namespace.as_ref();
        // Names come from the runtime, and are missing where it did not answer in time.
        let is_known = name.is_none() && uid.is_some_and(|uid| self.subject.uids.contains(uid));
        if is_elsewhere || !(is_named || is_known) {
            match label::pod(k8s) {
                Some(label) if self.pods.len() < MOST_NAMES => {
                    self.pods.insert(label);
                }
                Some(label) => self.more_pods |= !self.pods.contains(&label),
                None => {}
            }
            return false;
        }
        if let Some(name) = name {
            self.subject.name.get_or_insert_with(|| name.clone());
        }
        if let Some(namespace) = namespace {
            self.subject
                .namespace
                .get_or_insert_with(|| namespace.clone());
            if self.namespaces.len() < MOST_NAMES {
                self.namespaces.insert(namespace.clone());
            }
        }
        if let Some(uid) = uid
            && self.subject.uids.len() < MOST_NAMES
            && !self.subject.uids.contains(uid)
        {
            self.subject.uids.push(uid.clone());
        }
        true
    }
}

impl Dropped {
    fn add(&mut self, time: Time) {
        self.count += 1;
        self.newest = self.newest.max(Some(time));
    }
}

fn push_bounded<T>(list: &mut VecDeque<T>, item: T, most: usize, mut dropped: impl FnMut(T)) {
    // Twice as many as are told, as two events may be about one death.
    while list.len() >= most * 2 {
        if let Some(old) = list.pop_front() {
            dropped(old);
        }
    }
    list.push_back(item);
}

fn wanted(query: &Query) -> String {
    let mut text = match &query.namespace {
        Some(namespace) => format!("{namespace}/{}", query.pod),
        None => query.pod.clone(),
    };
    if let Some(container) = &query.container {
        text = format!("{text}, container {container}");
    }
    text
}

fn is_container(wanted: &str, k8s: &K8s, container: Option<&Container>) -> bool {
    let name = k8s.container.as_ref().and_then(|own| own.name.as_deref());
    let id = container.and_then(|container| container.id.as_deref());
    name == Some(wanted) || id.is_some_and(|id| id.starts_with(wanted))
}

fn of(k8s: Option<&K8s>, container: Option<&Container>) -> Of {
    container_of(k8s, container).map_or(Of::Pod, Of::Container)
}
