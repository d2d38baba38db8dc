//! What became of the victims.

use probe_common::wire;

use super::{super::assemble::Incident, Context, process::process};
use crate::event::{OomOutcome, VictimOutcome};

/// The event for the end of an incident.
pub fn oom_outcome(
    context: &Context,
    incident: &Incident,
    is_alive: impl Fn(&wire::Task) -> bool,
    usage_before_bytes: Option<u64>,
    usage_after_bytes: Option<u64>,
    container_survived: Option<bool>,
) -> OomOutcome {
    OomOutcome {
        incident: context.incident_id(incident),
        late_victims: u32::try_from(incident.victims.len().saturating_sub(incident.on_time))
            .unwrap_or(u32::MAX),
        victims: incident
            .victims
            .iter()
            .map(|victim| {
                let exit = victim.exited.map(|(_, status)| status);
                let signal = exit
                    .map(|status| status & 0x7f)
                    .filter(|signal| *signal != 0);
                VictimOutcome {
                    process: process(context, &victim.task, None),
                    exited_at: victim.exited.map(|(boot_ns, _)| context.time(boot_ns)),
                    reaped_at: victim.reaped_boot_ns.map(|boot_ns| context.time(boot_ns)),
                    kill_to_exit_ms: victim
                        .exited
                        .zip(victim.killed_boot_ns)
                        .map(|((exited, _), killed)| millis(exited.saturating_sub(killed))),
                    exit_code: exit
                        .filter(|_| signal.is_none())
                        .map(|status| (status >> 8) & 0xff),
                    signal,
                    still_alive: victim.exited.is_none() && is_alive(&victim.task),
                }
            })
            .collect(),
        limit_usage_bytes: usage_after_bytes,
        freed_bytes: usage_before_bytes
            .zip(usage_after_bytes)
            .map(|(before, after)| {
                i64::try_from(before)
                    .unwrap_or(i64::MAX)
                    .saturating_sub_unsigned(after)
            }),
        container_survived,
    }
}

/// ns as ms, to the microsecond.
fn millis(ns: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "below 2^53 µs: 285 years")]
    let us = (ns / 1000) as f64;
    us / 1000.0
}
