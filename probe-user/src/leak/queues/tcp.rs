//! TCP connections without a file: `/proc/net/tcp` and `tcp6` (`tcp4_seq_show`,
//! net/ipv4/tcp_ipv4.c), whose inode is 0. They were closed, or not accepted yet.

use std::collections::BTreeMap;
use std::io::{self, BufRead};
use std::time::Instant;

use super::nfqueue::words;
use super::protocols::hexadecimal;
use crate::node::text::{cut, decimal};

// net/tcp_states.h
const ESTABLISHED: u64 = 1;
const FIN_WAIT1: u64 = 4;
const FIN_WAIT2: u64 = 5;
const CLOSE_WAIT: u64 = 8;
const LAST_ACK: u64 = 9;
const LISTEN: u64 = 10;
const CLOSING: u64 = 11;

/// How many lines to read before looking at the clock.
const LINES_PER_LOOK: usize = 1024;

/// A line is of some 150 bytes. What is longer is none of the kernel's.
const LINE_LEN: usize = 1024;

/// What no file owns, of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unowned {
    pub(super) orphans: Orphans,
    /// By the port of the listener.
    pub(super) unaccepted: BTreeMap<u16, Unaccepted>,
}

/// Connections that were closed, whose last data or end is not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Orphans {
    pub(super) sockets: u64,
    pub(super) unacknowledged_bytes: u64,
}

/// Connections that wait to be accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unaccepted {
    pub(super) sockets: u64,
    pub(super) received_bytes: u64,
    pub(super) listener_inode: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    port: u16,
    state: u64,
    tx_bytes: u64,
    rx_bytes: u64,
    inode: u64,
}

/// Adds what one of the files holds. It may be long: stops at the deadline with an error.
pub(super) fn add(file: &mut dyn BufRead, deadline: Instant, to: &mut Unowned) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        let mut limited = io::Read::take(&mut *file, LINE_LEN as u64);
        if limited.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if number == 0 {
            continue;
        }
        if number % LINES_PER_LOOK == 0 && Instant::now() >= deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no time left"));
        }
        let row = row(&line).ok_or_else(|| {
            let what = format!("line {}: expected a TCP socket", number + 1);
            io::Error::new(io::ErrorKind::InvalidData, what)
        })?;
        to.add(row);
    }
    Ok(())
}

impl Unowned {
    fn add(&mut self, row: Row) {
        match (row.state, row.inode) {
            (LISTEN, inode) => {
                self.unaccepted.entry(row.port).or_default().listener_inode = Some(inode);
            }
            (ESTABLISHED | CLOSE_WAIT, 0) => {
                let unaccepted = self.unaccepted.entry(row.port).or_default();
                unaccepted.sockets += 1;
                unaccepted.received_bytes = unaccepted.received_bytes.saturating_add(row.rx_bytes);
            }
            (FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING, 0) => {
                self.orphans.sockets += 1;
                let bytes = &mut self.orphans.unacknowledged_bytes;
                *bytes = bytes.saturating_add(row.tx_bytes);
            }
            _ => {}
        }
    }
}

/// `sl local remote st tx:rx timer:when retransmits uid timeout inode …`
fn row(line: &[u8]) -> Option<Row> {
    let mut words = words(line);
    let (_, port) = cut(words.nth(1)?, b":")?;
    let state = hexadecimal(words.nth(1)?)?;
    let (tx, rx) = cut(words.next()?, b":")?;
    Some(Row {
        port: hexadecimal(port)?.try_into().ok()?,
        state,
        tx_bytes: hexadecimal(tx)?,
        rx_bytes: hexadecimal(rx)?,
        inode: decimal(words.nth(4)?)?,
    })
}
