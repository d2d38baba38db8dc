//! Packets that wait for a verdict: `/proc/net/netfilter/nfnetlink_queue` (`seq_show`,
//! net/netfilter/nfnetlink_queue.c), and the processes that should give it, by the port of their
//! socket in `/proc/net/netlink` (`netlink_native_seq_show`, net/netlink/af_netlink.c).

use crate::event::queues::Copy;
use crate::node::ParseError;
use crate::node::text::{decimal, lines};

/// linux/netlink.h
pub(super) const NETLINK_NETFILTER: u64 = 12;

/// One queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) queue: u32,
    pub(super) port_id: u32,
    pub(super) packets: u64,
    pub(super) copy: Copy,
    /// Packets dropped because the queue was full.
    pub(super) full_drops: u64,
    /// Packets dropped because the process' socket did not take the copy.
    pub(super) socket_drops: u64,
    /// Number of the last packet: a counter of 32 bits.
    pub(super) numbered: u32,
}

/// One netlink socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) protocol: u64,
    pub(super) port_id: u32,
    pub(super) rmem_bytes: u64,
    pub(super) inode: u64,
}

/// Parses `nfnetlink_queue`.
pub(super) fn parse(content: &[u8]) -> Result<Vec<Instance>, ParseError> {
    lines(content)
        .map(|(line, content)| {
            instance(content).ok_or(ParseError {
                line,
                expected: "queue number, port, packets, copy mode, copy range, two counts of \
                           drops, last id",
            })
        })
        .collect()
}

fn instance(line: &[u8]) -> Option<Instance> {
    let mut numbers = words(line).map(decimal);
    let mut number = || numbers.next().flatten();
    let (queue, port_id, packets) = (number()?, number()?, number()?);
    let copy = match number()? {
        0 => Copy::None,
        1 => Copy::Meta,
        2 => Copy::Packet,
        _ => return None,
    };
    let _copy_range = number()?;
    Some(Instance {
        queue: queue.try_into().ok()?,
        port_id: port_id.try_into().ok()?,
        packets,
        copy,
        full_drops: number()?,
        socket_drops: number()?,
        numbered: number()?.try_into().ok()?,
    })
}

/// Parses `/proc/net/netlink`.
pub(super) fn parse_sockets(content: &[u8]) -> Result<Vec<Socket>, ParseError> {
    lines(content)
        .skip(1)
        .map(|(line, content)| {
            socket(content).ok_or(ParseError {
                line,
                expected: "sk, protocol, port, groups, rmem, wmem, dump, locks, drops, inode",
            })
        })
        .collect()
}

fn socket(line: &[u8]) -> Option<Socket> {
    let words: Vec<&[u8]> = words(line).collect();
    let number = |index: usize| decimal(words.get(index)?);
    Some(Socket {
        protocol: number(1)?,
        port_id: number(2)?.try_into().ok()?,
        rmem_bytes: number(4)?,
        inode: number(9)?,
    })
}

/// The words of a line.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}
