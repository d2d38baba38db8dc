//! The detector on synthetic series of known nature, many seeds each, fed as a node feeds it.

use std::f64::consts::TAU;

use super::*;

const MIB: f64 = 1024.0 * 1024.0;
/// Between two samples, s.
const STEP_S: u32 = 5;
const SEEDS: u64 = 60;

/// SplitMix64: enough for noise, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 1.
    fn uniform(&mut self) -> f64 {
        approx(self.next() >> 11) / approx(1_u64 << 53)
    }

    /// Mean 0, variance 1 (Irwin-Hall).
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

/// Feeds `hours` of a series in MiB; the events, with when they were told.
fn run(hours: f64, headroom: Option<u64>, mut mib_at: impl FnMut(f64) -> f64) -> Vec<(f64, Leak)> {
    let mut detector = Detector::new(Options::default());
    let mut told = Vec::new();
    let steps = (0..).step_by(STEP_S as usize).map(f64::from);
    for s in steps.take_while(|&s| s < hours * 3600.0) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "test values are small and positive"
        )]
        let (bytes, boot_ns) = (
            (mib_at(s).max(0.0) * MIB) as u64,
            ((s + 1000.0) * 1e9) as u64,
        );
        let headroom = headroom.map(|limit_bytes| Headroom {
            limit_bytes,
            used_bytes: bytes,
        });
        let subject = Subject::Cgroup(7, Grower::Anon);
        told.extend(
            detector
                .observe(subject, boot_ns, bytes, headroom)
                .map(|leak| (s, leak)),
        );
    }
    told
}

/// MiB at a time in s.
type Values = Box<dyn FnMut(f64) -> f64>;

type Make = fn(&mut Random) -> Values;

/// Share of the seeds with an event within `hours`.
fn rate(name: &str, hours: f64, make: impl Fn(&mut Random) -> Values) -> f64 {
    let told = (0..SEEDS)
        .filter(|seed| !run(hours, None, make(&mut Random(seed * 7919 + 1))).is_empty())
        .count();
    let rate = approx(told) / approx(SEEDS);
    println!("{:>6.1} % told in {hours} h: {name}", rate * 100.0);
    rate
}

/// A leak of `kib_s` above `base` MiB under noise of `noise` MiB.
fn leak(random: &mut Random, base: f64, kib_s: f64, noise: f64) -> Values {
    let mut random = Random(random.next());
    Box::new(move |s| base + s * kib_s / 1024.0 + noise * random.normal())
}

#[test]
fn leaks_are_found() {
    let mut worst: f64 = 1.0;
    for (base, kib_s, noise) in [
        (20.0, 20.0, 0.2),
        (100.0, 50.0, 1.0),
        (100.0, 100.0, 5.0),
        (500.0, 200.0, 8.0),
        (2000.0, 1024.0, 40.0),
        (8000.0, 2048.0, 80.0),
    ] {
        let name = format!("leak of {kib_s} KiB/s above {base} MiB, noise {noise} MiB");
        worst = worst.min(rate(&name, 0.75, |random| leak(random, base, kib_s, noise)));
    }
    worst = worst.min(rate(
        "leak of 2 MiB/s in arenas of 64 MiB",
        0.75,
        |random| {
            let start = random.uniform() * 64.0;
            Box::new(move |s| 300.0 + ((start + 2.0 * s) / 64.0).floor() * 64.0)
        },
    ));
    worst = worst.min(rate(
        "leak of 300 KiB/s under a saw of 50 MiB",
        0.75,
        |random| {
            let period = 20.0 + 60.0 * random.uniform();
            Box::new(move |s| 200.0 + 0.3 * s + 50.0 * (s % period) / period)
        },
    ));
    worst = worst.min(rate(
        "leak of 100 KiB/s behind a warm-up of 3 min",
        1.0,
        |random| {
            let tau = 60.0 + 120.0 * random.uniform();
            let mut leak = leak(random, 0.0, 100.0, 1.0);
            Box::new(move |s| leak(s) + 200.0 * (1.0 - (-s / tau).exp()))
        },
    ));
    assert!(worst >= 0.95, "the least detection rate is {worst}");
}

#[test]
fn what_is_no_leak_is_left_alone() {
    let quiet: [(&str, Make); 13] = [
        ("flat, noise of 1 %", |random| leak(random, 500.0, 0.0, 5.0)),
        ("flat, noise of 20 %", |random| {
            leak(random, 500.0, 0.0, 100.0)
        }),
        ("growth too slow to matter", |random| {
            leak(random, 2000.0, 30.0, 5.0)
        }),
        ("saw, period 20 s to 5 min", |random| {
            let period = 20.0 + 280.0 * random.uniform();
            Box::new(move |s| 150.0 + 300.0 * (s % period) / period)
        }),
        ("saw, period 5 to 20 min, second tooth on", |random| {
            let period = 300.0 + 900.0 * random.uniform();
            let start = period * 0.9;
            Box::new(move |s| 150.0 + 300.0 * ((s + start) % period) / period)
        }),
        ("saw of uneven teeth", |random| {
            let (mut random, mut level) = (Random(random.next()), 0.0);
            Box::new(move |_| {
                level += 2.0 * random.uniform();
                if level > 100.0 + 100.0 * random.uniform() {
                    level = 10.0 * random.uniform();
                }
                100.0 + level
            })
        }),
        ("warm-up, time constant 1 to 6 min", |random| {
            let tau = 60.0 + 300.0 * random.uniform();
            let mut noise = leak(random, 0.0, 0.0, 1.0);
            Box::new(move |s| 50.0 + 400.0 * (1.0 - (-s / tau).exp()) + noise(s))
        }),
        ("warm-up, time constant 20 min", |random| {
            let mut noise = leak(random, 0.0, 0.0, 1.0);
            Box::new(move |s| 100.0 + 400.0 * (1.0 - (-s / 1200.0).exp()) + noise(s))
        }),
        ("warm-up, logarithmic", |random| {
            let tau = 10.0 + 50.0 * random.uniform();
            let mut noise = leak(random, 0.0, 0.0, 0.5);
            Box::new(move |s| 100.0 + 30.0 * (1.0 + s / tau).ln() + noise(s))
        }),
        ("one step to three times as much", |random| {
            let at = 600.0 + 2000.0 * random.uniform();
            let mut noise = leak(random, 0.0, 0.0, 2.0);
            Box::new(move |s| if s < at { 100.0 } else { 300.0 } + noise(s))
        }),
        ("three steps", |random| {
            let first = 600.0 + 1000.0 * random.uniform();
            Box::new(move |s| {
                let steps = ((s - first) / 200.0).ceil().clamp(0.0, 3.0);
                100.0 + 60.0 * steps
            })
        }),
        ("a day's wave of 30 %", |random| {
            let phase = random.uniform() * TAU;
            let mut noise = leak(random, 0.0, 0.0, 5.0);
            Box::new(move |s| 1000.0 + 300.0 * (s * TAU / 86_400.0 + phase).sin() + noise(s))
        }),
        ("a walk at random", |random| {
            let (mut random, mut level) = (Random(random.next()), 500.0);
            Box::new(move |_| {
                level += random.normal();
                level
            })
        }),
    ];
    let mut sum = 0.0;
    let mut worst: f64 = 0.0;
    for (name, make) in quiet {
        let told = rate(name, 2.0, make);
        sum += told;
        worst = worst.max(told);
    }
    let mean = sum / approx(quiet.len());
    println!("{:>6.1} % of all", mean * 100.0);
    assert!(mean <= 0.01, "told of {mean} of what is no leak");
    assert!(worst <= 0.05, "told of {worst} of one sort");
}

#[test]
fn page_cache_and_dentries_may_grow() {
    let mut detector = Detector::new(Options::default());
    for slot in 0..400 {
        let grown = slot * (4 << 20);
        let sample = CgroupSample {
            boot_ns: slot * 10_000_000_000,
            usage_bytes: (200 << 20) + 2 * grown,
            detail: Some(super::super::sample::Detail {
                anon_bytes: 100 << 20,
                file_bytes: (20 << 20) + grown,
                kernel_bytes: Some((20 << 20) + grown),
                slab_reclaimable_bytes: Some((10 << 20) + grown),
                ..Default::default()
            }),
        };
        assert_eq!(detector.cgroup(1, &sample, &Settings::default()), []);
    }
}

#[test]
fn the_rate_is_right_and_lies_in_its_interval() {
    let mut inside = 0;
    for seed in 0..SEEDS {
        let mut random = Random(seed);
        let told = run(1.0, None, leak(&mut random, 200.0, 200.0, 4.0));
        let slope = told.first().unwrap().1.slope;
        let truth = 200.0 * 1024.0;
        assert!((slope.median / truth - 1.0).abs() < 0.15, "{slope:?}");
        inside += u64::from((slope.low..=slope.high).contains(&truth));
    }
    println!("{inside} of {SEEDS} intervals hold the true slope");
    // The least of two samples a slot lies a little below the line, everywhere alike.
    assert!(inside >= SEEDS * 85 / 100, "{inside}");
}

#[test]
fn it_is_told_again_when_the_limit_is_much_nearer_and_rarely_else() {
    // 1 MiB/s towards 8 GiB.
    let told = run(2.2, Some(8 << 30), |s| 100.0 + s);
    let left: Vec<_> = told
        .iter()
        .map(|(_, leak)| leak.time_to_limit_s.unwrap())
        .collect();
    assert!(told.len() >= 4, "{left:?}");
    for (pair, times) in left.windows(2).zip(told.windows(2)) {
        let hour = times[1].0 - times[0].0 >= 3600.0;
        assert!(hour || pair[1] <= pair[0] / 2.0, "{left:?}");
    }
    assert!(
        (left[0] - (8192.0 - 100.0 - told[0].0)).abs() < 60.0,
        "{left:?}"
    );
    let endless = run(5.0, None, |s| 100.0 + s);
    assert!((4..=5).contains(&endless.len()), "once an hour");
}

#[test]
fn a_slow_reader_is_enough_and_a_pause_begins_anew() {
    let mut detector = Detector::new(Options::default());
    let mut told = Vec::new();
    let subject = || Subject::SlabCache("skbuff_head_cache".into());
    for minute in 0..40_u64 {
        let bytes = (100 << 20) + minute * (10 << 20);
        told.extend(detector.observe(subject(), minute * 60_000_000_000, bytes, None));
    }
    assert_eq!(told.len(), 1);
    assert!((told[0].slope.median / (10.0 * MIB / 60.0) - 1.0).abs() < 0.01);

    let series = detector.series.get_mut(&subject()).unwrap();
    let later = series.newest + 500;
    series.take(later, 100 << 20);
    assert_eq!(series.points(1.0).len(), 1);
}

#[test]
fn time_that_goes_back_and_extremes_do_no_harm() {
    let mut detector = Detector::new(Options::default());
    let subject = || Subject::SlabUnreclaimable;
    for (boot_ns, bytes) in [
        (u64::MAX, u64::MAX),
        (0, 0),
        (5, u64::MAX),
        (u64::MAX, 1 << 30),
    ] {
        assert_eq!(detector.observe(subject(), boot_ns, bytes, None), None);
    }
}

#[test]
fn memory_is_bounded() {
    assert!(size_of::<Series>() <= 320, "{}", size_of::<Series>());
    let mut detector = Detector::new(Options::default());
    for id in 0..20_000 {
        detector.observe(Subject::Cgroup(id, Grower::Anon), 0, 1 << 30, None);
    }
    assert_eq!(detector.series.len(), SERIES.get());
}

#[test]
fn the_event_says_it_in_a_sentence() {
    let leak = Leak {
        subject: Subject::Cgroup(7, Grower::Anon),
        bytes: 400 << 20,
        slope: Slope {
            median: MIB,
            low: 0.9 * MIB,
            high: 1.1 * MIB,
        },
        window_s: 590.0,
        confidence: Confidence::High,
        limit_bytes: Some(512 << 20),
        time_to_limit_s: Some(112.0),
    };
    assert_eq!(
        leak.event(None, Some("shop/cart/app")).summary,
        "anonymous memory of shop/cart/app has grown by 1 MiB/s for 10 min: 400 MiB now, its limit \
         of 512 MiB is 112 s away"
    );
}
