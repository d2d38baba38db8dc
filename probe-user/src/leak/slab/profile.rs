//! What the kernel itself knows about who allocated: `/proc/allocinfo` and slab traces.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::event::{AllocationProfile, AllocationSite, ProfileState, SlabTrace, text as utf8};
use crate::node::text::{self, ParseError};

use super::caches::{Sysfs, difference, per_second};

/// Bytes and allocations by place.
type Places = HashMap<Vec<u8>, (u64, u64)>;

/// The profile at one moment.
pub(super) struct Profile {
    state: ProfileState,
    places: Places,
}

impl Profile {
    /// Reads `<proc>/allocinfo` if the kernel keeps it.
    pub(super) fn read(proc: &Path) -> Self {
        let switch = fs::read_to_string(proc.join("sys/vm/mem_profiling"));
        let none = |state| Self {
            state,
            places: Places::new(),
        };
        match (&switch, fs::read(proc.join("allocinfo"))) {
            (Ok(switch), _) if switch.trim() == "0" => none(ProfileState::Off),
            (_, Ok(content)) => match parse(&content) {
                Ok(places) => Self {
                    state: ProfileState::On,
                    places,
                },
                Err(_) => none(ProfileState::Unreadable),
            },
            (_, Err(error)) if error.kind() == ErrorKind::PermissionDenied => {
                none(ProfileState::Unreadable)
            }
            _ => none(ProfileState::NotBuilt),
        }
    }

    /// The `top` biggest places, with their growth since `before`.
    pub(super) fn since(&self, before: &Self, seconds: f64, top: usize) -> AllocationProfile {
        let mut sites: Vec<AllocationSite> = self
            .places
            .iter()
            .map(|(place, (bytes, count))| AllocationSite {
                site: utf8(place),
                bytes: *bytes,
                count: *count,
                growth_bytes_per_s: before
                    .places
                    .get(place)
                    .map(|(then, _)| per_second(difference(*bytes, *then), seconds)),
            })
            .filter(|site| site.bytes > 0)
            .collect();
        sites.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.site.cmp(&b.site)));
        sites.truncate(top);
        AllocationProfile {
            state: self.state,
            remedy: match self.state {
                ProfileState::Off => Some(
                    "sysctl -w vm.mem_profiling=1 counts from then on; boot with \
                     sysctl.vm.mem_profiling=1 to count all"
                        .to_owned(),
                ),
                ProfileState::Unreadable => Some("run as root".to_owned()),
                ProfileState::NotBuilt | ProfileState::On => None,
            },
            sites,
        }
    }
}

/// `size calls file:line [module] func:name …`, below two lines of heading.
fn parse(content: &[u8]) -> Result<Places, ParseError> {
    let mut places = Places::new();
    for (line, content) in text::lines(content) {
        if content.starts_with(b"#") || content.starts_with(b"allocinfo") {
            continue;
        }
        let wrong = ParseError {
            line,
            expected: "\"size calls file:line … func:name\"",
        };
        let mut words = content
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let mut number = || words.next().and_then(text::decimal);
        let (bytes, count) = number().zip(number()).ok_or(wrong)?;
        let mut place = Vec::new();
        for word in words {
            let word = word.strip_prefix(b"func:").unwrap_or(word);
            if !place.is_empty() {
                place.push(b' ');
            }
            place.extend_from_slice(word);
        }
        let sum = places.entry(place).or_default();
        *sum = (sum.0.saturating_add(bytes), sum.1.saturating_add(count));
    }
    Ok(places)
}

/// Where the traces of a cache are: debugfs since 5.14, sysfs before.
fn trace_files(sys: &Path, sysfs: &Sysfs, cache: &[u8]) -> [PathBuf; 2] {
    let own = sysfs.path(cache);
    let name = own.file_name().unwrap_or_default();
    let debug = sys.join("kernel/debug/slab").join(name);
    [debug.join("alloc_traces"), own.join("alloc_calls")]
}

/// The `top` allocation paths of a cache whose objects keep them; empty for others. An error says
/// why they cannot be read.
pub(super) fn traces(
    sys: &Path,
    sysfs: &Sysfs,
    cache: &[u8],
    top: usize,
) -> Result<Vec<SlabTrace>, String> {
    if sysfs.number(cache, "store_user") != Some(1) {
        return Ok(Vec::new());
    }
    let files = trace_files(sys, sysfs, cache);
    let content = files.iter().find_map(|file| fs::read(file).ok());
    let Some(content) = content else {
        return Err("cannot be read; mount -t debugfs debugfs /sys/kernel/debug".to_owned());
    };
    let mut traces = parse_traces(&utf8(cache), &content);
    traces.truncate(top);
    Ok(traces)
}

/// `count site age=… pid=…`, each followed by the lines of its stack, which begin with a blank in
/// newer kernels.
fn parse_traces(cache: &str, content: &[u8]) -> Vec<SlabTrace> {
    let mut traces: Vec<SlabTrace> = Vec::new();
    for line in content.split(|byte| *byte == b'\n') {
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let Some(first) = words.next() else { continue };
        match (text::decimal(first), words.next()) {
            (Some(objects), Some(site)) => traces.push(SlabTrace {
                cache: cache.to_owned(),
                objects,
                site: utf8(site),
                stack: Vec::new(),
            }),
            _ if line.starts_with(b" ") || line.starts_with(b"\t") => {
                if let Some(trace) = traces.last_mut() {
                    trace.stack.push(utf8(first));
                }
            }
            // "No data".
            _ => {}
        }
    }
    traces.sort_by_key(|trace| std::cmp::Reverse(trace.objects));
    traces
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOCINFO: &str = "allocinfo - version: 1.0\n#     <size>  <calls> <tag info>\n\
        \x20          0        0 init/main.c:1314 func:do_initcalls\n\
        \x20     409600      100 net/core/skbuff.c:588 func:kmalloc_reserve\n\
        \x20       4096        1 drivers/x.c:7 [x] func:x_probe\n";

    #[test]
    fn the_profile_says_what_grew() {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path();
        assert_eq!(Profile::read(proc).state, ProfileState::NotBuilt);
        fs::create_dir_all(proc.join("sys/vm")).unwrap();
        fs::write(proc.join("sys/vm/mem_profiling"), "1\n").unwrap();
        fs::write(proc.join("allocinfo"), ALLOCINFO).unwrap();
        let first = Profile::read(proc);
        fs::write(
            proc.join("allocinfo"),
            ALLOCINFO.replace("409600", "819200"),
        )
        .unwrap();
        let second = Profile::read(proc);
        let profile = second.since(&first, 2.0, 8);
        assert_eq!(profile.state, ProfileState::On);
        assert_eq!(profile.sites.len(), 2);
        assert_eq!(
            profile.sites[0].site,
            "net/core/skbuff.c:588 kmalloc_reserve"
        );
        assert_eq!(profile.sites[0].growth_bytes_per_s, Some(204_800.0));
        assert_eq!(profile.sites[1].site, "drivers/x.c:7 [x] x_probe");

        fs::write(proc.join("sys/vm/mem_profiling"), "0\n").unwrap();
        let off = Profile::read(proc).since(&first, 1.0, 8);
        assert_eq!(off.state, ProfileState::Off);
        assert!(off.remedy.is_some());
        fs::write(proc.join("sys/vm/mem_profiling"), "1\n").unwrap();
        fs::write(proc.join("allocinfo"), "torn\n").unwrap();
        assert_eq!(Profile::read(proc).state, ProfileState::Unreadable);
    }

    #[test]
    fn traces_of_both_forms() {
        let new = b"      3 small+0x1/0x2 age=1/2/3 pid=1 cpus=1::\n    __slab_alloc+0x6d/0x90\n\
            \n   1085 populate_list+0x97/0x110 waste=10/2 age=166678/166680/166682 pid=1\n    \
            __kmalloc+0x1\n    do_one_initcall+0x2\n";
        let traces = parse_traces("kmalloc-64", new);
        assert_eq!(traces[0].objects, 1085);
        assert_eq!(traces[0].site, "populate_list+0x97/0x110");
        assert_eq!(traces[0].stack, ["__kmalloc+0x1", "do_one_initcall+0x2"]);
        assert_eq!(traces[1].stack.len(), 1);
        let old = b"     12 alloc_inode+0x1/0x2 age=9 pid=1-7\n";
        assert_eq!(parse_traces("x", old)[0].objects, 12);
        assert!(parse_traces("x", b"No data\n").is_empty());
    }
}
