use std::collections::HashSet;

use super::shown::{family_name, protocol_name};
use super::*;
use crate::leak::census::Group;
use crate::leak::sockets::{STREAM, TCP};

fn look(sockets: impl IntoIterator<Item = (u64, Socket)>) -> Look {
    Look {
        way: Way::Iterator,
        boot_ns: 0,
        descriptors: 0,
        sockets: sockets.into_iter().collect(),
        namespaces: HashSet::new(),
        not_kept: 0,
        not_read: Vec::new(),
        sees_all: true,
    }
}

fn packet(pid: u32, inode: u64, bytes: u64) -> Socket {
    Socket {
        inode,
        family: family::PACKET,
        owners: vec![Owner {
            pid,
            ..Owner::default()
        }],
        owners_total: 1,
        receive_skbs: Some(bytes / 1000),
        receive_bytes: Some(bytes),
        rcvbuf_bytes: Some(1000),
        drops: Some(0),
        ..Socket::default()
    }
}

#[test]
fn sockets_of_a_process_are_put_together_and_the_biggest_is_shown() {
    let sockets = (1..=300).map(|n| (n, packet(if n <= 200 { 1 } else { 2 }, n, n * 1000)));
    let groups = group(&look(sockets), None, None);
    let [second, first] = &groups[..] else {
        panic!("{} groups", groups.len())
    };
    assert_eq!(second.holder.bytes, (201..=300).sum::<u64>() * 1000);
    assert_eq!(second.holder.socket.inode, 300);
    assert_eq!(first.holder.sockets, 200);
    assert_eq!(first.holder.skbs, Some((1..=200).sum()));
    assert_eq!(first.holder.socket.inode, 200);
    assert_eq!(first.holder.saturated_sockets, 200);
    assert_eq!(first.holder.unread_bytes, None, "after a single look");
    assert_eq!(first.holder.growth_bytes_per_s, None);
}

#[test]
fn growth_and_drops_are_between_the_looks() {
    let mut was = packet(1, 1, 1000);
    was.drops = Some(7);
    let mut now = packet(1, 1, 5000);
    now.drops = Some(10);
    // Made in between; what it dropped before it was seen first is not known to be new.
    let mut fresh = packet(1, 2, 3000);
    fresh.drops = Some(4);
    let groups = group(
        &look([(1, now), (2, fresh)]),
        Some(&look([(1, was)]).into_past()),
        Some(2000),
    );
    let holder = &groups[0].holder;
    assert_eq!(holder.growth_bytes_per_s, Some(3500.0));
    assert_eq!((holder.drops, holder.new_drops), (Some(14), Some(3)));
    assert_eq!(holder.unread_sockets, Some(0), "no mark tells");
}

#[test]
fn tcp_is_told_apart_by_what_the_peer_does() {
    let tcp = |retransmits, backoff, bytes| Socket {
        family: family::INET,
        kind: STREAM,
        protocol: TCP,
        state: 1,
        write_bytes: Some(bytes),
        retransmits,
        backoff,
        ..packet(1, bytes, 0)
    };
    let sockets = [
        (1, tcp(0, 0, 100)),
        (2, tcp(2, 2, 200)),
        (3, tcp(5, 5, 400)),
        (4, tcp(0, 6, 800)),
    ];
    let groups = group(&look(sockets), None, None);
    let holder = &groups[0].holder;
    assert_eq!(holder.bytes, 1500);
    assert_eq!(
        (holder.unanswered_bytes, holder.closed_window_bytes),
        (400, 800)
    );
    assert_eq!(holder.socket.state.as_deref(), Some("ESTABLISHED"));
    assert_eq!(holder.socket.protocol, "tcp");
}

#[test]
fn files_do_not_say_how_many() {
    let mut socket = packet(1, 1, 5000);
    socket.receive_skbs = None;
    let mut now = look([(1, socket.clone())]);
    now.way = Way::Files;
    let groups = group(&now, Some(&now.clone().into_past()), Some(1000));
    assert_eq!(groups[0].holder.unread_bytes, None);
    assert_eq!(groups[0].holder.skbs, None);
    let part = explained(&now);
    assert_eq!((part.objects, part.bytes), (None, 5000));
}

#[test]
fn of_tcp_only_what_was_received_is_in_the_cache_of_single_buffers() {
    let mut tcp = packet(1, 1, 5000);
    tcp.write_skbs = Some(70);
    tcp.write_bytes = Some(70_000);
    tcp.error_skbs = Some(2);
    let part = explained(&look([(1, tcp)]));
    assert_eq!((part.objects, part.bytes), (Some(7), 75_000));
}

#[test]
fn names() {
    let name = |family, protocol| {
        protocol_name(&Socket {
            family,
            protocol,
            kind: 2,
            ..Socket::default()
        })
    };
    assert_eq!(name(family::PACKET, 3), "all");
    assert_eq!(name(family::PACKET, 0x8863), "0x8863");
    assert_eq!(name(family::NETLINK, 12), "netfilter");
    assert_eq!(name(family::UNIX, 0), "dgram");
    assert_eq!(name(family::INET, 250), "250");
    assert_eq!(family_name(77), "77");
}

#[test]
fn a_creator_is_told_only_if_it_is_another() {
    let cgroup = |id: u64, path: Option<&str>| Cgroup {
        id: Some(id),
        path: path.map(ToOwned::to_owned),
    };
    assert!(
        !differs(&cgroup(5, Some("/a")), Some(&cgroup(9, Some("/a")))),
        "two hierarchies"
    );
    assert!(differs(
        &cgroup(5, Some("/a")),
        Some(&cgroup(9, Some("/b")))
    ));
    assert!(!differs(&cgroup(5, None), Some(&cgroup(5, Some("/b")))));
    assert!(
        differs(&cgroup(5, None), Some(&cgroup(6, Some("/b")))),
        "it is gone"
    );
    assert!(differs(&cgroup(5, Some("/a")), None));
}

#[test]
fn buffers_with_a_function_of_their_own_are_somebodys() {
    let group = |destructor: Option<&str>| Group {
        destructor: destructor.map(str::to_owned),
        device: None,
        queue: None,
        socket: None,
        objects: 1,
        bytes: 1,
        own_bytes: 1,
        relative_error: 0.0,
    };
    assert!(below::is_explained(&group(Some("sctp_wfree"))));
    assert!(!below::is_explained(&group(None)));
}
