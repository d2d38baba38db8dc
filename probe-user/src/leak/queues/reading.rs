//! What one network namespace tells of its queues.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Instant;

use super::link::{self, Link};
use super::neighbour::{self, Table, Unresolved};
use super::netlink::{self, Netlink};
use super::nfqueue::{self, Instance, Socket};
use super::protocols::{Sockstat, parse_sockstat};
use super::qdisc::{self, Qdisc};
use super::tcp::{self, Unowned};
use crate::node::{self, ParseError, TextFile, sysctl};

/// As this thread sees it: `/proc/net` is of the namespace of the first thread.
const NET: &str = "/proc/thread-self/net";

/// A namespace, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// When, to tell how fast something moves.
    pub(super) at: Option<Instant>,
    pub(super) nfqueues: Vec<Instance>,
    pub(super) sockets: Vec<Socket>,
    pub(super) links: Vec<Link>,
    pub(super) qdiscs: Vec<Qdisc>,
    pub(super) unresolved: Vec<Unresolved>,
    pub(super) neighbour_tables: Vec<Table>,
    pub(super) ipv4: Sockstat,
    pub(super) ipv6: Sockstat,
    pub(super) fragments_limit_bytes: Option<u64>,
    pub(super) fragments6_limit_bytes: Option<u64>,
    /// Of each CPU's queue; only the first namespace has the setting.
    pub(super) backlog_limit_packets: Option<u64>,
    /// Only where there is enough of it to matter.
    pub(super) tcp: Unowned,
    /// What could not be read, and why.
    pub(super) failed: Vec<(&'static str, String)>,
}

impl Reading {
    /// Reads all of the namespace this thread is in, but for TCP connections, which take longer.
    pub(super) fn whole(deadline: Instant) -> Self {
        let mut reading = Self::moving(deadline);
        let buf = &mut Vec::new();
        let sockstat = file("sockstat", buf, parse_sockstat);
        reading.ipv4 = reading.keep("sockstat", sockstat).unwrap_or_default();
        let sockstat6 = file("sockstat6", buf, parse_sockstat);
        reading.ipv6 = reading.keep("sockstat6", sockstat6).unwrap_or_default();
        let limit = |name| sysctl::number(Path::new("/proc"), name).ok().flatten();
        reading.fragments_limit_bytes = limit("net/ipv4/ipfrag_high_thresh");
        reading.fragments6_limit_bytes = limit("net/ipv6/ip6frag_high_thresh");
        reading.backlog_limit_packets = limit("net/core/netdev_max_backlog");
        let neighbours = Netlink::open(netlink::ROUTE, deadline).and_then(|mut netlink| {
            Ok((
                neighbour::unresolved(&mut netlink)?,
                neighbour::tables(&mut netlink)?,
            ))
        });
        if let Some((unresolved, tables)) = reading.keep("neighbour queues", neighbours.map(Some)) {
            (reading.unresolved, reading.neighbour_tables) = (unresolved, tables);
        }
        reading
    }

    /// Reads what tells by how it changes whether somebody empties it.
    pub(super) fn moving(deadline: Instant) -> Self {
        let mut reading = Self {
            at: Some(Instant::now()),
            ..Self::default()
        };
        let buf = &mut Vec::new();
        // Without the module there is no file and no queue.
        let nfqueues = file("netfilter/nfnetlink_queue", buf, nfqueue::parse);
        reading.nfqueues = reading.keep("nfqueues", nfqueues).unwrap_or_default();
        let sockets = file("netlink", buf, nfqueue::parse_sockets);
        reading.sockets = reading.keep("netlink sockets", sockets).unwrap_or_default();
        let devices = Netlink::open(netlink::ROUTE, deadline)
            .and_then(|mut netlink| Ok((link::read(&mut netlink)?, qdisc::read(&mut netlink)?)));
        if let Some((links, qdiscs)) = reading.keep("devices and qdiscs", devices.map(Some)) {
            (reading.links, reading.qdiscs) = (links, qdiscs);
        }
        reading
    }

    /// Whether anything is queued that should move, or may be.
    pub(super) fn may_move(&self) -> bool {
        self.nfqueues.iter().any(|queue| queue.packets > 0)
            || self.qdiscs.iter().any(|qdisc| qdisc.packets > 0)
            || self.links.iter().any(|link| link.is_tun)
    }

    /// TCP sockets of the namespace.
    pub(super) fn tcp_sockets(&self) -> u64 {
        let sockets = |stat: Sockstat| stat.tcp_sockets.unwrap_or(0);
        sockets(self.ipv4).saturating_add(sockets(self.ipv6))
    }

    fn keep<T, E: ToString>(
        &mut self,
        what: &'static str,
        result: Result<Option<T>, E>,
    ) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.failed.push((what, error.to_string()));
            None
        })
    }
}

/// Reads a file of the namespace; `None` if the kernel does not have it.
pub(super) fn file<T>(
    name: &str,
    buf: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
) -> Result<Option<T>, node::Error> {
    let file = TextFile::open(Path::new(NET).join(name)).and_then(|file| file.parse(buf, parse));
    match file {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

/// TCP connections without a file, of the namespace this thread is in.
pub(super) fn tcp(deadline: Instant) -> io::Result<Unowned> {
    let mut unowned = Unowned::default();
    for name in ["tcp", "tcp6"] {
        let path = Path::new(NET).join(name);
        let added = match File::open(&path) {
            Ok(file) => {
                let mut file = BufReader::with_capacity(64 << 10, file);
                tcp::add(&mut file, deadline, &mut unowned)
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        added.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
    }
    Ok(unowned)
}
