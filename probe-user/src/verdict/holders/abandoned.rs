//! Packets in network namespaces that nobody can enter any more.

use super::{HELD_BYTES, SEVERE_BYTES, approx};
use crate::event::label::bytes;
use crate::event::{Confidence, Finding, FindingId, Severity, SkbCensus};

/// The finding about what closed sockets left, if it is much.
pub fn abandoned(census: &SkbCensus) -> Option<Finding> {
    let left = census.abandoned.as_ref()?;
    // In a sample, three errors are chance one time in a thousand.
    let doubt = (left.relative_error * 3.0).min(1.0);
    if approx(left.bytes) * (1.0 - doubt) < approx(HELD_BYTES) {
        return None;
    }
    let (namespaces, first) = match left.namespaces {
        1 => ("a network namespace".to_owned(), ""),
        more => (format!("{more} network namespaces"), ", most of them"),
    };
    let devices = left.devices.join(", ");
    Some(Finding {
        id: FindingId::NetnsAbandoned,
        severity: if left.bytes >= SEVERE_BYTES {
            Severity::Error
        } else {
            Severity::Warn
        },
        // What is on its way out looks the same until it is gone.
        confidence: Confidence::Medium,
        cgroup: None,
        summary: format!(
            "{} packets, {}, wait in {namespaces} that nobody can enter, and keep what they wait in",
            left.skbs,
            bytes(left.bytes),
        ),
        evidence: vec![
            format!(
                "their sockets were closed{first} in net:[{}]: no thread is in it, no process has it or a \
                 socket in it open, and it is mounted nowhere",
                left.netns
            ),
            format!(
                "each is charged to its socket, the socket keeps the namespace and with it {devices}: the \
                 circle ends only when the device sends or drops them"
            ),
        ],
        next_steps: vec![
            // Has it changed? Then it drains.
            "oomprobe skb --census full".to_owned(),
            "ip -d link  # is one here the other end of a veth pair? deleting it deletes both and frees \
             them; else only a reboot does"
                .to_owned(),
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::SkbAbandoned;

    fn told(left: SkbAbandoned) -> Option<Finding> {
        abandoned(&SkbCensus {
            abandoned: Some(left),
            ..SkbCensus::default()
        })
    }

    fn left() -> SkbAbandoned {
        SkbAbandoned {
            namespaces: 1,
            netns: 4_026_532_000,
            skbs: 20_000,
            bytes: 2 * HELD_BYTES,
            relative_error: 0.1,
            devices: vec!["eth0".to_owned()],
        }
    }

    #[test]
    fn what_nobody_can_enter_is_told() {
        let finding = told(left()).unwrap();
        assert_eq!(finding.id, FindingId::NetnsAbandoned);
        assert_eq!(finding.severity, Severity::Warn);
        assert!(finding.evidence[0].contains("net:[4026532000]"));
    }

    #[test]
    fn little_or_chance_is_not() {
        let mut little = left();
        little.bytes = HELD_BYTES - 1;
        let mut chance = left();
        chance.relative_error = 0.2;
        for left in [little, chance] {
            assert_eq!(told(left), None);
        }
        assert_eq!(abandoned(&SkbCensus::default()), None);
    }
}
