//! Kernel memory in the stream: who holds socket buffers, what is not freed, which caches grow.
//!
//! A look takes tenths of a second and reads many files, so it has a thread of its own. It is taken
//! at the interval that the user chose, and once when a node runs out of memory that is the kernel's.

use std::{rc::Rc, time::Duration};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{Daemon, Options};
use crate::{
    event::{Body, NotRead, OomKill, Scope, SkbHolders},
    identity::names::Resolver,
    leak::{
        holders::{self, Observer, Thoroughness},
        slab,
        track::{self, Follower, What},
    },
    node::{clock, host},
};

/// Between the two looks that tell what is read and what is not.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Holders, stacks and caches that an event lists.
const TOP: usize = 10;

/// One buffer of 64 is followed: what that costs is in docs/benchmarks.md.
const SAMPLE_BITS: u32 = 6;

/// Buffers that are younger are on their way.
const MIN_AGE: Duration = Duration::from_secs(1);

/// After a look for one OOM kill, another one waits for so long: a node that runs out of memory kills
/// again and again, and the holder stays the same.
const PAUSE: Duration = Duration::from_secs(60);

/// Events that may wait for the daemon.
const QUEUE: usize = 16;

/// What a look brought.
pub(super) struct Seen {
    body: Body,
    boot_ns: u64,
}

/// The thread that looks. It ends with this, at the latest when its look is over.
pub(super) struct Leaks {
    asked: Sender<String>,
    seen: Receiver<Seen>,
    asked_last: Option<Instant>,
}

impl Leaks {
    /// Starts it; without `every` it looks only when asked to.
    pub(super) fn start(options: &Options, every: Option<Duration>) -> std::io::Result<Self> {
        let (asked, questions) = channel(1);
        let (answers, seen) = channel(QUEUE);
        let options = holders::Options {
            host_root: options.host_root.clone(),
            cri_socket: options.cri_socket.clone(),
            duration: BETWEEN_LOOKS,
            top: TOP,
            census: Thoroughness::Sample,
            progress: |_| {},
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("leaks".to_owned())
            .spawn(move || {
                runtime.block_on(watch(options, every, questions, answers));
                runtime.shutdown_background();
            })?;
        Ok(Self {
            asked,
            seen,
            asked_last: None,
        })
    }

    /// Asks for a look because of this incident, unless there was one lately.
    fn look(&mut self, incident: &str) {
        if self.asked_last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        // Full: a look is about to begin anyway.
        if self.asked.try_send(incident.to_owned()).is_ok() {
            self.asked_last = Some(Instant::now());
        }
    }
}

/// What is seen next; pends without a thread.
pub(super) async fn next(leaks: Option<&mut Leaks>) -> Seen {
    if let Some(leaks) = leaks
        && let Some(seen) = leaks.seen.recv().await
    {
        return seen;
    }
    std::future::pending().await
}

impl Daemon {
    pub(super) fn leak_seen(&mut self, seen: Seen) {
        self.outbox.write(seen.body, seen.boot_ns);
    }

    /// Has somebody look who holds the kernel's memory, if that is what a node ran out of.
    pub(super) fn look_for_holders(&mut self, kill: &OomKill) {
        if !is_of_the_kernel(kill) {
            return;
        }
        if self.leaks.is_none() {
            self.leaks = Leaks::start(&self.options, None).ok();
        }
        if let Some(leaks) = &mut self.leaks {
            leaks.look(&kill.incident);
        }
    }
}

/// Whether a tenth of a node without memory is slab that cannot be given back.
fn is_of_the_kernel(kill: &OomKill) -> bool {
    let (slab, total) = (
        kill.node.slab_unreclaimable_bytes,
        kill.node.mem_total_bytes,
    );
    kill.scope == Scope::Node
        && slab
            .zip(total)
            .is_some_and(|(slab, total)| slab >= total / 10)
}

/// Looks until nobody listens. What a table has no room for while a look is taken is counted.
async fn watch(
    options: holders::Options,
    every: Option<Duration>,
    mut asked: Receiver<String>,
    seen: Sender<Seen>,
) {
    let mut watcher = Watcher::open(options, every);
    let mut tick = interval(every.unwrap_or(PAUSE));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let bodies = tokio::select! {
            incident = asked.recv() => match incident {
                Some(incident) => {
                    let held = watcher.holders(Some(incident)).await;
                    vec![Body::SkbHolders(Box::new(held))]
                }
                None => return,
            },
            _ = tick.tick(), if every.is_some() => watcher.all().await,
            () = sleep(track::LOOK), if watcher.follows() => {
                watcher.keep_room();
                continue;
            }
        };
        for body in bodies {
            let boot_ns = clock::boot_ns();
            if seen.send(Seen { body, boot_ns }).await.is_err() {
                return;
            }
        }
    }
}

struct Watcher {
    options: holders::Options,
    observer: Observer,
    /// Follows buffers, or why it does not; `None` if that was not asked for.
    follower: Option<Result<Follower, track::Error>>,
    resolver: Rc<Resolver>,
    node_name: Option<String>,
}

impl Watcher {
    fn open(options: holders::Options, every: Option<Duration>) -> Self {
        let follower = every.map(|_| {
            Follower::attach(track::Options {
                host_root: options.host_root.clone(),
                cri_socket: options.cri_socket.clone(),
                what: What::Skb,
                sample_bits: SAMPLE_BITS,
                duration: None,
                min_age: MIN_AGE,
                top: TOP,
            })
        });
        let node_env = std::env::var("NODE_NAME").ok();
        let watcher = Self {
            observer: Observer::open(options.clone()),
            follower,
            resolver: Rc::new(Resolver::new(
                &options.host_root,
                options.cri_socket.as_deref(),
            )),
            node_name: host::node_name(node_env.as_deref(), &options.host_root.join("proc")).ok(),
            options,
        };
        // The kernel's types were needed until here.
        super::process::release_memory();
        watcher
    }

    const fn follows(&self) -> bool {
        matches!(self.follower, Some(Ok(_)))
    }

    /// A sample that fits its table; one that cannot be made to is followed no longer.
    fn keep_room(&mut self) {
        if let Some(Ok(follower)) = &mut self.follower
            && let Err(why) = follower.keep_room()
        {
            self.follower = Some(Err(why));
        }
    }

    async fn all(&mut self) -> Vec<Body> {
        let slab = slab::Options {
            host_root: self.options.host_root.clone(),
            cri_socket: self.options.cri_socket.clone(),
            duration: BETWEEN_LOOKS,
            top: TOP,
        };
        let (resolver, node_name) = (Rc::clone(&self.resolver), self.node_name.clone());
        let (usage, mut held) = tokio::join!(
            slab::look(&slab, &resolver, node_name.as_deref()),
            self.holders(None),
        );
        let mut missing = Vec::new();
        let mut bodies = Vec::new();
        if let Some(Ok(follower)) = &mut self.follower {
            let outstanding = follower.tell(&resolver, node_name.as_deref()).await;
            // Growth is told from here on.
            let remembered = follower.remember();
            match outstanding.and_then(|body| remembered.map(|()| body)) {
                Ok(body) => bodies.push(body),
                Err(why) => missing.push(not_read(OUTSTANDING, &why)),
            }
        }
        match usage {
            Ok(usage) => bodies.push(Body::SlabUsage(Box::new(usage))),
            Err(why) => missing.push(not_read("slab caches (slab_usage)", &why)),
        }
        held.not_read.extend(missing);
        bodies.insert(0, Body::SkbHolders(Box::new(held)));
        bodies
    }

    /// Who holds socket buffers; with no way to see them, why.
    async fn holders(&mut self, incident: Option<String>) -> SkbHolders {
        let held = self.observer.look().await;
        let mut held = held.unwrap_or_else(|no_way| SkbHolders {
            not_read: vec![not_read("sockets", &no_way)],
            ..SkbHolders::default()
        });
        held.incident = incident;
        if let Some(Err(why)) = &self.follower {
            held.not_read.push(not_read(OUTSTANDING, why));
        }
        held
    }
}

const OUTSTANDING: &str = "socket buffers that are not freed (skb_outstanding)";

fn not_read(what: &str, why: &impl ToString) -> NotRead {
    NotRead {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Node;

    #[test]
    fn only_a_node_that_is_full_of_slab_is_looked_at() {
        let kill = |scope, slab, total| OomKill {
            scope,
            node: Node {
                slab_unreclaimable_bytes: slab,
                mem_total_bytes: total,
                ..Node::default()
            },
            ..OomKill::default()
        };
        assert!(is_of_the_kernel(&kill(Scope::Node, Some(100), Some(1000))));
        assert!(!is_of_the_kernel(&kill(Scope::Node, Some(99), Some(1000))));
        assert!(!is_of_the_kernel(&kill(Scope::Pod, Some(900), Some(1000))));
        assert!(!is_of_the_kernel(&kill(Scope::Node, None, Some(1000))));
        assert!(!is_of_the_kernel(&kill(Scope::Node, Some(100), None)));
    }
}
