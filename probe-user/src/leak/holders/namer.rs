//! Names of processes, cgroups and pods, for a report that is made once.

use std::path::Path;
use std::rc::Rc;

use crate::event::{Cgroup, Process, Time, text};
use crate::identity::names::Resolver;
use crate::identity::tree::Tree;
use crate::identity::{hierarchy, pid};
use crate::incident::who::{Identities, Who};
use crate::leak::sockets::Owner;
use crate::node::{clock::BootClock, process::ProcessDir};

/// The root of the v2 hierarchy: what sockets have where cgroups are on v1, and the kernel's own.
const ROOT: u64 = 1;

/// Looks names up.
pub(super) struct Namer<'a> {
    root: &'a Path,
    tree: Option<Tree>,
    clock: BootClock,
    resolver: &'a Rc<Resolver>,
    node_name: Option<&'a str>,
}

impl<'a> Namer<'a> {
    /// For the host at `root`.
    pub(super) fn open(
        root: &'a Path,
        resolver: &'a Rc<Resolver>,
        node_name: Option<&'a str>,
    ) -> Self {
        Self {
            root,
            tree: hierarchy::find(root)
                .ok()
                .and_then(|found| Tree::open(&found).ok()),
            clock: BootClock::now(),
            resolver,
            node_name,
        }
    }

    /// What is known of a process.
    pub(super) fn process(&self, owner: &Owner) -> Process {
        let proc = self.root.join("proc");
        let buffer = &mut Vec::new();
        // Another process of this number is not the owner.
        let dir = match owner.start_boot_ns {
            Some(start) => ProcessDir::open_started_at(&proc, owner.pid, start, buffer),
            None => ProcessDir::open(&proc, owner.pid),
        }
        .ok();
        let status = dir.as_ref().and_then(|dir| dir.status(buffer).ok());
        let stat = dir.as_ref().and_then(|dir| dir.stat(buffer).ok());
        let comm = owner.comm.split(|&byte| byte == 0).next().unwrap_or(b"");
        let comm = if comm.is_empty() {
            dir.as_ref().and_then(|dir| dir.comm(buffer).ok())
        } else {
            Some(comm.to_vec())
        };
        let cmdline = dir.and_then(|dir| dir.cmdline(buffer).ok());
        let start_boot_ns = owner.start_boot_ns.or(stat.map(|stat| stat.start_boot_ns));
        Process {
            pid: Some(owner.pid),
            comm: comm.map(|comm| text(&comm)),
            cmdline: cmdline.map(|cmdline| cmdline.args.iter().map(|arg| text(arg)).collect()),
            start_time: start_boot_ns.map(|start| {
                let since_epoch = self
                    .clock
                    .wall_time(start)
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                Time::from_unix_ns(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
            }),
            uid: status.as_ref().and_then(|status| status.uid),
            ns_pid: status
                .as_ref()
                .and_then(|status| status.ns_pids.last().copied()),
            ppid: status.as_ref().and_then(|status| status.ppid),
            threads: status.as_ref().and_then(|status| status.threads),
            ..Process::default()
        }
    }

    /// The memory cgroup of a process.
    pub(super) fn cgroup_of(&self, pid: u32) -> Option<Cgroup> {
        let membership = pid::membership(self.root, pid).ok()?;
        let tree = self.tree.as_ref();
        Some(Cgroup {
            id: tree.and_then(|tree| tree.id(membership.hierarchy, &membership.path).ok()),
            path: Some(text(&membership.path)),
        })
    }

    /// The cgroup on the v2 hierarchy that made a socket, by its id.
    pub(super) fn creator(&mut self, id: u64) -> Option<Cgroup> {
        if id <= ROOT {
            return None;
        }
        let tree = self.tree.as_mut();
        let located = tree.and_then(|tree| tree.path(hierarchy::UNIFIED, id));
        Some(Cgroup {
            id: Some(id),
            path: located.map(|located| text(&located.path)),
        })
    }

    /// Pods and containers of `cgroups`, all within one deadline.
    pub(super) async fn names<'c>(&self, cgroups: impl Iterator<Item = &'c Cgroup>) -> Names {
        let paths = cgroups.filter_map(|cgroup| Some(cgroup.path.as_ref()?.clone().into_bytes()));
        let paths: Vec<_> = paths.collect();
        Names(Identities::resolve(self.resolver, self.node_name, paths).await)
    }
}

/// What [`Namer::names`] found.
pub(super) struct Names(Identities);

impl Names {
    /// The pod and container of `cgroup`.
    pub(super) fn of(&self, cgroup: Option<&Cgroup>) -> Who {
        let path = cgroup.and_then(|cgroup| cgroup.path.as_ref());
        self.0.of(path.map_or(b"", |path| path.as_bytes()))
    }
}
