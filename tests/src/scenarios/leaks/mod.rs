//! Kernel memory that no process's numbers show: who holds it.
//!
//! What must be found is what the workload put there, and as much as the kernel's own counters
//! grew by.

mod abandoned;
mod healthy;
mod hostile;
mod incident;
mod many;
mod sockets;
mod stream;
mod taps;
mod together;
mod watch;

use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::expect::{equal, text};
use crate::hog::{Hog, Spec};
use crate::scenario::{Context, Scenario};
use crate::skb::{Held, Report, near};

/// Every scenario of kernel memory.
pub(super) fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        taps::ALL,
        sockets::ALL,
        healthy::ALL,
        incident::ALL,
        together::ALL,
        many::ALL,
        hostile::ALL,
        stream::ALL,
        abandoned::ALL,
        watch::ALL,
    ]
    .into_iter()
    .flatten()
}

/// Starts a workload in the scratch cgroup that holds one socket full.
fn hold(context: &Context, workload: &[&str]) -> Result<(Hog, Held)> {
    hold_as(Spec::inside(&context.scratch), context, workload)
}

/// The same, started in another way.
fn hold_as(spec: Spec, context: &Context, workload: &[&str]) -> Result<(Hog, Held)> {
    let mut hog = spec.start(workload, context.deadline)?;
    let held = next_held(&mut hog, context)?;
    hog.wait_ready(context.deadline)?;
    Ok((hog, held))
}

/// The next socket that a workload says it holds.
fn next_held(hog: &mut Hog, context: &Context) -> Result<Held> {
    Held::parse(&hog.after("holds ", context.deadline)?)
}

/// Two looks, two seconds apart.
fn report(context: &Context) -> Result<Report> {
    Report::take(context.oomprobe()?, &["--duration", "2s"])
}

/// The same, and a count of all that is in the slabs.
fn full_report(context: &Context) -> Result<Report> {
    let arguments = ["--duration", "2s", "--census", "full"];
    Report::take(context.oomprobe()?, &arguments)
}

/// Fails unless the holder of a socket is this process in this cgroup, with all of its packets.
fn check_holder<'a>(report: &'a Report, held: &Held, cgroup: &Cgroup) -> Result<&'a Value> {
    let holder = report.holder(held.inode)?;
    equal(holder, "process.pid", held.pid)?;
    equal(holder, "cgroup.path", text(cgroup.kernel_path().as_bytes()))?;
    equal(holder, "skbs", held.packets)?;
    Ok(holder)
}

/// Fails unless slab grew by what is held. Others on a machine that is not ours alone take buffers too.
fn slab_grew(context: &Context, what: &str, held: u64, grown: u64) -> Result<()> {
    if context.is_guest {
        return near(what, held, grown);
    }
    ensure!(
        grown >= held - held / 10,
        "{what} are {held}, and slabinfo counts {grown} more"
    );
    Ok(())
}

/// Inode of the network namespace that this process is in.
fn own_netns() -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let path = "/proc/self/ns/net";
    Ok(std::fs::metadata(path).context(path)?.ino())
}
