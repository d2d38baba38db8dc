//! All ways to hold buffers at once, each in a pod of its own: who has which is told, and nothing is
//! left over.

use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{check_holder, full_report, next_held};
use crate::cgroup::{Cgroup, Container, Pod};
use crate::expect::{at, equal, text};
use crate::hog::{Hog, Spec};
use crate::scenario::{Context, Need, Scenario};
use crate::skb::{DATA_BYTES, HEAD_BYTES, Held, Report, Slab, counted, explains, near, number};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "skb_all_holders",
        "ten ways to hold buffers at once: all are told apart, and nothing is left over",
        all_holders,
    )
    .needs(&[
        Need::Tracer,
        Need::Guest,
        Need::Module("nfnetlink_queue"),
        Need::Module("sch_netem"),
        Need::Module("tun"),
    ])
    .seconds(180),
    Scenario::new(
        "skb_four_processors",
        "captures filled on four processors, which keep free buffers at hand",
        four_processors,
    )
    .needs(&[Need::Tracer, Need::Guest, Need::Processors(4)])
    .guest_exclusive()
    .seconds(120),
];

/// What a workload fills.
enum Fills {
    /// So many sockets, with this finding about their holder.
    Sockets(usize, &'static str),
    /// A connection: many packets are few buffers, which is no fault.
    Stream,
    /// A queue of this kind that no socket has, with this finding.
    Queue(&'static str, &'static str),
    /// Such a queue, and a socket of the process that should empty it: a copy of each packet.
    Copied(&'static str, &'static str),
}

/// A workload, and what it fills.
type Recipe = (&'static [&'static str], Fills);

/// Enough of each for a finding, of those that are one.
const RECIPES: &[Recipe] = &[
    (&["tap", "20000"], Fills::Sockets(1, "socket_not_read")),
    (
        &["tap", "7000", "--sockets", "2"],
        Fills::Sockets(2, "socket_not_read"),
    ),
    (
        &["unread", "udp", "15000"],
        Fills::Sockets(1, "socket_not_read"),
    ),
    (
        &["unread", "raw", "15000"],
        Fills::Sockets(1, "socket_not_read"),
    ),
    (
        &["unread", "netlink", "20000000"],
        Fills::Sockets(1, "netlink_overrun"),
    ),
    (
        &["unread", "unix", "25000000"],
        Fills::Sockets(1, "unix_backlog"),
    ),
    (&["unread", "tcp", "1000000", "600"], Fills::Stream),
    (
        &["unread", "nfqueue", "5000"],
        Fills::Copied("nfqueue", "nfqueue_no_verdict"),
    ),
    (
        &["unread", "qdisc", "4000"],
        Fills::Queue("qdisc", "qdisc_backlog"),
    ),
    (&["unread", "tun", "4000"], Fills::Queue("tun", "tun_queue")),
];

/// A pod whose only process holds buffers.
struct Holder {
    hog: Hog,
    container: Container,
    fills: &'static Fills,
    sockets: Vec<Held>,
    /// Network namespace and packets.
    queue: Option<(u64, u64)>,
    _pod: Pod,
    /// Dropped last, with all that is left below.
    _node: Cgroup,
}

impl Holder {
    fn start(context: &Context, seed: u8, recipe: &'static Recipe) -> Result<Self> {
        let (workload, fills) = recipe;
        let node = context.scratch.child(format!("node-{seed:02x}"))?;
        let pod = Pod::create(&node, 0x5eed_0000 + u32::from(seed))?;
        let container = pod.container(seed)?;
        let mut hog = Spec::inside(&container.cgroup).start(workload, context.deadline)?;
        let (sockets, queues) = match fills {
            Fills::Sockets(count, _) => (*count, false),
            Fills::Stream => (1, false),
            Fills::Queue(..) => (0, true),
            Fills::Copied(..) => (1, true),
        };
        let sockets: Result<Vec<Held>> =
            (0..sockets).map(|_| next_held(&mut hog, context)).collect();
        let sockets = sockets.with_context(|| format!("{workload:?}"))?;
        let queue = if queues {
            let told = hog.after("queues ", context.deadline)?;
            let (netns, packets) = told.split_once(' ').context("queues NETNS COUNT")?;
            Some((netns.parse()?, packets.parse()?))
        } else {
            None
        };
        hog.wait_ready(context.deadline)?;
        Ok(Self {
            hog,
            container,
            fills,
            sockets,
            queue,
            _pod: pod,
            _node: node,
        })
    }

    fn check(&self, report: &Report) -> Result<()> {
        match self.fills {
            Fills::Sockets(_, finding) => {
                let holder = self.check_sockets(report)?;
                report.finds(holder, finding)
            }
            Fills::Stream => {
                let holder = self.holder(report)?;
                report.finds_nothing(holder)?;
                self.groups(report).map(drop)
            }
            Fills::Queue(kind, finding) => self.check_queue(report, kind, finding).map(drop),
            Fills::Copied(kind, finding) => {
                let queue = self.check_queue(report, kind, finding)?;
                let holder = self.check_sockets(report)?;
                equal(queue, "socket_inode", number(holder, "socket.inode")?)?;
                report.finds_nothing(holder)
            }
        }
    }

    /// What is said of its sockets.
    fn holder<'a>(&self, report: &'a Report) -> Result<&'a Value> {
        let pid = self.hog.pid();
        let is_its = |one: &Value| at(one, "process.pid") == pid;
        let holder = report.one("holders", &format!("holder {pid}"), is_its)?;
        self.check_pod(holder)?;
        Ok(holder)
    }

    /// What the census found in each of them.
    fn groups<'a>(&self, report: &'a Report) -> Result<Vec<&'a Value>> {
        let mut groups = Vec::new();
        for held in &self.sockets {
            let group = report.group(held.inode)?;
            self.check_pod(group)?;
            groups.push(group);
        }
        Ok(groups)
    }

    /// All of their packets are found, from above and from below.
    fn check_sockets<'a>(&self, report: &'a Report) -> Result<&'a Value> {
        let holder = self.holder(report)?;
        equal(holder, "sockets", self.sockets.len())?;
        let packets: u64 = self.sockets.iter().map(|held| held.packets).sum();
        equal(holder, "skbs", packets)?;
        let groups = self.groups(report)?;
        let mut own_bytes = 0;
        for (held, group) in self.sockets.iter().zip(&groups) {
            counted(group, held.packets)?;
            own_bytes += number(group, "own_bytes")?;
        }
        if let [one, _] = self.sockets[..] {
            // Two captures of the same frames: their data is there once.
            let truth = one.packets * (HEAD_BYTES * 2 + DATA_BYTES);
            near("own bytes", own_bytes, truth)?;
        }
        Ok(holder)
    }

    fn check_queue<'a>(&self, report: &'a Report, kind: &str, finding: &str) -> Result<&'a Value> {
        let (netns, packets) = self.queue.context("it fills no queue")?;
        let queue = report.queue(kind, netns)?;
        // The kernel itself sends some as devices come up.
        near("packets", number(queue, "packets")?, packets)?;
        if kind == "qdisc" {
            // Whoever sent them is gone: it is the namespace that tells.
            self.check_names(queue)?;
        } else {
            self.check_pod(queue)?;
        }
        report.finds(queue, finding)?;
        Ok(queue)
    }

    fn check_pod(&self, subject: &Value) -> Result<()> {
        equal(subject, "process.pid", self.hog.pid())?;
        self.check_names(subject)
    }

    fn check_names(&self, subject: &Value) -> Result<()> {
        let path = text(self.container.cgroup.kernel_path().as_bytes());
        equal(subject, "cgroup.path", path)?;
        equal(subject, "k8s.pod.uid", self.container.pod_uid.as_str())?;
        equal(subject, "container.id", self.container.id.as_str())
    }
}

fn all_holders(context: &mut Context) -> Result<()> {
    let mut holders = Vec::new();
    for (seed, recipe) in (1..).zip(RECIPES) {
        holders.push(Holder::start(context, seed, recipe)?);
    }
    let slab = Slab::settled()?;
    let arguments = ["--duration", "2s", "--census", "full", "--top", "32"];
    let report = Report::take(context.oomprobe()?, &arguments)?;
    for (holder, (workload, _)) in holders.iter_mut().zip(RECIPES) {
        holder.hog.expect_alive()?;
        holder
            .check(&report)
            .with_context(|| format!("{workload:?}: {}", report.event))?;
    }
    // From below, all of it; from above, all but what tun devices have, which is not counted there.
    let known = report.number("census.explained_skbs")? + report.number("census.moving_skbs")?;
    explains(99, known, report.number("census.skbs")?)?;
    explains(99, known, slab.heads)?;
    explains(95, report.number("balance.explained_objects")?, slab.heads)
}

fn four_processors(context: &mut Context) -> Result<()> {
    let before = Slab::settled()?;
    let mut hogs = Vec::new();
    for cpu in 0..4 {
        let spec = Spec::inside(&context.scratch).on_cpu(cpu);
        let mut hog = spec.start(&["tap", "15000"], context.deadline)?;
        let held = next_held(&mut hog, context)?;
        hog.wait_ready(context.deadline)?;
        hogs.push((hog, held));
    }
    let grown = Slab::read()?.since(before);
    let report = full_report(context)?;
    for (_, held) in &hogs {
        let holder = check_holder(&report, held, &context.scratch)?;
        report.finds(holder, "socket_not_read")?;
        counted(report.group(held.inode)?, held.packets)?;
    }
    let explained = report.number("balance.explained_objects")?;
    explains(95, explained, report.number("balance.slab_objects")?)?;
    // What is free and at hand is no more than the report allows for.
    let noise = report.number("balance.noise_objects")?;
    let unexplained = report.number("balance.unexplained_objects")?;
    ensure!(
        unexplained <= noise,
        "{unexplained} are not explained, noise is {noise}"
    );
    drop(hogs);
    grown.wait_gone(before, context.deadline)
}
