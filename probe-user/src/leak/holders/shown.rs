//! A socket as events show it.

use crate::event::HeldSocket;
use crate::leak::sockets::{Socket, family};

/// Names of TCP's states (include/net/tcp_states.h).
const STATES: [&str; 14] = [
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
    "BOUND_INACTIVE",
];

pub(super) fn socket(socket: &Socket) -> HeldSocket {
    HeldSocket {
        family: family_name(socket.family),
        kind: kind_name(socket.kind),
        protocol: protocol_name(socket),
        state: socket
            .is_tcp()
            .then(|| STATES.get(usize::from(socket.state)))
            .flatten()
            .map(|&state| state.to_owned()),
        local: socket.local.map(|local| local.to_string()),
        remote: socket.remote.map(|remote| remote.to_string()),
        ifindex: socket.ifindex.filter(|&index| index != 0),
        portid: socket.portid,
        inode: socket.inode,
        netns: socket.netns.into(),
        receive_skbs: socket.receive_skbs,
        receive_bytes: socket.receive_bytes,
        write_bytes: socket.write_bytes,
        error_skbs: socket.error_skbs,
        rcvbuf_bytes: socket.rcvbuf_bytes,
        sndbuf_bytes: socket.sndbuf_bytes,
        saturated: socket.is_saturated(),
        accept_queue: socket.accept_queue,
        retransmits: socket.retransmits.into(),
        probes: socket.probes_out.into(),
        backoff: socket.backoff.into(),
        drops: socket.drops,
    }
}

pub(super) fn family_name(number: u16) -> String {
    let name = match number {
        family::UNIX => "unix",
        family::INET => "inet",
        family::INET6 => "inet6",
        family::NETLINK => "netlink",
        family::PACKET => "packet",
        29 => "can",
        31 => "bluetooth",
        38 => "alg",
        40 => "vsock",
        44 => "xdp",
        other => return other.to_string(),
    };
    name.to_owned()
}

/// `enum sock_type` (include/linux/net.h).
pub(super) fn kind_name(number: u16) -> String {
    let name = match number {
        1 => "stream",
        2 => "dgram",
        3 => "raw",
        5 => "seqpacket",
        10 => "packet",
        other => return other.to_string(),
    };
    name.to_owned()
}

pub(super) fn protocol_name(socket: &Socket) -> String {
    let number = socket.protocol;
    let name = match (socket.family, number) {
        (family::INET | family::INET6, 6) => "tcp",
        (family::INET | family::INET6, 17) => "udp",
        (family::INET, 1) => "icmp",
        (family::INET6, 58) => "icmp6",
        (family::INET | family::INET6, 132) => "sctp",
        (family::INET | family::INET6, 262) => "mptcp",
        // include/uapi/linux/netlink.h
        (family::NETLINK, 0) => "route",
        (family::NETLINK, 4) => "sock_diag",
        (family::NETLINK, 6) => "xfrm",
        (family::NETLINK, 9) => "audit",
        (family::NETLINK, 12) => "netfilter",
        (family::NETLINK, 15) => "kobject_uevent",
        (family::NETLINK, 16) => "generic",
        // include/uapi/linux/if_ether.h
        (family::PACKET, 3) => "all",
        (family::PACKET, 0x0800) => "ip",
        (family::PACKET, 0x0806) => "arp",
        (family::PACKET, 0x86dd) => "ipv6",
        (family::PACKET, 0x88cc) => "lldp",
        (family::PACKET, _) => return format!("{number:#06x}"),
        (family::UNIX, _) => return kind_name(socket.kind),
        _ => return number.to_string(),
    };
    name.to_owned()
}
