//! Events of memory pressure.

use oomprobe::event::{
    Body, Cgroup, Confidence, Event, Finding, FindingId, Grower, LeakSuspect, LimitEvent,
    MemcgLimit, Pressure, Qos, ReclaimStall, Severity, StallKind,
};

use super::{MIB, cgroup, container_path, event, k8s, process};

/// A name that tries to take over the terminal and the shell.
const HOSTILE: &str = "\x1b]0;own\x07\n\u{202e}\u{9b}2J$(reboot)`id`';";

/// Events of memory pressure.
pub(crate) fn pressure() -> Vec<Event> {
    [limits(), stalls(), pressures(), leaks()].concat()
}

fn own() -> Cgroup {
    cgroup(u64::from('a'), &container_path('a'))
}

fn of_pod(body: Body) -> Event {
    event(body).about(Some(k8s(Some("app"), Qos::Burstable)), None)
}

fn limits() -> Vec<Event> {
    let max = MemcgLimit {
        cgroup: own(),
        event: LimitEvent::Max,
        count: 100_312,
        new: 312,
        kernel_count: Some(100_312),
        reclaim_ns: Some(1_204_000_000),
        usage_bytes: Some(512 * MIB),
        limit_bytes: Some(512 * MIB),
        last_trigger: Some(process("java", 4711, 490 * MIB, 985)),
        source: "fentry:__memcg_memory_event".into(),
    };
    let high = MemcgLimit {
        cgroup: cgroup(5, "/system.slice/db.service"),
        event: LimitEvent::High,
        count: 1,
        new: 1,
        kernel_count: None,
        reclaim_ns: None,
        usage_bytes: None,
        last_trigger: None,
        source: "memory.events".into(),
        ..max.clone()
    };
    vec![
        of_pod(Body::MemcgLimit(max)),
        event(Body::MemcgLimit(high)),
        event(Body::MemcgLimit(MemcgLimit::default())),
    ]
}

fn stalls() -> Vec<Event> {
    let stall = ReclaimStall {
        cgroup: Some(own()),
        stall: StallKind::MemcgReclaim,
        new: 312,
        new_ns: 4_204_000_000,
        count: 400,
        total_ns: 5_000_000_000,
        longest_ns: 310_000_000,
        histogram_us_log2: vec![0, 0, 1, 3, 20, 80, 100, 80, 60, 40, 14, 2],
        reclaimed_pages: Some(9_900),
        source: "raw_tp:mm_vmscan_memcg_reclaim_end".into(),
    };
    let of_node = ReclaimStall {
        cgroup: None,
        stall: StallKind::DirectReclaim,
        histogram_us_log2: vec![],
        longest_ns: 120_000,
        reclaimed_pages: None,
        ..stall.clone()
    };
    vec![
        of_pod(Body::ReclaimStall(stall)),
        event(Body::ReclaimStall(of_node)),
        event(Body::ReclaimStall(ReclaimStall::default())),
    ]
}

fn pressures() -> Vec<Event> {
    let thrashing = Finding {
        id: FindingId::Thrashing,
        severity: Severity::Warn,
        confidence: Confidence::Medium,
        cgroup: Some(own()),
        summary: "shop/cart-7d9f8b6c5-x2x8q/app thrashes at its limit".into(),
        evidence: vec!["1200 pages a second were thrown out and read back".into(); 5],
        next_steps: vec!["kubectl -n shop describe pod cart-7d9f8b6c5-x2x8q".into(); 3],
    };
    let pressed = Pressure {
        cgroup: Some(own()),
        resource: "memory".into(),
        some_ratio: Some(0.42),
        full_ratio: Some(0.031),
        window_ms: 10_000,
        findings: vec![thrashing.clone(); 4],
    };
    let unexplained = Pressure {
        cgroup: None,
        full_ratio: None,
        findings: vec![],
        ..pressed.clone()
    };
    let hostile = Pressure {
        cgroup: Some(cgroup(9, &format!("/{}/{HOSTILE}", "x".repeat(255)))),
        resource: HOSTILE.into(),
        findings: vec![Finding {
            summary: HOSTILE.repeat(20),
            evidence: vec![HOSTILE.repeat(20); 9],
            next_steps: vec![format!("find / -name '{HOSTILE}'"); 9],
            ..thrashing
        }],
        ..pressed.clone()
    };
    vec![
        of_pod(Body::Pressure(pressed)),
        event(Body::Pressure(unexplained)),
        event(Body::Pressure(hostile)),
    ]
}

fn leaks() -> Vec<Event> {
    let leak = LeakSuspect {
        what: Grower::Anon,
        cgroup: Some(own()),
        slab_cache: None,
        bytes: 400 * MIB,
        growth_bytes_per_s: 104_857.6,
        growth_low_bytes_per_s: 98_304.0,
        growth_high_bytes_per_s: 111_616.0,
        window_s: 590.0,
        confidence: Confidence::Medium,
        limit_bytes: Some(512 * MIB),
        time_to_limit_s: Some(1120.0),
        summary: "anonymous memory of shop/cart-7d9f8b6c5-x2x8q/app has grown by 102 KiB/s for \
                  10 min: 400 MiB now, its limit of 512 MiB is 19 min away"
            .into(),
    };
    let hostile_leak = LeakSuspect {
        slab_cache: Some(HOSTILE.into()),
        summary: HOSTILE.repeat(20),
        growth_bytes_per_s: f64::MAX,
        ..leak.clone()
    };
    vec![
        of_pod(Body::LeakSuspect(leak)),
        event(Body::LeakSuspect(hostile_leak)),
        event(Body::LeakSuspect(LeakSuspect::default())),
    ]
}
