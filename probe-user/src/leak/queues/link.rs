//! Network devices, as rtnetlink tells of them (`rtnl_fill_ifinfo`, net/core/rtnetlink.c).

use super::netlink::{Error, Netlink, after, attributes, i32_at, string, u32_at, u64_at};

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;

/// `struct ifinfomsg`: family, 1 byte, type, ifindex, flags, change.
const IFINFOMSG_LEN: usize = 16;

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: i32,
    pub(super) name: Vec<u8>,
    /// Made by the tun driver.
    pub(super) is_tun: bool,
    /// Packets that a queue of it may hold.
    pub(super) tx_queue_len: Option<u32>,
    pub(super) tx_packets: Option<u64>,
    pub(super) tx_dropped: Option<u64>,
}

/// The devices of the namespace.
pub(super) fn read(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    netlink.dump(RTM_GETLINK, RTM_NEWLINK, &[0; IFINFOMSG_LEN], |payload| {
        parse(payload).map(Some)
    })
}

/// Reads one message.
pub(super) fn parse(payload: &[u8]) -> Result<Link, Error> {
    let mut link = Link {
        ifindex: i32_at(payload, 4).ok_or(Error::Torn)?,
        ..Link::default()
    };
    for attribute in attributes(after(payload, IFINFOMSG_LEN)?) {
        match attribute? {
            (libc::IFLA_IFNAME, value) => link.name = string(value).to_vec(),
            (libc::IFLA_TXQLEN, value) => link.tx_queue_len = u32_at(value, 0),
            (libc::IFLA_LINKINFO, value) => {
                for info in attributes(value) {
                    if let (libc::IFLA_INFO_KIND, kind) = info? {
                        link.is_tun = string(kind) == b"tun";
                    }
                }
            }
            // `struct rtnl_link_stats64`.
            (libc::IFLA_STATS64, value) => {
                link.tx_packets = u64_at(value, 8);
                link.tx_dropped = u64_at(value, 7 * 8);
            }
            _ => {}
        }
    }
    Ok(link)
}
