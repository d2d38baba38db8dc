//! Queueing disciplines, as rtnetlink tells of them (`tc_fill_qdisc`, net/sched/sch_api.c).

use super::netlink::{Error, Netlink, after, attributes, i32_at, string, u32_at, u64_at};

// linux/rtnetlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;

// linux/gen_stats.h
const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_PKT64: u16 = 8;

// linux/pkt_sched.h
const TC_H_ROOT: u32 = u32::MAX;
const TCA_FQ_PLIMIT: u16 = 1;
const TCA_FQ_CODEL_LIMIT: u16 = 2;
const TCA_FQ_CODEL_MEMORY_LIMIT: u16 = 9;
const TCA_TBF_PARMS: u16 = 1;
const TCA_NETEM_LATENCY64: u16 = 10;
const TC_NETEM_QOPT_LEN: usize = 24;

/// `struct tcmsg`: family, 3 bytes, ifindex, handle, parent, info.
const TCMSG_LEN: usize = 20;

/// The outermost qdisc of a device: its counts are of all that is queued below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Qdisc {
    pub(super) ifindex: i32,
    pub(super) handle: u32,
    pub(super) discipline: Vec<u8>,
    pub(super) packets: u32,
    pub(super) bytes: u32,
    pub(super) drops: u32,
    /// Packets given to the device since it was made.
    pub(super) sent: u64,
    pub(super) settings: Settings,
}

/// What of its options matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) limit_packets: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) delay_ns: Option<u64>,
}

/// The outermost qdisc of each device of the namespace.
pub(super) fn read(netlink: &mut Netlink) -> Result<Vec<Qdisc>, Error> {
    netlink.dump(RTM_GETQDISC, RTM_NEWQDISC, &[0; TCMSG_LEN], parse)
}

/// Reads one message; `None` for an inner qdisc and for one that has no queue.
pub(super) fn parse(payload: &[u8]) -> Result<Option<Qdisc>, Error> {
    let rest = after(payload, TCMSG_LEN)?;
    if u32_at(payload, 12) != Some(TC_H_ROOT) {
        return Ok(None);
    }
    let mut qdisc = Qdisc {
        ifindex: i32_at(payload, 4).ok_or(Error::Torn)?,
        handle: u32_at(payload, 8).ok_or(Error::Torn)?,
        ..Qdisc::default()
    };
    let mut options: &[u8] = &[];
    let mut has_queue = false;
    for attribute in attributes(rest) {
        match attribute? {
            (TCA_KIND, value) => qdisc.discipline = string(value).to_vec(),
            (TCA_OPTIONS, value) => options = value,
            (TCA_STATS2, value) => has_queue = stats(value, &mut qdisc)?,
            _ => {}
        }
    }
    qdisc.settings = settings(&qdisc.discipline, options);
    Ok(has_queue.then_some(qdisc))
}

fn stats(nested: &[u8], qdisc: &mut Qdisc) -> Result<bool, Error> {
    let mut has_queue = false;
    for attribute in attributes(nested) {
        match attribute? {
            // The 32 bits that older kernels have come first, if there are 64.
            (TCA_STATS_BASIC, value) => {
                qdisc.sent = u64::from(u32_at(value, 8).ok_or(Error::Torn)?);
            }
            (TCA_STATS_PKT64, value) => qdisc.sent = u64_at(value, 0).ok_or(Error::Torn)?,
            (TCA_STATS_QUEUE, value) => {
                let number = |offset| u32_at(value, offset).ok_or(Error::Torn);
                (qdisc.packets, qdisc.bytes, qdisc.drops) = (number(0)?, number(4)?, number(8)?);
                has_queue = true;
            }
            _ => {}
        }
    }
    Ok(has_queue)
}

/// Options are each discipline's own; what is not understood is left unknown.
fn settings(discipline: &[u8], options: &[u8]) -> Settings {
    let first = |at| u32_at(options, at).map(u64::from);
    let nested = |wanted| {
        attributes(options)
            .map_while(Result::ok)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let nested_number = |wanted| {
        nested(wanted)
            .and_then(|value| u32_at(value, 0))
            .map(u64::from)
    };
    match discipline {
        b"pfifo" | b"pfifo_head_drop" => Settings {
            limit_packets: first(0),
            ..Settings::default()
        },
        b"bfifo" => Settings {
            limit_bytes: first(0),
            ..Settings::default()
        },
        b"fq" => Settings {
            limit_packets: nested_number(TCA_FQ_PLIMIT),
            ..Settings::default()
        },
        b"fq_codel" => Settings {
            limit_packets: nested_number(TCA_FQ_CODEL_LIMIT),
            limit_bytes: nested_number(TCA_FQ_CODEL_MEMORY_LIMIT),
            ..Settings::default()
        },
        b"tbf" => Settings {
            // Behind two `struct tc_ratespec`.
            limit_bytes: nested(TCA_TBF_PARMS)
                .and_then(|value| u32_at(value, 24))
                .map(u64::from),
            ..Settings::default()
        },
        b"netem" => Settings {
            limit_packets: first(4),
            delay_ns: attributes(options.get(TC_NETEM_QOPT_LEN..).unwrap_or_default())
                .map_while(Result::ok)
                .find(|(kind, _)| *kind == TCA_NETEM_LATENCY64)
                .and_then(|(_, value)| u64_at(value, 0)),
            ..Settings::default()
        },
        _ => Settings::default(),
    }
}

/// A handle as `tc` prints it.
pub(super) fn handle(handle: u32) -> String {
    format!("{:x}:", handle >> 16)
}
