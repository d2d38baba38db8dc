//! Which objects are followed: a share of all addresses, made smaller where their table fills up.

use probe_common::outstanding::hash;

/// Bits of a hash that decide at most: one of so many objects is less than any node has.
const MOST_BITS: u32 = 31;

/// One object of 2^`bits`: those whose address' hash ends in so many zeros. A sparser sample is part of
/// each denser one. So a table of a sample becomes that of a sparser one by taking out what is not in
/// it, as if that had been asked for from the start, and one scale is true for all that remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    bits: u32,
}

impl Sample {
    /// Every object.
    pub const ALL: Self = Self { bits: 0 };

    /// One object of 2^`bits`.
    pub fn of_bits(bits: u32) -> Self {
        let bits = bits.min(MOST_BITS);
        Self { bits }
    }

    /// How many bits of a hash decide.
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Those bits.
    pub const fn mask(self) -> u32 {
        (1 << self.bits) - 1
    }

    /// For how many objects one of the sample stands.
    pub const fn scale(self) -> u64 {
        1 << self.bits
    }

    /// Whether the object at `address` is in it.
    pub const fn has(self, address: u64) -> bool {
        hash(address) & self.mask() == 0
    }

    /// The densest sample, of this one and sparser ones, of which `live` objects fill no more than half
    /// of the `room` for them: the other half is for what comes before the next look.
    #[must_use]
    pub const fn with_room(self, mut live: u64, room: u32) -> Self {
        let mut bits = self.bits;
        while live > room as u64 / 2 && bits < MOST_BITS {
            live /= 2;
            bits += 1;
        }
        Self { bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where objects of 256 bytes lie.
    fn addresses() -> impl Iterator<Item = u64> {
        (0..200_000).map(|index| 0xffff_8881_0000_0000 + index * 256)
    }

    #[test]
    fn it_gets_sparser_only_where_more_than_half_is_taken() {
        let bits = |bits, live, room| Sample::of_bits(bits).with_room(live, room).bits();
        assert_eq!(bits(6, 0, 65_536), 6);
        assert_eq!(bits(6, 32_768, 65_536), 6);
        assert_eq!(bits(6, 32_769, 65_536), 7);
        assert_eq!(bits(6, 65_536, 65_536), 7);
        // Counts that many processors change while they are read may be more than there is room for.
        assert_eq!(bits(6, 140_000, 65_536), 9);
        assert_eq!(bits(1, u64::MAX, 0), MOST_BITS);
    }

    #[test]
    fn what_remains_of_a_table_is_the_sparser_sample() {
        let dense = Sample::of_bits(2);
        let sparse = dense.with_room(50_000, 65_536);
        assert_eq!(sparse, Sample::of_bits(3));
        let of = |sample: Sample| addresses().filter(move |&at| sample.has(at));
        let thinned: Vec<u64> = of(dense).filter(|&at| sparse.has(at)).collect();
        assert!(thinned.iter().copied().eq(of(sparse)));
        // Scaled up, both tell of all.
        for sample in [dense, sparse] {
            let told = of(sample).count() as u64 * sample.scale();
            assert!(told.abs_diff(200_000) < 4_000, "{told} by {sample:?}");
        }
        assert_eq!(of(Sample::ALL).count(), 200_000);
    }

    #[test]
    fn no_sample_is_sparser_than_a_hash_tells() {
        let sparsest = Sample::of_bits(u32::MAX);
        assert_eq!(sparsest.mask(), u32::MAX >> 1);
        assert_eq!(sparsest.scale(), 1 << 31);
    }
}
