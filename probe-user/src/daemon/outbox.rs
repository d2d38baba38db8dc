//! Numbers events and hands them to the sink's thread.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    event::{Body, Event, Host, Loss, Process},
    incident::{explain::Context, who::Who},
    node::clock,
    sink::{Error, Sink},
};

/// Events that may wait for a slow reader. Some 10 KiB each at worst.
const QUEUE: usize = 4096;

/// How long the end waits for a reader that does not read.
const FLUSH: Duration = Duration::from_secs(5);

/// How the output ended.
#[derive(Debug)]
pub enum Ending {
    /// Everything was written.
    Written,
    /// The reader went away: nothing is wrong, but nobody listens.
    Closed,
    /// The output failed.
    Failed(std::io::Error),
    /// This many events were not read in time.
    Stuck(u64),
}

/// The way out.
pub(super) struct Outbox {
    /// Boxed: the queue has room for all of them from the start.
    queue: Option<SyncSender<Box<Event>>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    closed: Option<oneshot::Receiver<()>>,
    host: Host,
    context: Rc<Context>,
    seq: u64,
    queued: u64,
    written: Arc<AtomicU64>,
    counts: BTreeMap<String, u64>,
    lost: BTreeMap<Lost, Count>,
}

/// What was lost: why, and in which ring or by which program where that is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lost {
    pub(super) reason: &'static str,
    pub(super) ring: Option<&'static str>,
    pub(super) hook: Option<String>,
}

impl Lost {
    pub(super) const fn of(reason: &'static str) -> Self {
        Self {
            reason,
            ring: None,
            hook: None,
        }
    }
}

/// An event found the queue of the output full.
const QUEUE_FULL: Lost = Lost {
    reason: "sink_queue_full",
    ring: Some("sink"),
    hook: None,
};

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    /// Since the start.
    total: u64,
    /// Of these, not yet in a `loss` event.
    new: u64,
}

impl Count {
    const fn add(&mut self, count: u64) {
        self.total += count;
        self.new += count;
    }
}

impl Outbox {
    pub(super) fn new<S: Sink + Send + 'static>(sink: S, host: Host, context: Rc<Context>) -> Self {
        let (queue, events) = sync_channel(QUEUE);
        let (gone, closed) = oneshot::channel();
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        let thread = std::thread::spawn(move || {
            let result = drain(sink, &events, &count);
            // The daemon may have ended first.
            let _ = gone.send(());
            result
        });
        Self {
            queue: Some(queue),
            thread: Some(thread),
            closed: Some(closed),
            host,
            context,
            seq: 0,
            queued: 0,
            written,
            counts: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }

    /// Resolves when the sink takes no more.
    pub(super) async fn closed(&mut self) {
        match &mut self.closed {
            Some(closed) => {
                let _ = closed.await;
                self.closed = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Numbers an event and queues it. One that finds the queue full is lost: its number is
    /// missing and a `loss` event says why as soon as there is room.
    pub(super) fn write(&mut self, body: Body, boot_ns: u64) {
        self.put(body, boot_ns, |event| event);
    }

    /// The same, about this pod and container.
    pub(super) fn write_about(&mut self, who: Who, body: Body, boot_ns: u64) {
        self.put(body, boot_ns, |event| event.about(who.k8s, who.container));
    }

    /// The same, about this process too.
    pub(super) fn write_of(&mut self, who: Who, process: Process, body: Body, boot_ns: u64) {
        self.put(body, boot_ns, |event| {
            event.about(who.k8s, who.container).of(process)
        });
    }

    /// Counts events that were lost before they were made.
    pub(super) fn lost(&mut self, reason: &'static str, count: u64) {
        self.lost_by(Lost::of(reason), count);
    }

    /// The same, by ring or program. The `loss` event of it waits for room in the queue and is never
    /// lost itself.
    pub(super) fn lost_by(&mut self, lost: Lost, count: u64) {
        self.lost.entry(lost).or_default().add(count);
        self.report_lost();
    }

    /// Events written, by kind.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.clone()
    }

    /// Everything lost so far, by reason.
    pub(super) fn losses(&self) -> BTreeMap<String, u64> {
        let mut losses = BTreeMap::new();
        for (lost, count) in &self.lost {
            *losses.entry(lost.reason.to_owned()).or_default() += count.total;
        }
        losses
    }

    /// Waits for the sink to write what is queued, for a while.
    pub(super) fn finish(mut self) -> Ending {
        let Some(thread) = self.thread.take() else {
            return Ending::Written;
        };
        let deadline = Instant::now() + FLUSH;
        while !self.report_lost() && !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.queue = None;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                let written = self.written.load(Ordering::Relaxed);
                return Ending::Stuck(self.queued.saturating_sub(written));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        match thread.join() {
            Ok(Ok(())) => Ending::Written,
            Ok(Err(Error::Closed)) => Ending::Closed,
            Ok(Err(Error::Io(error))) => Ending::Failed(error),
            Err(_) => Ending::Failed(std::io::Error::other("the output thread panicked")),
        }
    }

    /// Queues an event behind all that is to be told of losses before it. While there is no room for
    /// that, it is lost too, even if there is room by now: it would stand before what explains the hole
    /// in front of it.
    fn put(&mut self, body: Body, boot_ns: u64, complete: impl FnOnce(Event) -> Event) {
        if self.report_lost() {
            self.push(body, boot_ns, complete);
        } else {
            self.seq += 1;
            self.lost.entry(QUEUE_FULL).or_default().add(1);
        }
    }

    fn push(&mut self, body: Body, boot_ns: u64, complete: impl FnOnce(Event) -> Event) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        let kind = body.kind();
        let time = self.context.time(boot_ns);
        let event = complete(Event::new(time, boot_ns, self.seq, self.host.clone(), body));
        self.seq += 1;
        match queue.try_send(Box::new(event)) {
            Ok(()) => {
                self.queued += 1;
                *self.counts.entry(kind.to_owned()).or_default() += 1;
                true
            }
            Err(TrySendError::Full(_)) => {
                self.lost.entry(QUEUE_FULL).or_default().add(1);
                false
            }
            // `closed` tells the daemon.
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Whether all that was lost is in the queue as `loss` events.
    fn report_lost(&mut self) -> bool {
        let due: Vec<(Lost, Count)> = self
            .lost
            .iter()
            .filter(|(_, count)| count.new > 0)
            .map(|(lost, count)| (lost.clone(), *count))
            .collect();
        for (lost, count) in due {
            let loss = Loss {
                reason: lost.reason.to_owned(),
                count: count.new,
                total: count.total,
                ring: lost.ring.map(str::to_owned),
                hook: lost.hook.clone(),
            };
            let (seq, before) = (self.seq, self.lost.clone());
            if !self.push(Body::Loss(loss), clock::boot_ns(), |event| event) {
                // It is said with the next, and is none that was lost itself.
                (self.seq, self.lost) = (seq, before);
                return false;
            }
            if let Some(count) = self.lost.get_mut(&lost) {
                count.new = 0;
            }
        }
        true
    }
}

fn drain<S: Sink>(
    mut sink: S,
    events: &Receiver<Box<Event>>,
    written: &AtomicU64,
) -> Result<(), Error> {
    for event in events {
        sink.write(&event)?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::event::Gap;

    /// Takes an event for each word of the test, then whatever comes.
    struct Slow {
        go: mpsc::Receiver<()>,
        events: mpsc::Sender<Event>,
    }

    impl Sink for Slow {
        fn write(&mut self, event: &Event) -> Result<(), Error> {
            let _ = self.go.recv();
            let _ = self.events.send(event.clone());
            Ok(())
        }
    }

    fn event() -> Body {
        Body::Gap(Gap {
            counter: "a counter".to_owned(),
            expected: 1,
            seen: 0,
            missing: 1,
            since: None,
        })
    }

    /// Takes events all the time, each somewhat slower than they come.
    struct Busy(mpsc::Sender<Event>);

    impl Sink for Busy {
        fn write(&mut self, event: &Event) -> Result<(), Error> {
            let until = Instant::now() + Duration::from_micros(2);
            let _ = self.0.send(event.clone());
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(())
        }
    }

    fn outbox(sink: impl Sink + Send + 'static) -> Outbox {
        let host = Host {
            name: None,
            boot_id: None,
        };
        let context = Context {
            clock: clock::BootClock::now(),
            page_bytes: 4096,
            boot_id: None,
            memory_hierarchy: 0,
            hooks: Vec::new(),
        };
        Outbox::new(sink, host, Rc::new(context))
    }

    /// Checks that each hole in the numbers is told by the `loss` behind it, before any other event;
    /// gives the number of other events, and what was lost by reason.
    fn check(events: &[Event]) -> (u64, BTreeMap<&str, u64>) {
        let mut told: u64 = 0;
        let mut losses: BTreeMap<&str, u64> = BTreeMap::new();
        let (mut due, mut missing) = (0, 0);
        for event in events {
            missing += event.seq - due;
            due = event.seq + 1;
            let Body::Loss(loss) = &event.body else {
                assert_eq!(missing, 0, "before {event:?}");
                told += 1;
                continue;
            };
            let ring = match loss.reason.as_str() {
                "sink_queue_full" => Some("sink"),
                "death_ring_full" => Some("deaths"),
                _ => None,
            };
            assert_eq!(loss.ring.as_deref(), ring);
            if loss.reason == "sink_queue_full" {
                assert_eq!(std::mem::take(&mut missing), loss.count);
            }
            *losses.entry(loss.reason.as_str()).or_default() += loss.count;
            assert_eq!(losses[loss.reason.as_str()], loss.total);
        }
        assert_eq!(missing, 0, "at the end");
        (told, losses)
    }

    #[test]
    fn what_a_slow_reader_costs_is_told_whole() {
        let (go, wait) = mpsc::channel();
        let (send, events) = mpsc::channel();
        let mut outbox = outbox(Slow {
            go: wait,
            events: send,
        });
        let asked = QUEUE + 5000;
        for number in 0..asked {
            outbox.write(event(), 1);
            // Room comes at any moment, and seldom.
            if number % 7 == 0 {
                go.send(()).unwrap();
            }
        }
        // Told while there is no room, and never told again by who counted it.
        let in_ring = Lost {
            ring: Some("deaths"),
            ..Lost::of("death_ring_full")
        };
        outbox.lost_by(in_ring.clone(), 200);
        outbox.lost_by(in_ring, 35);
        outbox.lost("undecodable_record", 3);
        drop(go);
        assert!(matches!(outbox.finish(), Ending::Written));

        let events: Vec<Event> = events.iter().collect();
        let (told, losses) = check(&events);
        assert_eq!(losses["death_ring_full"], 235);
        assert_eq!(losses["undecodable_record"], 3);
        assert_eq!(told + losses["sink_queue_full"], asked as u64);
    }

    #[test]
    fn room_that_comes_at_any_moment_lets_no_event_before_the_loss_it_belongs_behind() {
        const ASKED: u64 = 100_000;
        let (send, events) = mpsc::channel();
        let mut outbox = outbox(Busy(send));
        for _ in 0..ASKED {
            outbox.write(event(), 1);
        }
        assert!(matches!(outbox.finish(), Ending::Written));
        let events: Vec<Event> = events.iter().collect();
        let (told, losses) = check(&events);
        let lost = losses.get("sink_queue_full").copied().unwrap_or(0);
        assert_eq!(told + lost, ASKED);
    }
}
