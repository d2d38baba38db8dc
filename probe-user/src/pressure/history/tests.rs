use proptest::prelude::*;

use super::super::sample::Detail;
use super::*;

const MIB: u64 = 1 << 20;

fn seconds(seconds: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "test times"
    )]
    {
        (seconds * 1e9) as u64
    }
}

fn usage(at_s: f64, usage_bytes: u64) -> CgroupSample {
    CgroupSample {
        boot_ns: seconds(at_s),
        usage_bytes,
        detail: None,
    }
}

#[expect(clippy::large_types_passed_by_value, reason = "literals read better")]
fn look(at_s: f64, usage_bytes: u64, detail: Detail) -> CgroupSample {
    CgroupSample {
        detail: Some(detail),
        ..usage(at_s, usage_bytes)
    }
}

#[track_caller]
fn near(value: Option<f64>, expected: f64, tolerance: f64) {
    let value = value.unwrap();
    assert!(
        (value - expected).abs() <= tolerance,
        "{value} is not {expected}"
    );
}

#[test]
fn a_leak_over_a_minute() {
    // 1 MiB a second from 40 to 100 MiB; hits begin at 158 s, the kill is at 160 s.
    let mut series: Vec<_> = (100_u32..=157)
        .map(|at| usage(f64::from(at), u64::from(at - 60) * MIB))
        .collect();
    for tenth in 0..=20_u32 {
        series.push(look(
            158.0 + f64::from(tenth) / 10.0,
            100 * MIB,
            Detail {
                max_events: Some(u64::from(tenth) * 50),
                ..Detail::default()
            },
        ));
    }
    let known = Known {
        limit_bytes: Some(100 * MIB),
        hits: Some(HitSeries {
            first_ns: seconds(158.0),
            last_ns: seconds(160.0),
        }),
        max_events: Some(1_003),
        ..Known::default()
    };
    let before = before(&series, seconds(160.0), &known);
    near(before.first_limit_hit_ms, 2000.0, 0.1);
    assert_eq!(before.max_hits, Some(1_003));
    near(before.growth_bytes_per_s, 1_048_576.0, 200_000.0);
    assert_eq!(before.growth_confidence, Some(Confidence::High));
    // 50 MiB were passed at 110 s.
    near(before.half_to_limit_ms, 48_000.0, 1.0);
    near(Some(before.span_ms), 60_000.0, 1.0);
    assert_eq!(before.samples.len(), 60);
    near(Some(before.samples[0].before_ms), 60_000.0, 1.0);
    near(Some(before.samples[59].before_ms), 0.0, 1.0);
    assert_eq!(before.thrashed, None, "no PSI was read");
    assert_eq!(before.stall_ms, None);
}

#[test]
fn killed_within_a_second_of_its_making() {
    let known = Known {
        made_boot_ns: Some(seconds(99.2)),
        limit_bytes: Some(64 * MIB),
        peak_bytes: Some(64 * MIB),
        hits: Some(HitSeries {
            first_ns: seconds(99.7),
            last_ns: seconds(99.9),
        }),
        max_events: Some(77),
        high_events: Some(0),
        cpu_throttled: None,
    };
    let before = before(&[], seconds(100.0), &known);
    assert!(before.samples.is_empty());
    near(Some(before.span_ms), 800.0, 0.1);
    assert_eq!(before.max_hits, Some(77));
    assert_eq!(before.high_hits, Some(0));
    near(before.first_limit_hit_ms, 300.0, 0.1);
    near(before.growth_bytes_per_s, 128.0 * 1_048_576.0, 1.0);
    assert_eq!(before.growth_confidence, Some(Confidence::Low));
    near(before.half_to_limit_ms, 250.0, 0.1);
}

#[test]
fn nothing_is_known() {
    let before = before(&[], seconds(5.0), &Known::default());
    assert_eq!(before, Before::default());
}

#[test]
fn a_pause_begins_a_new_series_of_hits() {
    let counted = |at: f64, max: u64| {
        look(
            at,
            10 * MIB,
            Detail {
                max_events: Some(max),
                ..Detail::default()
            },
        )
    };
    let series = [
        counted(50.0, 0),
        counted(51.0, 9),
        counted(62.0, 9),
        counted(65.0, 10),
        counted(66.0, 20),
    ];
    let known = Known::default();
    near(
        before(&series, seconds(67.0), &known).first_limit_hit_ms,
        2000.0,
        0.1,
    );
    // Long over: it was not the limit that led to this kill.
    assert_eq!(
        before(&series, seconds(80.0), &known).first_limit_hit_ms,
        None
    );

    let mut hits = HitSeries::after(None, seconds(51.0));
    hits = HitSeries::after(Some(hits), seconds(60.0));
    assert_eq!(hits.first_ns, seconds(51.0));
    hits = HitSeries::after(Some(hits), seconds(71.0));
    assert_eq!(hits.first_ns, seconds(71.0));
    // A notice that comes late belongs to the series it lies in.
    hits = HitSeries::after(Some(hits), seconds(65.0));
    assert_eq!(
        (hits.first_ns, hits.last_ns),
        (seconds(65.0), seconds(71.0))
    );
    hits = HitSeries::after(Some(hits), seconds(20.0));
    assert_eq!(
        (hits.first_ns, hits.last_ns),
        (seconds(65.0), seconds(71.0))
    );
}

#[test]
fn thrashing_is_waiting_and_refaulting() {
    let series = |stall_us: u64, refaults: u64| -> Vec<CgroupSample> {
        (0..=10_u32)
            .map(|at| {
                let detail = Detail {
                    psi_some_us: Some(u64::from(at) * stall_us),
                    refault_anon: Some(0),
                    refault_file: Some(u64::from(at) * refaults),
                    ..Detail::default()
                };
                look(f64::from(at) + 20.0, 10 * MIB, detail)
            })
            .collect()
    };
    let judge = |stall_us, refaults| {
        before(
            &series(stall_us, refaults),
            seconds(30.0),
            &Known::default(),
        )
    };
    let thrashing = judge(300_000, 5_000);
    assert_eq!(thrashing.thrashed, Some(true));
    near(thrashing.stall_ms, 3000.0, 0.1);
    assert_eq!(thrashing.refaults, Some(50_000));
    assert_eq!(judge(300_000, 3).thrashed, Some(false), "reclaim alone");
    assert_eq!(judge(20_000, 5_000).thrashed, Some(false), "a fast disk");
}

#[test]
fn the_node() {
    let series: Vec<NodeSample> = (0..=20_u64)
        .map(|at| NodeSample {
            boot_ns: at * 1_000_000_000,
            total_bytes: 100 * MIB,
            available_bytes: Some((100 - 4 * at) * MIB),
            psi_some_us: [None, Some(at * 1000), None],
            refault_anon: Some(at),
            refault_file: Some(at),
            swap_total_bytes: Some(10),
            swap_free_bytes: Some(4),
            ..NodeSample::default()
        })
        .collect();
    let before = before_node(&series, seconds(20.0));
    near(before.growth_bytes_per_s, 4.0 * 1_048_576.0, 1.0);
    assert_eq!(before.refaults, Some(40));
    assert_eq!(before.thrashed, Some(false));
    assert_eq!(before.samples.len(), 21);
    assert_eq!(before.samples[20].usage_bytes, 80 * MIB);
    assert_eq!(before.samples[20].swap_bytes, Some(6));
    assert_eq!(before.max_hits, None);
}

proptest! {
    /// Whatever a broken clock or a counter that falls may give.
    #[test]
    fn total_and_bounded(
        mut points in proptest::collection::vec(
            (any::<u64>(), any::<u64>(), proptest::option::of(any::<u64>())), 0..200),
        kill in any::<u64>(),
        made in proptest::option::of(any::<u64>()),
        limit in proptest::option::of(any::<u64>()),
        hit in proptest::option::of((any::<u64>(), any::<u64>())),
    ) {
        points.sort_unstable();
        let series: Vec<_> = points
            .into_iter()
            .map(|(boot_ns, usage_bytes, counter)| CgroupSample {
                boot_ns,
                usage_bytes,
                detail: counter.map(|counter| Detail {
                    max_events: Some(counter),
                    psi_some_us: Some(counter),
                    refault_anon: Some(counter),
                    refault_file: Some(counter),
                    ..Detail::default()
                }),
            })
            .collect();
        let known = Known {
            made_boot_ns: made,
            limit_bytes: limit,
            peak_bytes: None,
            hits: hit.map(|(a, b)| HitSeries { first_ns: a.min(b), last_ns: a.max(b) }),
            max_events: None,
            high_events: None,
 cpu_throttled: None,
        };
        let before = before(&series, kill, &known);
        prop_assert!(before.samples.len() <= MAX_SAMPLES);
        prop_assert!(before.span_ms >= 0.0);
        prop_assert!(before.samples.iter().all(|sample| sample.before_ms >= 0.0));
        prop_assert!(before.first_limit_hit_ms.is_none_or(|ms| ms >= 0.0));
        prop_assert!(before.growth_bytes_per_s.is_none_or(f64::is_finite));
        prop_assert!(before.half_to_limit_ms.is_none_or(|ms| ms >= 0.0));
    }

    /// A line with noise of a tenth of what it grows in the window gives its slope.
    #[test]
    fn growth_is_found_under_noise(
        slope_mib in 1_u32..500,
        noise in proptest::collection::vec(0.0_f64..1.0, 11),
    ) {
        let slope = f64::from(slope_mib) * 1_048_576.0;
        let series: Vec<_> = noise
            .iter()
            .enumerate()
            .map(|(at, noise)| {
                let at = f64::from(u32::try_from(at).unwrap());
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss,
                    reason = "test sizes")]
                let bytes = (slope * (at + 1.0 + noise)) as u64;
                usage(100.0 + at, bytes)
            })
            .collect();
        let before = before(&series, seconds(110.0), &Known::default());
        let found = before.growth_bytes_per_s.unwrap();
        prop_assert!((found / slope - 1.0).abs() < 0.25, "{found} {slope}");
    }
}
