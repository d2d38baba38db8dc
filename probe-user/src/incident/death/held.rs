//! Deaths that wait a moment, so that those which go with another are told with it.

use std::collections::VecDeque;

use super::Death;
use crate::event::Via;

/// How long a death waits for what goes with it. A container's processes end within some ms of each
/// other, even hundreds of them.
pub const HOLD_NS: u64 = 300_000_000;

/// Most that wait.
const MAX_HELD: usize = 8192;

/// One that waits.
#[derive(Debug)]
struct Waiting<T> {
    container: String,
    death: Death,
    with: T,
    others: u64,
}

/// Deaths in the order they came, each with what the caller keeps of it.
#[derive(Debug)]
pub struct Held<T> {
    waiting: VecDeque<Waiting<T>>,
}

/// A death whose time has come.
#[derive(Debug)]
pub struct Released<T> {
    /// The death.
    pub death: Death,
    /// What the caller kept of it.
    pub with: T,
    /// How many went with it.
    pub others: u64,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
        }
    }
}

impl<T> Held<T> {
    /// Takes a death in `container` (empty for none). Gives it back if there is no room.
    pub fn push(&mut self, container: String, death: Death, with: T) -> Result<(), T> {
        if let Some(leader) = self.leader(&container, &death) {
            leader.others += 1;
            return Ok(());
        }
        if self.waiting.len() >= MAX_HELD {
            return Err(with);
        }
        let mut others = 0;
        if death.is_namespace_init() && !container.is_empty() {
            // What came before its first process, and goes with it, is told with that.
            self.waiting.retain(|waiting| {
                let is_one = waiting.container == container && goes_with(&waiting.death, &death);
                others += u64::from(is_one) * (1 + waiting.others);
                !is_one
            });
        }
        self.waiting.push_back(Waiting {
            container,
            death,
            with,
            others,
        });
        Ok(())
    }

    /// The next whose time has come; with no `now_ns`, the next at all.
    pub fn pop(&mut self, now_ns: Option<u64>) -> Option<Released<T>> {
        let due_ns = self.due_ns()?;
        if now_ns.is_some_and(|now| now < due_ns) {
            return None;
        }
        let Waiting {
            death,
            with,
            others,
            ..
        } = self.waiting.pop_front()?;
        Some(Released {
            death,
            with,
            others,
        })
    }

    /// Whether the first process of `container` is among those that wait.
    pub fn has_init_of(&self, container: &str) -> bool {
        self.waiting
            .iter()
            .any(|waiting| waiting.container == container && waiting.death.is_namespace_init())
    }

    /// When the next one's time comes, ns since boot.
    pub fn due_ns(&self) -> Option<u64> {
        let front = self.waiting.front()?;
        Some(front.death.boot_ns.saturating_add(HOLD_NS))
    }

    /// The one that `death` goes with.
    fn leader(&mut self, container: &str, death: &Death) -> Option<&mut Waiting<T>> {
        if container.is_empty() || !matches!(death.via, Via::PidNamespace | Via::CgroupKill) {
            return None;
        }
        self.waiting
            .iter_mut()
            .rev()
            .find(|waiting| waiting.container == container && goes_with(death, &waiting.death))
    }
}

/// Whether a death needs no telling beside `other`, of the same container: the kernel killed it
/// because that one, the first process, died; or one act, a write to `cgroup.kill`, killed both.
fn goes_with(death: &Death, other: &Death) -> bool {
    if death.is_namespace_init() {
        return false;
    }
    let same_sender = || match (&death.sent, &other.sent) {
        (Some(own), Some(other)) => {
            own.sender.pid == other.sender.pid
                && own.sender.start_boot_ns == other.sender.start_boot_ns
        }
        _ => false,
    };
    match death.via {
        Via::PidNamespace => death.sent.as_ref().is_some_and(|sent| {
            (other.is_namespace_init() && sent.sender.pid == other.task.pid)
                || (other.via == Via::PidNamespace && same_sender())
        }),
        Via::CgroupKill => other.via == Via::CgroupKill && same_sender(),
        _ => false,
    }
}
