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
    queue: Option<SyncSender<Event>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    closed: Option<oneshot::Receiver<()>>,
    host: Host,
    context: Rc<Context>,
    seq: u64,
    queued: u64,
    written: Arc<AtomicU64>,
    counts: BTreeMap<String, u64>,
    /// By reason: lost so far, and of these not yet reported.
    lost: BTreeMap<&'static str, (u64, u64)>,
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
        self.report_lost();
        self.push(body, boot_ns, |event| event);
    }

    /// The same, about this pod and container.
    pub(super) fn write_about(&mut self, who: Who, body: Body, boot_ns: u64) {
        self.report_lost();
        self.push(body, boot_ns, |event| event.about(who.k8s, who.container));
    }

    /// The same, about this process too.
    pub(super) fn write_of(&mut self, who: Who, process: Process, body: Body, boot_ns: u64) {
        self.report_lost();
        self.push(body, boot_ns, |event| {
            event.about(who.k8s, who.container).of(process)
        });
    }

    /// Counts events that were lost before they were made.
    pub(super) fn lost(&mut self, reason: &'static str, count: u64) {
        let entry = self.lost.entry(reason).or_default();
        entry.0 += count;
        entry.1 += count;
        self.report_lost();
    }

    /// Events written, by kind.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.clone()
    }

    /// Losses of this side, by reason.
    pub(super) fn losses(&self) -> impl Iterator<Item = (String, u64)> {
        self.lost
            .iter()
            .map(|(reason, (total, _))| ((*reason).to_owned(), *total))
    }

    /// Waits for the sink to write what is queued, for a while.
    pub(super) fn finish(mut self) -> Ending {
        self.report_lost();
        self.queue = None;
        let Some(thread) = self.thread.take() else {
            return Ending::Written;
        };
        let deadline = Instant::now() + FLUSH;
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

    fn push(&mut self, body: Body, boot_ns: u64, complete: impl FnOnce(Event) -> Event) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        let kind = body.kind();
        let time = self.context.time(boot_ns);
        let event = complete(Event::new(time, boot_ns, self.seq, self.host.clone(), body));
        self.seq += 1;
        match queue.try_send(event) {
            Ok(()) => {
                self.queued += 1;
                *self.counts.entry(kind.to_owned()).or_default() += 1;
                true
            }
            Err(TrySendError::Full(_)) => {
                let entry = self.lost.entry("sink_queue_full").or_default();
                entry.0 += 1;
                entry.1 += 1;
                false
            }
            // `closed` tells the daemon.
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    fn report_lost(&mut self) {
        let due: Vec<(&'static str, u64, u64)> = self
            .lost
            .iter()
            .filter(|(_, (_, new))| *new > 0)
            .map(|(reason, (total, new))| (*reason, *total, *new))
            .collect();
        for (reason, total, count) in due {
            let loss = Loss {
                reason: reason.to_owned(),
                count,
                total,
                ring: (reason == "sink_queue_full").then(|| "sink".to_owned()),
                hook: None,
            };
            if let Some(entry) = self.lost.get_mut(reason) {
                entry.1 = 0;
            }
            let (seq, before) = (self.seq, self.lost.clone());
            if !self.push(Body::Loss(loss), clock::boot_ns(), |event| event) {
                // It is said with the next, and is none that was lost itself.
                (self.seq, self.lost) = (seq, before);
                if let Some(entry) = self.lost.get_mut(reason) {
                    entry.1 += count;
                }
                return;
            }
        }
    }
}

fn drain<S: Sink>(mut sink: S, events: &Receiver<Event>, written: &AtomicU64) -> Result<(), Error> {
    for event in events {
        sink.write(&event)?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
