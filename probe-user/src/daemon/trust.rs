//! Whether the record can be trusted: status, losses, gaps, heartbeats.

use probe_common::wire::Loss as WireLoss;
use tokio::time::Instant;

use super::Daemon;
use crate::{
    event::{self, Body, Heartbeat, Loss, ProbeStatus, SignalStatus},
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
                    WireLoss::CriticalRingFull => Some("critical".to_owned()),
                    WireLoss::BulkRingFull => Some("bulk".to_owned()),
                    WireLoss::DeathRingFull => Some("deaths".to_owned()),
                    _ => None,
                };
                let reason = reason.name().to_owned();
                self.outbox.write(
                    Body::Loss(Loss {
                        reason,
                        count,
                        total,
                        ring,
                        hook: None,
                    }),
                    now,
                );
            }
        }
        for (hook, total) in self.probe.skipped() {
            let hook = hook.to_string();
            let known = self.skipped.entry(hook.clone()).or_default();
            let count = total.saturating_sub(*known);
            *known = total;
            if count > 0 {
                self.outbox.write(
                    Body::Loss(Loss {
                        reason: "program_skipped".to_owned(),
                        count,
                        total,
                        ring: None,
                        hook: Some(hook),
                    }),
                    now,
                );
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
        let lost = self
            .losses
            .iter()
            .map(|(reason, count)| (reason.name().to_owned(), *count))
            .chain(self.outbox.losses())
            .collect();
        let beat = Heartbeat {
            uptime_s: self.started.elapsed().as_secs(),
            events: self.outbox.counts(),
            lost,
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
