//! Findings of memory pressure, one case a row. Every row changes the same healthy busy node, and
//! lists all that may be found.

use oomprobe::event::{Cgroup, Confidence, Finding, FindingId, K8s, Qos, is_hostile};
use oomprobe::pressure::sample::{CgroupSample, Detail, NodeSample, Settings};
use oomprobe::verdict::pressure::{CgroupWindow, Stalls, Window, findings};

use crate::samples::{GIB, MIB, cgroup, container_path, k8s, pod_path};

const SECONDS: u64 = 5;
const PAGE: u64 = 4096;

/// Microseconds of the window.
const fn percent_of_time(percent: u64) -> u64 {
    percent * SECONDS * 10_000
}

struct Group {
    cgroup: Cgroup,
    k8s: Option<K8s>,
    settings: Settings,
    first: CgroupSample,
    /// Looks between the two.
    between: Vec<CgroupSample>,
    last: CgroupSample,
    stalls: Option<Stalls>,
}

impl Group {
    /// Idle, without a limit, every counter at 0.
    fn idle(id: u64, path: &str, usage: u64) -> Self {
        let detail = Detail {
            anon_bytes: usage,
            file_dirty_bytes: Some(0),
            inactive_file_bytes: Some(0),
            slab_reclaimable_bytes: Some(0),
            slab_unreclaimable_bytes: Some(0),
            kernel_bytes: Some(0),
            sock_bytes: Some(0),
            swap_bytes: Some(0),
            max_events: Some(0),
            high_events: Some(0),
            low_events: Some(0),
            oom_kill_events: Some(0),
            refault_anon: Some(0),
            refault_file: Some(0),
            pgscan: Some(0),
            pgsteal: Some(0),
            pgmajfault: Some(0),
            psi_some_us: Some(0),
            psi_full_us: Some(0),
            io_psi_full_us: Some(0),
            ..Detail::default()
        };
        let at = |boot_ns| CgroupSample {
            boot_ns,
            usage_bytes: usage,
            detail: Some(detail),
        };
        Self {
            cgroup: cgroup(id, path),
            k8s: None,
            settings: Settings::default(),
            first: at(1_000_000_000),
            between: Vec::new(),
            last: at((1 + SECONDS) * 1_000_000_000),
            stalls: None,
        }
    }

    /// What it holds at the end, and the same at the start.
    fn holds(&mut self, anon: u64, file: u64, shmem: u64, kernel: u64) {
        let other = self.last().sock_bytes.unwrap_or(0);
        for sample in [&mut self.first, &mut self.last] {
            sample.usage_bytes = anon + file + shmem + kernel + other;
            let detail = sample.detail.as_mut().unwrap();
            detail.anon_bytes = anon;
            detail.file_bytes = file;
            detail.shmem_bytes = shmem;
            detail.kernel_bytes = Some(kernel);
        }
    }

    /// Anonymous memory at five looks, evenly apart.
    fn climbs(&mut self, anon: [u64; 5]) {
        let [first, between @ .., last] = anon;
        let span = self.last.boot_ns - self.first.boot_ns;
        let look = |anon: u64, part: u64| {
            let mut look = self.first;
            look.boot_ns += span * part / 4;
            look.usage_bytes = anon;
            look.detail.as_mut().unwrap().anon_bytes = anon;
            look
        };
        let (start, end) = (look(first, 0), look(last, 4));
        self.between = (1..)
            .zip(between)
            .map(|(part, anon)| look(anon, part))
            .collect();
        (self.first, self.last) = (start, end);
    }

    fn first(&mut self) -> &mut Detail {
        self.first.detail.as_mut().unwrap()
    }

    fn last(&mut self) -> &mut Detail {
        self.last.detail.as_mut().unwrap()
    }

    fn waits(&mut self, some: u64, full: u64) {
        self.last().psi_some_us = Some(percent_of_time(some));
        self.last().psi_full_us = Some(percent_of_time(full));
    }

    /// Pages in the window.
    fn reclaims(&mut self, steal: u64, refault_file: u64, refault_anon: u64) {
        let last = self.last();
        last.pgscan = Some(steal * 2);
        last.pgsteal = Some(steal);
        last.refault_file = Some(refault_file);
        last.refault_anon = Some(refault_anon);
    }
}

struct Scene {
    first: NodeSample,
    last: NodeSample,
    /// Reads files at its limit of 512 MiB.
    app: Group,
    /// 2 GiB, no limit.
    web: Group,
    more: Vec<Group>,
}

/// Healthy and busy: page cache is full, kswapd is at work, a pod reads files at its limit and
/// hits it ten thousand times a second.
fn busy() -> Scene {
    let mut app = Group::idle(u64::from('a'), &container_path('a'), 0);
    app.k8s = Some(k8s(Some("app"), Qos::Burstable));
    app.settings.own_max_bytes = Some(512 * MIB);
    app.settings.max_bytes = Some(512 * MIB);
    app.holds(40 * MIB, 468 * MIB, 0, 4 * MIB);
    app.last().max_events = Some(50_000);
    app.reclaims(50_000, 30_000, 0);
    app.waits(4, 2);
    let mut web = Group::idle(2, "/system.slice/web.service", 2 * GIB);
    web.waits(1, 0);
    let first = NodeSample {
        boot_ns: 1_000_000_000,
        total_bytes: 16 * GIB,
        available_bytes: Some(6 * GIB),
        free_bytes: Some(200 * MIB),
        anon_bytes: Some(8 * GIB),
        file_bytes: Some(6 * GIB),
        shmem_bytes: Some(100 * MIB),
        dirty_bytes: Some(80 * MIB),
        slab_reclaimable_bytes: Some(900 * MIB),
        slab_unreclaimable_bytes: Some(500 * MIB),
        swap_total_bytes: Some(0),
        swap_free_bytes: Some(0),
        committed_bytes: Some(30 * GIB),
        commit_limit_bytes: Some(8 * GIB),
        pgscan_kswapd: Some(0),
        pgscan_direct: Some(0),
        pgsteal: Some(0),
        allocstall: Some(0),
        refault_anon: Some(0),
        refault_file: Some(0),
        pswpin: Some(0),
        pswpout: Some(0),
        compact_stall: Some(0),
        pgmajfault: Some(0),
        oom_kill: Some(0),
        psi_some_us: [Some(0); 3],
        psi_full_us: [Some(0); 3],
    };
    let last = NodeSample {
        boot_ns: (1 + SECONDS) * 1_000_000_000,
        pgscan_kswapd: Some(40_000),
        pgscan_direct: Some(100),
        pgsteal: Some(39_000),
        allocstall: Some(3),
        refault_file: Some(34_000),
        psi_some_us: [
            Some(percent_of_time(60)),
            Some(percent_of_time(3)),
            Some(percent_of_time(30)),
        ],
        psi_full_us: [
            Some(percent_of_time(0)),
            Some(percent_of_time(1)),
            Some(percent_of_time(8)),
        ],
        ..first
    };
    Scene {
        first,
        last,
        app,
        web,
        more: Vec::new(),
    }
}

fn found(scene: &Scene) -> Vec<Finding> {
    let groups: Vec<&Group> = [&scene.app, &scene.web]
        .into_iter()
        .chain(&scene.more)
        .collect();
    let samples: Vec<_> = groups
        .iter()
        .map(|group| {
            let between = group.between.iter().copied();
            std::iter::once(group.first)
                .chain(between)
                .chain([group.last])
        })
        .map(Iterator::collect::<Vec<_>>)
        .collect();
    let cgroups: Vec<_> = groups
        .iter()
        .zip(&samples)
        .map(|(group, samples)| CgroupWindow {
            cgroup: &group.cgroup,
            k8s: group.k8s.as_ref(),
            container: None,
            settings: group.settings,
            samples,
            stalls: group.stalls,
        })
        .collect();
    findings(&Window {
        node: (scene.first, scene.last),
        cgroups: &cgroups,
        page_bytes: PAGE,
    })
}

struct Case {
    name: &'static str,
    scene: Scene,
    found: &'static [FindingId],
    /// Must stand in one of the findings.
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    change: fn(&mut Scene),
    found: &'static [FindingId],
    says: &'static [&'static str],
) -> Case {
    let mut scene = busy();
    change(&mut scene);
    Case {
        name,
        scene,
        found,
        says,
    }
}

/// Everything of `app` waits on its limit, and nothing comes back.
fn stuck(scene: &mut Scene) {
    scene.app.waits(40, 20);
    scene.app.reclaims(20_000, 1_000, 0);
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn limit_cases() -> Vec<Case> {
    vec![
        case("healthy and busy", |_| {}, &[], &[]),
        case(
            "steady growth, and the limit is near",
            |s| {
                s.app.holds(0, 0, 0, 0);
                s.app.climbs([300, 305, 309, 315, 320].map(|mib| mib * MIB));
            },
            &[FindingId::LeakSuspect],
            &[
                "grows by 4 MiB/s: at this rate it is at its limit of 512 MiB in 48 s",
                "20 MiB more in 5.0 s, in each of 5 looks",
            ],
        ),
        case(
            "the same growth far from the limit",
            |s| {
                s.app.settings.own_max_bytes = Some(8 * GIB);
                s.app.holds(0, 0, 0, 0);
                s.app.climbs([300, 305, 309, 315, 320].map(|mib| mib * MIB));
            },
            &[],
            &[],
        ),
        case(
            "a step is no growth",
            |s| {
                s.app.holds(0, 0, 0, 0);
                s.app.climbs([300, 300, 320, 320, 320].map(|mib| mib * MIB));
            },
            &[],
            &[],
        ),
        case(
            "page cache that fills is no growth",
            |s| {
                s.app.climbs([40; 5].map(|mib| mib * MIB));
                for (part, look) in (1..).zip(&mut s.app.between) {
                    look.detail.as_mut().unwrap().file_bytes += part * 10 * MIB;
                }
                s.app.last().file_bytes += 40 * MIB;
            },
            &[],
            &[],
        ),
        case(
            "what it reads again and again is needed, and it waits",
            |s| s.app.waits(40, 20),
            &[FindingId::Thrashing],
            &[
                "shop/cart-7d9f8b6c5-x2x8q/app thrashes at its limit",
                "waited for memory 40 % of the time, all of them at once 20 %",
                "6000 pages a second were thrown out and read back, 60 %",
                "512 MiB used of 512 MiB (the limit), hit 50000 times in 5.0 s",
            ],
        ),
        case(
            "it waits, but not at its own limit, and nobody takes memory",
            |s| {
                s.app.waits(40, 20);
                s.app.last().max_events = Some(0);
            },
            &[],
            &[],
        ),
        case(
            "the same pages come back from swap",
            |s| {
                s.app.waits(40, 20);
                s.app.reclaims(50_000, 2_000, 40_000);
                s.app.holds(460 * MIB, 48 * MIB, 0, 4 * MIB);
                s.app.last().swap_bytes = Some(300 * MIB);
            },
            &[FindingId::SwapThrash],
            &["8000 pages a second came back from swap (300 MiB of it there)"],
        ),
        case(
            "next to nothing to reclaim",
            |s| {
                stuck(s);
                s.app.holds(480 * MIB, 26 * MIB, 0, 6 * MIB);
            },
            &[FindingId::LimitTooTight],
            &[
                "486 MiB cannot be given back",
                "95 % of the limit is neither",
            ],
        ),
        case(
            "the same without a single hit: a heap that was touched in advance",
            |s| {
                s.app.holds(480 * MIB, 20 * MIB, 0, 6 * MIB);
                s.app.last().max_events = Some(0);
            },
            &[],
            &[],
        ),
        case(
            "the same with hits that cost nothing: the last tenth serves file I/O",
            |s| s.app.holds(480 * MIB, 26 * MIB, 0, 6 * MIB),
            &[],
            &[],
        ),
        case(
            "at the brim: the next hit may kill",
            |s| s.app.holds(500 * MIB, 6 * MIB, 0, 6 * MIB),
            &[FindingId::LimitTooTight],
            &["99 % of the limit"],
        ),
        case(
            "at the brim with swap at work that nobody waits for",
            |s| {
                s.app.holds(500 * MIB, 6 * MIB, 0, 6 * MIB);
                s.app.last().swap_bytes = Some(100 * MIB);
            },
            &[],
            &[],
        ),
        case(
            "killed already",
            |s| {
                s.app.holds(480 * MIB, 26 * MIB, 0, 6 * MIB);
                s.app.last().oom_kill_events = Some(2);
            },
            &[FindingId::LimitTooTight],
            &["2 processes in it were OOM-killed"],
        ),
        case(
            "writes faster than the disk",
            |s| {
                stuck(s);
                s.app.last().file_dirty_bytes = Some(200 * MIB);
                s.app.last().io_psi_full_us = Some(percent_of_time(70));
            },
            &[FindingId::PageCachePressure],
            &[
                "writes files faster than the disk takes them",
                "200 MiB of that dirty",
                "waited for disks 70 %",
            ],
        ),
        case(
            "reads through a limit without room",
            stuck,
            &[FindingId::PageCachePressure],
            &["reads or writes files through a limit"],
        ),
        case(
            "waits at its limit for something else",
            |s| {
                stuck(s);
                s.app.holds(300 * MIB, 208 * MIB, 0, 4 * MIB);
            },
            &[FindingId::Unknown],
            &["what takes it cannot be told"],
        ),
        case(
            "cgroup v1: no account of waiting, so no word of it",
            |s| {
                s.app.waits(40, 20);
                s.app.last().psi_some_us = None;
            },
            &[],
            &[],
        ),
        case(
            "cgroup v1, waits measured by hooks",
            |s| {
                s.app.last().psi_some_us = None;
                s.app.stalls = Some(Stalls {
                    memcg_reclaim_ns: 2_000_000_000,
                    ..Stalls::default()
                });
            },
            &[FindingId::Thrashing],
            &["40 % of the time (stalls, taken together)"],
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn kind_cases() -> Vec<Case> {
    vec![
        case(
            "tmpfs grows to the limit",
            |s| {
                s.app.holds(20 * MIB, 4 * MIB, 480 * MIB, 4 * MIB);
                s.app.first().shmem_bytes = 400 * MIB;
                s.app.last().max_events = Some(0);
            },
            &[FindingId::TmpfsGrowth],
            &[
                "94 % of the limit",
                "80 MiB of it came within",
                "-c app -- df -h",
            ],
        ),
        case(
            "shared buffers beside a page cache that fills the rest",
            |s| s.app.holds(30 * MIB, 200 * MIB, 270 * MIB, 8 * MIB),
            &[],
            &[],
        ),
        case(
            "tmpfs fills the limit and stays as it is",
            |s| {
                s.app.holds(20 * MIB, 4 * MIB, 480 * MIB, 4 * MIB);
                s.app.last().max_events = Some(0);
            },
            &[],
            &[],
        ),
        case(
            "kernel memory",
            |s| s.app.holds(200 * MIB, 20 * MIB, 0, 290 * MIB),
            &[FindingId::KernelMemory],
            &[
                "kernel memory that cannot be given back: 290 MiB",
                "slabtop",
            ],
        ),
        case(
            "kernel memory that can be given back",
            |s| {
                s.app.holds(200 * MIB, 20 * MIB, 0, 290 * MIB);
                s.app.last().slab_reclaimable_bytes = Some(280 * MIB);
            },
            &[],
            &[],
        ),
        case(
            "socket buffers",
            |s| {
                s.app.last().sock_bytes = Some(300 * MIB);
                s.app.holds(200 * MIB, 8 * MIB, 0, 4 * MIB);
            },
            &[FindingId::SocketMemory],
            &["socket buffers: 300 MiB", "sockstat"],
        ),
        case(
            "anonymous memory within a moment",
            |s| {
                s.app.holds(490 * MIB, 8 * MIB, 0, 4 * MIB);
                s.app.first().anon_bytes = 40 * MIB;
            },
            &[FindingId::Spike],
            &["took 450 MiB of anonymous memory within 5.0 s"],
        ),
        case(
            "the same in half a minute",
            |s| {
                s.app.holds(480 * MIB, 8 * MIB, 0, 4 * MIB);
                s.app.first().anon_bytes = 40 * MIB;
                s.app.first.boot_ns = 0;
                s.app.last.boot_ns = 30_000_000_000;
                s.app.last().max_events = Some(0);
            },
            &[],
            &[],
        ),
        case(
            "asleep over memory.high",
            |s| {
                stuck(s);
                s.app.settings.high_bytes = Some(400 * MIB);
                s.app.last().max_events = Some(0);
                s.app.last().high_events = Some(900);
            },
            &[FindingId::HighThrottling],
            &[
                "not hung",
                "hit 900 times in 5.0 s; memory.max is 512 MiB",
                "memory.high",
            ],
        ),
        case(
            "at memory.high, but it waits for what it reads back",
            |s| {
                s.app.waits(40, 20);
                s.app.settings.high_bytes = Some(400 * MIB);
                s.app.last().max_events = Some(0);
                s.app.last().high_events = Some(900);
            },
            &[FindingId::Thrashing],
            &["used of 400 MiB (memory.high), hit 900 times"],
        ),
        case(
            "at memory.high without waiting: it does its work",
            |s| {
                s.app.settings.high_bytes = Some(400 * MIB);
                s.app.last().high_events = Some(900);
            },
            &[],
            &[],
        ),
        case(
            "at memory.high a hook saw many tasks reclaim clean page cache, and none sleep",
            |s| {
                s.app.settings.high_bytes = Some(600 * MIB);
                s.app.last().high_events = Some(900);
                s.app.stalls = Some(Stalls {
                    memcg_reclaim_ns: 4_000_000_000,
                    high_throttle_ns: 9_000_000,
                    ..Stalls::default()
                });
            },
            &[],
            &[],
        ),
        case(
            "a hook saw it wait for what it reads back",
            |s| {
                s.app.waits(40, 20);
                s.app.settings.high_bytes = Some(400 * MIB);
                s.app.last().max_events = Some(0);
                s.app.last().high_events = Some(900);
                s.app.stalls = Some(Stalls {
                    refault_wait_ns: 1_500_000_000,
                    ..Stalls::default()
                });
            },
            &[FindingId::Thrashing],
            &["tasks waited 1.5 s in 5.0 s for such pages to be read"],
        ),
        case(
            "a hook saw it sleep",
            |s| {
                s.app.settings.high_bytes = Some(600 * MIB);
                s.app.last().high_events = Some(900);
                s.app.stalls = Some(Stalls {
                    high_throttle_ns: 4_000_000_000,
                    ..Stalls::default()
                });
            },
            &[FindingId::HighThrottling],
            &["tasks slept 4.0 s in 5.0 s"],
        ),
    ]
}

/// Node-wide reclaim that everybody waits for.
fn short(scene: &mut Scene) {
    scene.last.pgscan_direct = Some(30_000);
    scene.last.allocstall = Some(900);
    scene.last.psi_some_us[1] = Some(percent_of_time(30));
    scene.last.psi_full_us[1] = Some(percent_of_time(10));
}

fn node_cases() -> Vec<Case> {
    vec![
        case(
            "nearly nothing available, no swap",
            |s| s.last.available_bytes = Some(300 * MIB),
            &[FindingId::Overcommit],
            &[
                "300 MiB of 16 GiB is available",
                "there is no swap",
                "promised 188 % of memory's size",
            ],
        ),
        case(
            "the same with swap to go",
            |s| {
                s.last.available_bytes = Some(300 * MIB);
                s.last.swap_total_bytes = Some(8 * GIB);
                s.last.swap_free_bytes = Some(7 * GIB);
            },
            &[],
            &[],
        ),
        case(
            "everybody reads back what was thrown out",
            short,
            &[FindingId::Thrashing],
            &[
                "the node thrashes",
                "6800 pages a second",
                "most of them in shop/cart-7d9f8b6c5-x2x8q/app",
            ],
        ),
        case(
            "the same, and hooks timed it",
            |s| {
                short(s);
                s.app.stalls = Some(Stalls {
                    refault_wait_ns: 2_000_000_000,
                    ..Stalls::default()
                });
            },
            &[FindingId::Thrashing],
            &["tasks waited 2.0 s in 5.0 s for such pages to be read"],
        ),
        case(
            "the same, PSI off: a guess",
            |s| {
                short(s);
                s.last.psi_some_us = [None; 3];
            },
            &[FindingId::Thrashing],
            &["how long they waited is not known, as PSI is off"],
        ),
        case(
            "PSI off on a busy node",
            |s| s.last.psi_some_us = [None; 3],
            &[],
            &[],
        ),
        case(
            "swap in and out",
            |s| {
                short(s);
                (s.last.pswpin, s.last.pswpout) = (Some(9_000), Some(11_000));
            },
            &[FindingId::SwapThrash],
            &["1800 pages a second in, 2200 out"],
        ),
        case(
            "swap out only: idle pages are put away",
            |s| s.last.pswpout = Some(11_000),
            &[],
            &[],
        ),
        case(
            "unreclaimable slab",
            |s| s.last.slab_unreclaimable_bytes = Some(4 * GIB),
            &[FindingId::SlabUnreclaimable],
            &["25 % of the node is kernel objects", "slabtop"],
        ),
        case(
            "waits that nothing explains",
            |s| {
                s.last.psi_some_us[1] = Some(percent_of_time(40));
                s.last.pgscan_kswapd = Some(0);
                s.last.compact_stall = Some(700);
            },
            &[FindingId::Unknown],
            &["700 waits for memory to be moved together"],
        ),
    ]
}

/// `web` suffers, `batch` is new.
fn with_batch(scene: &mut Scene) {
    short(scene);
    scene.web.waits(35, 10);
    let mut batch = Group::idle(9, "/system.slice/batch.service", GIB);
    batch.last().anon_bytes = 2 * GIB;
    scene.more.push(batch);
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn neighbour_cases() -> Vec<Case> {
    vec![
        case(
            "one grows, another waits",
            with_batch,
            &[FindingId::NoisyNeighbour],
            &[
                "/system.slice/batch.service grows at 205 MiB/s",
                "/system.slice/web.service waits for it",
                "took 100 % of all memory taken in 5.0 s (1 GiB)",
            ],
        ),
        case(
            "one streams files, another waits",
            |s| {
                with_batch(s);
                s.more[0].first().anon_bytes = 2 * GIB;
                s.more[0].reclaims(400_000, 0, 0);
            },
            &[FindingId::NoisyNeighbour],
            &["fills the page cache by its file I/O at 313 MiB/s"],
        ),
        case(
            "one grows; who waits reads back far more than that",
            |s| {
                with_batch(s);
                s.web.reclaims(900_000, 900_000, 0);
            },
            &[FindingId::NoisyNeighbour],
            &["/system.slice/batch.service grows at 205 MiB/s"],
        ),
        case(
            "one grows and nobody minds",
            |s| {
                let mut batch = Group::idle(9, "/system.slice/batch.service", GIB);
                batch.last().anon_bytes = 2 * GIB;
                s.more.push(batch);
            },
            &[],
            &[],
        ),
        case(
            "the one that waits is at its own limit",
            |s| {
                with_batch(s);
                s.web.waits(1, 0);
                s.app.waits(40, 20);
            },
            &[FindingId::Thrashing, FindingId::Thrashing],
            &["app thrashes at its limit", "the node thrashes"],
        ),
        case(
            "two grow alike: nobody is the neighbour",
            |s| {
                with_batch(s);
                s.last.refault_file = Some(100);
                s.last.psi_some_us[1] = Some(percent_of_time(12));
                let mut other = Group::idle(10, "/system.slice/other.service", GIB);
                other.last().anon_bytes = 2 * GIB;
                s.more.push(other);
            },
            &[],
            &[],
        ),
        case(
            "an ancestor takes what its child takes",
            |s| {
                with_batch(s);
                let mut slice = Group::idle(8, "/system.slice", 3 * GIB);
                slice.last().anon_bytes = 4 * GIB;
                slice.waits(36, 10);
                s.more.push(slice);
            },
            &[FindingId::NoisyNeighbour],
            &["/system.slice/batch.service grows"],
        ),
        case(
            "protected memory while another waits",
            |s| {
                short(s);
                s.last.refault_file = Some(100);
                s.web.waits(35, 10);
                let mut db = Group::idle(9, "/system.slice/db.service", 8 * GIB);
                db.settings.min_bytes = Some(7 * GIB);
                s.more.push(db);
            },
            &[FindingId::Protection],
            &[
                "keeps 7 GiB by memory.min or memory.low",
                "44 % of the node",
            ],
        ),
        case(
            "protected memory and nobody waits",
            |s| {
                let mut db = Group::idle(9, "/system.slice/db.service", 8 * GIB);
                db.settings.min_bytes = Some(7 * GIB);
                s.more.push(db);
            },
            &[],
            &[],
        ),
        case(
            "the pod's limit is hit too: the container's finding is enough",
            |s| {
                s.app.waits(40, 20);
                let mut pod = Group::idle(90, &pod_path(), 0);
                pod.settings = s.app.settings;
                (pod.first, pod.last) = (s.app.first, s.app.last);
                s.more.push(pod);
            },
            &[FindingId::Thrashing],
            &["x2x8q/app thrashes"],
        ),
    ]
}

fn cases() -> Vec<Case> {
    [limit_cases(), kind_cases(), node_cases(), neighbour_cases()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn table() {
    let mut wrong = Vec::new();
    for case in cases() {
        let findings = found(&case.scene);
        let ids: Vec<_> = findings.iter().map(|finding| finding.id).collect();
        let text: Vec<&str> = findings
            .iter()
            .flat_map(|f| {
                [&f.summary]
                    .into_iter()
                    .chain(&f.evidence)
                    .chain(&f.next_steps)
            })
            .map(String::as_str)
            .collect();
        let text = text.join("\n");
        let missing: Vec<_> = case
            .says
            .iter()
            .filter(|says| !text.contains(**says))
            .collect();
        if ids != case.found || !missing.is_empty() {
            wrong.push(format!(
                "{}: found {ids:?}, expected {:?}, missing {missing:?} in\n{text}\n",
                case.name, case.found
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_finding_cites_numbers_and_says_what_to_do() {
    for case in cases() {
        for finding in found(&case.scene) {
            assert!((2..=7).contains(&finding.evidence.len()), "{finding:#?}");
            assert!((1..=4).contains(&finding.next_steps.len()), "{finding:#?}");
            let numbers = finding
                .evidence
                .iter()
                .filter(|text| text.contains(char::is_numeric));
            assert!(numbers.count() >= 2, "{finding:#?}");
            assert!(!finding.summary.contains('\n'));
        }
    }
}

#[test]
fn without_an_account_of_waiting_the_node_thrashing_is_a_guess() {
    let mut scene = busy();
    short(&mut scene);
    scene.last.psi_some_us = [None; 3];
    assert_eq!(found(&scene)[0].confidence, Confidence::Low);
}

#[test]
fn names_in_commands_stay_names() {
    let mut scene = busy();
    scene.app.waits(40, 20);
    let names = scene.app.k8s.as_mut().unwrap();
    names.pod.name = Some("$(reboot)'".into());
    scene.app.cgroup.path = Some("/a/`id`\n".into());
    let steps = found(&scene).remove(0).next_steps;
    assert!(steps[0].contains(r"top pod '$(reboot)'\'''"), "{steps:#?}");
    for step in steps {
        assert!(!step.contains('`') && !step.contains(is_hostile), "{step}");
    }
}

#[test]
fn too_little_to_look_at_finds_nothing() {
    let mut scene = busy();
    scene.app.waits(90, 90);
    scene.app.last.detail = None;
    assert_eq!(found(&scene), []);
    scene.last.boot_ns = scene.first.boot_ns;
    assert_eq!(found(&scene), []);
    let nothing = NodeSample::default();
    let empty = Window {
        node: (
            nothing,
            NodeSample {
                boot_ns: 1,
                ..nothing
            },
        ),
        cgroups: &[],
        page_bytes: PAGE,
    };
    assert_eq!(findings(&empty), []);
}

#[test]
fn counters_that_began_anew_or_are_huge_do_no_harm() {
    let mut scene = busy();
    std::mem::swap(&mut scene.app.first.detail, &mut scene.app.last.detail);
    assert_eq!(found(&scene), []);
    let last = scene.app.last();
    last.max_events = Some(u64::MAX);
    last.pgsteal = Some(u64::MAX);
    last.refault_file = Some(u64::MAX);
    last.refault_anon = Some(u64::MAX);
    last.anon_bytes = u64::MAX;
    last.shmem_bytes = u64::MAX;
    last.psi_some_us = Some(u64::MAX);
    scene.app.settings.own_max_bytes = Some(0);
    assert!(!found(&scene).is_empty());
}
