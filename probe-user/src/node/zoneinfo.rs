//! `/proc/zoneinfo`: below which free memory only the kernel itself and victims may allocate, and
//! free pages that processors keep for themselves.

use std::path::Path;

use super::text::{self, Error, ParseError, decimal};

/// Sum of the `min` watermarks of all zones, pages (`setup_per_zone_wmarks()`,
/// mm/page_alloc.c).
pub fn min_pages(proc: &Path) -> Result<u64, Error> {
    text::parse_file(proc.join("zoneinfo"), &mut Vec::new(), parse)
}

/// Free pages on the lists of single processors (`per_cpu_pages.count`), which `MemFree` does not
/// count.
pub fn per_cpu_pages(proc: &Path) -> Result<u64, Error> {
    text::parse_file(proc.join("zoneinfo"), &mut Vec::new(), |content| {
        sum(content, b"count:", "a zone with pagesets")
    })
}

fn parse(content: &[u8]) -> Result<u64, ParseError> {
    sum(content, b"min", "a zone with a \"min\" watermark")
}

/// Adds up the numbers behind `key`.
fn sum(content: &[u8], key: &[u8], expected: &'static str) -> Result<u64, ParseError> {
    let mut sum: Option<u64> = None;
    for line in content.split(|byte| *byte == b'\n') {
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        if words.next() != Some(key) {
            continue;
        }
        if let Some(pages) = words.next().and_then(decimal) {
            sum = Some(sum.unwrap_or(0).saturating_add(pages));
        }
    }
    sum.ok_or(ParseError { line: 1, expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_add_up() {
        let content = b"Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 1\n  pages \
                        free     2816\n        boost    0\n        min      8\n        low      10\n\
                        Node 0, zone    DMA32\n        min      1500\n        high     4500\n";
        assert_eq!(parse(content), Ok(1508));
        assert!(parse(b"nothing\n").is_err());
    }

    #[test]
    fn pagesets_of_all_zones_and_processors() {
        let content = b"Node 0, zone DMA\n  pagesets\n    cpu: 0\n              count:    \
                        511\n              high:     1443\n    cpu: 1\n   count: 2\n";
        assert_eq!(sum(content, b"count:", ""), Ok(513));
    }

    #[test]
    fn this_machine_has_watermarks() {
        assert!(min_pages(Path::new("/proc")).unwrap() > 0);
        assert!(per_cpu_pages(Path::new("/proc")).is_ok());
    }
}
