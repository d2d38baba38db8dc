//! A node with very many sockets.

use anyhow::{Result, ensure};

use super::{check_holder, next_held};
use crate::hog::Spec;
use crate::scenario::{Context, Need, Scenario};
use crate::skb::Report;

pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "skb_among_100000_sockets",
    "of 100 000 sockets a few are not read: all of these are found",
    among_many,
)
.needs(&[Need::Tracer])
.seconds(240)];

const PROCESSES: usize = 8;
/// Of each process.
const SOCKETS: usize = 12_500;
/// As many have a socket that holds some 17 MiB.
const HOLDERS: usize = 3;
const PACKETS: &str = "14000";

fn among_many(context: &mut Context) -> Result<()> {
    let [processes, sockets, holders] =
        [PROCESSES, SOCKETS, HOLDERS].map(|count| count.to_string());
    let workload = ["unread", "crowd", &processes, &sockets, &holders, PACKETS];
    let mut hog = Spec::inside(&context.scratch).start(&workload, context.deadline)?;
    let mut all = Vec::new();
    for _ in 0..HOLDERS {
        all.push(next_held(&mut hog, context)?);
    }
    for _ in 0..PROCESSES {
        hog.child_pid(context.deadline)?;
    }
    let arguments = ["--duration", "2s", "--top", "32"];
    let report = Report::take(context.oomprobe()?, &arguments)?;
    hog.expect_alive()?;
    let descriptors = report.number("descriptors")?;
    let sockets = u64::try_from(PROCESSES * SOCKETS)?;
    ensure!(descriptors >= sockets, "{descriptors} of {sockets} sockets");
    for held in &all {
        let holder = check_holder(&report, held, &context.scratch)?;
        report.finds(holder, "socket_not_read")?;
    }
    Ok(())
}
