//! What this kernel allows to find out about its own memory.

use std::fmt::Write as _;

use probe_common::layout::KernelLayout;
use serde::Serialize;

use crate::{
    event::escape,
    kernel::{
        btf::Btf,
        open_files::OpenFiles,
        track::{Bounds, Sample, Tracker, What},
    },
    leak::census,
};

/// One way to look, and whether it is open here.
#[derive(Serialize)]
pub(super) struct Way {
    /// The command that uses it.
    command: &'static str,
    /// How it works here: hooks, an iterator, a file. Empty if it does not.
    by: Vec<String>,
    /// Why it does not work at all.
    why_not: Option<String>,
    /// Hooks that are not used, and why.
    refused: Vec<Refused>,
    /// What it cannot see.
    blind_spots: Vec<&'static str>,
}

#[derive(Serialize)]
struct Refused {
    hook: String,
    reason: String,
}

impl Way {
    fn of<E: std::error::Error>(command: &'static str, by: &str, tried: Result<(), E>) -> Self {
        let why_not = tried.err().map(|error| error.to_string());
        Self {
            command,
            by: why_not
                .is_none()
                .then(|| by.to_owned())
                .into_iter()
                .collect(),
            why_not,
            refused: Vec::new(),
            blind_spots: Vec::new(),
        }
    }

    /// Attaches what follows objects, for a moment.
    fn following(command: &'static str, layout: &KernelLayout, btf: &Btf, what: &What) -> Self {
        // Hardly any object, as nobody asks for them.
        let bounds = Bounds {
            sample: Sample::of_bits(16),
            objects: 1024,
        };
        match Tracker::attach(layout, btf, what, bounds) {
            Ok(tracker) => Self {
                command,
                by: tracker.hooks.iter().map(ToString::to_string).collect(),
                why_not: None,
                refused: tracker
                    .refused
                    .iter()
                    .map(|(hook, reason)| Refused {
                        hook: hook.to_string(),
                        reason: reason.clone(),
                    })
                    .collect(),
                blind_spots: tracker.blind_spots().collect(),
            },
            Err(error) => Self::of(command, "", Err(error)),
        }
    }
}

/// Tries them all.
pub(super) fn survey(layout: &KernelLayout, btf: &Btf) -> Vec<Way> {
    let few = census::Options {
        max_pages: Some(1),
        ..census::Options::sample(0)
    };
    let census = census::take(&few, &mut |_| {});
    let reader = match census.as_ref().map(|census| census.read_by) {
        Ok(census::report::Reader::Kcore) => "/proc/kcore",
        Ok(census::report::Reader::Bpf) | Err(_) => "a BPF program that is run by hand",
    };
    vec![
        Way::of(
            "skb",
            "an iterator over open files",
            OpenFiles::load(layout).map(drop),
        ),
        Way::of("skb --census", reader, census.map(drop)),
        Way::following("skb --track", layout, btf, &What::Skb),
        Way::following(
            "slab --track dentry",
            layout,
            btf,
            &What::Cache(b"dentry".to_vec()),
        ),
        Way::following("slab --track kmalloc-1k", layout, btf, &What::Kmalloc(1024)),
    ]
}

/// For a person.
pub(super) fn render(ways: &[Way], out: &mut String) {
    if !ways.is_empty() {
        out.push_str("Kernel memory\n");
    }
    for way in ways {
        let mark = if way.why_not.is_none() { "ok" } else { "--" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {mark} {:24} {}", way.command, way.by.join(", "));
        for refused in &way.refused {
            let _ = writeln!(
                out,
                "       {:28} {}",
                refused.hook,
                escape(&refused.reason)
            );
        }
        if let Some(why) = &way.why_not {
            let _ = writeln!(out, "       {}", escape(why));
        }
        for spot in &way.blind_spots {
            let _ = writeln!(out, "       not seen: {spot}");
        }
    }
}
