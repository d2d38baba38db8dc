//! What led up to a kill: how fast memory grew, and whether it thrashed before.

use super::less_sure;
use crate::event::label::{self, ratio, seconds};
use crate::event::{Before, Cause, Confidence, OomKill};
use crate::pressure::series::{self, Point, approx};

/// From half the limit to the limit in less than this is a spike: no probe, scaler or person sees
/// it coming. A second, measured by samples that are a second apart and may be late.
const SPIKE_MS: f64 = 1_500.0;

/// Steady growth shorter than this is a program doing something, not leaking.
const LEAK_S: f64 = 10.0;

/// Growth over that time, over what there is in the end, that is worth calling growth.
const LEAK_RATIO: f64 = 0.05;

/// Stretches that must all grow, and how much the least of them over the mean.
const LEVELS: usize = 4;
const EVEN: f64 = 0.3;

/// Lower bound of the slope over the slope: below, it is too vague to call steady.
const SURE: f64 = 0.5;

/// Most that it may have fallen back over its growth.
const DRAWDOWN: f64 = 0.5;

/// How anonymous memory came to fill the limit.
pub(super) struct Growth {
    pub(super) cause: Cause,
    pub(super) confidence: Confidence,
    /// A clause for the summary.
    pub(super) reason: String,
}

/// Leak or spike, if the record tells. `confidence` is how sure it is that anonymous memory filled
/// the limit.
pub(super) fn growth(kill: &OomKill, confidence: Confidence) -> Option<Growth> {
    let before = kill.before.as_ref()?;
    if let Some(ms) = spike_ms(before, limit_bytes(kill)) {
        return Some(Growth {
            cause: Cause::Spike,
            confidence,
            reason: format!("half of the limit was taken within {}", seconds(ms / 1e3)),
        });
    }
    let Steady { per_s, span_s } = steady(before)?;
    Some(Growth {
        cause: Cause::Leak,
        // A record of a minute cannot tell a leak from load that grows.
        confidence: less_sure(confidence),
        reason: format!(
            "it grew steadily by {} for {}: a leak, or load that grows",
            label::rate(per_s),
            seconds(span_s)
        ),
    })
}

/// Evidence from the record; empty without one.
pub(super) fn evidence(kill: &OomKill) -> Vec<String> {
    let Some(before) = &kill.before else {
        return Vec::new();
    };
    let mut evidence = Vec::new();
    let hits = before.max_hits.map(|hits| {
        format!(
            "{hits} hits of the limit in the last {}",
            seconds(before.span_ms / 1e3)
        )
    });
    let first = before.first_limit_hit_ms.map(|ms| {
        format!(
            "the limit was first hit {} before the kill",
            seconds(ms / 1e3)
        )
    });
    let both: Vec<_> = first.into_iter().chain(hits).collect();
    if !both.is_empty() {
        evidence.push(both.join(", "));
    }
    if let Some(rate) = before.growth_bytes_per_s {
        let sure = match before.growth_confidence {
            Some(Confidence::High) => "",
            Some(Confidence::Medium) => ", likely",
            _ => ", a guess",
        };
        evidence.push(format!(
            "usage grew by {} in the ten seconds before that{sure}",
            label::rate(rate)
        ));
    }
    let waited = before.stall_ms.filter(|_| before.span_ms > 0.0).map(|ms| {
        format!(
            "tasks waited for memory {} of the time",
            ratio(ms / before.span_ms)
        )
    });
    let refaults = before
        .refaults
        .map(|pages| format!("{pages} pages were thrown out and read back"));
    let how: Vec<_> = waited.into_iter().chain(refaults).collect();
    match before.thrashed {
        Some(true) => evidence.push(format!(
            "it thrashed before it was killed: {}",
            how.join(", ")
        )),
        Some(false) if !how.is_empty() => {
            evidence.push(format!("it did not thrash before: {}", how.join(", ")));
        }
        _ => {}
    }
    if let Some(hits) = before.high_hits.filter(|&hits| hits > 0) {
        evidence.push(format!(
            "memory.high was hit {hits} times: its tasks were slowed down"
        ));
    }
    evidence
}

fn limit_bytes(kill: &OomKill) -> Option<u64> {
    kill.limit.as_ref()?.level.limit_bytes
}

/// How long half of the limit took, if less than [`SPIKE_MS`].
fn spike_ms(before: &Before, limit: Option<u64>) -> Option<f64> {
    let told = before.half_to_limit_ms;
    let seen = || {
        let half = limit?.checked_div(2).filter(|&half| half > 0)?;
        before.samples.windows(2).find_map(|pair| {
            let grown = pair[1].usage_bytes.saturating_sub(pair[0].usage_bytes);
            (grown >= half).then_some(pair[0].before_ms - pair[1].before_ms)
        })
    };
    told.or_else(seen).filter(|&ms| ms < SPIKE_MS)
}

struct Steady {
    per_s: f64,
    span_s: f64,
}

/// Growth up to the first hit of the limit, if it was long, material and even. Later the limit
/// itself holds usage still.
fn steady(before: &Before) -> Option<Steady> {
    let until_ms = before.first_limit_hit_ms.unwrap_or(0.0);
    let points: Vec<_> = before
        .samples
        .iter()
        .filter(|sample| sample.before_ms >= until_ms)
        .map(|sample| Point {
            s: -sample.before_ms / 1e3,
            value: approx(sample.anon_bytes.unwrap_or(sample.usage_bytes)),
        })
        .collect();
    let span_s = points.last()?.s - points.first()?.s;
    let levels = series::levels::<LEVELS>(&points)?;
    let growth = levels[LEVELS - 1] - levels[0];
    let slope = series::slope(&points)?;
    let holds = span_s >= LEAK_S
        && growth >= LEAK_RATIO * levels[LEVELS - 1]
        && series::evenness(&levels)? >= EVEN
        && series::drawdown(&points) <= growth * DRAWDOWN
        && slope.low >= slope.median * SURE;
    holds.then_some(Steady {
        per_s: slope.median,
        span_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MemorySample;

    fn before(samples: &[(f64, u64)]) -> Before {
        Before {
            samples: samples
                .iter()
                .map(|&(before_ms, mib)| MemorySample {
                    before_ms,
                    usage_bytes: mib << 20,
                    ..MemorySample::default()
                })
                .collect(),
            ..Before::default()
        }
    }

    #[test]
    fn half_the_limit_between_two_samples_is_a_spike_only_if_they_are_near() {
        let limit = Some(512 << 20);
        assert_eq!(
            spike_ms(&before(&[(900.0, 100), (400.0, 380)]), limit),
            Some(500.0)
        );
        assert_eq!(
            spike_ms(&before(&[(1900.0, 100), (350.0, 380)]), limit),
            None
        );
        assert_eq!(
            spike_ms(&before(&[(900.0, 200), (400.0, 380)]), limit),
            None
        );
        assert_eq!(spike_ms(&before(&[(900.0, 0), (0.0, 512)]), None), None);
        assert_eq!(spike_ms(&before(&[(900.0, 0), (0.0, 512)]), Some(0)), None);
    }

    #[test]
    fn mixed_intervals_keep_the_slope() {
        let coarse = (10..40).rev().map(|s| f64::from(s) * 1e3);
        let fine = (0..30).rev().map(|tenth| f64::from(tenth) * 1e2);
        let samples: Vec<_> = coarse
            .chain(fine)
            .map(|ms| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "below 512"
                )]
                let mib = (500.0 - ms / 100.0) as u64;
                (ms, mib)
            })
            .collect();
        let Steady { per_s, span_s } = steady(&before(&samples)).unwrap();
        assert!((per_s / 10_485_760.0 - 1.0).abs() < 0.05, "{per_s}");
        assert!((span_s - 39.0).abs() < 0.1);
    }
}
