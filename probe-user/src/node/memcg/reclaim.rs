//! The counters in `memory.stat`: what reclaim did to a cgroup, its descendants included.

use super::super::text::{self, ParseError};
use super::Version;

/// Since the cgroup was made. `None` where the kernel does not print the key: v1 has neither
/// `pgscan` nor `pgsteal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReclaimCounters {
    /// Anonymous pages that were swapped out and needed again: `workingset_refault_anon` (5.9).
    pub refault_anon: Option<u64>,
    /// File pages that were dropped and needed again: `workingset_refault_file` (5.9).
    pub refault_file: Option<u64>,
    /// Pages reclaim looked at: `pgscan`.
    pub pgscan: Option<u64>,
    /// Pages reclaim took: `pgsteal`.
    pub pgsteal: Option<u64>,
    /// Page faults that waited for a disk: `pgmajfault`.
    pub pgmajfault: Option<u64>,
}

impl ReclaimCounters {
    /// Parses the content of `memory.stat`.
    pub fn parse(version: Version, content: &[u8]) -> Result<Self, ParseError> {
        let mut counters = Self::default();
        text::flat_keyed(content, |key, value| {
            let key = match version {
                Version::V2 => key,
                // The key without this prefix leaves descendants out.
                Version::V1 => match key.strip_prefix(b"total_") {
                    Some(key) => key,
                    None => return,
                },
            };
            let slot = match key {
                b"workingset_refault_anon" => &mut counters.refault_anon,
                b"workingset_refault_file" => &mut counters.refault_file,
                b"pgscan" => &mut counters.pgscan,
                b"pgsteal" => &mut counters.pgsteal,
                b"pgmajfault" => &mut counters.pgmajfault,
                _ => return,
            };
            *slot = Some(value);
        })?;
        Ok(counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_files_of_v2() {
        for content in [
            include_str!("testdata/v2-5.10.stat"),
            include_str!("testdata/v2-6.1.stat"),
            include_str!("testdata/v2-6.12.stat"),
            include_str!("testdata/v2-7.3.stat"),
        ] {
            let counters = ReclaimCounters::parse(Version::V2, content.as_bytes()).unwrap();
            for counter in [
                counters.refault_anon,
                counters.refault_file,
                counters.pgscan,
                counters.pgsteal,
                counters.pgmajfault,
            ] {
                assert!(counter.is_some(), "{counters:?}");
            }
        }
    }

    #[test]
    fn v1_counts_descendants() {
        let content = b"workingset_refault_file 1\npgmajfault 2\n\
            total_workingset_refault_file 10\ntotal_pgmajfault 20\n";
        let counters = ReclaimCounters::parse(Version::V1, content).unwrap();
        assert_eq!(counters.refault_file, Some(10));
        assert_eq!(counters.pgmajfault, Some(20));
        assert_eq!(counters.pgscan, None);
    }
}
