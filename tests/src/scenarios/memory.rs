//! What the memory was.

use std::ffi::OsString;

use anyhow::Result;

use super::MIB;
use crate::cgroup::{Pod, Version};
use crate::expect::Expected;
use crate::hog::Spec;
use crate::mount::Mount;
use crate::scenario::{Context, Scenario};

pub(super) const ALL: &[Scenario] = &[
    Scenario::new("tmpfs", "a memory-backed volume fills up", tmpfs),
    Scenario::new("shmem", "shared anonymous memory", shmem),
    Scenario::new(
        "page_cache_heavy",
        "file data that cannot be given back",
        page_cache_heavy,
    ),
    Scenario::new("slab", "inodes and dentries", slab),
    Scenario::new("sockets", "unix sockets that nobody reads", sockets),
    Scenario::new("pipes", "pipes that nobody reads", pipes),
];

const LIMIT: u64 = 24 * MIB;

/// Kernel memory on cgroup v1, whose memory.stat has no line for it, and memory that no line
/// counts on v2 either.
const UNSEEN: &[&str] = &[
    "slab_reclaimable_bytes",
    "slab_unreclaimable_bytes",
    "sock_bytes",
    "kernel_other_bytes",
    "unexplained_bytes",
];

/// A tracer that cannot see the kind of memory must not guess.
const UNSEEN_CAUSES: &[&str] = &["kernel_memory", "sockets", "unknown"];

/// Runs a workload as a container's first process with [`LIMIT`] until it is killed.
fn kill(
    context: &mut Context,
    seed: u8,
    workload: &[OsString],
    mostly: &'static [&'static str],
    causes: &'static [&'static str],
) -> Result<()> {
    let pod = Pod::create(&context.scratch, seed.into())?;
    let container = pod.container(seed)?;
    container.cgroup.limit(LIMIT)?;
    let mut hog = Spec::inside(&container.cgroup)
        .as_container_init()
        .start(workload, context.deadline)?;
    hog.wait_killed(context.deadline)?;
    context.check(
        &Expected::kill(hog.pid(), "container")
            .limit(&container.cgroup, LIMIT)
            .inside_container(&container, true)
            .because(mostly, causes),
    )?;
    context.check_counted(&container.cgroup, &[hog.pid()])
}

fn tmpfs(context: &mut Context) -> Result<()> {
    let mount = Mount::new("tmpfs", "size=128m")?;
    let file = mount.path().join("file").into_os_string();
    kill(
        context,
        0x20,
        &["file".into(), file, "64".into()],
        &["shmem_bytes"],
        &["tmpfs"],
    )
}

fn shmem(context: &mut Context) -> Result<()> {
    kill(
        context,
        0x21,
        &["shmem".into(), "64".into()],
        &["shmem_bytes"],
        &["tmpfs"],
    )
}

/// ramfs is page cache with nothing behind it: it can never be given back, as dirty data could
/// not while the disk is stuck.
fn page_cache_heavy(context: &mut Context) -> Result<()> {
    let mount = Mount::new("ramfs", "")?;
    let file = mount.path().join("file").into_os_string();
    kill(
        context,
        0x22,
        &["file".into(), file, "64".into()],
        &["file_bytes"],
        &["page_cache"],
    )
}

fn slab(context: &mut Context) -> Result<()> {
    let mount = Mount::new("tmpfs", "nr_inodes=0")?;
    let directory = mount.path().as_os_str().to_owned();
    let workload = ["files".into(), directory, "1000000".into()];
    match context.version {
        Version::V1 => kill(context, 0x23, &workload, UNSEEN, UNSEEN_CAUSES),
        Version::V2 => {
            let mostly = &["slab_reclaimable_bytes", "slab_unreclaimable_bytes"];
            kill(context, 0x23, &workload, mostly, &["kernel_memory"])
        }
    }
}

/// Buffers of unix sockets are slab; `sock` of memory.stat counts other families only.
fn sockets(context: &mut Context) -> Result<()> {
    let workload = ["sockets".into(), "4000".into()];
    match context.version {
        Version::V1 => kill(context, 0x24, &workload, UNSEEN, UNSEEN_CAUSES),
        Version::V2 => {
            let mostly = &["slab_unreclaimable_bytes", "sock_bytes"];
            kill(
                context,
                0x24,
                &workload,
                mostly,
                &["kernel_memory", "sockets"],
            )
        }
    }
}

/// Pages of pipes are charged, but no line of memory.stat counts them alone.
fn pipes(context: &mut Context) -> Result<()> {
    let workload = ["pipes".into(), "4000".into()];
    kill(context, 0x25, &workload, UNSEEN, UNSEEN_CAUSES)
}
