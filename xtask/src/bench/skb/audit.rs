//! One tracer alone, over traffic that ends: what its programs cost, what it holds, and what it takes
//! for outstanding although all is freed.

use std::{thread, time::Duration};

use anyhow::Result;

use super::{
    heads_in_use,
    tracers::{Claim, Kind, Programs, Tracer},
    traffic::{self, Work},
};
use crate::bench::{
    process::{self, Memory},
    programs::{Accounting, Ran, Watch},
};

/// Packets, of so many bytes.
pub(super) const PACKETS: u64 = 400_000;
pub(super) const PAYLOAD: usize = 400;

/// For packets that the kernel frees late.
const SETTLE: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug)]
pub(super) struct Audit {
    pub(super) claim: Claim,
    /// More objects in use by slabinfo than before.
    pub(super) slab_growth: i64,
    /// Over all packets.
    pub(super) programs: Vec<Ran>,
    pub(super) map_bytes: u64,
    pub(super) rss_kib: u64,
}

pub(super) fn audit(programs: &Programs<'_>, kind: Kind) -> Result<Audit> {
    let _accounting = Accounting::enable()?;
    let mut traffic = traffic::start(Work::Udp, PAYLOAD)?;
    // What the kernel keeps at hand for reuse is there before and after.
    traffic.round(PACKETS / 10)?;
    let before = heads_in_use()?;
    let tracer = Tracer::start(programs, kind)?;
    let watch = Watch::start(tracer.pid())?;
    traffic.round(PACKETS)?;
    let programs = watch.ran()?;
    drop(traffic);
    thread::sleep(SETTLE);
    let map_bytes = process::map_bytes(tracer.pid())?;
    let rss_kib = Memory::of(tracer.pid())?.rss_kib;
    let slab_growth = heads_in_use()?.cast_signed() - before.cast_signed();
    Ok(Audit {
        claim: tracer.end()?,
        slab_growth,
        programs,
        map_bytes,
        rss_kib,
    })
}
