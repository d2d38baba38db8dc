use super::*;
use crate::event::{Cgroup, HeldSocket, K8s, Named, Pod, Process};

const MIB: u64 = 1 << 20;

/// A process of a pod with one socket that is full, after two looks in which nothing was read.
fn holder(family: &str, protocol: &str, received: u64) -> SkbHolder {
    SkbHolder {
        process: Some(Process {
            pid: Some(42),
            comm: Some("scope".to_owned()),
            ..Process::default()
        }),
        k8s: Some(K8s {
            pod: Pod {
                name: Some("scope-agent-x".to_owned()),
                uid: None,
            },
            namespace: Named {
                name: Some("weave".to_owned()),
            },
            ..K8s::default()
        }),
        owners: 1,
        socket: HeldSocket {
            family: family.to_owned(),
            protocol: protocol.to_owned(),
            inode: 7,
            receive_bytes: Some(received),
            rcvbuf_bytes: Some(received),
            saturated: true,
            ..HeldSocket::default()
        },
        sockets: 1,
        skbs: Some(received / 1280),
        bytes: received,
        receive_bytes: received,
        saturated_sockets: 1,
        unread_sockets: Some(1),
        unread_bytes: Some(received),
        drops: Some(5),
        new_drops: Some(0),
        ..SkbHolder::default()
    }
}

fn told(holder: &SkbHolder) -> Option<(FindingId, Confidence)> {
    judge(holder, Some(2000)).map(|finding| (finding.id, finding.confidence))
}

#[test]
fn what_nobody_reads_is_named_by_its_kind() {
    use FindingId::{NetlinkOverrun, ReaderStalled, SocketNotRead, UnixBacklog};
    for (family, protocol, id) in [
        ("packet", "all", SocketNotRead),
        ("inet", "udp", SocketNotRead),
        ("inet6", "255", SocketNotRead),
        ("netlink", "netfilter", NetlinkOverrun),
        ("unix", "stream", UnixBacklog),
        ("inet", "tcp", ReaderStalled),
    ] {
        let holder = holder(family, protocol, 64 * MIB);
        assert_eq!(told(&holder), Some((id, Confidence::High)), "{family}");
    }
    let mut fresh = holder("netlink", "route", 64 * MIB);
    (fresh.saturated_sockets, fresh.drops) = (0, Some(0));
    let expected = Some((SocketNotRead, Confidence::High));
    assert_eq!(told(&fresh), expected, "nothing is lost yet");
}

#[test]
fn small_queues_are_nothing_however_long_they_are_not_read() {
    for family in ["packet", "netlink", "unix", "inet"] {
        assert_eq!(
            told(&holder(family, "udp", HELD_BYTES - 1)),
            None,
            "{family}"
        );
    }
}

/// A busy server: much in its queues at any time, and read all the time.
#[test]
fn a_busy_reader_is_healthy() {
    for protocol in ["tcp", "udp"] {
        let mut busy = holder("inet", protocol, 200 * MIB);
        (busy.unread_sockets, busy.unread_bytes) = (Some(3), Some(MIB));
        (busy.sockets, busy.saturated_sockets, busy.new_drops) = (500, 0, Some(10));
        assert_eq!(told(&busy), None, "{protocol}");
        // Full for a moment, and nothing lost.
        (busy.saturated_sockets, busy.new_drops) = (3, Some(0));
        assert_eq!(told(&busy), None, "{protocol}");
    }
}

#[test]
fn a_reader_that_is_too_slow_loses_packets() {
    let mut slow = holder("packet", "all", 200 * MIB);
    (slow.unread_bytes, slow.new_drops) = (Some(0), Some(3000));
    let expected = Some((FindingId::ReaderStalled, Confidence::Medium));
    assert_eq!(told(&slow), expected);
    slow.socket.family = "netlink".to_owned();
    let expected = Some((FindingId::NetlinkOverrun, Confidence::Medium));
    assert_eq!(told(&slow), expected);
}

#[test]
fn a_single_look_is_less_sure() {
    let single = |family: &str, protocol: &str, full: u64| {
        let mut holder = holder(family, protocol, 64 * MIB);
        (holder.unread_sockets, holder.unread_bytes, holder.new_drops) = (None, None, None);
        holder.saturated_sockets = full;
        let finding = judge(&holder, None)?;
        assert!(finding.summary.contains("seems not to read"), "{finding:?}");
        Some((finding.id, finding.confidence))
    };
    let expected = |confidence| Some((FindingId::SocketNotRead, confidence));
    assert_eq!(single("packet", "all", 1), expected(Confidence::Medium));
    assert_eq!(single("packet", "all", 0), expected(Confidence::Low));
    assert_eq!(single("inet", "tcp", 1), None);
}

#[test]
fn unix_senders_that_are_not_known_leave_the_number_of_buffers() {
    let mut unix = holder("unix", "dgram", 0);
    (unix.skbs, unix.unread_bytes) = (Some(HELD_SKBS), Some(0));
    let finding = judge(&unix, Some(2000)).unwrap();
    assert_eq!(finding.id, FindingId::UnixBacklog);
    assert_eq!(
        finding.evidence[0],
        "restarting pod weave/scope-agent-x frees it at once"
    );
    unix.skbs = Some(HELD_SKBS - 1);
    assert_eq!(told(&unix), None);
}

#[test]
fn peers_that_are_gone_and_peers_that_do_not_read() {
    let mut sender = holder("inet", "tcp", 0);
    (sender.bytes, sender.write_bytes) = (64 * MIB, 64 * MIB);
    assert_eq!(told(&sender), None, "it is on its way");
    sender.unanswered_bytes = 64 * MIB;
    sender.socket.retransmits = 7;
    sender.socket.remote = Some("192.0.2.1:80".to_owned());
    let finding = judge(&sender, Some(2000)).unwrap();
    assert_eq!(finding.id, FindingId::DeadPeer);
    assert!(finding.summary.contains("does not answer"), "{finding:?}");
    let text = finding.evidence.join("\n");
    assert!(
        text.contains("192.0.2.1:80") && text.contains("times: 7"),
        "{text}"
    );

    (sender.unanswered_bytes, sender.closed_window_bytes) = (0, 64 * MIB);
    let finding = judge(&sender, None).unwrap();
    assert_eq!(finding.id, FindingId::DeadPeer);
    assert!(finding.summary.contains("does not read"), "{finding:?}");
}

#[test]
fn the_finding_says_who_how_much_and_what_to_do() {
    let mut packet = holder("packet", "all", 2 << 30);
    packet.skbs = Some(1_660_000);
    let finding = judge(&packet, Some(2000)).unwrap();
    assert_eq!(finding.severity, Severity::Error);
    assert_eq!(
        finding.summary,
        "scope (pid 42) of weave/scope-agent-x does not read a packet (AF_PACKET) socket: \
         1660000 buffers, 2 GiB"
    );
    assert_eq!(
        finding.evidence,
        [
            "restarting pod weave/scope-agent-x frees up to 2 GiB at once",
            "2 GiB of 2 GiB receive buffer used; full: it does not grow any further",
            "nothing was read for 2.0 s: the oldest buffer is still the same",
            "dropped for want of room: 5",
        ]
    );
    assert_eq!(
        finding.next_steps[..2],
        [
            "kubectl -n weave delete pod scope-agent-x",
            "grep -w 7 /proc/42/net/packet"
        ]
    );
    // A service of the node, which three processes share.
    packet.k8s = None;
    packet.owners = 3;
    packet.cgroup = Some(Cgroup {
        id: None,
        path: Some("/system.slice/lldpd.service".to_owned()),
    });
    let finding = judge(&packet, Some(2000)).unwrap();
    assert_eq!(finding.severity, Severity::Error);
    assert_eq!(finding.next_steps[0], "systemctl restart lldpd.service");
    let text = finding.evidence.join("\n");
    assert!(text.contains("3 processes have it open"), "{text}");
    packet.cgroup = None;
    let finding = judge(&packet, Some(2000)).unwrap();
    assert_eq!(finding.next_steps[0], "kill 42");
}

#[test]
fn buffers_of_nobody_are_told_if_they_are_many_more_than_noise_and_error() {
    let census = |unreferenced_skbs, relative_error, full| SkbCensus {
        skbs: 200_000,
        unreferenced_skbs,
        relative_error,
        full,
        ..SkbCensus::default()
    };
    for (case, noise, confidence) in [
        (
            census(100_000, 0.0, true),
            Some(700),
            Some(Confidence::Medium),
        ),
        (
            census(100_000, 0.1, false),
            Some(700),
            Some(Confidence::Low),
        ),
        // What is kept at hand on a big machine, what is little, what may be chance.
        (census(100_000, 0.0, true), Some(30_000), None),
        (census(16_000, 0.0, true), Some(700), None),
        (census(100_000, 0.3, false), Some(700), None),
        (census(100_000, 0.0, true), None, None),
    ] {
        let found = unreferenced(&case, noise);
        assert_eq!(
            found.map(|finding| finding.confidence),
            confidence,
            "{case:?}"
        );
    }
}
