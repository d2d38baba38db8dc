//! Looks at the kernel's memory.

use oomprobe::event::{
    AllocationProfile, AllocationSite, Body, CgroupKernelMemory, Confidence, Event, Finding,
    FindingId, KernelBalance, NotRead, ProfileState, Qos, Severity, SlabCacheUsage, SlabTrace,
    SlabUsage,
};

use super::{GIB, MIB, cgroup, container, container_path, event, k8s};

fn cache(name: &str, bytes: u64, object_bytes: u64, growth: Option<f64>) -> SlabCacheUsage {
    SlabCacheUsage {
        name: name.into(),
        aliases: Some(vec![]),
        reclaimable: Some(false),
        bytes,
        objects: bytes / object_bytes,
        object_bytes,
        growth_bytes_per_s: growth,
        growth_objects_per_s: growth.map(|growth| growth / 256.0),
    }
}

fn usage() -> SlabUsage {
    let mut merged = cache("kmalloc-512", 40 * MIB, 512, Some(-4096.0));
    merged.aliases = Some(vec!["skbuff_fclone_cache".into(), "pool_workqueue".into()]);
    let mut dentry = cache("dentry", 180 * MIB, 192, Some(0.0));
    dentry.reclaimable = Some(true);
    SlabUsage {
        duration_ms: 3001,
        healthy: false,
        findings: vec![Finding {
            id: FindingId::SlabUnreclaimable,
            severity: Severity::Warn,
            confidence: Confidence::High,
            cgroup: None,
            summary: "kernel objects that cannot be given back fill 14 % of the memory".into(),
            evidence: vec!["SUnreclaim 2.2 GiB of 16 GiB".into()],
            next_steps: vec!["oomprobe skb".into()],
        }],
        slab_reclaimable_bytes: Some(400 * MIB),
        slab_unreclaimable_bytes: Some(2250 * MIB),
        slab_unreclaimable_growth_bytes_per_s: Some(1_280_000.0),
        caches: vec![
            cache("kmalloc-1k", 1660 * MIB, 1024, Some(1_024_000.0)),
            cache("skbuff_head_cache", 410 * MIB, 256, Some(256_000.0)),
            dentry,
            merged,
            cache("module_made", MIB, 64, None),
        ],
        caches_total: 187,
        cgroups: vec![CgroupKernelMemory {
            cgroup: cgroup(7, &container_path('a')),
            k8s: Some(k8s(Some("app"), Qos::Burstable)),
            container: Some(container('a')),
            kernel_bytes: 20 * MIB,
            growth_bytes_per_s: Some(0.0),
            slab_reclaimable_bytes: Some(12 * MIB),
            slab_unreclaimable_bytes: Some(3 * MIB),
            percpu_bytes: Some(MIB),
            vmalloc_bytes: None,
            kernel_stack_bytes: Some(MIB / 2),
            page_tables_bytes: Some(3 * MIB),
            sock_bytes: Some(0),
        }],
        balance: Some(KernelBalance {
            total_bytes: 16 * GIB,
            free_bytes: 6 * GIB,
            per_cpu_free_bytes: Some(60 * MIB),
            lru_bytes: 7 * GIB,
            slab_bytes: 2650 * MIB,
            misc_reclaimable_bytes: Some(0),
            kernel_stack_bytes: 12 * MIB,
            page_tables_bytes: 40 * MIB,
            sec_page_tables_bytes: Some(0),
            percpu_bytes: Some(14 * MIB),
            vmalloc_bytes: 70 * MIB,
            hugetlb_bytes: Some(0),
            compressed_bytes: None,
            gpu_bytes: None,
            memmap_bytes: None,
            bounce_bytes: Some(0),
            balloon_bytes: Some(8 * MIB),
            unaccounted_bytes: 226 << 20,
            noise_bytes: 22 * MIB,
        }),
        vmalloc: vec![AllocationSite {
            site: "bpf_map_area_alloc".into(),
            bytes: 30 * MIB,
            count: 91,
            growth_bytes_per_s: None,
        }],
        profile: AllocationProfile {
            state: ProfileState::Off,
            remedy: Some("sysctl -w vm.mem_profiling=1".into()),
            sites: vec![],
        },
        traces: vec![SlabTrace {
            cache: "skbuff_head_cache".into(),
            objects: 1_600_000,
            site: "skb_clone+0x51/0xa0".into(),
            stack: vec![
                "kmem_cache_alloc+0x1/0x2".into(),
                "packet_rcv+0x3/0x4".into(),
            ],
        }],
        not_read: vec![NotRead {
            what: "/proc/vmallocinfo".into(),
            why: "not permitted; run as root".into(),
        }],
    }
}

pub(crate) fn ill() -> Event {
    event(Body::SlabUsage(Box::new(usage())))
}

/// Names that a module or a container chose, and counters that were torn.
pub(crate) fn hostile() -> Event {
    let mut usage = usage();
    usage.findings.clear();
    usage.healthy = true;
    usage.caches.truncate(1);
    usage.caches[0].name = "evil\x1b[31m\ncache".into();
    usage.caches[0].aliases = Some(vec!["\u{202e}alias".into(); 9]);
    usage.caches[0].reclaimable = None;
    usage.cgroups[0].k8s = None;
    usage.cgroups[0].container = None;
    usage.cgroups[0].cgroup.path = Some("/a\nb\x1b[2J".into());
    usage.vmalloc[0].site = "x\x07y".into();
    usage.profile.state = ProfileState::On;
    usage.profile.sites = usage.vmalloc.clone();
    if let Some(balance) = &mut usage.balance {
        balance.unaccounted_bytes = -(3 << 20);
    }
    event(Body::SlabUsage(Box::new(usage)))
}
