//! From an incident to its `oom_kill` and its `oom_outcome`.

use std::{
    future::Future as _,
    rc::Rc,
    task::{self, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use super::Daemon;
use crate::{
    event::{self, Body, OomOutcome},
    identity::path as grammar,
    incident::{
        assemble::{Incident, Step},
        evidence::LimitOwner,
        explain,
        who::{DEADLINE, Identities},
    },
    node::{self, clock},
    ring::decode::Record,
};

/// From the exit of the last victim to the reading of what its end gave back: the kernel reports
/// an exit before it frees the memory (from 6.16 on), and uncharges in batches.
const UNCHARGE: Duration = Duration::from_millis(100);

/// An `oom_kill` event with the names that a look-up task found.
pub(super) struct Made {
    number: u64,
    boot_ns: u64,
    kill: event::OomKill,
}

/// What the outcome of an incident needs of its `oom_kill`.
pub(super) struct Watched {
    usage_bytes: Option<u64>,
    limit_path: Option<Vec<u8>>,
    /// The first process of a container is among the victims.
    container_died: bool,
    /// Whether the `oom_kill` was written; `None` while its names are looked up.
    pub(super) wanted: Option<bool>,
    /// The outcome, if it was known first.
    outcome: Option<(OomOutcome, u64)>,
}

impl Daemon {
    pub(super) fn steps(&mut self, steps: Vec<Step>) {
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

    pub(super) fn opened(&mut self, number: u64) {
        // The record that opened it is in it by now, also if it was closed at once.
        if let Some(open) = self.assembler.open().filter(|open| open.number == number) {
            let evidence = self.collector.open(open);
            self.evidence = Some((number, evidence));
        }
    }

    pub(super) fn closed(&mut self, incident: Incident) {
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
        evidence.before = self.before(evidence.limit.as_ref(), &incident);
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
                    container_died: incident
                        .victims
                        .iter()
                        .any(|victim| explain::is_init(&victim.task) == Some(true)),
                    wanted: None,
                    outcome: None,
                },
            );
        }
        self.remember_victims(&incident);
        self.reconciler
            .saw(&incident, evidence.limit.as_ref().map(LimitOwner::path));
        let (context, resolver) = (Rc::clone(&self.context), Rc::clone(&self.resolver));
        let (node_name, symbols) = (self.node_name.clone(), Rc::clone(&self.symbols));
        let mut making = Box::pin(async move {
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
        // Mostly all names are known by now.
        match making
            .as_mut()
            .poll(&mut task::Context::from_waker(Waker::noop()))
        {
            Poll::Ready(made) => self.made(Ok(made)),
            Poll::Pending => {
                self.looking_up.spawn_local(making);
            }
        }
    }

    /// Reports what only the kernel log tells.
    pub(super) fn logged(&mut self) {
        for (report, boot_ns, folded) in self.collector.fruitless() {
            let (context, resolver) = (Rc::clone(&self.context), Rc::clone(&self.resolver));
            let node_name = self.node_name.clone();
            self.looking_up.spawn_local(async move {
                let paths = report.limit_cgroup.clone();
                let identities = Identities::resolve(&resolver, node_name.as_deref(), paths).await;
                let kill =
                    explain::nothing_killable(&context, &report, boot_ns, folded, &identities);
                // No incident of the rings has number 0.
                Made {
                    number: 0,
                    boot_ns,
                    kill,
                }
            });
        }
    }

    /// Reports on incidents whose victims have been gone for a moment, or on all.
    pub(super) fn report_settled(&mut self, now: Option<Instant>) {
        while let Some((due, incident)) = self.leaving.pop_front() {
            if now.is_some_and(|now| now < due) {
                self.leaving.push_front((due, incident));
                return;
            }
            self.settled(&incident);
        }
    }

    pub(super) fn settled(&mut self, incident: &Incident) {
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
            Some(node::cgroup::is_populated(&dir))
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
    pub(super) fn write_outcome(&mut self, number: u64) {
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

    pub(super) fn made(&mut self, made: Result<Made, tokio::task::JoinError>) {
        // Tasks do not panic on purpose and are never aborted; if one did, its event is missing
        // and the sequence is not: count it.
        let Ok(made) = made else {
            self.outbox.lost("event_task_failed", 1);
            return;
        };
        self.remember_kill(&made.kill);
        self.look_for_holders(&made.kill);
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
}
