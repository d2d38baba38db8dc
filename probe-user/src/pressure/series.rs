//! Robust measures of a short series: how steep, how even, how far it fell back.
//!
//! The slope is Theil and Sen's, the median over all pairs of points, which a quarter of wild
//! points cannot move. Its interval is Sen's (1968), from the distribution of Kendall's S: it
//! holds for noise of any distribution, but takes the points for independent, and memory is not.
//! So a steep slope alone proves nothing, and the other measures stand beside it.

/// Most points a slope is taken over: 8,128 pairs. More are thinned.
pub const MOST_POINTS: usize = 128;

/// Fewest points for which an interval at 95 % exists and says something.
pub const FEWEST_POINTS: usize = 6;

/// Standard normal quantile for two-sided 95 %.
const Z_95: f64 = 1.96;

/// One measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// When, s from any origin.
    pub s: f64,
    /// What was measured.
    pub value: f64,
}

/// How steep a series is, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// The median over all pairs of points.
    pub median: f64,
    /// Lower bound at 95 %.
    pub low: f64,
    /// Upper bound at 95 %.
    pub high: f64,
}

/// The slope of `points`, which are in order of time. `None` for fewer than [`FEWEST_POINTS`] at
/// different times.
pub fn slope(points: &[Point]) -> Option<Slope> {
    let points = thinned(points, MOST_POINTS);
    let count = points.len();
    if count < FEWEST_POINTS {
        return None;
    }
    let mut slopes = Vec::with_capacity(count * (count - 1) / 2);
    for (index, a) in points.iter().enumerate() {
        for b in &points[index + 1..] {
            let time = b.s - a.s;
            if time > 0.0 {
                slopes.push((b.value - a.value) / time);
            }
        }
    }
    if slopes.len() < FEWEST_POINTS {
        return None;
    }
    let pairs = approx(slopes.len());
    let n = approx(count);
    let reach = Z_95 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt();
    slopes.sort_unstable_by(f64::total_cmp);
    Some(Slope {
        median: slopes[slopes.len() / 2],
        low: slopes[rank(pairs / 2.0 - reach / 2.0, slopes.len())],
        high: slopes[rank(pairs / 2.0 + reach / 2.0, slopes.len())],
    })
}

/// Share of steps from point to point that do not fall, 0 to 1. `None` for fewer than two points.
pub fn rising_share(points: &[Point]) -> Option<f64> {
    let steps = points.len().checked_sub(1).filter(|&steps| steps > 0)?;
    let rising = points
        .windows(2)
        .filter(|pair| pair[1].value >= pair[0].value)
        .count();
    Some(approx(rising) / approx(steps))
}

/// The deepest fall below an earlier peak; 0 if it never fell.
pub fn drawdown(points: &[Point]) -> f64 {
    let mut peak = f64::NEG_INFINITY;
    points.iter().fold(0.0, |deepest: f64, point| {
        peak = peak.max(point.value);
        deepest.max(peak - point.value)
    })
}

/// The median of each of `N` equal stretches of time. `None` if one of them has no point.
pub fn levels<const N: usize>(points: &[Point]) -> Option<[f64; N]> {
    let (first, last) = (points.first()?, points.last()?);
    let span = last.s - first.s;
    let mut levels = [0.0; N];
    let mut rest = points;
    for (index, level) in levels.iter_mut().enumerate() {
        let end = first.s + span * approx(index + 1) / approx(N);
        let count = if index + 1 == N {
            rest.len()
        } else {
            rest.partition_point(|point| point.s < end)
        };
        let (stretch, after) = rest.split_at(count);
        let mut values: Vec<f64> = stretch.iter().map(|point| point.value).collect();
        values.sort_unstable_by(f64::total_cmp);
        *level = *values.get(values.len() / 2)?;
        rest = after;
    }
    Some(levels)
}

/// The least growth from level to level over the mean one: 1 for a straight line, 0 or less where
/// a part does not grow, as beside a step, on a plateau, or under the teeth of a saw. `None`
/// unless it grows at all.
pub fn evenness(levels: &[f64]) -> Option<f64> {
    let steps = levels.len().checked_sub(1).filter(|&steps| steps > 0)?;
    let mean = (levels.last()? - levels.first()?) / approx(steps);
    let least = levels
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .fold(f64::INFINITY, f64::min);
    (mean > 0.0).then(|| least / mean)
}

/// Every n-th point, so that at most `most` are left; the newest is always among them.
pub fn thinned(points: &[Point], most: usize) -> Vec<Point> {
    let every = points.len().div_ceil(most.max(1)).max(1);
    let mut kept: Vec<_> = points.iter().rev().step_by(every).copied().collect();
    kept.reverse();
    kept
}

/// A count or a number of bytes for arithmetic.
#[expect(
    clippy::cast_precision_loss,
    reason = "exact below 2^53, and no measurement of more is that exact"
)]
pub fn approx<T: TryInto<u64>>(count: T) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

/// An index from a position that may lie outside.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the length first"
)]
fn rank(position: f64, len: usize) -> usize {
    position.clamp(0.0, approx(len - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(count: usize, value: impl Fn(f64) -> f64) -> Vec<Point> {
        (0..count)
            .map(|index| Point {
                s: approx(index),
                value: value(approx(index)),
            })
            .collect()
    }

    #[test]
    fn a_line_has_its_slope_and_no_doubt() {
        let slope = slope(&series(60, |s| 7.0 + 3.0 * s)).unwrap();
        for value in [slope.median, slope.low, slope.high] {
            assert!((value - 3.0).abs() < 1e-9, "{slope:?}");
        }
    }

    #[test]
    fn a_fifth_of_wild_points_moves_it_little() {
        let wild = |s: f64| if s % 5.0 > 3.5 { 1e9 } else { 2.0 * s };
        let slope = slope(&series(60, wild)).unwrap();
        assert!((slope.median - 2.0).abs() < 0.5, "{slope:?}");
    }

    #[test]
    fn flat_noise_has_no_sign() {
        let slope = slope(&series(60, |s| (s * 12.9898).sin() * 43.0)).unwrap();
        assert!(slope.low < 0.0 && slope.high > 0.0, "{slope:?}");
    }

    #[test]
    fn many_points_are_thinned_and_keep_the_slope() {
        let long = series(10_000, |s| 5.0 * s);
        assert!(thinned(&long, MOST_POINTS).len() <= MOST_POINTS);
        assert_eq!(thinned(&long, MOST_POINTS).last(), long.last());
        assert!((slope(&long).unwrap().median - 5.0).abs() < 1e-9);
    }

    #[test]
    fn too_little_gives_nothing() {
        assert_eq!(slope(&series(FEWEST_POINTS - 1, |s| s)), None);
        let at_once = [Point { s: 1.0, value: 2.0 }; 20];
        assert_eq!(slope(&at_once), None);
        assert_eq!(levels::<5>(&at_once), None);
        assert_eq!(rising_share(&at_once[..1]), None);
        assert_eq!(evenness(&[1.0]), None);
        assert_eq!(slope(&[]), None);
    }

    #[test]
    fn evenness_tells_a_line_from_a_step_and_a_tooth() {
        let even = |value: fn(f64) -> f64| {
            evenness(&levels::<5>(&series(60, value)).unwrap()).unwrap_or(f64::NAN)
        };
        assert!((even(|s| 3.0 * s) - 1.0).abs() < 0.1);
        assert!(even(|s| if s < 30.0 { 10.0 } else { 90.0 }) <= 0.0);
        assert!(even(|s| 0.1 * s + s % 20.0) < 0.2);
        assert!(even(|s| (s / 5.0).min(6.0)) <= 0.0, "a plateau");
        assert!(even(|_| 4.0).is_nan(), "no growth");
    }

    #[test]
    fn falls() {
        let points = series(8, |s| [1.0, 5.0, 3.0, 6.0, 2.0, 7.0, 7.0, 8.0][rank(s, 8)]);
        assert!((drawdown(&points) - 4.0).abs() < 1e-9);
        assert!((rising_share(&points).unwrap() - 5.0 / 7.0).abs() < 1e-9);
        assert!(drawdown(&series(9, |s| s)).abs() < 1e-9);
    }
}
