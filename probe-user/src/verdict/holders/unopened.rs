//! Buffers of sockets that no process has open: only the slabs show them.

use super::{HELD_BYTES, SEVERE_BYTES, approx};
use crate::event::label::{self, bytes};
use crate::event::{Confidence, Finding, FindingId, Severity, SkbCensus, SkbGroup};

/// The findings about a census, where the sockets of all processes are known.
pub fn unopened(census: &SkbCensus) -> Vec<Finding> {
    let judge = |group| judge(group, census.full);
    census.groups.iter().filter_map(judge).collect()
}

fn judge(group: &SkbGroup, full: bool) -> Option<Finding> {
    let socket = group.socket.as_ref()?;
    // A socket without a file was closed: it goes by itself.
    let inode = socket.inode.filter(|_| group.process.is_none())?;
    // What it sent and is in a queue further on is told of that queue.
    let received = group.queue.as_deref() == Some("receive") || socket.receive_skbs >= group.skbs;
    // In a sample, three errors are chance one time in a thousand.
    let doubt = (group.relative_error * 3.0).min(1.0);
    if !received || approx(group.bytes) * (1.0 - doubt) < approx(HELD_BYTES) {
        return None;
    }
    let by = label::subject(
        group.k8s.as_ref(),
        group.container.as_ref(),
        group.cgroup.as_ref(),
    );
    let mut evidence = vec![
        format!(
            "socket {inode} has a file, and no process of the node has it open: its descriptor was sent \
             to a process that does not take it (SCM_RIGHTS), is kept by an io_uring, or the socket is the \
             kernel's own"
        ),
        format!(
            "{} of {} receive buffer used",
            bytes(group.bytes),
            bytes(socket.rcvbuf_bytes)
        ),
    ];
    evidence.extend(by.map(|by| format!("it was made in {by}")));
    Some(Finding {
        id: FindingId::SocketNotOpen,
        severity: if group.bytes >= SEVERE_BYTES {
            Severity::Error
        } else {
            Severity::Warn
        },
        confidence: if full {
            Confidence::Medium
        } else {
            Confidence::Low
        },
        cgroup: group.cgroup.clone(),
        summary: format!(
            "a {} socket that no process has open holds {} buffers, {}",
            socket.protocol,
            group.skbs,
            bytes(group.bytes)
        ),
        evidence,
        next_steps: vec![
            // Who has been sent descriptors and did not take them (unix sockets, since 5.6).
            "grep -H scm_fds: /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -vw 0$".to_owned(),
            "oomprobe skb --census full".to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CensusSocket, Process};

    fn group() -> SkbGroup {
        SkbGroup {
            skbs: 20_000,
            bytes: 20_000 * 1280,
            queue: Some("receive".to_owned()),
            socket: Some(CensusSocket {
                protocol: "UDP".to_owned(),
                inode: Some(7),
                ..CensusSocket::default()
            }),
            ..SkbGroup::default()
        }
    }

    fn told(group: SkbGroup) -> Option<FindingId> {
        let census = SkbCensus {
            groups: vec![group],
            full: true,
            ..SkbCensus::default()
        };
        unopened(&census).first().map(|finding| finding.id)
    }

    #[test]
    fn what_no_process_has_open_is_told() {
        let it = Some(FindingId::SocketNotOpen);
        assert_eq!(told(group()), it);
        // Charged to the socket, not followed.
        let mut charged = group();
        charged.queue = None;
        charged.socket.as_mut().unwrap().receive_skbs = 20_000;
        assert_eq!(told(charged), it);
    }

    #[test]
    fn what_has_an_owner_or_goes_by_itself_is_not() {
        let mut owned = group();
        owned.process = Some(Process::default());
        let mut closed = group();
        closed.socket.as_mut().unwrap().inode = None;
        let mut sent = group();
        sent.queue = None;
        let mut little = group();
        little.bytes = HELD_BYTES - 1;
        let mut chance = group();
        chance.relative_error = 0.2;
        for group in [owned, closed, sent, little, chance] {
            assert_eq!(told(group.clone()), None, "{group:?}");
        }
    }
}
