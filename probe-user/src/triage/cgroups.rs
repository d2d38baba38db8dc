//! The cgroups that matter, and one look at each.
//!
//! A node has thousands of cgroups, most of them levels of the tree above others. Shown and judged
//! are those that stand for something a person knows: containers, pods, services.

use crate::event::Cgroup;
use crate::event::text;
use crate::identity::hierarchy::{Mode, Mount};
use crate::identity::{Claim, path};
use crate::node::cpu::Throttling;
use crate::node::dir::Dir;
use crate::node::memcg::{Limit, MemoryEvents, OomControl, Version};
use crate::node::psi::Pressure;
use crate::node::{Error, clock, single_number};
use crate::pressure::sample::{CgroupSample, Detail, Settings};

/// Levels below the root that are looked at: nested containers need about 15.
const DEPTH: usize = 32;

/// Cgroups that are looked at in between.
const MOST_AGAIN: usize = 128;

/// Cgroups that are looked at.
const MOST: usize = 16_384;

/// What a cgroup stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container.
    Container,
    /// A pod: its containers are in it.
    Pod,
    /// A service, a session, or anything else that is no level for others only.
    Other,
}

/// A cgroup that matters.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// kernfs id.
    pub(crate) id: u64,
    /// Path from the root of the memory hierarchy, as the kernel spells it.
    pub(crate) path: Vec<u8>,
    /// What it stands for.
    pub(super) kind: Kind,
    /// Its memory.
    pub(crate) sample: CgroupSample,
    /// Further looks at it, later ones last.
    pub(crate) between: Vec<CgroupSample>,
    /// Its limits and protections.
    pub(super) settings: Settings,
    /// Its CPU limit at work; `None` where there is no CPU controller.
    pub(super) throttling: Option<Throttling>,
}

impl Unit {
    /// As events name it.
    pub(crate) fn cgroup(&self) -> Cgroup {
        Cgroup {
            id: Some(self.id),
            path: Some(text(&self.path)),
        }
    }
}

/// Where the cgroups are.
pub(super) struct Places {
    memory: Dir,
    /// Path of what is mounted there.
    root: Vec<u8>,
    version: Version,
    /// The CPU controller's own hierarchy (v1).
    cpu: Option<Dir>,
}

impl Places {
    /// Opens the memory hierarchy.
    pub(super) fn open(mode: Mode, memory: &Mount) -> Result<Self, Error> {
        let version = match mode {
            Mode::Unified => Version::V2,
            Mode::Legacy | Mode::Hybrid => Version::V1,
        };
        // On v1 each controller is mounted under its name; systemd mounts these two as one.
        let cpu = match version {
            Version::V1 => ["cpu", "cpu,cpuacct"]
                .iter()
                .find_map(|name| Dir::open(&memory.path.parent()?.join(name)).ok()),
            Version::V2 => None,
        };
        Ok(Self {
            memory: Dir::open(&memory.path)?,
            root: memory.root.clone(),
            version,
            cpu,
        })
    }

    /// Looks at all that matter. Those that vanish meanwhile are left out; what else cannot be
    /// read goes to `failed`.
    pub(super) fn look(&self, failed: &mut Vec<Error>) -> Vec<Unit> {
        let mut walk = Walk {
            version: self.version,
            levels: Vec::new(),
            failed,
            buf: Vec::new(),
        };
        walk.below(&self.memory, &self.root, None, 1);
        let levels = walk.levels;
        let mut buf = walk.buf;
        let kinds = kinds(&levels);
        let mut units = Vec::new();
        for (level, kind) in levels.iter().zip(kinds) {
            let Some(kind) = kind else { continue };
            match self.unit(level, kind, &mut buf) {
                Ok(unit) => units.push(unit),
                Err(error) if error.is_gone() => {}
                Err(error) => failed.push(error),
            }
        }
        units
    }

    /// Looks once more at those with a limit of their own that is not far: the biggest first, no
    /// more than [`MOST_AGAIN`].
    pub(crate) fn again(&self, units: &mut [Unit]) {
        let mut near: Vec<&mut Unit> = units
            .iter_mut()
            .filter(|unit| {
                let limit = unit.settings.own_max_bytes;
                limit.is_some_and(|limit| unit.sample.usage_bytes >= limit / 20)
            })
            .collect();
        near.sort_by_key(|unit| std::cmp::Reverse(unit.sample.usage_bytes));
        let mut buf = Vec::new();
        for unit in near.into_iter().take(MOST_AGAIN) {
            // One that is gone or torn has a look less.
            let dir = self.memory.child(self.below(&unit.path));
            let look = dir.and_then(|dir| sample(&dir, self.version, &mut buf));
            unit.between.extend(look.ok());
        }
    }

    fn below<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        let below = path.strip_prefix(self.root.as_slice()).unwrap_or(path);
        below.strip_prefix(b"/").unwrap_or(below)
    }

    fn unit(&self, level: &Level, kind: Kind, buf: &mut Vec<u8>) -> Result<Unit, Error> {
        let below = self.below(&level.path);
        let dir = self.memory.child(below)?;
        let cpu = match &self.cpu {
            Some(cpu) => cpu.child(below).ok(),
            None => None,
        };
        let throttling = match (self.version, &cpu) {
            (Version::V2, _) => dir.parse("cpu.stat", buf, Throttling::parse)?,
            (Version::V1, Some(cpu)) => cpu.parse("cpu.stat", buf, Throttling::parse)?,
            (Version::V1, None) => None,
        };
        Ok(Unit {
            id: level.id,
            path: level.path.clone(),
            kind,
            sample: sample(&dir, self.version, buf)?,
            between: Vec::new(),
            settings: settings(&dir, level, self.version, buf)?,
            throttling,
        })
    }
}

/// One directory of the tree.
struct Level {
    id: u64,
    path: Vec<u8>,
    parent: Option<usize>,
    is_leaf: bool,
    claim: Claim,
    own_max_bytes: Option<u64>,
    max_bytes: Option<u64>,
}

struct Walk<'a> {
    version: Version,
    levels: Vec<Level>,
    failed: &'a mut Vec<Error>,
    buf: Vec<u8>,
}

impl Walk<'_> {
    /// All levels below `dir`, parents first.
    fn below(&mut self, dir: &Dir, above: &[u8], parent: Option<usize>, depth: usize) {
        let names = match dir.directories() {
            Ok(names) => names,
            Err(error) => return self.fail(error),
        };
        for name in names {
            if self.levels.len() >= MOST {
                return;
            }
            let child = match dir.child(&name) {
                Ok(child) => child,
                Err(error) => {
                    self.fail(error);
                    continue;
                }
            };
            let path = [above, b"/", &name].concat();
            let index = self.levels.len();
            match self.level(&child, path, parent) {
                Ok(level) => self.levels.push(level),
                Err(error) => {
                    self.fail(error);
                    continue;
                }
            }
            if depth < DEPTH {
                let path = self.levels[index].path.clone();
                self.below(&child, &path, Some(index), depth + 1);
            }
            self.levels[index].is_leaf = self.levels.len() == index + 1;
        }
    }

    fn level(&mut self, dir: &Dir, path: Vec<u8>, parent: Option<usize>) -> Result<Level, Error> {
        let file = match self.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        let own_max_bytes = bytes(dir, file, &mut self.buf)?;
        let above = parent.and_then(|parent| self.levels[parent].max_bytes);
        Ok(Level {
            id: dir.id()?,
            claim: path::parse(&path),
            path,
            parent,
            is_leaf: true,
            own_max_bytes,
            max_bytes: own_max_bytes.into_iter().chain(above).min(),
        })
    }

    fn fail(&mut self, error: Error) {
        if !error.is_gone() {
            self.failed.push(error);
        }
    }
}

/// What each level stands for; `None` for those that are parts of something or levels for others.
fn kinds(levels: &[Level]) -> Vec<Option<Kind>> {
    let claims = |claim: &Claim| claim.container_id.is_some() || claim.pod_uid.is_some();
    let mut claimed_below = vec![false; levels.len()];
    for (index, level) in levels.iter().enumerate().rev() {
        if let Some(parent) = level.parent {
            claimed_below[parent] |= claimed_below[index] || claims(&level.claim);
        }
    }
    // Whether a level is, or is in, something of kind `Other`.
    let mut taken = vec![false; levels.len()];
    let mut kinds = Vec::with_capacity(levels.len());
    for (index, level) in levels.iter().enumerate() {
        let parent = level.parent.map(|parent| &levels[parent].claim);
        let own = &level.claim;
        let differs = |part: fn(&Claim) -> Option<&String>| {
            part(own).is_some() && parent.and_then(part) != part(own)
        };
        let kind = if differs(|claim| claim.container_id.as_ref()) {
            Some(Kind::Container)
        } else if own.container_id.is_none() && differs(|claim| claim.pod_uid.as_ref()) {
            Some(Kind::Pod)
        } else if claims(own) || level.parent.is_some_and(|parent| taken[parent]) {
            taken[index] = true;
            // A limit is a reason to wait of its own.
            level.own_max_bytes.map(|_| Kind::Other)
        } else if claimed_below[index] || (level.path.ends_with(b".slice") && !level.is_leaf) {
            None
        } else {
            taken[index] = true;
            Some(Kind::Other)
        };
        kinds.push(kind);
    }
    kinds
}

fn sample(dir: &Dir, version: Version, buf: &mut Vec<u8>) -> Result<CgroupSample, Error> {
    let boot_ns = clock::boot_ns();
    let usage = match version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    // Without it this is no memory cgroup, as where the controller is not switched on.
    let usage_bytes = dir.parse(usage, buf, single_number)?.unwrap_or(0);
    let stat = dir.parse("memory.stat", buf, |content| {
        Detail::of_stat(version, content)
    })?;
    let Some(mut detail) = stat else {
        return Ok(CgroupSample {
            boot_ns,
            usage_bytes,
            detail: None,
        });
    };
    match version {
        Version::V1 => {
            let mut number = |name| dir.parse(name, buf, single_number);
            detail.kernel_bytes = number("memory.kmem.usage_in_bytes")?;
            detail.sock_bytes = number("memory.kmem.tcp.usage_in_bytes")?;
            detail.max_events = number("memory.failcnt")?;
            let control = dir.parse("memory.oom_control", buf, OomControl::parse)?;
            detail.oom_kill_events = control.and_then(|control| control.oom_kill);
        }
        Version::V2 => {
            detail.swap_bytes = dir.parse("memory.swap.current", buf, single_number)?;
            let total = dir.parse("memory.events", buf, MemoryEvents::parse)?;
            detail.oom_kill_events = total.and_then(|events| events.oom_kill);
            if let Some(own) = dir.parse("memory.events.local", buf, MemoryEvents::parse)? {
                detail.max_events = own.max;
                detail.high_events = own.high;
                detail.low_events = own.low;
            }
            if let Some(memory) = dir.parse("memory.pressure", buf, Pressure::parse)? {
                detail.psi_some_us = Some(memory.some.total_us);
                detail.psi_full_us = memory.full.map(|full| full.total_us);
            }
            let io = dir.parse("io.pressure", buf, Pressure::parse)?;
            detail.io_psi_full_us = io.and_then(|io| io.full).map(|full| full.total_us);
        }
    }
    Ok(CgroupSample {
        boot_ns,
        usage_bytes,
        detail: Some(detail),
    })
}

fn settings(
    dir: &Dir,
    level: &Level,
    version: Version,
    buf: &mut Vec<u8>,
) -> Result<Settings, Error> {
    let mut settings = Settings {
        max_bytes: level.max_bytes,
        own_max_bytes: level.own_max_bytes,
        ..Settings::default()
    };
    if version == Version::V2 {
        settings.high_bytes = bytes(dir, "memory.high", buf)?;
        settings.low_bytes = bytes(dir, "memory.low", buf)?;
        settings.min_bytes = bytes(dir, "memory.min", buf)?;
    }
    Ok(settings)
}

fn bytes(dir: &Dir, name: &str, buf: &mut Vec<u8>) -> Result<Option<u64>, Error> {
    Ok(dir.parse(name, buf, Limit::parse)?.and_then(Limit::bytes))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e";

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in paths {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        root
    }

    fn found(root: &Path) -> Vec<(String, Kind)> {
        let mount = Mount {
            hierarchy: 0,
            path: root.to_owned(),
            root: Vec::new(),
        };
        let mut failed = Vec::new();
        let places = Places::open(Mode::Unified, &mount).unwrap();
        let mut units: Vec<_> = places
            .look(&mut failed)
            .into_iter()
            .map(|unit| {
                (
                    text(&unit.path).replace(ID, "ID").replace(UID, "UID"),
                    unit.kind,
                )
            })
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
        units.sort_by(|a, b| a.0.cmp(&b.0));
        units
    }

    #[test]
    fn containers_pods_and_services_matter_and_levels_do_not() {
        let root = tree(&[
            &format!("kubepods/burstable/pod{UID}/{ID}/init.scope"),
            &format!("docker/{ID}"),
            "kubepods/besteffort",
            "system.slice/sshd.service",
            "system.slice/empty.slice",
            "user.slice/user-0.slice/session-1.scope",
            "machine/a/b",
        ]);
        let expected = [
            ("/docker/ID", Kind::Container),
            ("/kubepods/besteffort", Kind::Other),
            ("/kubepods/burstable/podUID", Kind::Pod),
            ("/kubepods/burstable/podUID/ID", Kind::Container),
            ("/machine", Kind::Other),
            ("/system.slice/empty.slice", Kind::Other),
            ("/system.slice/sshd.service", Kind::Other),
            ("/user.slice/user-0.slice/session-1.scope", Kind::Other),
        ];
        assert_eq!(
            found(root.path()),
            expected.map(|(path, kind)| (path.to_owned(), kind))
        );
    }

    #[test]
    fn limits_hold_for_all_below() {
        let root = tree(&["a.slice/b.service"]);
        let write = |name: &str, content: &str| {
            std::fs::write(root.path().join(name), content).unwrap();
        };
        write("a.slice/memory.max", "4096\n");
        write("a.slice/b.service/memory.max", "max\n");
        write("a.slice/b.service/memory.current", "42\n");
        write("a.slice/b.service/memory.high", "2048\n");
        let mount = Mount {
            hierarchy: 0,
            path: root.path().to_owned(),
            root: Vec::new(),
        };
        let places = Places::open(Mode::Unified, &mount).unwrap();
        let units = places.look(&mut Vec::new());
        let [unit] = &units[..] else {
            panic!("{units:?}")
        };
        assert_eq!(unit.settings.max_bytes, Some(4096));
        assert_eq!(unit.settings.own_max_bytes, None);
        assert_eq!(unit.settings.high_bytes, Some(2048));
        assert_eq!(unit.sample.usage_bytes, 42);
        assert_eq!(unit.sample.detail, None);
    }

    #[test]
    fn a_torn_file_costs_one_cgroup_and_is_told() {
        let root = tree(&["good.service", "torn.service"]);
        for name in ["good", "torn"] {
            let dir = root.path().join(format!("{name}.service"));
            std::fs::write(dir.join("memory.current"), "42\n").unwrap();
        }
        std::fs::write(root.path().join("torn.service/memory.stat"), "anon 4\nfi").unwrap();
        let mount = Mount {
            hierarchy: 0,
            path: root.path().to_owned(),
            root: Vec::new(),
        };
        let mut failed = Vec::new();
        let places = Places::open(Mode::Unified, &mount).unwrap();
        assert_eq!(places.look(&mut failed).len(), 1);
        assert!(
            failed[0]
                .to_string()
                .contains("torn.service/memory.stat: line 2")
        );
    }
}
