use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::*;
use crate::{
    event::{LimitEvent, StallKind},
    identity::hierarchy::{Mode, Mount},
};

const SECOND: u64 = SECOND_NS;

/// Runs `test` where files can be registered.
fn in_runtime<T>(test: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _guard = runtime.enter();
    test()
}

/// A v2 tree of plain files.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn put(&self, path: &str, usage: u64, max: Option<u64>, max_events: u64) {
        let dir = self.dir.path().join(&path[1..]);
        fs::create_dir_all(&dir).unwrap();
        let max = max.map_or("max".to_owned(), |max| max.to_string());
        for (name, content) in [
            ("memory.current", format!("{usage}\n")),
            ("memory.max", format!("{max}\n")),
            ("memory.high", "max\n".to_owned()),
            ("memory.low", "0\n".to_owned()),
            ("memory.min", "0\n".to_owned()),
            ("memory.stat", format!("anon {usage}\nfile 0\nshmem 0\n")),
            ("memory.events", "oom_kill 0\n".to_owned()),
            (
                "memory.events.local",
                format!("low 0\nhigh 0\nmax {max_events}\n"),
            ),
        ] {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    fn open(&self) -> Pressure {
        let mount = Mount {
            hierarchy: 0,
            path: self.dir.path().to_owned(),
            root: Vec::new(),
        };
        let hierarchies = Hierarchies {
            mode: Mode::Unified,
            memory: mount.clone(),
            unified: Some(mount),
        };
        Pressure::new(&hierarchies, Path::new("/proc")).unwrap()
    }
}

fn full(pressure: &Pressure) -> Vec<&str> {
    let text = |path: &Rc<[u8]>| std::str::from_utf8(path).unwrap().to_owned().leak() as &str;
    pressure.full().iter().map(text).collect()
}

#[test]
fn what_is_near_its_limit_gets_full_looks_and_the_others_their_turn() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 10, Some(1000), 0);
        fake.put("/pod/a", 900, Some(1000), 0);
        fake.put("/pod/b", 100, Some(2000), 0);
        fake.put("/plain", 900, None, 0);
        let mut pressure = fake.open();
        assert_eq!(pressure.watched(), 3, "/plain has no limit");
        // b's own limit is wider than its parent's.
        assert_eq!(pressure.series(b"/pod/b").unwrap().1.max_bytes, Some(1000));

        let start = clock::boot_ns();
        let mut looked: Vec<String> = Vec::new();
        for second in 0..3 {
            let tick = pressure.tick(start + second * SECOND);
            assert!(tick.node.is_some());
            looked.extend(
                tick.looks
                    .iter()
                    .map(|l| String::from_utf8_lossy(&l.path).into()),
            );
        }
        assert_eq!(full(&pressure), ["/pod/a"]);
        // a each second; one of the three had its turn in each: /pod, (a), b.
        looked.sort();
        assert_eq!(looked, ["/pod", "/pod/a", "/pod/a", "/pod/a", "/pod/b"]);
        assert_eq!(pressure.shortfall(), Shortfall::default());
    });
}

#[test]
fn a_cgroup_that_is_removed_as_its_full_looks_begin_is_no_failed_look() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 900, Some(1000), 0);
        let mut pressure = fake.open();
        fs::remove_dir_all(fake.dir.path().join("pod")).unwrap();
        pressure.tick(clock::boot_ns());
        assert!(full(&pressure).is_empty());
        assert_eq!(pressure.shortfall().failed_looks, 0);
    });
}

#[test]
fn a_limit_hit_is_followed_ten_times_a_second_for_ten_seconds() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 100, Some(1000), 0);
        let mut pressure = fake.open();
        let start = clock::boot_ns();
        pressure.tick(start);
        assert!(full(&pressure).is_empty());

        let mut now = start + SECOND / 2;
        let hit = now;
        pressure.limit_hit(b"/pod", hit);
        let mut looks = 0;
        while now < hit + 20 * SECOND {
            looks += pressure.tick(now).looks.len();
            now += u64::try_from(pressure.due_in(now).as_nanos())
                .unwrap()
                .max(1);
        }
        // Ten a second for ten seconds, then one a second.
        assert!((90..=125).contains(&looks), "{looks}");
        let before = pressure
            .before(b"/pod", hit + 500_000_000, AtKill::default())
            .unwrap();
        assert!((before.first_limit_hit_ms.unwrap() - 500.0).abs() < 1.0);
    });
}

#[test]
fn what_does_not_change_is_not_read_again_for_a_minute() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 100, Some(1000), 0);
        let mut pressure = fake.open();
        let start = clock::boot_ns();
        let mut anon_at = |second: u64| {
            let tick = pressure.tick(start + second * SECOND);
            let [look] = &tick.looks[..] else {
                panic!("{tick:?}")
            };
            assert_eq!(look.sample.boot_ns, start + second * SECOND);
            let limit = look.settings.own_max_bytes;
            (look.sample.detail.map(|detail| detail.anon_bytes), limit)
        };
        let (first, changed) = ((Some(100), Some(1000)), (Some(7), Some(2000)));
        assert_eq!(anon_at(0), first);
        fake.put("/pod", 100, Some(2000), 0);
        fs::write(fake.dir.path().join("pod/memory.stat"), "anon 7\n").unwrap();
        assert_eq!(anon_at(1), first);
        assert_eq!(anon_at(59), first);
        assert_eq!(anon_at(60), changed, "after a minute");
        fs::write(fake.dir.path().join("pod/memory.stat"), "anon 8\n").unwrap();
        assert_eq!(anon_at(61), changed);
        fs::write(fake.dir.path().join("pod/memory.current"), "101\n").unwrap();
        assert_eq!(anon_at(62).0, Some(8), "its usage changed");
    });
}

#[test]
fn counters_that_move_are_a_limit_hit_too() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 100, Some(1000), 5);
        let mut pressure = fake.open();
        let start = clock::boot_ns();
        pressure.tick(start);
        assert!(full(&pressure).is_empty());
        fake.put("/pod", 101, Some(1000), 6);
        pressure.tick(start + SECOND);
        pressure.tick(start + 2 * SECOND);
        assert_eq!(full(&pressure), ["/pod"]);
        assert_eq!(
            pressure.due_in(start + 2 * SECOND),
            Duration::from_millis(100)
        );
        let before = pressure
            .before(b"/pod", start + 2 * SECOND, AtKill::default())
            .unwrap();
        assert_eq!(before.max_hits, Some(1));
    });
}

#[test]
fn hits_while_the_victim_dies_did_not_lead_up_to_the_kill() {
    in_runtime(|| {
        let fake = Fake::new();
        fake.put("/pod", 900, Some(1000), 5);
        let mut pressure = fake.open();
        let start = clock::boot_ns();
        pressure.tick(start);
        fake.put("/pod", 1000, Some(1000), 9);
        pressure.tick(start + SECOND);
        fake.put("/pod", 1000, Some(1000), 11);
        let mut max_hits = |at_kill| {
            let before = pressure.before(b"/pod", start + SECOND, at_kill).unwrap();
            before.max_hits
        };
        let at_kill = AtKill {
            max_events: Some(7),
            ..AtKill::default()
        };
        assert_eq!(max_hits(at_kill), Some(2));
        assert_eq!(max_hits(AtKill::default()), Some(6), "for want of that");
    });
}

#[test]
fn created_and_removed() {
    in_runtime(|| {
        let fake = Fake::new();
        let mut pressure = fake.open();
        let path = "/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        fake.put(path, 4096 * 9, Some(4096 * 10), 3);
        let start = clock::boot_ns();
        pressure.created(path.as_bytes(), start);
        assert_eq!(pressure.watched(), 1);
        pressure.tick(start + SECOND);
        pressure.tick(start + 2 * SECOND);
        pressure.removed(path.as_bytes());
        assert_eq!(pressure.watched(), 0);
        assert!(pressure.full().is_empty());

        let before = pressure
            .before(path.as_bytes(), start + 3 * SECOND, AtKill::default())
            .unwrap();
        assert_eq!(before.samples.last().unwrap().usage_bytes, 4096 * 9);
        assert_eq!(before.max_hits, Some(3), "since it was made");
        assert!((before.span_ms - 3000.0).abs() < 1.0);
        assert_eq!(
            pressure.before(b"/never/was", start, AtKill::default()),
            None
        );
    });
}

/// Where this kernel has its memory cgroups, if they are v1 and this process may make one.
fn real() -> Option<Hierarchies> {
    let hierarchies = crate::identity::hierarchy::find(Path::new("/")).ok()?;
    let probe = hierarchies.memory.path.join("memory.limit_in_bytes");
    (probe.exists() && rustix::process::geteuid().is_root()).then_some(hierarchies)
}

/// Cgroups of this test, removed when it ends.
struct Scratch {
    dirs: Vec<PathBuf>,
}

impl Scratch {
    fn make(hierarchies: &Hierarchies, name: &str, count: usize, limit: u64) -> Option<Self> {
        let root = hierarchies
            .memory
            .path
            .join(format!("oomprobe-{name}-{}", std::process::id()));
        fs::create_dir(&root).ok()?;
        let mut scratch = Self {
            dirs: vec![root.clone()],
        };
        for index in 0..count {
            let dir = root.join(format!("{index}"));
            fs::create_dir(&dir).unwrap();
            scratch.dirs.push(dir.clone());
            fs::write(dir.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
        }
        Some(scratch)
    }

    fn path(&self, hierarchies: &Hierarchies, index: usize) -> Vec<u8> {
        let below = self.dirs[index].strip_prefix(&hierarchies.memory.path);
        look::rooted(&hierarchies.memory, below.unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for dir in self.dirs.iter().rev() {
            if let Err(error) = fs::remove_dir(dir) {
                eprintln!("{}: {error}", dir.display());
            }
        }
    }
}

struct Hog(Child);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        // A `sleep` that it started ends by itself.
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// 32 MiB, a mebibyte each 100 ms, held in a variable of a shell.
const HOG: &str = "echo $$ > \"$0/cgroup.procs\"; \
    mib=$(head -c 1048576 /dev/zero | tr '\\0' x); held=; i=0; \
    while [ $i -lt 32 ]; do held=$held$mib; i=$((i + 1)); sleep 0.1; done; read _";

#[test]
fn a_hog_shows_in_the_record() {
    let Some(hierarchies) = real() else {
        eprintln!("skipped: no v1 memory hierarchy, or not root");
        return;
    };
    let Some(scratch) = Scratch::make(&hierarchies, "rec", 1, 256 << 20) else {
        eprintln!("skipped: no cgroup can be made");
        return;
    };
    in_runtime(|| {
        let mut pressure = Pressure::new(&hierarchies, Path::new("/proc")).unwrap();
        let path = scratch.path(&hierarchies, 1);
        assert!(pressure.series(&path).is_some(), "found by the walk");
        let hog = Command::new("sh")
            .arg("-c")
            .arg(HOG)
            .arg(&scratch.dirs[1])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let hog = Hog(hog);
        let started = Instant::now();
        let anon = |sample: &CgroupSample| sample.detail.map_or(0, |detail| detail.anon_bytes);
        let mut most_anon = 0;
        // As long as it takes on a busy machine.
        while most_anon < 32 << 20 && started.elapsed() < Duration::from_secs(120) {
            let now = clock::boot_ns();
            let tick = pressure.tick(now);
            let looks = tick.looks.iter().filter(|look| *look.path == *path);
            most_anon = looks
                .map(|look| anon(&look.sample))
                .fold(most_anon, u64::max);
            std::thread::sleep(pressure.due_in(clock::boot_ns()));
        }
        assert!(most_anon >= 32 << 20, "{most_anon}");
        let (series, settings) = pressure.series(&path).unwrap();
        assert_eq!(settings.max_bytes, Some(256 << 20));
        assert!(series.first().unwrap().usage_bytes < 16 << 20);
        assert!(
            series
                .iter()
                .any(|s| (4 << 20..30 << 20).contains(&s.usage_bytes))
        );
        assert!(series.last().unwrap().usage_bytes >= 32 << 20);
        let kill = clock::boot_ns();
        let before = pressure.before(&path, kill, AtKill::default()).unwrap();
        assert!(before.growth_bytes_per_s.unwrap() > 0.0);
        assert_eq!(before.max_hits, Some(0));
        eprintln!(
            "{} samples, {:?} bytes/s",
            before.samples.len(),
            before.growth_bytes_per_s
        );

        drop(hog);
        drop(scratch);
        let tick = pressure.tick(clock::boot_ns() + 2 * SECOND);
        assert!(tick.gone.iter().any(|gone| **gone == *path));
        assert!(
            pressure.before(&path, kill, AtKill::default()).is_some(),
            "kept for a while"
        );
    });
}

/// Time this thread was on a processor, ns.
fn cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap()
}

/// Not a test of speed: prints what a second costs with 500 and 2,000 cgroups.
#[test]
#[ignore = "a measurement: run with --ignored --nocapture"]
fn cost_of_a_second() {
    let Some(hierarchies) = real() else {
        eprintln!("skipped: no v1 memory hierarchy, or not root");
        return;
    };
    in_runtime(|| {
        for count in [500, 2_000] {
            let scratch = Scratch::make(&hierarchies, "cost", count, 64 << 20).unwrap();
            let began = cpu_ns();
            let mut pressure = Pressure::new(&hierarchies, Path::new("/proc")).unwrap();
            let start_us = (cpu_ns() - began) / 1000;
            let mut now = clock::boot_ns();
            let mut measure = |what: &str, hits: usize, pressure: &mut Pressure| {
                let (mut ticks, mut looks) = (0, 0);
                let end = now + 60 * SECOND;
                let began = cpu_ns();
                let mut next_hits = now;
                while now < end {
                    if now >= next_hits {
                        for index in 1..=hits {
                            pressure.limit_hit(&scratch.path(&hierarchies, index), now);
                        }
                        next_hits += 5 * SECOND;
                    }
                    looks += pressure.tick(now).looks.len();
                    ticks += 1;
                    now += u64::try_from(pressure.due_in(now).as_nanos()).unwrap();
                }
                let us = (cpu_ns() - began) / 1000 / 60;
                eprintln!(
                    "{count} cgroups, {what}: {us} us of CPU per second, {looks} looks and \
                     {ticks} ticks in 60 s, {} KiB of records",
                    pressure.bytes() >> 10
                );
            };
            eprintln!("{count} cgroups, start: {start_us} us");
            measure("idle", 0, &mut pressure);
            measure("1 at its limit", 1, &mut pressure);
            measure("64 at their limit", 64, &mut pressure);
        }
    });
}

#[test]
fn what_hooks_counted_of_a_removed_cgroup_is_given_up_even_if_nobody_watched_it() {
    in_runtime(|| {
        let fake = Fake::new();
        let mut pressure = fake.open();
        for id in 0..=MAX_WATCHED {
            let path = format!("/run/{id}");
            pressure.totals().hits(path.as_bytes(), LimitEvent::Max, 1);
            pressure.removed(path.as_bytes());
        }
        fake.put("/a.service", 1, Some(1 << 30), 0);
        pressure.created(b"/a.service", 1);
        let stalls = (StallKind::DirectReclaim, 7, 7_000);
        let (kind, count, total_ns) = stalls;
        pressure
            .totals()
            .stalls(Some(b"/a.service"), kind, count, total_ns);
        let all = pressure.metrics();
        let own = all.iter().find(|series| series.cgroup.is_some()).unwrap();
        let stalls = own.points.iter().find(|p| *p.metric == metrics::STALLS);
        assert_eq!(stalls.map(|point| point.value), Some(7.0));
    });
}

#[test]
fn those_left_out_hide_no_failed_looks() {
    let before = Shortfall {
        left_out: 100,
        failed_looks: 3,
        ..Shortfall::default()
    };
    let now = Shortfall {
        left_out: 0,
        failed_looks: 5,
        ..Shortfall::default()
    };
    assert_eq!(now.more_than(&before), 2);
    assert_eq!(before.more_than(&now), 100);
}

#[test]
fn the_least_that_was_available_between_two_times() {
    in_runtime(|| {
        let mut pressure = Fake::new().open();
        pressure.node = (1..)
            .zip([Some(50), Some(30), None, Some(40), Some(90)])
            .map(|(second, available_bytes)| NodeSample {
                boot_ns: second * SECOND,
                available_bytes,
                ..NodeSample::default()
            })
            .collect();
        for (from, to, least) in [
            (1, 4, Some(30)),
            (3, 4, Some(40)),
            (5, 9, Some(90)),
            (3, 3, None),
            (6, 9, None),
        ] {
            let found = pressure.least_available_bytes(from * SECOND..=to * SECOND);
            assert_eq!(found, least, "{from} {to}");
        }
    });
}
