//! User memory, taken once and kept.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};

use super::{MIB, PAGE};

pub(super) fn grow(mib: usize, mib_per_s: Option<u32>) {
    let start = Instant::now();
    for taken in 0..mib {
        Box::leak(vec![1_u8; MIB].into_boxed_slice());
        if let (Some(rate), Ok(taken)) = (mib_per_s, u32::try_from(taken + 1)) {
            let due = Duration::from_secs(1) * taken / rate.max(1);
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
}

pub(super) fn map(mib: usize, flags: MapFlags) -> Result<&'static mut [u8]> {
    let length = NonZeroUsize::new(mib * MIB).context("nothing to map")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new anonymous mapping, never unmapped, referenced only by the returned slice.
    unsafe {
        let start = nix::sys::mman::mmap_anonymous(None, length, protection, flags)?;
        Ok(std::slice::from_raw_parts_mut(
            start.cast().as_ptr(),
            length.get(),
        ))
    }
}

pub(super) fn shmem(mib: usize) -> Result<()> {
    for page in map(mib, MapFlags::MAP_SHARED)?.chunks_mut(PAGE) {
        page[0] = 1;
    }
    Ok(())
}

pub(super) fn lazyfree(mib: usize) -> Result<ExitCode> {
    for piece in map(mib, MapFlags::MAP_PRIVATE)?.chunks_mut(MIB) {
        piece.fill(1);
        let start = std::ptr::NonNull::from(&mut *piece).cast();
        // SAFETY: the range is this mapping's own; nothing relies on its content afterwards.
        unsafe { nix::sys::mman::madvise(start, piece.len(), MmapAdvise::MADV_FREE)? };
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn write_file(path: &Path, mib: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece = [1_u8; 16 << 10];
    for _ in 0..mib * MIB / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(())
}
