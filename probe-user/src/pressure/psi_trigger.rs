//! PSI triggers: the kernel wakes us when tasks waited too long (Documentation/accounting/psi.rst,
//! "Monitoring for pressure thresholds").

use std::{
    fs::{File, OpenOptions},
    future::{Future, poll_fn},
    io::{self, Write as _},
    path::Path,
    pin::Pin,
    rc::Rc,
    task::Poll,
};

use tokio::io::{Interest, Ready, unix::AsyncFd};

/// A trigger: `some` task waited this long in total within a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Time waited, µs.
    pub stall_us: u32,
    /// Within this long, µs. The kernel wakes at most once per window.
    pub window_us: u32,
}

/// 15 % of a second: a healthy busy node stays below a few percent, and what thrashes is well
/// above. The window is the shortest in which one slow disk access does not count as a stall.
const QUICK: Threshold = Threshold {
    stall_us: 150_000,
    window_us: 1_000_000,
};

/// The same share. Without CAP_SYS_RESOURCE a window must be a multiple of 2 s, the period of the
/// kernel's own averaging (6.5); before, there is no trigger at all without it.
const SLOW: Threshold = Threshold {
    stall_us: 300_000,
    window_us: 2_000_000,
};

/// Most cgroups with a trigger: each with a short window has a kernel thread.
const MAX_CGROUPS: usize = 16;

/// Whether there is a trigger on the node's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// With this threshold.
    Armed(Threshold),
    /// PSI is switched off: boot with `psi=1`.
    Disabled,
    /// Built without `CONFIG_PSI`, or the kernel hides the files of a PSI that is switched off.
    Unsupported,
    /// Not allowed, with what the kernel answered.
    Refused(String),
}

/// What a trigger is on: a cgroup by its path, or the node.
pub type Subject = Option<Rc<[u8]>>;

struct Trigger {
    subject: Subject,
    file: Rc<AsyncFd<File>>,
    wait: Wait,
}

type Wait = Pin<Box<dyn Future<Output = io::Result<Ready>>>>;

/// The triggers on memory: the node's, and those of some cgroups.
pub struct Triggers {
    armed: Vec<Trigger>,
    state: State,
}

impl Triggers {
    /// Arms the node's trigger. Must be called within a tokio runtime.
    pub fn new(proc: &Path) -> Self {
        let mut armed = Vec::new();
        let state = match arm(&proc.join("pressure/memory")) {
            Ok((file, threshold)) => {
                armed.push(Trigger::new(None, file));
                State::Armed(threshold)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => State::Disabled,
                Some(libc::ENOENT) => State::Unsupported,
                _ => State::Refused(error.to_string()),
            },
        };
        Self { armed, state }
    }

    /// Whether the node's trigger is armed, and if not, why.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Arms a trigger on the cgroup `path` by its `memory.pressure`; without effect if it has one,
    /// if there are too many, or if the kernel refuses. Must be called within a tokio runtime.
    pub fn add(&mut self, path: &Rc<[u8]>, file: &Path) {
        let cgroups = self.armed.iter().filter(|t| t.subject.is_some()).count();
        let has_one = |trigger: &Trigger| trigger.subject.as_ref() == Some(path);
        if cgroups >= MAX_CGROUPS || self.armed.iter().any(has_one) {
            return;
        }
        if let Ok((file, _)) = arm(file) {
            self.armed.push(Trigger::new(Some(path.clone()), file));
        }
    }

    /// Gives up the trigger on the cgroup `path`.
    pub fn remove(&mut self, path: &[u8]) {
        self.armed
            .retain(|trigger| trigger.subject.as_deref() != Some(path));
    }

    /// Waits until tasks of somebody have waited too long. Dropped while it waits, it has lost
    /// nothing. Never returns where no trigger could be armed.
    pub async fn fired(&mut self) -> Subject {
        poll_fn(|context| {
            let mut index = 0;
            while let Some(trigger) = self.armed.get_mut(index) {
                match trigger.wait.as_mut().poll(context) {
                    Poll::Pending => index += 1,
                    Poll::Ready(Ok(ready)) if ready.is_priority() && !ready.is_error() => {
                        trigger.wait = wait(trigger.file.clone());
                        // So that one that fires all the time does not hide the others.
                        let subject = trigger.subject.clone();
                        self.armed.rotate_left(index + 1);
                        return Poll::Ready(subject);
                    }
                    // The cgroup was removed.
                    Poll::Ready(_) => drop(self.armed.swap_remove(index)),
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Trigger {
    fn new(subject: Subject, file: AsyncFd<File>) -> Self {
        let file = Rc::new(file);
        Self {
            subject,
            wait: wait(file.clone()),
            file,
        }
    }
}

fn wait(file: Rc<AsyncFd<File>>) -> Wait {
    Box::pin(async move {
        let mut guard = file.ready(Interest::PRIORITY | Interest::ERROR).await?;
        let ready = guard.ready();
        // The kernel has taken the event back with the poll that told of it.
        guard.clear_ready();
        Ok(ready)
    })
}

/// The best trigger this process may have on the pressure file `path`.
fn arm(path: &Path) -> io::Result<(AsyncFd<File>, Threshold)> {
    let try_with = |threshold: Threshold| {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let Threshold {
            stall_us,
            window_us,
        } = threshold;
        // The kernel takes the last byte for a terminator.
        file.write_all(format!("some {stall_us} {window_us}\0").as_bytes())?;
        Ok::<_, io::Error>(file)
    };
    let (file, threshold) = match try_with(QUICK) {
        Ok(file) => (file, QUICK),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {
            (try_with(SLOW)?, SLOW)
        }
        Err(error) => return Err(error),
    };
    // SAFETY: the `File` owns its descriptor, which stays the same until it is dropped.
    let file =
        unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY | Interest::ERROR) }?;
    Ok((file, threshold))
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn a_kernel_without_psi_is_told() {
        let proc = tempfile::tempdir().unwrap();
        block_on(async {
            let mut triggers = Triggers::new(proc.path());
            assert_eq!(*triggers.state(), State::Unsupported);
            let silent = tokio::time::timeout(Duration::from_millis(50), triggers.fired()).await;
            assert!(silent.is_err());
        });
    }

    #[test]
    fn this_machine_takes_a_trigger_or_says_why_not() {
        block_on(async {
            let triggers = Triggers::new(Path::new("/proc"));
            eprintln!("{:?}", triggers.state());
            match fs::read("/proc/pressure/memory") {
                Ok(_) => assert!(!matches!(triggers.state(), State::Unsupported)),
                Err(_) => assert!(!matches!(triggers.state(), State::Armed(_))),
            }
        });
    }
}
