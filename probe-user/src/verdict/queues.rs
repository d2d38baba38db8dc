//! What is wrong with queues that no file owns.
//!
//! A queue is there to hold packets. It is at fault if many are in it and none comes out, or if
//! what is in it is much. Both need a second reading: after one, nothing is said.

use super::quote;
use crate::event::label::{self, bytes, seconds};
use crate::event::{Cgroup, Confidence, Container, Finding, FindingId, K8s, Process, Severity};
use crate::leak::queues::{Copy, Kind, Moved, Namespace, Queue};

/// What stands still may be few by chance: the queues in question take 1000 and more.
const MANY_PACKETS: u64 = 256;

/// What a healthy queue does not hold for long, whatever comes out of it: ten thousand packets of
/// full size, which is all that `fq_codel` and `fq` take.
const MUCH_BYTES: u64 = 16 << 20;

/// From here on it is an error.
const SEVERE_PACKETS: u64 = 500_000;

/// Shortest time after which standing still means something, ms.
const LONG_ENOUGH_MS: u64 = 200;

/// What is known about a queue from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner<'a> {
    /// A process that should empty the queue.
    pub process: Option<&'a Process>,
    /// Its cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// Its pod.
    pub k8s: Option<&'a K8s>,
    /// Its container.
    pub container: Option<&'a Container>,
    /// The queue's network namespace.
    pub namespace: Option<&'a Namespace>,
}

/// The finding about one queue, if there is one.
pub fn judge(queue: &Queue, owner: Owner<'_>) -> Option<Finding> {
    let moved = queue.moved?;
    if moved.interval_ms < LONG_ENOUGH_MS {
        return None;
    }
    let case = Case {
        queue,
        owner,
        moved,
    };
    match &queue.kind {
        Kind::Nfqueue {
            queue: number,
            socket_rmem_bytes,
            copy,
            ..
        } => case.nfqueue(*number, *socket_rmem_bytes, *copy),
        Kind::Qdisc {
            discipline,
            handle,
            delay_ns,
        } => case.qdisc(discipline, handle, *delay_ns),
        Kind::Tun { .. } => case.tun(),
        _ => None,
    }
}

struct Case<'a> {
    queue: &'a Queue,
    owner: Owner<'a>,
    moved: Moved,
}

impl Case<'_> {
    fn nfqueue(&self, number: u32, copies_bytes: Option<u64>, copy: Copy) -> Option<Finding> {
        let packets = self.stuck_packets()?;
        let mut evidence = vec![self.stands_still(packets, "got a verdict")];
        evidence.extend(self.arrived(packets));
        evidence.extend(self.losses());
        if let Some(bytes_held) = copies_bytes.filter(|&bytes| bytes > 0) {
            evidence.push(format!(
                "its netlink socket holds {} more: a copy of each that it did not read",
                bytes(bytes_held)
            ));
        }
        if copy == Copy::None {
            evidence.push("its copy mode is none: the process is told of no packet".to_owned());
        }
        let who = self.who().unwrap_or_else(|| "the process".to_owned());
        let remedy = self.restart().map_or(String::new(), |who| {
            format!("; restarting {who} frees them at once")
        });
        let summary =
            format!("{who} gives no verdict on {packets} packets of nfqueue {number}{remedy}");
        let step = self.inside("cat /proc/net/netfilter/nfnetlink_queue");
        Some(self.finding(
            FindingId::NfqueueNoVerdict,
            Confidence::High,
            summary,
            evidence,
            step,
        ))
    }

    fn qdisc(&self, discipline: &str, handle: &str, delay_ns: Option<u64>) -> Option<Finding> {
        let packets = self.queue.packets?;
        let held = self.queue.bytes.unwrap_or(0);
        let stuck = self.stuck_packets().is_some();
        let steadily = self.moved.packets_before >= Some(packets / 2);
        let long = held >= MUCH_BYTES && steadily;
        if !stuck && !long {
            return None;
        }
        let mut evidence = Vec::new();
        if stuck {
            evidence.push(self.stands_still(packets, "was sent"));
        } else {
            evidence.push(format!(
                "{packets} packets wait, {} before; {} were sent within {}",
                self.moved.packets_before.unwrap_or(0),
                self.moved.left_packets,
                self.interval()
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "a time for a person")]
        let delay = delay_ns
            .filter(|&delay| delay > 0)
            .map(|ns| ns as f64 / 1e9);
        evidence.extend(delay.map(|delay| {
            format!(
                "{discipline} was told to hold each packet for {}",
                seconds(delay)
            )
        }));
        evidence.extend(self.fill(packets));
        evidence.extend(self.losses());
        let device = self.device();
        let summary = format!(
            "{packets} packets, {}, wait in the qdisc {discipline} {handle} of {device}; \
             removing it drops them",
            bytes(held)
        );
        let confidence = if stuck {
            Confidence::High
        } else {
            Confidence::Medium
        };
        let step = self
            .quoted_device()
            .and_then(|device| self.inside(&format!("tc -s qdisc show dev {device}")));
        Some(self.finding(FindingId::QdiscBacklog, confidence, summary, evidence, step))
    }

    /// A tun device is at fault when it is full and nothing is read from it. What is in it is at
    /// most `packets`: only where that is the limit, and packets were dropped, is it sure.
    fn tun(&self) -> Option<Finding> {
        let limit = self.queue.limit_packets;
        let was_full = limit.is_some() && self.moved.packets_before == limit;
        let is_full = self.queue.packets == limit && self.queue.drops > Some(0);
        let drops = self.moved.dropped_packets > 0;
        if self.moved.left_packets > 0 || !(drops || was_full && is_full) {
            return None;
        }
        let evidence = format!(
            "it is full, and nothing was read within {}",
            self.interval()
        );
        let mut evidence = vec![evidence];
        evidence.extend(self.queue.packets.and_then(|packets| self.fill(packets)));
        evidence.extend(self.losses());
        let who = self.who().unwrap_or_else(|| "the process".to_owned());
        let remedy = self.restart().map_or(String::new(), |who| {
            format!("; restarting {who} frees what it holds")
        });
        let summary = format!("{who} does not read from {}{remedy}", self.device());
        let step = self
            .quoted_device()
            .and_then(|device| self.inside(&format!("ip -s link show dev {device}")));
        Some(self.finding(
            FindingId::TunQueue,
            Confidence::High,
            summary,
            evidence,
            step,
        ))
    }

    /// Packets, if many have been there for the whole time and none left.
    fn stuck_packets(&self) -> Option<u64> {
        let still = self.moved.left_packets == 0;
        let many = self.moved.packets_before >= Some(MANY_PACKETS);
        self.queue
            .packets
            .filter(|&packets| still && many && packets >= MANY_PACKETS)
    }

    fn stands_still(&self, packets: u64, what: &str) -> String {
        format!(
            "{packets} packets wait, and none {what} within {}",
            self.interval()
        )
    }

    fn arrived(&self, packets: u64) -> Option<String> {
        let arrived = packets.checked_sub(self.moved.packets_before?)?;
        (arrived > 0).then(|| format!("{arrived} of them arrived meanwhile"))
    }

    fn fill(&self, packets: u64) -> Option<String> {
        let most = self.queue.limit_packets?;
        let share = label::percent(packets, most);
        (most > 0).then(|| format!("it takes {most} packets at most: {share} full"))
    }

    fn losses(&self) -> Option<String> {
        let drops = self.queue.drops.filter(|&drops| drops > 0)?;
        let meanwhile = match self.moved.dropped_packets {
            0 => String::new(),
            some => format!(", {some} of them within {}", self.interval()),
        };
        Some(format!("packets dropped: {drops}{meanwhile}"))
    }

    fn interval(&self) -> String {
        #[expect(clippy::cast_precision_loss, reason = "a time for a person")]
        let interval = self.moved.interval_ms as f64 / 1000.0;
        seconds(interval)
    }

    fn device(&self) -> String {
        let device = self.queue.device.as_deref().unwrap_or("a device");
        let container = label::subject(self.owner.k8s, self.owner.container, None);
        match (container, &self.queue.kind) {
            (Some(container), Kind::Qdisc { .. }) => format!("{device} of {container}"),
            _ => device.to_owned(),
        }
    }

    fn quoted_device(&self) -> Option<String> {
        self.queue.device.as_deref().and_then(quote)
    }

    /// The process, and where it belongs.
    fn who(&self) -> Option<String> {
        let process = self.owner.process.map(label::process);
        let belongs = label::subject(self.owner.k8s, self.owner.container, self.owner.cgroup);
        match (process, belongs) {
            (Some(process), Some(belongs)) => Some(format!("{process} of {belongs}")),
            (process, belongs) => process.or(belongs),
        }
    }

    /// What to restart: the pod if there is one, else the process.
    fn restart(&self) -> Option<String> {
        let pod = self.owner.k8s.and_then(label::pod);
        pod.or_else(|| self.owner.process.map(label::process))
    }

    /// `command`, run in the network namespace of the queue.
    fn inside(&self, command: &str) -> Option<String> {
        let namespace = self.owner.namespace?;
        let enter = match (namespace.pids.first(), &namespace.mounted_at) {
            (Some(pid), _) => format!("nsenter -t {pid} -n"),
            (None, Some(path)) => {
                quote(&format!("--net={path}")).map(|net| format!("nsenter {net}"))?
            }
            (None, None) => return None,
        };
        Some(format!("{enter} {command}"))
    }

    fn finding(
        &self,
        id: FindingId,
        confidence: Confidence,
        summary: String,
        evidence: Vec<String>,
        step: Option<String>,
    ) -> Finding {
        let severe = self.queue.packets >= Some(SEVERE_PACKETS);
        let pod = self.owner.k8s.and_then(super::steps::Target::of);
        let describe =
            pod.map(|pod| format!("kubectl {} describe pod {}", pod.namespace, pod.name));
        Finding {
            id,
            severity: if severe {
                Severity::Error
            } else {
                Severity::Warn
            },
            confidence,
            cgroup: self.owner.cgroup.cloned(),
            summary,
            evidence,
            next_steps: step.into_iter().chain(describe).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NFQUEUE: Kind = Kind::Nfqueue {
        queue: 5,
        port_id: 7,
        socket_inode: Some(99),
        socket_rmem_bytes: Some(5 << 20),
        copy: Copy::Meta,
        socket_drops: 0,
        numbered: 7000,
    };
    const TUN: Kind = Kind::Tun {
        files: 1,
        read_packets: Some(3),
    };

    fn netem(delay_ns: Option<u64>) -> Kind {
        Kind::Qdisc {
            discipline: "netem".to_owned(),
            handle: "8001:".to_owned(),
            delay_ns,
        }
    }

    /// Packets in it, the same before, and what left and was dropped within half a second.
    fn queue(kind: Kind, packets: u64, before: u64, left: u64, dropped: u64) -> Queue {
        Queue {
            device: Some("eth0".to_owned()),
            packets: Some(packets),
            bytes: Some(packets * 1500),
            limit_packets: Some(500),
            drops: Some(dropped),
            moved: Some(Moved {
                interval_ms: 500,
                packets_before: Some(before),
                left_packets: left,
                dropped_packets: dropped,
            }),
            ..Queue::new(kind)
        }
    }

    fn id(queue: &Queue) -> Option<(FindingId, Confidence)> {
        judge(queue, Owner::default()).map(|finding| (finding.id, finding.confidence))
    }

    #[test]
    fn what_stands_still_is_found_and_what_moves_is_not() {
        use Confidence::{High, Medium};
        let nfqueue = Some((FindingId::NfqueueNoVerdict, High));
        let qdisc = |confidence| Some((FindingId::QdiscBacklog, confidence));
        let tun = Some((FindingId::TunQueue, High));
        let table = [
            ("no verdicts", queue(NFQUEUE, 7000, 6000, 0, 0), nfqueue),
            ("few packets", queue(NFQUEUE, 200, 200, 0, 0), None),
            (
                "a burst that has just come",
                queue(NFQUEUE, 900, 3, 0, 0),
                None,
            ),
            (
                "a busy firewall",
                queue(NFQUEUE, 1000, 1000, 40_000, 12),
                None,
            ),
            ("a slow one", queue(NFQUEUE, 1024, 1024, 1, 900), None),
            (
                "held by netem",
                queue(netem(Some(3_000_000_000_000)), 3000, 3000, 0, 0),
                qdisc(High),
            ),
            ("a busy link", queue(netem(None), 1000, 1000, 9000, 5), None),
            (
                "a long queue",
                queue(netem(None), 60_000, 50_000, 9000, 5),
                qdisc(Medium),
            ),
            (
                "a moment's burst",
                queue(netem(None), 60_000, 100, 9000, 5),
                None,
            ),
            ("nobody reads", queue(TUN, 500, 500, 0, 7), tun),
            // It takes more than it seems: large packets count several times.
            ("an idle VPN", queue(TUN, 300, 300, 0, 0), None),
            (
                "it happens to be the limit",
                queue(TUN, 500, 500, 0, 0),
                None,
            ),
            ("a few packets", queue(TUN, 20, 20, 0, 0), None),
            ("a busy VPN", queue(TUN, 480, 470, 5000, 70), None),
            (
                "fragments",
                queue(
                    Kind::Fragments {
                        ip: 4,
                        datagrams: 9,
                    },
                    900,
                    900,
                    0,
                    0,
                ),
                None,
            ),
        ];
        for (what, queue, expected) in table {
            assert_eq!(id(&queue), expected, "{what}");
        }
    }

    #[test]
    fn after_one_reading_nothing_is_said() {
        for kind in [NFQUEUE, netem(None), TUN] {
            let full = queue(kind, 1 << 20, 1 << 20, 0, 1 << 20);
            assert!(id(&full).is_some());
            let once = Queue {
                moved: None,
                ..full.clone()
            };
            assert_eq!(id(&once), None);
            let mut soon = full;
            soon.moved.as_mut().unwrap().interval_ms = 50;
            assert_eq!(id(&soon), None);
        }
    }

    #[test]
    fn a_tun_device_is_full_if_it_dropped_something() {
        let tun = |packets, drops, dropped| {
            let mut queue = queue(TUN, 0, 0, 0, dropped);
            queue.packets = packets;
            queue.drops = Some(drops);
            queue.moved.as_mut().unwrap().packets_before = packets;
            queue
        };
        let found = Some((FindingId::TunQueue, Confidence::High));
        // Long ago, and nothing was sent to it since.
        assert_eq!(id(&tun(Some(500), 200, 0)), found);
        assert_eq!(id(&tun(Some(499), 200, 0)), None);
        // Its length is not known.
        assert_eq!(id(&tun(None, 200, 0)), None);
        assert_eq!(id(&tun(None, 200, 9)), found);
        let mut unlimited = tun(None, 200, 0);
        unlimited.limit_packets = None;
        assert_eq!(id(&unlimited), None);
    }

    #[test]
    fn the_pod_and_the_numbers_are_told() {
        let process = Process {
            pid: Some(42),
            comm: Some("suricata".to_owned()),
            ..Process::default()
        };
        let mut k8s = K8s::default();
        k8s.namespace.name = Some("ids".to_owned());
        k8s.pod.name = Some("$(reboot)".to_owned());
        let namespace = Namespace {
            inode: 1,
            processes: 1,
            pids: vec![42],
            mounted_at: None,
        };
        let owner = Owner {
            process: Some(&process),
            k8s: Some(&k8s),
            namespace: Some(&namespace),
            ..Owner::default()
        };
        let finding = judge(&queue(NFQUEUE, 7000, 6000, 0, 3), owner).unwrap();
        assert_eq!(
            finding.summary,
            "suricata (pid 42) of ids/$(reboot) gives no verdict on 7000 packets of nfqueue 5; \
             restarting ids/$(reboot) frees them at once"
        );
        assert_eq!(
            finding.evidence,
            [
                "7000 packets wait, and none got a verdict within 500 ms",
                "1000 of them arrived meanwhile",
                "packets dropped: 3, 3 of them within 500 ms",
                "its netlink socket holds 5 MiB more: a copy of each that it did not read",
            ]
        );
        assert_eq!(
            finding.next_steps,
            [
                "nsenter -t 42 -n cat /proc/net/netfilter/nfnetlink_queue",
                "kubectl -n ids describe pod '$(reboot)'",
            ]
        );

        let delayed = queue(netem(Some(3_000_000_000_000)), 3000, 3000, 0, 0);
        let finding = judge(&delayed, Owner::default()).unwrap();
        assert_eq!(
            finding.summary,
            "3000 packets, 4.3 MiB, wait in the qdisc netem 8001: of eth0; removing it drops them"
        );
        assert_eq!(
            finding.evidence[1],
            "netem was told to hold each packet for 50 min"
        );
    }
}
