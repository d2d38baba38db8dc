//! Who holds socket buffers now: the time it takes to find out, and how far off the answer is.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    heads_in_use,
    traffic::{self, Work},
};
use crate::{
    bench::{stats::Samples, table::count, tool::ms, worker::Worker},
    cmd::status,
};

/// Sockets that are open, one measurement after the other.
pub(super) const SOCKETS: [u64; 2] = [1_000, 100_000];

/// A process may not have all of them.
const SOCKETS_OF_ONE: u64 = 10_000;

/// Packets that wait in one socket: some 200 MiB.
pub(super) const HELD_PACKETS: u64 = 160_000;

/// With its share of the kernel's own data, a packet of this size takes a kilobyte.
const HELD_PAYLOAD: usize = 600;

/// Of each figure.
pub(super) const TIMES: u32 = 10;

/// A pass over all sockets of the machine.
#[derive(Debug)]
pub(super) struct Pass {
    /// Opened for it.
    pub(super) sockets: u64,
    /// Looked at, with those that were there anyway.
    pub(super) descriptors: u64,
    /// One look, by its own account.
    pub(super) look_ms: Samples,
    /// The whole program.
    pub(super) whole_ms: Samples,
}

/// A census, taken several times.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) how: &'static str,
    pub(super) took_ms: Samples,
    pub(super) whole_ms: Samples,
    /// Pages looked at, % of the machine's.
    pub(super) pages_percent: Samples,
    /// Standard error that it states for the holder's packets, %.
    pub(super) stated_percent: Samples,
    /// How far off the holder's packets are, %, either way.
    pub(super) holder_off_percent: Samples,
    /// How far off all buffers are from slabinfo's count, %, either way.
    pub(super) total_off_percent: Samples,
}

/// Looks at few and many sockets.
pub(super) fn passes(oomprobe: &Path) -> Result<Vec<Pass>> {
    let mut held: Vec<Worker> = Vec::new();
    let mut passes = Vec::new();
    let mut open = 0;
    for sockets in SOCKETS {
        status("Measuring", format_args!("a pass over {sockets} sockets"));
        while open < sockets {
            let more = SOCKETS_OF_ONE.min(sockets - open);
            let mut worker = traffic::start(Work::Sockets, 1)?;
            worker.round(more)?;
            held.push(worker);
            open += more;
        }
        let mut looks = Vec::new();
        for _ in 0..TIMES {
            looks.push(look(oomprobe, "off")?);
        }
        let of = |field: &str| -> Result<Vec<f64>> {
            let fields = looks.iter().map(|(event, _)| number(event, field));
            fields.collect()
        };
        passes.push(Pass {
            sockets,
            descriptors: looks[0].0["descriptors"].as_u64().context("descriptors")?,
            look_ms: of("/look_ms")?.into_iter().collect(),
            whole_ms: looks.iter().map(|(_, ms)| *ms).collect(),
        });
    }
    Ok(passes)
}

/// Takes a census of a socket that nobody reads, by a sample and of all memory.
pub(super) fn census(oomprobe: &Path) -> Result<Vec<Census>> {
    let mut holder = traffic::start(Work::Unread, HELD_PAYLOAD)?;
    holder.round(HELD_PACKETS)?;
    let sockets = sockets_of(holder.pid())?;
    ["sample", "full"]
        .into_iter()
        .map(|how| {
            status("Measuring", format_args!("the census: {how}"));
            let mut looks = Vec::new();
            for _ in 0..TIMES {
                let in_use = heads_in_use()?;
                let (event, whole_ms) = look(oomprobe, how)?;
                looks.push(Counted::of(&event, &sockets, in_use, whole_ms)?);
            }
            let of = |field: fn(&Counted) -> f64| looks.iter().map(field).collect();
            Ok(Census {
                how,
                took_ms: of(|it| it.took_ms),
                whole_ms: of(|it| it.whole_ms),
                pages_percent: of(|it| it.pages_percent),
                stated_percent: of(|it| it.stated_percent),
                holder_off_percent: of(|it| it.holder_off_percent),
                total_off_percent: of(|it| it.total_off_percent),
            })
        })
        .collect()
}

/// One census.
struct Counted {
    took_ms: f64,
    whole_ms: f64,
    pages_percent: f64,
    stated_percent: f64,
    holder_off_percent: f64,
    total_off_percent: f64,
}

impl Counted {
    fn of(event: &Value, holder: &BTreeSet<u64>, in_use: u64, whole_ms: f64) -> Result<Self> {
        let groups = event["census"]["groups"].as_array();
        let groups = groups.context("no census")?.iter().filter(|group| {
            let inode = group["socket"]["inode"].as_u64();
            inode.is_some_and(|inode| holder.contains(&inode))
        });
        let (mut skbs, mut variance) = (0.0, 0.0);
        for group in groups {
            let of_group = number(group, "/skbs")?;
            skbs += of_group;
            variance += (number(group, "/relative_error")? * of_group).powi(2);
        }
        ensure!(skbs > 0.0, "the census does not have the holder: {event}");
        let pages = |which: &str| number(event, &format!("/census/{which}_pages"));
        let off = |found: f64, truth: u64| (found / count(truth) - 1.0).abs() * 100.0;
        Ok(Self {
            took_ms: number(event, "/census/took_ms")?,
            whole_ms,
            pages_percent: pages("sampled")? / pages("total")? * 100.0,
            stated_percent: variance.sqrt() / skbs * 100.0,
            holder_off_percent: off(skbs, HELD_PACKETS),
            total_off_percent: off(number(event, "/census/skbs")?, in_use),
        })
    }
}

/// Inodes of the sockets that a process has open.
fn sockets_of(pid: u32) -> Result<BTreeSet<u64>> {
    let dir = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&dir).context(dir)?;
    let sockets = entries.filter_map(|entry| {
        let link = fs::read_link(entry.ok()?.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    });
    Ok(sockets.collect())
}

/// What `oomprobe skb` says of one look, and how long it took from start to end, ms.
fn look(oomprobe: &Path, census: &str) -> Result<(Value, f64)> {
    let start = Instant::now();
    let output = Command::new(oomprobe)
        .args(["skb", "-o", "json", "--duration", "0s", "--census", census])
        .output()
        .context("oomprobe skb")?;
    let whole_ms = ms(u64::try_from(start.elapsed().as_nanos())?);
    // Findings are in its exit code, so that it says little about a failure.
    let event = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
        .context("oomprobe skb")?;
    Ok((event, whole_ms))
}

fn number(event: &Value, field: &str) -> Result<f64> {
    event
        .pointer(field)
        .and_then(Value::as_f64)
        .with_context(|| format!("{field} is not told: {event}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_is_compared_with_both_truths() {
        let event = serde_json::json!({"census": {
            "took_ms": 200, "sampled_pages": 1, "total_pages": 4, "skbs": 90_000,
            "groups": [
                {"socket": null, "skbs": 5, "relative_error": 0.5},
                {"socket": {"inode": 7}, "skbs": HELD_PACKETS, "relative_error": 0.03},
                {"socket": {"inode": 8}, "skbs": HELD_PACKETS, "relative_error": 0.04},
            ],
        }});
        let counted = Counted::of(&event, &[7, 8, 9].into(), 100_000, 300.0).unwrap();
        assert!((counted.holder_off_percent - 100.0).abs() < 1e-9);
        assert!((counted.total_off_percent - 10.0).abs() < 1e-9);
        assert!((counted.stated_percent - 2.5).abs() < 1e-9);
        assert!((counted.pages_percent - 25.0).abs() < 1e-9);
        assert!(Counted::of(&event, &[9].into(), 1, 0.0).is_err());
    }
}
