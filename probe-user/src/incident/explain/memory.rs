//! The limit that was hit, what it held, and the node.

use probe_common::wire::{self, LimitLevel as WireLevel, has, level};

use super::{
    super::{
        assemble::Incident,
        balance::slab_cache,
        evidence::{Evidence, LimitOwner},
        limit::NO_LIMIT_PAGES,
        who::Identities,
    },
    Context, cgroup,
};
use crate::{
    event::{Limit, LimitLevel, Memory, MemorySource, Node, Psi, PsiResource, PsiWindow},
    identity::hierarchy::UNIFIED,
    node::{
        memcg::{MemcgReading, MemoryStat, Version},
        meminfo::Meminfo,
        psi::{Pressure, Stall},
    },
};

pub(super) fn limit_level(context: &Context, level: &WireLevel, path: &[u8]) -> LimitLevel {
    let bounded = |pages: u64| (pages < NO_LIMIT_PAGES).then(|| context.bytes(pages));
    let has = |bit: u64| level.flags & bit != 0;
    let local = |count: u64| has(level::HAS_LOCAL_EVENTS).then_some(count);
    // One counter with two meanings: v2 counts swap alone, v1 memory and swap together.
    let counter = has(level::HAS_SWAP).then_some((level.swap_pages, level.swap_max_pages));
    let is_v2 = context.memory_hierarchy == UNIFIED;
    let swap = counter.filter(|_| is_v2);
    let memsw = counter.filter(|_| !is_v2);
    let swapped = memsw.map(|(both, _)| both.saturating_sub(level.usage_pages));
    LimitLevel {
        cgroup: cgroup(level.id, path),
        usage_bytes: Some(context.bytes(level.usage_pages)),
        limit_bytes: bounded(level.max_pages),
        watermark_bytes: Some(context.bytes(level.watermark_pages)),
        swap_usage_bytes: swap
            .map(|(usage, _)| usage)
            .or(swapped)
            .map(|pages| context.bytes(pages)),
        swap_limit_bytes: swap.and_then(|(_, max)| bounded(max)),
        memsw_usage_bytes: memsw.map(|(usage, _)| context.bytes(usage)),
        memsw_limit_bytes: memsw.and_then(|(_, max)| bounded(max)),
        oom_group: Some(has(level::OOM_GROUP)),
        max_events: local(level.local_max),
        oom_events: local(level.local_oom),
        oom_kill_events: local(level.local_oom_kill),
    }
}

pub(super) fn limit(context: &Context, owner: &LimitOwner, identities: &Identities) -> Limit {
    let who = identities.of(owner.path());
    Limit {
        level: owner
            .level()
            .map(|level| limit_level(context, level, owner.path()))
            .unwrap_or_default(),
        k8s: who.k8s,
        container: who.container,
        levels: owner
            .levels
            .iter()
            .map(|(level, path)| limit_level(context, level, path))
            .collect(),
        found_by: Some(owner.found_by.name().to_owned()),
    }
}

pub(super) fn memory(
    context: &Context,
    incident: &Incident,
    evidence: &Evidence,
    reading: &MemcgReading,
    delay_ns: u64,
) -> Memory {
    let stat = &reading.stat;
    // Usage at the decision; the parts are of a moment later.
    let total = evidence
        .limit
        .as_ref()
        .and_then(LimitOwner::level)
        .map_or(reading.usage_bytes, |level| {
            context.bytes(level.usage_pages)
        });
    let rss = incident
        .victims
        .iter()
        .find(|victim| victim.task.has & has::MM != 0)
        .map(|victim| context.pages(victim.task.rss_anon_pages + victim.task.rss_shmem_pages));
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    let ratio = rss
        .filter(|_| total > 0)
        .map(|rss| rss as f64 / total as f64);
    // What the chosen victim held was charged; it may be freed by the time of the read.
    let held = |pages: fn(&wire::Task) -> i64| {
        let task = incident.victims.first().map(|victim| &victim.task)?;
        (task.has & has::MM != 0).then(|| context.pages(pages(task)).min(total))
    };
    let anon = stat.anon_bytes.max(held(|task| task.rss_anon_pages));
    // Mapped shared memory may be charged elsewhere: only what there is room for was charged here.
    let room = total.saturating_sub(anon.unwrap_or(0) + stat.file_bytes.unwrap_or(0));
    let shmem = stat
        .shmem_bytes
        .max(held(|task| task.rss_shmem_pages).map(|held| held.min(room)));
    let freed = (anon.unwrap_or(0) - stat.anon_bytes.unwrap_or(0))
        + (shmem.unwrap_or(0) - stat.shmem_bytes.unwrap_or(0));
    Memory {
        anon_bytes: anon,
        shmem_bytes: shmem,
        total_bytes: Some(total),
        unexplained_bytes: Some(stat.unexplained_bytes(total).saturating_sub_unsigned(freed)),
        victim_rss_ratio: ratio,
        source: Some(MemorySource::MemoryStat),
        read_delay_us: Some(delay_ns / 1000),
        read_usage_bytes: Some(reading.usage_bytes),
        ..parts(stat)
    }
}

/// What `memory.stat` tells, and nothing else.
pub(super) fn parts(stat: &MemoryStat) -> Memory {
    Memory {
        anon_bytes: stat.anon_bytes,
        file_bytes: stat
            .file_bytes
            .map(|file| file.saturating_sub(stat.shmem_bytes.unwrap_or(0))),
        shmem_bytes: stat.shmem_bytes,
        slab_reclaimable_bytes: stat.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: stat.slab_unreclaimable_bytes,
        kernel_stack_bytes: stat.kernel_stack_bytes,
        page_tables_bytes: stat
            .page_tables_bytes
            .map(|tables| tables + stat.sec_page_tables_bytes.unwrap_or(0)),
        sock_bytes: stat.sock_bytes,
        percpu_bytes: stat.percpu_bytes,
        vmalloc_bytes: stat.vmalloc_bytes,
        kernel_other_bytes: match stat.version {
            Version::V1 => stat.kernel_bytes,
            Version::V2 => stat.kernel_other_bytes(),
        },
        swap_bytes: stat.swap_bytes,
        ..Memory::default()
    }
}

pub(super) fn node(
    context: &Context,
    evidence: &Evidence,
    meminfo: &Meminfo,
    delay_ns: u64,
) -> Node {
    let [cpu, memory, io] = &evidence.pressure;
    let file = meminfo.cached_bytes.map(|cached| {
        (cached + meminfo.buffers_bytes.unwrap_or(0))
            .saturating_sub(meminfo.shmem_bytes.unwrap_or(0))
    });
    Node {
        mem_total_bytes: meminfo.total_bytes,
        mem_free_bytes: meminfo.free_bytes,
        mem_available_bytes: meminfo.available_bytes,
        watermark_min_bytes: evidence
            .watermark_min_pages
            .map(|pages| context.bytes(pages)),
        swap_total_bytes: meminfo.swap_total_bytes,
        swap_free_bytes: meminfo.swap_free_bytes,
        anon_bytes: meminfo.anon_bytes,
        file_bytes: file,
        shmem_bytes: meminfo.shmem_bytes,
        slab_reclaimable_bytes: meminfo.slab_reclaimable_bytes,
        slab_unreclaimable_bytes: meminfo.slab_unreclaimable_bytes,
        kernel_stack_bytes: meminfo.kernel_stack_bytes,
        page_tables_bytes: meminfo.page_tables_bytes,
        kernel: evidence.balance.clone(),
        slab_caches: evidence.slab_caches.iter().map(slab_cache).collect(),
        psi: evidence.pressure.iter().any(Option::is_some).then(|| Psi {
            cpu: cpu.map(resource),
            memory: memory.map(resource),
            io: io.map(resource),
        }),
        read_delay_us: Some(delay_ns / 1000),
    }
}

fn resource(pressure: Pressure) -> PsiResource {
    PsiResource {
        some: window(pressure.some),
        full: pressure.full.map(window),
    }
}

fn window(stall: Stall) -> PsiWindow {
    PsiWindow {
        avg10_percent: stall.avg10_percent,
        avg60_percent: stall.avg60_percent,
        avg300_percent: stall.avg300_percent,
        total_us: stall.total_us,
    }
}
