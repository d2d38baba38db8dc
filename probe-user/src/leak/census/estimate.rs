//! From a sample of memory to totals, with the error of doing so.
//!
//! Memory is cut into clusters of adjacent pages; clusters are taken in random order, each at most
//! once, until time is up. With B clusters in all, b taken and y objects of some kind in each, the
//! total is estimated by B/b Σy, which is unbiased, and the standard error of that by
//! √(B² (1 - b/B) s²/b), s² the variance of y between the clusters taken (W. G. Cochran, Sampling
//! Techniques, 2.5 and 9.3). When all are taken the count is exact, and so is the error: 0.

/// A random order of the numbers below a bound, without a list of them: a Feistel network over the
/// next power of four, walked until it falls below the bound.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    bound: u64,
    half_bits: u32,
    seed: u64,
}

impl Shuffle {
    /// An order of `0..bound`; another seed gives another order.
    pub const fn new(bound: u64, seed: u64) -> Self {
        let bits = 64 - bound.saturating_sub(1).leading_zeros();
        let half_bits = if bits < 2 { 1 } else { bits.div_ceil(2) };
        Self {
            bound,
            half_bits,
            seed,
        }
    }

    /// The number at place `at` of the order; `at` must be below the bound.
    pub const fn get(&self, at: u64) -> u64 {
        let mut number = self.step(at);
        // Terminates: the network is a permutation, and `at` itself is below the bound.
        while number >= self.bound {
            number = self.step(number);
        }
        number
    }

    const fn step(&self, number: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits & mask, number & mask);
        let mut round = 0;
        while round < 4 {
            let mixed = mix(right ^ mix(self.seed.wrapping_add(round)));
            (left, right) = (right, left ^ mixed & mask);
            round += 1;
        }
        left << self.half_bits | right
    }
}

/// The finaliser of SplitMix64.
const fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// What of one kind the clusters taken so far hold. Must be told of clusters one after another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Objects found.
    pub objects: u64,
    /// Bytes they are charged with.
    pub bytes: u64,
    /// Bytes of memory that are theirs.
    pub own_bytes: u64,
    squares: f64,
    cluster: u64,
    in_cluster: u64,
}

impl Sum {
    /// One more object, in cluster `cluster`.
    pub fn add(&mut self, cluster: u64, bytes: u64, own_bytes: u64) {
        if cluster != self.cluster {
            self.squares += square(self.in_cluster);
            (self.cluster, self.in_cluster) = (cluster, 0);
        }
        self.objects += 1;
        self.bytes += bytes;
        self.own_bytes += own_bytes;
        self.in_cluster += 1;
    }

    /// Standard error of the estimated number of objects, as a share of it; 0 if none were found.
    pub fn relative_error(&self, coverage: Coverage) -> f64 {
        if self.objects == 0 || coverage.taken >= coverage.all {
            return 0.0;
        }
        let (all, taken, found) = (real(coverage.all), real(coverage.taken), real(self.objects));
        if coverage.taken < 2 {
            return 1.0;
        }
        let squares = self.squares + square(self.in_cluster);
        let variance = ((squares - found * found / taken) / (taken - 1.0)).max(0.0);
        let error = (all * all * (1.0 - taken / all) * variance / taken).sqrt();
        error / (found * all / taken)
    }
}

/// How many clusters were taken, of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// Clusters taken.
    pub taken: u64,
    /// Clusters there are.
    pub all: u64,
}

impl Coverage {
    /// The total that `found` in the clusters taken stands for.
    pub fn estimate(self, found: u64) -> u64 {
        if self.taken == 0 {
            return 0;
        }
        let (found, all, taken) = (
            u128::from(found),
            u128::from(self.all),
            u128::from(self.taken),
        );
        u64::try_from((found * all + taken / 2) / taken).unwrap_or(u64::MAX)
    }
}

fn square(count: u64) -> f64 {
    real(count) * real(count)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "statistics of counts far below 2^53"
)]
pub(super) const fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_order_has_each_number_once(bound in 1_u64..3000, seed: u64) {
            let shuffle = Shuffle::new(bound, seed);
            let mut seen: Vec<u64> = (0..bound).map(|at| shuffle.get(at)).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..bound));
        }
    }

    /// Takes `taken` of the clusters and gives estimate and error.
    fn census(clusters: &[u64], taken: u64, seed: u64) -> (f64, f64) {
        let all = clusters.len() as u64;
        let shuffle = Shuffle::new(all, seed);
        let coverage = Coverage { taken, all };
        let mut sum = Sum::default();
        for at in 0..taken {
            let cluster = shuffle.get(at);
            for _ in 0..clusters[usize::try_from(cluster).unwrap()] {
                sum.add(cluster, 1, 1);
            }
        }
        (
            real(coverage.estimate(sum.objects)),
            sum.relative_error(coverage),
        )
    }

    /// Populations: even, all in one stretch, a few rich clusters.
    fn populations() -> [Vec<u64>; 3] {
        let even = vec![16; 4000];
        let stretch = (0..4000).map(|at| if at < 400 { 900 } else { 0 }).collect();
        let rich = (0..4000)
            .map(|at| if at % 97 == 0 { 64 * 16 } else { at % 3 })
            .collect();
        [even, stretch, rich]
    }

    #[test]
    fn estimates_are_unbiased_and_their_error_is_the_one_stated() {
        const RUNS: u64 = 600;
        for clusters in populations() {
            let truth = real(clusters.iter().sum());
            for taken in [200, 1000, 3000] {
                let runs: Vec<(f64, f64)> = (0..RUNS)
                    .map(|seed| census(&clusters, taken, seed))
                    .collect();
                let count = real(RUNS);
                let mean = runs.iter().map(|run| run.0).sum::<f64>() / count;
                let spread = runs.iter().map(|run| (run.0 - truth).powi(2)).sum::<f64>() / count;
                let spread = spread.sqrt() / truth;
                let stated = (runs.iter().map(|run| (run.1 * run.0).powi(2)).sum::<f64>() / count)
                    .sqrt()
                    / truth;
                // Six standard errors of the mean of all runs.
                let allowed = 6.0 * spread / count.sqrt() + 1e-9;
                assert!(
                    (mean / truth - 1.0).abs() <= allowed,
                    "{taken}: mean {mean} of {truth}"
                );
                assert!(
                    (stated - spread).abs() <= 0.15 * spread + 1e-9,
                    "{taken}: {stated} was stated, {spread} it was"
                );
            }
        }
    }

    #[test]
    fn all_of_it_is_exact() {
        for clusters in populations() {
            let all = clusters.len() as u64;
            let (estimate, error) = census(&clusters, all, 7);
            assert_eq!((estimate, error), (real(clusters.iter().sum()), 0.0));
        }
    }

    #[test]
    fn one_cluster_says_nothing_of_its_error() {
        assert_eq!(census(&[3; 10], 1, 1), (30.0, 1.0));
        assert_eq!(Coverage { taken: 0, all: 10 }.estimate(3), 0);
    }
}
