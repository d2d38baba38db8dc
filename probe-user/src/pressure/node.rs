//! Sampling the node through files held open.

use std::path::Path;

use super::sample::NodeSample;
use crate::node::{
    Error, clock,
    meminfo::{Meminfo, MeminfoFile},
    psi::PressureFile,
    vmstat::Vmstat,
};

/// The files of a node sample.
#[derive(Debug)]
pub struct NodeFiles {
    meminfo: MeminfoFile,
    vmstat: Vmstat,
    /// cpu, memory, io; `None` where the kernel has no PSI.
    pressure: [Option<PressureFile>; 3],
    buf: Vec<u8>,
}

impl NodeFiles {
    /// Opens the files below `proc`.
    pub fn open(proc: &Path) -> Result<Self, Error> {
        let pressure = |resource| PressureFile::open(proc.join("pressure").join(resource)).ok();
        Ok(Self {
            meminfo: MeminfoFile::open(proc)?,
            vmstat: Vmstat::open(proc)?,
            pressure: ["cpu", "memory", "io"].map(pressure),
            buf: Vec::new(),
        })
    }

    /// Reads them. What cannot be read of vmstat or pressure is `None`.
    pub fn read(&mut self) -> Result<NodeSample, Error> {
        let meminfo = self.meminfo.read()?;
        let mut sample = NodeSample {
            boot_ns: clock::boot_ns(),
            ..from_meminfo(&meminfo)
        };
        if self.vmstat.refresh().is_ok() {
            self.add_vmstat(&mut sample);
        }
        for (index, file) in self.pressure.iter().enumerate() {
            if let Some(Ok(Some(pressure))) = file.as_ref().map(|file| file.read(&mut self.buf)) {
                sample.psi_some_us[index] = Some(pressure.some.total_us);
                sample.psi_full_us[index] = pressure.full.map(|full| full.total_us);
            }
        }
        Ok(sample)
    }

    fn add_vmstat(&self, sample: &mut NodeSample) {
        for (name, value) in self.vmstat.counters() {
            let slot = match name {
                b"pgscan_kswapd" => &mut sample.pgscan_kswapd,
                b"pgscan_direct" => &mut sample.pgscan_direct,
                b"pgsteal_kswapd" | b"pgsteal_direct" => &mut sample.pgsteal,
                b"workingset_refault_anon" => &mut sample.refault_anon,
                b"workingset_refault_file" => &mut sample.refault_file,
                b"pswpin" => &mut sample.pswpin,
                b"pswpout" => &mut sample.pswpout,
                b"compact_stall" => &mut sample.compact_stall,
                b"pgmajfault" => &mut sample.pgmajfault,
                b"oom_kill" => &mut sample.oom_kill,
                _ if name.starts_with(b"allocstall_") => &mut sample.allocstall,
                _ => continue,
            };
            *slot = Some(slot.unwrap_or(0).saturating_add(value));
        }
    }
}

fn from_meminfo(meminfo: &Meminfo) -> NodeSample {
    let both = |first: Option<u64>, second: Option<u64>| first?.checked_add(second?);
    NodeSample {
        total_bytes: meminfo.total_bytes.unwrap_or(0),
        available_bytes: meminfo.available_bytes,
        free_bytes: meminfo.free_bytes,
        anon_bytes: meminfo.anon_bytes,
        file_bytes: both(meminfo.cached_bytes, meminfo.buffers_bytes)
            .map(|all| all.saturating_sub(meminfo.shmem_bytes.unwrap_or(0))),
        shmem_bytes: meminfo.shmem_bytes,
        dirty_bytes: both(meminfo.dirty_bytes, meminfo.writeback_bytes),
        slab_reclaimable_bytes: meminfo.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: meminfo.slab_unreclaimable_bytes,
        swap_total_bytes: meminfo.swap_total_bytes,
        swap_free_bytes: meminfo.swap_free_bytes,
        committed_bytes: meminfo.committed_bytes,
        commit_limit_bytes: meminfo.commit_limit_bytes,
        ..NodeSample::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn adds_up_what_the_kernel_splits() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| fs::write(proc.path().join(name), content).unwrap();
        write(
            "meminfo",
            "MemTotal: 1000 kB\nMemAvailable: 400 kB\nBuffers: 10 kB\nCached: 300 kB\n\
             Shmem: 100 kB\nDirty: 1 kB\nWriteback: 2 kB\n",
        );
        write(
            "vmstat",
            "allocstall_dma 1\nallocstall_normal 2\nallocstall_movable 3\npgsteal_kswapd 10\n\
             pgsteal_direct 20\npgsteal_khugepaged 5\npgscan_direct 30\npgscan_direct_throttle 9\n",
        );
        fs::create_dir(proc.path().join("pressure")).unwrap();
        write(
            "pressure/cpu",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
        );
        let sample = NodeFiles::open(proc.path()).unwrap().read().unwrap();
        assert_eq!(sample.file_bytes, Some(210 << 10));
        assert_eq!(sample.dirty_bytes, Some(3 << 10));
        assert_eq!(sample.allocstall, Some(6));
        assert_eq!(sample.pgsteal, Some(30));
        assert_eq!(sample.pgscan_direct, Some(30));
        assert_eq!(sample.pgscan_kswapd, None);
        assert_eq!(sample.psi_some_us, [Some(7), None, None]);
        assert_eq!(sample.psi_full_us, [None; 3]);
    }

    #[test]
    fn reads_this_machine() {
        let mut files = NodeFiles::open(Path::new("/proc")).unwrap();
        let first = files.read().unwrap();
        let second = files.read().unwrap();
        assert!(second.boot_ns > first.boot_ns);
        assert!(second.available_bytes.unwrap() < second.total_bytes);
        assert!(second.allocstall >= first.allocstall && first.allocstall.is_some());
        assert!(second.oom_kill.is_some());
    }
}
