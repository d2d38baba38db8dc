//! Packets that wait for a neighbour's link-layer address.

use std::collections::BTreeMap;

use super::netlink::{Error, Netlink, after, attributes, i32_at, string, u16_at, u32_at};

// linux/rtnetlink.h, linux/neighbour.h
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWNEIGHTBL: u16 = 64;
const RTM_GETNEIGHTBL: u16 = 66;
const NUD_INCOMPLETE: u16 = 0x01;
const NDTA_NAME: u16 = 1;
const NDTA_CONFIG: u16 = 5;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
const NDTPA_QUEUE_LENBYTES: u16 = 16;

/// `struct ndmsg`: family, 3 bytes, ifindex, state, flags, type.
const NDMSG_LEN: usize = 12;
/// `struct ndtmsg`: family, 3 bytes.
const NDTMSG_LEN: usize = 4;

/// Neighbours of one device and family whose address is asked for. Only those hold packets: once
/// it fails they are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unresolved {
    pub(super) family: u8,
    pub(super) ifindex: i32,
    pub(super) entries: u64,
}

/// A table of neighbours, or its settings for one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: u8,
    pub(super) name: Vec<u8>,
    /// The device the settings are for; `None`: those of new devices.
    pub(super) ifindex: Option<i32>,
    /// Most bytes that one neighbour's queue takes.
    pub(super) queue_limit_bytes: Option<u32>,
    /// Packets in the queue of the proxy, of all namespaces.
    pub(super) proxy_packets: Option<u32>,
}

/// The neighbours of the namespace, counted.
pub(super) fn unresolved(netlink: &mut Netlink) -> Result<Vec<Unresolved>, Error> {
    let all = netlink.dump(RTM_GETNEIGH, RTM_NEWNEIGH, &[0; NDMSG_LEN], parse_neighbour)?;
    let mut counts = BTreeMap::new();
    for key in all {
        *counts.entry(key).or_insert(0) += 1;
    }
    let counted = counts
        .into_iter()
        .map(|((family, ifindex), entries)| Unresolved {
            family,
            ifindex,
            entries,
        });
    Ok(counted.collect())
}

/// Family and device, if the neighbour's address is asked for.
pub(super) fn parse_neighbour(payload: &[u8]) -> Result<Option<(u8, i32)>, Error> {
    let family = *payload.first().ok_or(Error::Torn)?;
    let ifindex = i32_at(payload, 4).ok_or(Error::Torn)?;
    let state = u16_at(payload, 8).ok_or(Error::Torn)?;
    Ok((state & NUD_INCOMPLETE != 0).then_some((family, ifindex)))
}

/// The tables, each followed by its settings for the devices of the namespace.
pub(super) fn tables(netlink: &mut Netlink) -> Result<Vec<Table>, Error> {
    let request = [0; NDTMSG_LEN];
    netlink.dump(RTM_GETNEIGHTBL, RTM_NEWNEIGHTBL, &request, |payload| {
        parse_table(payload).map(Some)
    })
}

/// Reads one message.
pub(super) fn parse_table(payload: &[u8]) -> Result<Table, Error> {
    let mut table = Table {
        family: *payload.first().ok_or(Error::Torn)?,
        ..Table::default()
    };
    for attribute in attributes(after(payload, NDTMSG_LEN)?) {
        match attribute? {
            (NDTA_NAME, value) => table.name = string(value).to_vec(),
            // The last member of `struct ndt_config`.
            (NDTA_CONFIG, value) => table.proxy_packets = u32_at(value, 28),
            (NDTA_PARMS, value) => {
                for parameter in attributes(value) {
                    match parameter? {
                        (NDTPA_IFINDEX, value) => table.ifindex = i32_at(value, 0),
                        (NDTPA_QUEUE_LENBYTES, value) => {
                            table.queue_limit_bytes = u32_at(value, 0);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(table)
}
