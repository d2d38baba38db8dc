//! `/proc/zoneinfo`: below which free memory only the kernel itself and victims may allocate.

use std::path::Path;

use super::text::{self, Error, ParseError, decimal};

/// Sum of the `min` watermarks of all zones, pages (`setup_per_zone_wmarks()`,
/// mm/page_alloc.c).
pub fn min_pages(proc: &Path) -> Result<u64, Error> {
    text::parse_file(proc.join("zoneinfo"), &mut Vec::new(), parse)
}

fn parse(content: &[u8]) -> Result<u64, ParseError> {
    let mut sum: Option<u64> = None;
    for line in content.split(|byte| *byte == b'\n') {
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        if words.next() != Some(b"min") {
            continue;
        }
        if let Some(pages) = words.next().and_then(decimal) {
            sum = Some(sum.unwrap_or(0).saturating_add(pages));
        }
    }
    sum.ok_or(ParseError {
        line: 1,
        expected: "a zone with a \"min\" watermark",
    })
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
    fn this_machine_has_watermarks() {
        assert!(min_pages(Path::new("/proc")).unwrap() > 0);
    }
}
