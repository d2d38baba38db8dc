//! A JVM whose heap setting nearly equals the memory limit.

use crate::event::OomKill;
use crate::event::label::{bytes, percent};

/// Heap over limit from which it is said that the rest of the JVM (metaspace, code cache, thread
/// stacks, direct buffers, the collector's own tables) does not fit: a fifth is what a small
/// service needs.
const NEARLY_PERCENT: u64 = 80;

/// Environment variables that carry JVM options; seen only where a command line sets them.
const VARIABLES: [&str; 3] = ["JAVA_TOOL_OPTIONS=", "JDK_JAVA_OPTIONS=", "_JAVA_OPTIONS="];

/// Largest heap a command line allows.
#[derive(Debug, PartialEq)]
struct Heap {
    option: String,
    bytes: u64,
}

/// Evidence that the victim's heap setting leaves no room, if it does.
pub(super) fn heap_near_limit(kill: &OomKill) -> Option<String> {
    let cmdline = kill.chosen()?.process.cmdline.as_deref()?;
    let limit = smallest_limit(kill)?;
    let heap = max_heap(cmdline, limit)?;
    (u128::from(heap.bytes) * 100 >= u128::from(limit) * u128::from(NEARLY_PERCENT)).then(|| {
        format!(
            "the JVM heap alone may grow to {} ({}): {} of the limit of {}; metaspace, threads, \
             code cache and direct buffers come on top",
            bytes(heap.bytes),
            heap.option,
            percent(heap.bytes, limit),
            bytes(limit)
        )
    })
}

/// The limit the JVM sees and is bound by: the smallest one on the way up.
fn smallest_limit(kill: &OomKill) -> Option<u64> {
    let limit = kill.limit.as_ref()?;
    let levels = limit.levels.iter().filter_map(|level| level.limit_bytes);
    levels
        .chain(limit.level.limit_bytes)
        .min()
        .filter(|&limit| limit > 0)
}

fn max_heap(cmdline: &[String], limit: u64) -> Option<Heap> {
    let mut fixed = None;
    let mut share = None;
    let options = cmdline.iter().flat_map(|argument| {
        let variable = VARIABLES
            .iter()
            .find_map(|name| argument.strip_prefix(name));
        variable.map_or_else(
            || vec![argument.as_str()],
            |value| value.split_whitespace().collect(),
        )
    });
    // HotSpot lets the last option win, and a size win over a percentage.
    for option in options {
        let size = option
            .strip_prefix("-Xmx")
            .or(option.strip_prefix("-XX:MaxHeapSize="));
        if let Some(bytes) = size.and_then(parse_size) {
            fixed = Some(Heap {
                option: option.to_owned(),
                bytes,
            });
        }
        let ratio = option.strip_prefix("-XX:MaxRAMPercentage=");
        if let Some(percent) = ratio.and_then(|value| value.parse::<f64>().ok())
            && (0.0..=100.0).contains(&percent)
        {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 100, so hundredths fit any integer"
            )]
            let hundredths = (percent * 100.0) as u64;
            share = Some(Heap {
                option: option.to_owned(),
                bytes: limit / 10_000 * hundredths,
            });
        }
    }
    fixed.or(share)
}

/// A HotSpot size: digits and an optional k, m, g or t.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_options() {
        const GIB: u64 = 1 << 30;
        let heap = |line: &[&str]| {
            let line: Vec<_> = line.iter().map(|&s| s.to_owned()).collect();
            max_heap(&line, GIB).map(|heap| heap.bytes >> 20)
        };
        assert_eq!(heap(&["java", "-Xmx900m", "-jar", "a.jar"]), Some(900));
        assert_eq!(heap(&["java", "-Xmx1G", "-Xmx512M"]), Some(512));
        assert_eq!(heap(&["java", "-XX:MaxHeapSize=943718400"]), Some(900));
        assert_eq!(heap(&["java", "-XX:MaxRAMPercentage=75.0"]), Some(767));
        assert_eq!(
            heap(&["java", "-XX:MaxRAMPercentage=90", "-Xmx256m"]),
            Some(256)
        );
        assert_eq!(
            heap(&["env", "JAVA_TOOL_OPTIONS=-Xms1m -Xmx2g", "java"]),
            Some(2048)
        );
        assert_eq!(heap(&["java", "-jar", "a.jar"]), None);
        assert_eq!(
            heap(&["java", "-Xmx", "-Xmx12q", "-XX:MaxRAMPercentage=x"]),
            None
        );
        assert_eq!(heap(&["java", "-Xmx99999999999999999999g", "-Xmxé"]), None);
    }
}
