//! Whether the record can be trusted: status, losses, gaps, heartbeats.

use probe_common::wire::Loss as WireLoss;
use tokio::time::Instant;

use super::{Daemon, outbox::Lost};
use crate::{
    event::{self, Body, Heartbeat, ProbeStatus, SignalStatus},
    kernel::{facts::Facts, layout, loader::Probe},
    node::clock,
};

impl Daemon {
    /// Reports what was lost since the last time, and what the kernel counted but nobody saw.
    pub(super) fn count_losses(&mut self) {
        let now = clock::boot_ns();
        for (reason, total) in self.probe.losses().into_iter().flatten() {
            let known = self.losses.entry(reason).or_default();
            let count = total.saturating_sub(*known);
            *known = total;
            if count > 0 {
                let ring = match reason {
                    WireLoss::CriticalRingFull => Some("critical"),
                    WireLoss::BulkRingFull => Some("bulk"),
                    WireLoss::DeathRingFull => Some("deaths"),
                    _ => None,
                };
                let lost = Lost {
                    ring,
                    ..Lost::of(reason.name())
                };
                self.outbox.lost_by(lost, count);
            }
        }
        for (program, hook, total) in self.probe.skipped() {
            let known = self.skipped.entry(program).or_default();
            let count = total.saturating_sub(*known);
            *known = total;
            if count > 0 {
                let lost = Lost {
                    hook: Some(hook.to_string()),
                    ..Lost::of("program_skipped")
                };
                self.outbox.lost_by(lost, count);
            }
        }
        if self.decode_errors > 0 {
            self.outbox.lost(
                "undecodable_record",
                std::mem::take(&mut self.decode_errors),
            );
        }
        let quiet = self.assembler.open().is_none() && self.looking_up.is_empty();
        let seen = self.assembler.kernel_kills();
        for gap in self
            .reconciler
            .check(seen, quiet, &self.collector, &self.context)
        {
            self.outbox.write(Body::Gap(gap), now);
        }
    }

    pub(super) fn beat(&mut self) {
        let beat = Heartbeat {
            uptime_s: self.started.elapsed().as_secs(),
            events: self.outbox.counts(),
            lost: self.outbox.losses(),
            kernel_oom_kills: self.reconciler.kernel_kills(),
            seen_oom_kills: self.assembler.kernel_kills(),
        };
        self.outbox.write(Body::Heartbeat(beat), clock::boot_ns());
    }
}

pub(super) fn status(
    probe: &Probe,
    report: &layout::LayoutReport,
    facts: &Facts,
    started: Instant,
) -> ProbeStatus {
    ProbeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        attached: true,
        signals: probe
            .served
            .iter()
            .map(|served| SignalStatus {
                signal: served.signal.name().to_owned(),
                hook: served.hook.map(|hook| hook.to_string()),
                refused: served
                    .refused
                    .iter()
                    .map(|(hook, reason)| event::Refusal {
                        hook: hook.to_string(),
                        reason: reason.clone(),
                    })
                    .collect(),
            })
            .collect(),
        layout_absent: report
            .absent()
            .map(|field| field.field.to_owned())
            .collect(),
        kernel: facts.for_event(),
        ready_ms: Some(started.elapsed().as_secs_f64() * 1000.0),
    }
}
