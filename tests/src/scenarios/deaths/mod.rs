//! Deaths of processes of containers: what ended each, and who did it.
//!
//! What a death must be is what waitpid(2) said of it and what the scenario did itself.

mod crashes;
mod exits;
mod flood;
mod kin;
mod oom_daemons;
mod ooms;
mod senders;

use std::os::unix::ffi::OsStrExt as _;
use std::process;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{Cgroup, Container, Pod};
use crate::death::Death;
use crate::hog::{End, Hog, Spec};
use crate::scenario::{Context, Scenario};

/// Every scenario of deaths.
pub(super) fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        exits::ALL,
        senders::ALL,
        crashes::ALL,
        kin::ALL,
        ooms::ALL,
        oom_daemons::ALL,
        flood::ALL,
    ]
    .into_iter()
    .flatten()
}

/// A container of a pod of its own.
struct Stage {
    container: Container,
    _pod: Pod,
    /// Dropped last, with all that is left below.
    _node: Cgroup,
}

impl Stage {
    /// `seed` makes the pod's UID: no two of one scenario, or of scenarios that share a tracer, may
    /// have the same.
    fn new(context: &Context, seed: u8) -> Result<Self> {
        let node = context.scratch.child(format!("node-{seed:02x}"))?;
        let pod = Pod::create(&node, 0xdea_0000 + u32::from(seed))?;
        Ok(Self {
            container: pod.container(seed)?,
            _pod: pod,
            _node: node,
        })
    }

    fn spec(&self) -> Spec {
        Spec::inside(&self.container.cgroup)
    }

    /// Its first process, which lives as long as the returned value.
    fn with_init(&self, context: &Context) -> Result<Hog> {
        let mut init = self
            .spec()
            .as_container_init()
            .start(&["end", "idle"], context.deadline)?;
        init.wait_ready(context.deadline)?;
        Ok(init)
    }

    /// A process in it that is not its first, and waits.
    fn idle(&self, context: &Context) -> Result<Hog> {
        let mut idle = self.spec().start(&["end", "idle"], context.deadline)?;
        idle.wait_ready(context.deadline)?;
        Ok(idle)
    }

    /// The only process in it but `known`, by its pid here.
    fn other_member(&self, known: &[i32]) -> Result<i32> {
        let members = self.container.cgroup.members()?;
        let mut others = members.into_iter().filter(|pid| !known.contains(pid));
        let other = others.next().context("no other process in the container")?;
        ensure!(others.next().is_none(), "more than one other process");
        Ok(other)
    }

    /// An end with this code of a process of it that is not its first, as a fence: the last of what
    /// is told of a container that lives on.
    fn last_word(&self, context: &Context) -> Result<Death> {
        let mut hog = self
            .spec()
            .start(&["end", "exit", "99"], context.deadline)?;
        let end = End::of(hog.wait(context.deadline)?)?;
        ensure!(end == End::Code(99), "the last word: {end:?}");
        Ok(Death::of(hog.pid(), end)?.inside(&self.container, "child", true))
    }
}

/// Sends a signal from this process.
fn send(pid: i32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {pid}"))
}

fn own_pid() -> i32 {
    process::id().cast_signed()
}

/// A cgroup's path as the kernel has it, as text.
fn path(cgroup: &Cgroup) -> String {
    crate::expect::text(cgroup.kernel_path().as_bytes())
}
