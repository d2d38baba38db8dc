//! Samples and what is said of them.

/// Values of one quantity, sorted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Samples {
    /// The same quantity in another unit.
    pub(super) fn map(&self, convert: impl Fn(f64) -> f64) -> Self {
        self.0.iter().copied().map(convert).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least `percent` of all are not above (nearest rank).
    pub(super) fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    pub(super) fn median(&self) -> Option<f64> {
        self.percentile(50)
    }

    /// How far the median may be from that of endlessly many samples: two standard errors, by the
    /// middle half of the samples, as for a normal distribution.
    pub(super) fn median_error(&self) -> Option<f64> {
        let middle_half = self.percentile(75)? - self.percentile(25)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53 samples")]
        let count = self.len() as f64;
        Some(2.0 * 1.2533 * middle_half / 1.349 / count.sqrt())
    }

    pub(super) fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let samples: Samples = (1..=200).rev().map(f64::from).collect();
        assert_eq!(samples.len(), 200);
        assert_eq!(samples.median(), Some(100.0));
        assert_eq!(samples.percentile(99), Some(198.0));
        assert_eq!(samples.percentile(100), samples.max());
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!(one.percentile(1), Some(7.0));
        assert_eq!(one.percentile(99), Some(7.0));
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn the_median_is_surer_with_more_samples() {
        let error = |count| {
            (0..count)
                .map(f64::from)
                .map(|n| n % 4.0)
                .collect::<Samples>()
                .median_error()
                .unwrap()
        };
        assert!((error(400) * 2.0 - error(100)).abs() < 1e-9);
        assert!(error(4) > 0.9);
        assert_eq!(Samples::default().median_error(), None);
    }
}
