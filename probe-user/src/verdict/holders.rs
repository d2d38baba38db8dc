//! What is wrong with who holds socket buffers.
//!
//! A queue is there to be filled, so being full is no fault by itself: what counts is how much it
//! is and that nobody takes it out. Below [`HELD_BYTES`] nothing is said at all.

mod abandoned;
mod unopened;

use super::steps::{Target, quote};
use crate::event::label::{self, bytes, seconds};
use crate::event::{Confidence, Finding, FindingId, Severity, SkbCensus, SkbHolder};
use crate::pressure::series::approx;

pub use abandoned::abandoned;
pub use unopened::unopened;

/// One process' sockets of one kind must hold this much. Receive buffers are 208 KiB by default
/// (`net.core.rmem_default`) and 6 MiB at most where TCP sizes them itself (`net.ipv4.tcp_rmem`):
/// whoever has more in its queues has set them so, or has hundreds that are full. And less does not
/// matter to a node.
const HELD_BYTES: u64 = 16 << 20;

/// Unix sockets whose senders are not known tell no bytes: as many buffers of the least size.
const HELD_SKBS: u64 = HELD_BYTES / 1024;

/// From here on it is an error.
const SEVERE_BYTES: u64 = 1 << 30;

/// The finding about one holder, if there is one. `duration_ms` is the time between two looks;
/// `None` after a single one, which cannot tell whether a queue is read.
pub fn judge(holder: &SkbHolder, duration_ms: Option<u64>) -> Option<Finding> {
    let case = Case {
        holder,
        duration_ms,
    };
    // Of two connected sockets of one process, the one that does not read is the cause.
    case.not_read().or_else(|| case.dead_peer())
}

/// The finding about buffers that point to nothing, if there are many more than the kernel keeps at
/// hand (`noise`, objects).
pub fn unreferenced(census: &SkbCensus, noise: Option<u64>) -> Option<Finding> {
    let lost = census.unreferenced_skbs;
    let least = HELD_SKBS.max(noise?.saturating_mul(4));
    // In a sample the error counts too: three of them are chance one time in a thousand.
    let doubt = (census.relative_error * 3.0).min(1.0);
    let sure = approx(lost) * (1.0 - doubt);
    if sure < approx(least) {
        return None;
    }
    let evidence = vec![
        format!(
            "{lost} of {} buffers in use point to no socket and no device, and no queue of a socket \
             has them",
            census.skbs
        ),
        format!(
            "{} of {} pages of the node were looked at; free ones that the kernel keeps at hand \
             account for {} at most",
            census.sampled_pages,
            census.total_pages,
            noise.unwrap_or(0)
        ),
    ];
    Some(Finding {
        id: FindingId::Unreferenced,
        severity: Severity::Warn,
        confidence: if census.full {
            Confidence::Medium
        } else {
            Confidence::Low
        },
        cgroup: None,
        summary: format!(
            "{lost} socket buffers are held by nothing that can be seen: a queue of the kernel's that \
             has no interface, or a kernel bug"
        ),
        evidence,
        next_steps: vec![
            "oomprobe skb --census full".to_owned(),
            "oomprobe slab --track skb --duration 60s".to_owned(),
        ],
    })
}

struct Case<'a> {
    holder: &'a SkbHolder,
    duration_ms: Option<u64>,
}

impl Case<'_> {
    /// What was sent is kept until the peer says that it has it.
    fn dead_peer(&self) -> Option<Finding> {
        let holder = self.holder;
        let held = holder
            .unanswered_bytes
            .saturating_add(holder.closed_window_bytes);
        if held < HELD_BYTES {
            return None;
        }
        let socket = &holder.socket;
        let peer = socket.remote.as_deref().unwrap_or("its peer");
        let is_dead = holder.unanswered_bytes >= holder.closed_window_bytes;
        let does_not = if is_dead { "answer" } else { "read" };
        let mut evidence = vec![format!(
            "{} were sent, or are to be sent, over connections whose peer does not {does_not}",
            bytes(held)
        )];
        for (times, what) in [
            (
                socket.retransmits,
                "the oldest segment was sent again without an answer",
            ),
            (
                socket.probes,
                "its closed window was probed without an answer",
            ),
        ] {
            if times > 0 {
                evidence.push(format!("{peer}: {what}, times: {times}"));
            }
        }
        if socket.backoff > 0 && !is_dead {
            evidence.push(format!("{peer} answers, and keeps its window closed"));
        }
        let what = format!(
            "the peer of {} of {} does not {does_not}",
            self.sockets(),
            self.who()
        );
        Some(self.finding(FindingId::DeadPeer, Confidence::High, &what, held, evidence))
    }

    /// What was received is not read, or not fast enough.
    fn not_read(&self) -> Option<Finding> {
        let holder = self.holder;
        let family = holder.socket.family.as_str();
        let is_unix = family == "unix";
        let is_tcp = holder.socket.protocol == "tcp";
        let held = holder.receive_bytes;
        let skbs = holder.skbs.unwrap_or(0);
        if held < HELD_BYTES && !(is_unix && skbs >= HELD_SKBS) {
            return None;
        }
        let unread = holder.unread_bytes;
        let nothing_read = match unread {
            Some(unread) if is_unix => unread >= HELD_BYTES || holder.unread_sockets > Some(0),
            Some(unread) => unread >= HELD_BYTES,
            None => false,
        };
        let saturated = holder.saturated_sockets > 0;
        let losing = holder.new_drops.unwrap_or(0) > 0;
        let (id, confidence) = if nothing_read {
            let id = match family {
                "netlink" if saturated || holder.drops.unwrap_or(0) > 0 => {
                    FindingId::NetlinkOverrun
                }
                "unix" => FindingId::UnixBacklog,
                _ if is_tcp => FindingId::ReaderStalled,
                _ => FindingId::SocketNotRead,
            };
            (id, Confidence::High)
        } else if unread.is_some() {
            // It is read: at its limit and losing what comes, it is read too slowly.
            if !(saturated && losing) {
                return None;
            }
            let id = match family {
                "netlink" => FindingId::NetlinkOverrun,
                _ => FindingId::ReaderStalled,
            };
            (id, Confidence::Medium)
        } else if is_tcp {
            // After one look, data on their way to a busy reader look the same.
            return None;
        } else {
            let id = match family {
                "netlink" if saturated => FindingId::NetlinkOverrun,
                "unix" => FindingId::UnixBacklog,
                _ => FindingId::SocketNotRead,
            };
            let confidence = if saturated {
                Confidence::Medium
            } else {
                Confidence::Low
            };
            (id, confidence)
        };
        let does_not = if nothing_read {
            "does not read"
        } else if unread.is_some() {
            "reads too slowly from"
        } else {
            "seems not to read"
        };
        let what = format!("{} {does_not} {}", self.who(), self.sockets());
        let evidence = self.receive_evidence(nothing_read);
        Some(self.finding(id, confidence, &what, held, evidence))
    }

    fn receive_evidence(&self, nothing_read: bool) -> Vec<String> {
        let holder = self.holder;
        let socket = &holder.socket;
        let mut evidence = Vec::new();
        let size = socket
            .receive_bytes
            .zip(socket.rcvbuf_bytes.filter(|_| socket.family != "unix"));
        if let Some((used, limit)) = size {
            let full = if socket.saturated {
                "full: it does not grow any further"
            } else {
                "it can still grow"
            };
            let which = if holder.sockets == 1 {
                ""
            } else {
                " by the biggest"
            };
            evidence.push(format!(
                "{} of {} receive buffer used{which}; {full}",
                bytes(used),
                bytes(limit)
            ));
        }
        if holder.sockets > 1 && holder.saturated_sockets > 0 {
            let (full, all) = (holder.saturated_sockets, holder.sockets);
            evidence.push(format!("{full} of {all} sockets are full"));
        }
        let interval = self.duration_ms.map(interval);
        match (&interval, nothing_read) {
            (Some(time), true) if socket.protocol == "tcp" => {
                evidence.push(format!(
                    "nothing was read for {time}, though there was something"
                ));
            }
            (Some(time), true) => evidence.push(format!(
                "nothing was read for {time}: the oldest buffer is still the same"
            )),
            (Some(time), false) => {
                evidence.push(format!("some of it was read within {time}"));
            }
            (None, _) => evidence.push("a single look cannot tell whether it is read".to_owned()),
        }
        if let Some(drops) = holder.drops.filter(|&drops| drops > 0) {
            let now = match (&interval, holder.new_drops) {
                (Some(time), Some(new)) if new > 0 => format!(", {new} of them within {time}"),
                _ => String::new(),
            };
            evidence.push(format!("dropped for want of room: {drops}{now}"));
        }
        if let Some(growth) = holder.growth_bytes_per_s.filter(|&growth| growth > 0.0) {
            evidence.push(format!("it grows by {}", label::rate(growth)));
        }
        evidence
    }

    fn finding(
        &self,
        id: FindingId,
        confidence: Confidence,
        what: &str,
        frees: u64,
        mut evidence: Vec<String>,
    ) -> Finding {
        let holder = self.holder;
        let held = match holder.skbs {
            Some(skbs) if frees > 0 => format!("{skbs} buffers, {}", bytes(frees)),
            Some(skbs) => format!("{skbs} buffers"),
            None => bytes(frees),
        };
        if let Some(restart) = self.restart() {
            let size = if frees > 0 {
                format!("up to {}", bytes(frees))
            } else {
                "it".to_owned()
            };
            evidence.insert(0, format!("restarting {restart} frees {size} at once"));
        }
        if holder.owners > 1 {
            evidence.push(format!(
                "{} processes have it open: it is freed when the last one closes it",
                holder.owners
            ));
        }
        if let Some(creator) = &holder.creator {
            let cgroup = Some(&creator.cgroup);
            let by = label::subject(creator.k8s.as_ref(), creator.container.as_ref(), cgroup);
            evidence.extend(by.map(|by| format!("it was made in another cgroup: {by}")));
        }
        Finding {
            id,
            severity: if frees >= SEVERE_BYTES {
                Severity::Error
            } else {
                Severity::Warn
            },
            confidence,
            cgroup: holder.cgroup.clone(),
            summary: format!("{what}: {held}"),
            evidence,
            next_steps: self.next_steps(),
        }
    }

    /// `scope (pid 42) of weave/scope-agent-x/agent`
    fn who(&self) -> String {
        let holder = self.holder;
        let process = match &holder.process {
            Some(process) => label::process(process),
            None => "nobody with an open descriptor".to_owned(),
        };
        let owner = label::subject(
            holder.k8s.as_ref(),
            holder.container.as_ref(),
            holder.cgroup.as_ref(),
        );
        match owner {
            Some(owner) if owner != "/" => format!("{process} of {owner}"),
            _ => process,
        }
    }

    /// `a packet socket`, `300 netlink sockets`
    fn sockets(&self) -> String {
        let socket = &self.holder.socket;
        let kind = match (socket.family.as_str(), socket.protocol.as_str()) {
            ("inet" | "inet6", protocol) => protocol.to_uppercase(),
            ("netlink", protocol) => format!("netlink ({protocol})"),
            ("packet", _) => "packet (AF_PACKET)".to_owned(),
            (family, _) => family.to_owned(),
        };
        match self.holder.sockets {
            1 => format!("a {kind} socket"),
            many => format!("{many} {kind} sockets"),
        }
    }

    /// What has to be restarted.
    fn restart(&self) -> Option<String> {
        let holder = self.holder;
        if let Some(pod) = holder.k8s.as_ref().and_then(label::pod) {
            return Some(format!("pod {}", pod.trim_start_matches("pod ")));
        }
        if let Some(unit) = self.unit() {
            return Some(unit);
        }
        holder.process.as_ref().map(label::process)
    }

    /// The service it runs in.
    fn unit(&self) -> Option<String> {
        if self.holder.container.is_some() {
            return None;
        }
        let path = self.holder.cgroup.as_ref()?.path.as_deref()?;
        let unit = path.rsplit('/').find(|name| name.ends_with(".service"))?;
        Some(unit.to_owned())
    }

    fn next_steps(&self) -> Vec<String> {
        let holder = self.holder;
        let pid = holder.process.as_ref().and_then(|process| process.pid);
        let mut steps = Vec::new();
        if let Some(Target {
            namespace, name, ..
        }) = holder.k8s.as_ref().and_then(Target::of)
        {
            steps.push(format!("kubectl {namespace} delete pod {name}"));
        } else if let Some(unit) = self.unit().as_deref().and_then(quote) {
            steps.push(format!("systemctl restart {unit}"));
        } else if let Some(pid) = pid.filter(|_| holder.k8s.is_none()) {
            steps.push(format!("kill {pid}"));
        }
        let socket = &holder.socket;
        let file = match (socket.family.as_str(), socket.protocol.as_str()) {
            ("packet", _) => Some("packet"),
            ("netlink", _) => Some("netlink"),
            ("unix", _) => Some("unix"),
            ("inet", "tcp") => Some("tcp"),
            ("inet6", "tcp") => Some("tcp6"),
            ("inet", "udp") => Some("udp"),
            ("inet6", "udp") => Some("udp6"),
            _ => None,
        };
        if let Some((pid, file)) = pid.zip(file) {
            let inode = socket.inode;
            steps.push(format!("grep -w {inode} /proc/{pid}/net/{file}"));
        }
        steps.push("oomprobe skb --duration 10s".to_owned());
        steps
    }
}

fn interval(ms: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a time for a person")]
    seconds(ms as f64 / 1e3)
}

#[cfg(test)]
mod tests;
