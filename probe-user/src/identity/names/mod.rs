//! Kubernetes names of a claim, from what the node itself keeps.
//!
//! Sources, in order: the cache, links in `/var/log/containers`, the runtime's CRI socket, and
//! directories in `/var/log/pods`. All of them still know a container that was just killed.

mod cri;
mod known;
mod logs;

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::cri::Ended;
use self::cri::{Cri, States};
use self::known::Answer;
pub use self::known::{Known, NameError, Names, Source};
use super::{Claim, Orchestrator};

/// How long an event waits for names.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(2);

/// Containers and pods remembered: under 1 KiB each.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");

/// Failures remembered. Few and short-lived: a cgroup is made before the runtime knows of it.
const FAILURES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// For how long.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// How old an answer about what runs may be; also the pause between two questions.
const STATES_KEPT: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Container(String),
    Pod(String),
}

impl Key {
    /// What to ask for; None if Kubernetes has no names for such a claim.
    fn of(claim: &Claim) -> Option<Self> {
        let in_kubernetes = matches!(
            claim.orchestrator,
            Orchestrator::Kubernetes | Orchestrator::Unknown
        );
        let container = claim.container_id.as_ref().filter(|_| in_kubernetes);
        container
            .map(|id| Self::Container(id.clone()))
            .or_else(|| claim.pod_uid.as_ref().map(|uid| Self::Pod(uid.clone())))
    }
}

/// Finds names. Never longer than the deadline it is given; no source can block it.
///
/// Lives on one thread: share it as `Rc` among the tasks of a `LocalSet`. Look-ups run
/// concurrently, but at most one reads the disk and one asks runtimes. A read that a disk does not
/// answer cannot be cancelled: end the runtime with `shutdown_background` or `shutdown_timeout`.
pub struct Resolver {
    log_root: Arc<Path>,
    /// Held while a thread reads log directories: a disk that hangs must not eat all threads.
    log_turn: Arc<Mutex<()>>,
    cri: Mutex<Cri>,
    states: RefCell<Option<(Instant, Rc<States>)>>,
    settled: RefCell<LruCache<Key, Arc<Known>>>,
    failed: RefCell<LruCache<Key, (Instant, Answer)>>,
}

impl Resolver {
    /// `host_root` is `/` or where the host's root is mounted; `cri_socket` overrides the usual
    /// places and is taken as this process sees it.
    pub fn new(host_root: &Path, cri_socket: Option<&Path>) -> Self {
        Self {
            log_root: host_root.join("var/log").into(),
            log_turn: Arc::default(),
            cri: Mutex::new(Cri::new(host_root, cri_socket)),
            states: RefCell::default(),
            settled: RefCell::new(LruCache::new(CAPACITY)),
            failed: RefCell::new(LruCache::new(FAILURES)),
        }
    }

    /// Names of what `claim` claims to be.
    pub async fn names(&self, claim: &Claim, deadline: Instant) -> Names {
        let started = Instant::now();
        let answer = match Key::of(claim) {
            None => Answer::default(),
            Some(key) => self.answer(&key, claim, deadline).await,
        };
        let latency_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Names::new(claim, answer, latency_us)
    }

    /// How a container ended, as soon as its runtime says so, which learns of it a moment after the
    /// kernel; with `wants_sandbox`, as soon as its sandbox, which ends after its containers, has
    /// ended too. What is known by the deadline; `None` if no runtime knows it, or none answers.
    ///
    /// Many containers that end at once share most of the questions.
    pub async fn ended(
        &self,
        container_id: &str,
        wants_sandbox: bool,
        deadline: Instant,
    ) -> Option<Ended> {
        let mut known: Option<Ended> = None;
        let mut sandbox: Option<String> = None;
        loop {
            let Some(states) = self.states(deadline).await else {
                return known;
            };
            let found = states.container(container_id);
            if let Some((_, own)) = found {
                sandbox.get_or_insert_with(|| own.to_owned());
            }
            // None that ever knew it: that does not change within a moment.
            let sandbox_stopped = Some(!states.is_ready(sandbox.as_ref()?));
            let ended = known.get_or_insert_default();
            if ended.exit_code.is_none() && found.is_some_and(|(has_exited, _)| has_exited) {
                let ask = async { self.cri.lock().await.ended(container_id, deadline).await };
                if let Ok(Ok(Some(told))) = timeout_at(deadline, ask).await {
                    *ended = told;
                }
            }
            ended.sandbox_stopped = sandbox_stopped;
            let is_told = ended.exit_code.is_some() || found.is_none();
            let is_complete = is_told && (!wants_sandbox || sandbox_stopped == Some(true));
            if is_complete || Instant::now() + STATES_KEPT >= deadline {
                return known;
            }
            sleep(STATES_KEPT).await;
        }
    }

    async fn states(&self, deadline: Instant) -> Option<Rc<States>> {
        let fresh = || {
            let kept = self.states.borrow();
            let (at, states) = kept.as_ref()?;
            (at.elapsed() < STATES_KEPT).then(|| Rc::clone(states))
        };
        let ask = async {
            let mut cri = self.cri.lock().await;
            // Another may have asked meanwhile.
            if let Some(states) = fresh() {
                return Some(states);
            }
            let at = Instant::now();
            let states = Rc::new(cri.states(deadline).await.ok()?);
            *self.states.borrow_mut() = Some((at, Rc::clone(&states)));
            Some(states)
        };
        timeout_at(deadline, ask).await.ok().flatten()
    }

    /// Remembers everything the runtimes know, so that the first kill finds it. Returns how much
    /// that was.
    pub async fn warm(&self, deadline: Instant) -> Result<usize, NameError> {
        let list = async { self.cri.lock().await.list(deadline).await };
        let all = timeout_at(deadline, list)
            .await
            .unwrap_or(Err(NameError::Deadline))?;
        let count = all.len();
        for (id, known) in all {
            self.remember(&id, Arc::new(known));
        }
        Ok(count)
    }

    /// Settles what a container or sandbox is called: ids are never used twice.
    pub fn remember(&self, container_id: &str, known: Arc<Known>) {
        let mut settled = self.settled.borrow_mut();
        if let Some(uid) = known.pod_uid.clone() {
            let pod = Known {
                container_name: None,
                restart_count: None,
                image: None,
                role: None,
                ..Known::clone(&known)
            };
            settled.put(Key::Pod(uid), Arc::new(pod));
        }
        settled.put(Key::Container(container_id.to_owned()), known);
    }

    async fn answer(&self, key: &Key, claim: &Claim, deadline: Instant) -> Answer {
        if let Some(answer) = self.cached(key) {
            return answer;
        }
        let asked = self.ask(key, claim.pod_uid.as_deref(), deadline);
        let answer = timeout_at(deadline, asked).await.unwrap_or(Answer {
            known: None,
            error: Some(NameError::Deadline),
        });
        match (key, &answer) {
            (
                Key::Container(id),
                Answer {
                    known: Some(known),
                    error: None,
                },
            ) => self.remember(id, known.clone()),
            (
                Key::Pod(_),
                Answer {
                    known: Some(known),
                    error: None,
                },
            ) => {
                self.settled.borrow_mut().put(key.clone(), known.clone());
            }
            _ => {
                let until = Instant::now() + FAILURE_KEPT;
                let mut failed = self.failed.borrow_mut();
                failed.put(key.clone(), (until, answer.clone()));
            }
        }
        answer
    }

    fn cached(&self, key: &Key) -> Option<Answer> {
        if let Some(known) = self.settled.borrow_mut().get(key) {
            return Some(Answer {
                known: Some(known.clone()),
                error: None,
            });
        }
        let mut failed = self.failed.borrow_mut();
        let (until, answer) = failed.get(key)?;
        (Instant::now() < *until).then(|| answer.clone())
    }

    /// Asks the sources in turn.
    async fn ask(&self, key: &Key, pod_uid: Option<&str>, deadline: Instant) -> Answer {
        let found = |known: Known| Answer {
            known: Some(Arc::new(known)),
            error: None,
        };
        let mut error = NameError::NotFound;
        let by_logs = match key {
            Key::Container(id) => {
                let (id, uid) = (id.clone(), pod_uid.map(str::to_owned));
                self.read_logs(move |root| logs::container(root, &id, uid.as_deref()))
                    .await
            }
            Key::Pod(uid) => self.pod_directory(uid).await,
        };
        match by_logs {
            Ok(Some(known)) => return found(known),
            Ok(None) => {}
            Err(reason) => error = error.worse_of(reason),
        }
        // Another look-up may have got the same answer while this one waited.
        if let Some(answer) = self.cached(key) {
            return answer;
        }
        match self.ask_runtime(key, deadline).await {
            Ok(Some(known)) => return found(known),
            Ok(None) => {}
            Err(reason) => error = error.worse_of(reason),
        }
        let mut known = None;
        if let (Key::Container(_), Some(uid)) = (key, pod_uid) {
            match self.pod_directory(uid).await {
                Ok(pod) => known = pod.map(Arc::new),
                Err(reason) => error = error.worse_of(reason),
            }
        }
        Answer {
            known,
            error: Some(error),
        }
    }

    async fn ask_runtime(&self, key: &Key, deadline: Instant) -> Result<Option<Known>, NameError> {
        let now = Instant::now();
        // The rest is for the last source.
        let deadline = now + deadline.saturating_duration_since(now) * 3 / 4;
        let Ok(mut cri) = timeout_at(deadline, self.cri.lock()).await else {
            let detail = "busy with an earlier question".to_owned();
            return Err(NameError::CriUnreachable(detail));
        };
        if let Some(known) = self.settled.borrow_mut().get(key) {
            return Ok(Some(Known::clone(known)));
        }
        match key {
            Key::Container(id) => cri.container(id, deadline).await,
            Key::Pod(uid) => cri.pod(uid, deadline).await,
        }
    }

    async fn pod_directory(&self, uid: &str) -> Result<Option<Known>, NameError> {
        let uid = uid.to_owned();
        self.read_logs(move |root| logs::pod(root, &uid)).await
    }

    /// Reads directories on a thread of its own: a disk may take its time, most of all when
    /// memory is short.
    async fn read_logs(
        &self,
        read: impl FnOnce(&Path) -> Result<Option<Known>, NameError> + Send + 'static,
    ) -> Result<Option<Known>, NameError> {
        let root = self.log_root.clone();
        let turn = self.log_turn.clone().lock_owned().await;
        let reading = tokio::task::spawn_blocking(move || {
            let result = read(&root);
            drop(turn);
            result
        });
        reading
            .await
            .unwrap_or_else(|error| Err(NameError::LogDirUnreadable(error.to_string())))
    }
}
