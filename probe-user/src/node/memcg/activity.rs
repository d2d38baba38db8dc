//! `memory.stat`: what happens to the memory of a cgroup.

use super::super::text::{self, ParseError};
use super::Version;

/// Counters since the cgroup was made, descendants included, and the part of the page cache that
/// goes first. `None` where the kernel does not print the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Page cache that is reclaimed first, bytes: `inactive_file`, v1 `total_inactive_file`.
    pub inactive_file_bytes: Option<u64>,
    /// Anonymous pages swapped in soon after they were swapped out: `workingset_refault_anon`
    /// (5.9).
    pub refault_anon: Option<u64>,
    /// File pages read back soon after they were thrown out: `workingset_refault_file`; before 5.9
    /// `workingset_refault`.
    pub refault_file: Option<u64>,
    /// Pages that reclaim looked at: `pgscan` (v2).
    pub pgscan: Option<u64>,
    /// Pages that reclaim took: `pgsteal` (v2).
    pub pgsteal: Option<u64>,
    /// Faults that had to read from a disk: `pgmajfault`, v1 `total_pgmajfault`.
    pub pgmajfault: Option<u64>,
}

impl Activity {
    /// Parses the content of `memory.stat`.
    pub fn parse(version: Version, content: &[u8]) -> Result<Self, ParseError> {
        let mut activity = Self::default();
        text::flat_keyed(content, |key, value| {
            // v1 prints each key twice, without the descendants and, as `total_`, with them.
            let key = match version {
                Version::V1 => key.strip_prefix(b"total_").unwrap_or_default(),
                Version::V2 => key,
            };
            let slot = match key {
                b"inactive_file" => &mut activity.inactive_file_bytes,
                b"workingset_refault_anon" => &mut activity.refault_anon,
                b"workingset_refault_file" | b"workingset_refault" => &mut activity.refault_file,
                b"pgscan" => &mut activity.pgscan,
                b"pgsteal" => &mut activity.pgsteal,
                b"pgmajfault" => &mut activity.pgmajfault,
                _ => return,
            };
            *slot = Some(value);
        })?;
        Ok(activity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_counts_with_descendants() {
        let content = b"inactive_file 1\npgmajfault 2\ntotal_inactive_file 10\n\
            total_pgmajfault 20\ntotal_workingset_refault_file 30\n";
        let activity = Activity::parse(Version::V1, content).unwrap();
        assert_eq!(activity.inactive_file_bytes, Some(10));
        assert_eq!(activity.pgmajfault, Some(20));
        assert_eq!(activity.refault_file, Some(30));
        assert_eq!(activity.pgscan, None);
    }

    #[test]
    fn v2_of_guests() {
        for content in [
            include_str!("testdata/v2-5.10.stat"),
            include_str!("testdata/v2-7.3.stat"),
        ] {
            let activity = Activity::parse(Version::V2, content.as_bytes()).unwrap();
            assert!(activity.inactive_file_bytes.is_some());
            assert!(activity.refault_anon.is_some());
            assert!(activity.pgmajfault.is_some());
        }
    }
}
