//! A look by the BPF iterator over open files.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;

use probe_common::wire::{HeldSocket, UNKNOWN};

use super::{LISTEN, Look, MAX_SOCKETS, Mark, Owner, Socket, Way, address, family};
use crate::kernel::open_files::{OpenFiles, PassError};

/// Inode of the host's PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const HOST_PIDS: u64 = 0xefff_fffc;

/// One pass over all open files.
pub fn look(files: &mut OpenFiles) -> Result<Look, PassError> {
    let mut collected = Collected::new();
    files.pass(|record| collected.add(record))?;
    let mut look = collected.finish();
    let own = std::fs::metadata("/proc/self/ns/pid");
    look.sees_all = own.is_ok_and(|own| own.ino() == HOST_PIDS);
    if !look.sees_all {
        look.not_read.push((
            "sockets of processes in other PID namespaces".to_owned(),
            "oomprobe is not in the host's: in a pod it needs hostPID".to_owned(),
        ));
    }
    Ok(look)
}

/// Sockets by address, as their descriptors come.
struct Collected {
    look: Look,
    /// AF_UNIX: whose queue each sender's bytes are in, by the sender's address.
    sent: HashMap<u64, (u64, u64)>,
    page_bytes: u64,
}

impl Collected {
    fn new() -> Self {
        Self {
            look: Look::new(Way::Iterator),
            sent: HashMap::new(),
            page_bytes: rustix::param::page_size() as u64,
        }
    }

    fn add(&mut self, record: &HeldSocket) {
        self.look.descriptors += 1;
        self.look.namespaces.insert(record.netns);
        let room = self.look.sockets.len() < MAX_SOCKETS;
        if let Some(socket) = self.look.sockets.get_mut(&record.sock) {
            socket.add_owner(owner(record));
            return;
        }
        let mut socket = decode(record, self.page_bytes);
        if !socket.holds_something() {
            return;
        }
        if !room {
            self.look.not_kept += 1;
            return;
        }
        if record.family == family::UNIX && record.peer != 0 && record.wmem_bytes > 0 {
            let bytes = u64::from(record.wmem_bytes);
            self.sent.insert(record.sock, (record.peer, bytes));
        }
        socket.add_owner(owner(record));
        self.look.sockets.insert(record.sock, socket);
    }

    /// What a unix socket was sent is charged to who sent it: it is held by who does not read.
    fn finish(mut self) -> Look {
        for (sender, (peer, bytes)) in &self.sent {
            let Some(receiver) = self.look.sockets.get_mut(peer) else {
                continue;
            };
            if receiver.receive_skbs.unwrap_or(0) == 0 {
                continue;
            }
            let sum = receiver.receive_bytes.get_or_insert(0);
            *sum = sum.saturating_add(*bytes);
            if let Some(sender) = self.look.sockets.get_mut(sender) {
                sender.sent_bytes = Some(0);
            }
        }
        self.look
            .sockets
            .retain(|_, socket| socket.holds_something());
        self.look
    }
}

fn owner(record: &HeldSocket) -> Owner {
    Owner {
        pid: record.pid,
        start_boot_ns: Some(record.start_boot_ns).filter(|&start| start != 0),
        comm: record.comm,
    }
}

fn decode(record: &HeldSocket, page_bytes: u64) -> Socket {
    let HeldSocket {
        family,
        local_port,
        remote_port,
        ..
    } = *record;
    let is_unix = family == family::UNIX;
    let some = |count: u32| Some(u64::from(count));
    let pages = record.rx_ring_pages.saturating_add(record.tx_ring_pages);
    let mut socket = Socket {
        inode: record.inode,
        family,
        kind: record.kind,
        protocol: record.protocol,
        state: record.state,
        netns: record.netns,
        ifindex: (family == family::PACKET).then_some(record.number),
        portid: (family == family::NETLINK).then_some(record.number),
        local: address(family, record.local, local_port),
        remote: address(family, record.remote, remote_port).filter(|_| remote_port != 0),
        creator: Some(record.cgroup_id).filter(|&id| id != 0),
        receive_skbs: some(record.receive_skbs),
        receive_bytes: if is_unix {
            None
        } else {
            Some(u64::from(record.rmem_bytes) + u64::from(record.backlog_bytes))
        },
        error_skbs: some(record.error_skbs),
        rcvbuf_bytes: some(record.rcvbuf_bytes),
        sndbuf_bytes: some(record.sndbuf_bytes),
        drops: some(record.drops).filter(|_| record.drops != UNKNOWN),
        ring_bytes: pages.saturating_mul(page_bytes),
        retransmits: record.retransmits,
        probes_out: record.probes_out,
        backoff: record.backoff,
        ..Socket::default()
    };
    if socket.is_tcp() {
        socket.write_skbs = some(record.write_skbs);
        socket.write_bytes = some(record.wmem_queued_bytes);
        socket.mark = (record.copied_seq != UNKNOWN).then_some(Mark::Copied(record.copied_seq));
        if record.state == LISTEN {
            socket.accept_queue = record.ack_backlog.into();
        }
    } else {
        socket.sent_bytes = some(record.wmem_bytes);
        socket.mark = (record.oldest_skb != 0).then_some(Mark::Oldest(record.oldest_skb));
        // Of a listening unix socket: connections that wait, not data.
        if is_unix && record.state == LISTEN {
            socket.accept_queue = record.receive_skbs.into();
        }
    }
    socket
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leak::sockets::{STREAM, TCP};

    fn record(sock: u64, pid: u32) -> HeldSocket {
        HeldSocket {
            sock,
            pid,
            inode: sock + 1,
            start_boot_ns: 1000 - u64::from(pid),
            ..bytemuck::Zeroable::zeroed()
        }
    }

    fn look(records: &[HeldSocket]) -> Look {
        let mut collected = Collected::new();
        for record in records {
            collected.add(record);
        }
        collected.finish()
    }

    #[test]
    fn a_socket_that_many_have_open_is_one_with_all_its_owners() {
        let held = |pid| HeldSocket {
            family: family::PACKET,
            receive_skbs: 5,
            rmem_bytes: 6400,
            ..record(7, pid)
        };
        let records: Vec<_> = (1..=20).chain([20, 20]).map(held).collect();
        let look = look(&records);
        assert_eq!((look.sockets.len(), look.descriptors), (1, 22));
        let socket = &look.sockets[&7];
        assert_eq!(socket.bytes(), 6400);
        assert_eq!(socket.skbs(), Some(5));
        assert_eq!(socket.owners_total, 20);
        assert_eq!(socket.owners.len(), 8);
        assert_eq!(socket.owners[0].pid, 20, "it was started first");
    }

    #[test]
    fn sockets_that_hold_nothing_are_counted_only() {
        let records: Vec<_> = (1..1000).map(|sock| record(sock, 1)).collect();
        let look = look(&records);
        assert_eq!((look.sockets.len(), look.descriptors), (0, 999));
    }

    #[test]
    fn what_a_unix_socket_was_sent_is_held_by_who_does_not_read() {
        let unix = |sock, peer, skbs, sent| HeldSocket {
            family: family::UNIX,
            peer,
            receive_skbs: skbs,
            wmem_bytes: sent,
            ..record(sock, 1)
        };
        // The senders come before and after the receiver; the last one's peer is not open anywhere.
        let records = [
            unix(1, 10, 0, 1000),
            unix(10, 0, 8, 0),
            unix(2, 10, 0, 500),
            unix(3, 99, 0, 70),
        ];
        let look = look(&records);
        assert_eq!(look.sockets[&10].receive_bytes, Some(1500));
        assert!(!look.sockets.contains_key(&1), "it holds nothing itself");
        assert_eq!(look.sockets[&3].sent_bytes, Some(70));
        assert_eq!(look.sockets[&3].bytes(), 0);
    }

    #[test]
    fn saturated_is_near_the_receive_buffer() {
        let packet = |rmem_bytes| HeldSocket {
            family: family::PACKET,
            receive_skbs: 1,
            rmem_bytes,
            rcvbuf_bytes: 1000,
            ..record(1, 1)
        };
        for (bytes, expected) in [(899, false), (900, true), (1300, true)] {
            let look = look(&[packet(bytes)]);
            assert_eq!(look.sockets[&1].is_saturated(), expected, "{bytes}");
        }
    }

    #[test]
    fn two_looks_tell_whether_it_was_read() {
        let udp = |oldest_skb| HeldSocket {
            family: family::INET,
            kind: 2,
            protocol: 17,
            receive_skbs: 3,
            oldest_skb,
            ..record(1, 1)
        };
        let tcp = |copied_seq| HeldSocket {
            family: family::INET,
            kind: STREAM,
            protocol: TCP,
            receive_skbs: 3,
            oldest_skb: 5,
            copied_seq,
            ..record(1, 1)
        };
        let unread = |was, now| {
            let (past, now) = (look(&[was]).into_past(), look(&[now]));
            past.of(1, &now.sockets[&1])?.is_unread(&now.sockets[&1])
        };
        assert_eq!(unread(udp(5), udp(5)), Some(true));
        assert_eq!(unread(udp(5), udp(6)), Some(false));
        assert_eq!(unread(tcp(70), tcp(70)), Some(true));
        assert_eq!(unread(tcp(70), tcp(80)), Some(false));
        assert_eq!(unread(tcp(UNKNOWN), tcp(UNKNOWN)), None);
        let other = HeldSocket {
            inode: 77,
            ..udp(5)
        };
        assert_eq!(unread(udp(5), other), None, "the address is in use again");
    }

    #[test]
    fn addresses_and_unknown_numbers() {
        let mut tcp = HeldSocket {
            family: family::INET6,
            kind: STREAM,
            protocol: TCP,
            rmem_bytes: 9,
            drops: UNKNOWN,
            local_port: 80,
            remote_port: 4000,
            ..record(1, 1)
        };
        tcp.remote[15] = 1;
        tcp.local[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
        let look = look(&[tcp]);
        let socket = &look.sockets[&1];
        assert_eq!(socket.local.unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(socket.remote.unwrap().to_string(), "[::1]:4000");
        assert_eq!(socket.drops, None);
        assert_eq!(socket.creator, None);
    }
}
