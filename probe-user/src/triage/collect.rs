//! One look at the node: two of them make a triage.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::cgroups::{Places, Unit};
use crate::event::{NotRead, text};
use crate::identity::hierarchy;
use crate::node::cpu::{Load, Tasks};
use crate::node::meminfo::Meminfo;
use crate::node::psi::{self, Pressure};
use crate::node::vmstat::Vmstat;
use crate::node::{Error, clock};
use crate::pressure::sample::NodeSample;

/// The resources whose pressure is told, in the order of [`NodeSample::psi_some_us`].
pub(super) const RESOURCES: [&str; 3] = ["cpu", "memory", "io"];

/// Failures that are told one by one; the rest is a number.
const FAILURES_TOLD: usize = 3;

/// What a look found. What it did not is in [`Node::not_read`].
pub(crate) struct Look {
    /// Memory, reclaim and stalls.
    pub(crate) node: NodeSample,
    /// The same stalls as the kernel averages them.
    pub(super) pressure: [Option<Pressure>; 3],
    /// Load averages.
    pub(super) load: Option<Load>,
    /// Tasks and processors.
    pub(super) tasks: Option<Tasks>,
    /// The cgroups that matter.
    pub(crate) units: Vec<Unit>,
}

/// Where to look.
pub(crate) struct Node {
    proc: PathBuf,
    vmstat: Option<Vmstat>,
    places: Option<Places>,
    /// What could not be read so far, each thing once.
    pub(crate) not_read: Vec<NotRead>,
}

impl Node {
    /// Finds the files of the host at `host_root`.
    pub(crate) fn open(host_root: &Path) -> Self {
        let proc = host_root.join("proc");
        let mut node = Self {
            vmstat: None,
            places: None,
            not_read: Vec::new(),
            proc,
        };
        node.vmstat = node.told(Vmstat::open(&node.proc));
        match hierarchy::find(host_root) {
            Ok(found) => node.places = node.told(Places::open(found.mode, &found.memory)),
            Err(error) => node.missing("cgroups", &error.to_string()),
        }
        node
    }

    /// Looks once. Without `/proc/meminfo` there is nothing to say.
    pub(crate) fn look(&mut self) -> Result<Look, Error> {
        let mut failed = Vec::new();
        let units = match &self.places {
            Some(places) => places.look(&mut failed),
            None => Vec::new(),
        };
        self.cgroups_failed(&failed);
        let pressure = RESOURCES.map(|resource| self.pressure(resource));
        let tasks = self.told(Tasks::read(&self.proc));
        let load = self.told(Load::read(&self.proc));
        if let Some(vmstat) = &mut self.vmstat
            && let Err(error) = vmstat.refresh()
        {
            self.vmstat = None;
            self.unreadable(&error);
        }
        let meminfo = Meminfo::read(&self.proc)?;
        Ok(Look {
            node: sample(&meminfo, self.vmstat.as_ref(), &pressure),
            pressure,
            load,
            tasks,
            units,
        })
    }

    /// Looks in between at those of the cgroups that may soon be at their limit.
    pub(crate) fn again(&self, look: &mut Look) {
        if let Some(places) = &self.places {
            places.again(&mut look.units);
        }
    }

    /// The value, or a note of why there is none.
    pub(crate) fn told<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.unreadable(&error);
                None
            }
        }
    }

    /// Notes that `what` could not be read.
    pub(crate) fn missing(&mut self, what: &str, why: &str) {
        if !self.not_read.iter().any(|other| other.what == what) {
            self.not_read.push(NotRead {
                what: what.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    fn unreadable(&mut self, error: &Error) {
        let (path, why) = match error {
            Error::Gone { path } => (path, "there is none".to_owned()),
            Error::Disabled { path } => (path, "switched off in this kernel".to_owned()),
            Error::Io { path, source } if source.kind() == ErrorKind::PermissionDenied => {
                (path, "not permitted; run as root".to_owned())
            }
            Error::Io { path, source } => (path, source.to_string()),
            Error::Malformed { path, source } => (path, source.to_string()),
        };
        self.missing(&text(path.as_os_str().as_bytes()), &why);
    }

    fn cgroups_failed(&mut self, failed: &[Error]) {
        for error in failed.iter().take(FAILURES_TOLD) {
            self.unreadable(error);
        }
        if failed.len() > FAILURES_TOLD {
            let more = failed.len() - FAILURES_TOLD;
            self.missing("cgroups", &format!("{more} more files cannot be read"));
        }
    }

    fn pressure(&mut self, resource: &str) -> Option<Pressure> {
        let reading = psi::node(&self.proc, resource, &mut Vec::new());
        match self.told(reading)? {
            psi::Reading::Values(pressure) => Some(pressure),
            psi::Reading::Disabled => {
                self.missing("pressure (PSI)", "switched off: boot with psi=1");
                None
            }
            psi::Reading::Unsupported => {
                self.missing(
                    "pressure (PSI)",
                    "this kernel has none, or hides it: boot with psi=1",
                );
                None
            }
        }
    }
}

fn sample(
    meminfo: &Meminfo,
    vmstat: Option<&Vmstat>,
    pressure: &[Option<Pressure>; 3],
) -> NodeSample {
    let count = |name: &str| vmstat?.get(name);
    let sum = |names: &[&str]| {
        names
            .iter()
            .filter_map(|name| count(name))
            .reduce(u64::saturating_add)
    };
    let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
    NodeSample {
        boot_ns: clock::boot_ns(),
        total_bytes: meminfo.total_bytes.unwrap_or(0),
        available_bytes: meminfo.available_bytes,
        free_bytes: meminfo.free_bytes,
        anon_bytes: meminfo.anon_bytes,
        file_bytes: both(meminfo.cached_bytes, meminfo.buffers_bytes)
            .map(|cache| cache.saturating_sub(meminfo.shmem_bytes.unwrap_or(0))),
        shmem_bytes: meminfo.shmem_bytes,
        dirty_bytes: both(meminfo.dirty_bytes, meminfo.writeback_bytes),
        slab_reclaimable_bytes: meminfo.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: meminfo.slab_unreclaimable_bytes,
        swap_total_bytes: meminfo.swap_total_bytes,
        swap_free_bytes: meminfo.swap_free_bytes,
        committed_bytes: meminfo.committed_bytes,
        commit_limit_bytes: meminfo.commit_limit_bytes,
        pgscan_kswapd: count("pgscan_kswapd"),
        pgscan_direct: count("pgscan_direct"),
        pgsteal: sum(&["pgsteal_kswapd", "pgsteal_direct"]),
        allocstall: sum(&[
            "allocstall_dma",
            "allocstall_dma32",
            "allocstall_normal",
            "allocstall_high",
            "allocstall_movable",
            "allocstall_device",
        ]),
        refault_anon: count("workingset_refault_anon"),
        // Before 5.9 one counter was for both.
        refault_file: sum(&["workingset_refault_file", "workingset_refault"]),
        pswpin: count("pswpin"),
        pswpout: count("pswpout"),
        compact_stall: count("compact_stall"),
        pgmajfault: count("pgmajfault"),
        oom_kill: count("oom_kill"),
        psi_some_us: pressure.map(|pressure| Some(pressure?.some.total_us)),
        psi_full_us: pressure.map(|pressure| Some(pressure?.full?.total_us)),
    }
}
