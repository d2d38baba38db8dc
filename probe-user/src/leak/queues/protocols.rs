//! Queues of the protocols and of the CPUs: `/proc/net/sockstat`, `sockstat6`, `softnet_stat`.

use super::nfqueue::words;
use crate::node::ParseError;
use crate::node::text::{cut, decimal, lines};

/// From `sockstat` and `sockstat6` (net/ipv4/proc.c, net/ipv6/proc.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sockstat {
    /// TCP sockets of the namespace.
    pub(super) tcp_sockets: Option<u64>,
    /// Memory of the buffers of all TCP sockets, of all namespaces, in pages.
    pub(super) tcp_memory_pages: Option<u64>,
    /// Incomplete datagrams of the namespace.
    pub(super) fragmented: Option<u64>,
    /// Memory of their fragments.
    pub(super) fragments_bytes: Option<u64>,
}

/// Parses either file.
pub(super) fn parse_sockstat(content: &[u8]) -> Result<Sockstat, ParseError> {
    let mut stat = Sockstat::default();
    for (line, content) in lines(content) {
        let malformed = || ParseError {
            line,
            expected: "\"protocol: key number …\"",
        };
        let (protocol, pairs) = cut(content, b":").ok_or_else(malformed)?;
        let mut words = words(pairs);
        while let Some(key) = words.next() {
            let number = words.next().and_then(decimal).ok_or_else(malformed)?;
            match (protocol, key) {
                (b"TCP" | b"TCP6", b"inuse") => stat.tcp_sockets = Some(number),
                (b"TCP", b"mem") => stat.tcp_memory_pages = Some(number),
                (b"FRAG" | b"FRAG6", b"inuse") => stat.fragmented = Some(number),
                (b"FRAG" | b"FRAG6", b"memory") => stat.fragments_bytes = Some(number),
                _ => {}
            }
        }
    }
    Ok(stat)
}

/// The queue of received packets of one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Softnet {
    pub(super) cpu: u64,
    /// Packets in it; `None` where the kernel does not tell.
    pub(super) packets: Option<u64>,
    /// Packets it did not take since boot (32 bits).
    pub(super) drops: u64,
}

/// Columns of `softnet_stat`, from 0 (`softnet_seq_show`, net/core/net-procfs.c). Those from 11
/// on were added one by one.
const DROPPED: usize = 1;
const BACKLOG: usize = 11;
const CPU: usize = 12;

/// Parses `softnet_stat`: a line for each online CPU.
pub(super) fn parse_softnet(content: &[u8]) -> Result<Vec<Softnet>, ParseError> {
    lines(content)
        .enumerate()
        .map(|(index, (line, content))| {
            softnet(index, content).ok_or(ParseError {
                line,
                expected: "at least two hexadecimal numbers",
            })
        })
        .collect()
}

fn softnet(index: usize, line: &[u8]) -> Option<Softnet> {
    let columns: Option<Vec<u64>> = words(line).map(hexadecimal).collect();
    let columns = columns?;
    Some(Softnet {
        cpu: columns.get(CPU).copied().unwrap_or(index as u64),
        packets: columns.get(BACKLOG).copied(),
        drops: *columns.get(DROPPED)?,
    })
}

/// A hexadecimal number that is the whole of `word`.
pub(super) fn hexadecimal(word: &[u8]) -> Option<u64> {
    let digits = word.iter().all(u8::is_ascii_hexdigit);
    let word = std::str::from_utf8(word).ok().filter(|_| digits)?;
    u64::from_str_radix(word, 16).ok()
}
