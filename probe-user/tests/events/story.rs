//! The story of one pod, told from events as a node would write them.

use oomprobe::cli::schema;
use oomprobe::event::{
    Before, Body, Cause, Cgroup, Confidence, DeathCause, DeathVerdict, Event, Finding, FindingId,
    Gap, Host, K8s, KubernetesReport, LeakSuspect, Limit, LimitLevel, Loss, MemcgLimit, OomKill,
    OomOutcome, Outcome, Pressure, ProbeStatus, ProcessDeath, ProcessRole, Qos, ReclaimStall, Role,
    RuntimeStatus, Scope, Signal, StallKind, Time, Verdict, Victim, is_hostile,
};
use oomprobe::sink::terminal::story::render;
use oomprobe::story::{Error, HeldUp, MOST_DEATHS, Query, Story, tell};
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::committed::assert_committed;
use crate::samples::{self, MIB};

const START: u64 = 1_763_690_400;
const POD: &str = "cart-7d9f8b6c5-x2x8q";

fn at(second: u64) -> Time {
    Time::from_unix_ns((START + second) * 1_000_000_000)
}

/// A capture as it is written: numbers without holes, one node.
#[derive(Default)]
struct Capture(Vec<Event>);

impl Capture {
    fn push(&mut self, second: u64, body: Body) -> &mut Event {
        let host = Host {
            name: Some("node-7".into()),
            boot_id: Some("0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0".into()),
        };
        let seq = self.0.len() as u64;
        let time = at(second);
        self.0
            .push(Event::new(time, second * 1_000_000_000, seq, host, body));
        self.0.last_mut().unwrap()
    }

    /// About an instance of the container `app`.
    fn about(&mut self, second: u64, instance: u32, body: Body) -> &mut Event {
        let event = self.push(second, body);
        event.k8s = Some(app(instance));
        event.container = Some(samples::container(id(instance)));
        event
    }

    /// The kill of the container's first process, started at `started`, and its outcome.
    fn oom(&mut self, second: u64, instance: u32, started: u64, growth: f64) {
        let kill = kill(instance, started, growth);
        let incident = kill.incident.clone();
        self.push(second, Body::OomKill(Box::new(kill)));
        self.push(
            second,
            Body::OomOutcome(OomOutcome {
                incident,
                container_survived: Some(false),
                ..OomOutcome::default()
            }),
        );
    }

    /// The `process_death` of the container's first process.
    fn death(&mut self, second: u64, instance: u32, started: u64, death: ProcessDeath) {
        let mut process = samples::process("node", 4000 + instance, 510 * MIB, 936);
        process.start_time = Some(at(started));
        let event = self.about(second, instance, Body::ProcessDeath(Box::new(death)));
        event.process = Some(process);
    }

    fn tell(&self, query: &Query) -> Result<Story, Error> {
        tell(self.0.iter().cloned(), query)
    }

    fn story(&self) -> Story {
        self.tell(&query()).unwrap()
    }
}

fn query() -> Query {
    Query {
        pod: POD.into(),
        ..Query::default()
    }
}

fn app(instance: u32) -> K8s {
    let mut k8s = samples::k8s(Some("app"), Qos::Burstable);
    k8s.container.as_mut().unwrap().restart_count = Some(instance);
    k8s
}

fn id(instance: u32) -> char {
    char::from_digit(instance % 16, 16).unwrap()
}

fn incident(instance: u32) -> String {
    format!("0b1c2d3e-{instance}")
}

fn kill(instance: u32, started: u64, growth: f64) -> OomKill {
    let mut process = samples::process("node", 4000 + instance, 510 * MIB, 936);
    process.start_time = Some(at(started));
    OomKill {
        incident: incident(instance),
        scope: Scope::Container,
        limit: Some(Limit {
            level: LimitLevel {
                limit_bytes: Some(512 * MIB),
                ..LimitLevel::default()
            },
            k8s: Some(app(instance)),
            ..Limit::default()
        }),
        victims: vec![Victim {
            process,
            k8s: Some(app(instance)),
            container: Some(samples::container(id(instance))),
            container_init: Some(true),
            ..Victim::default()
        }],
        before: Some(Before {
            growth_bytes_per_s: Some(growth),
            max_hits: Some(18),
            stall_ms: Some(420.0),
            ..Before::default()
        }),
        verdict: Verdict {
            cause: Cause::Leak,
            confidence: Confidence::Medium,
            summary: format!(
                "node (pid {}) killed: its container reached its limit",
                4000 + instance
            ),
            evidence: vec!["512 MiB used of 512 MiB".into()],
            next_steps: vec![format!("kubectl -n shop describe pod {POD}")],
            kubernetes_will_report: Some(KubernetesReport {
                oom_killed: Some(true),
                wrong: false,
                why: "the container's first process was killed".into(),
            }),
        },
        ..OomKill::default()
    }
}

fn killed(cause: DeathCause, exit_code: u32, signal: Option<u32>, summary: &str) -> ProcessDeath {
    ProcessDeath {
        exit_code,
        signal: signal.map(Signal::of),
        role: Some(ProcessRole::Init),
        runtime: Some(RuntimeStatus {
            exit_code: Some(137),
            reason: Some("Error".into()),
            ..RuntimeStatus::default()
        }),
        verdict: DeathVerdict {
            cause,
            confidence: Confidence::High,
            summary: summary.into(),
            next_steps: vec![format!("kubectl -n shop logs {POD} -c app --previous")],
            ..DeathVerdict::default()
        },
        ..ProcessDeath::default()
    }
}

fn of_incident(instance: u32) -> ProcessDeath {
    ProcessDeath {
        incident: Some(incident(instance)),
        ..killed(DeathCause::OomKill, 137, Some(9), "the OOM killer took it")
    }
}

/// Four OOM kills and a liveness kill while the container waits for memory.
fn five_restarts() -> Capture {
    const RATE: f64 = 3.0 * 1_048_576.0;
    let mut capture = Capture::default();
    capture.push(
        0,
        Body::ProbeStatus(ProbeStatus {
            attached: true,
            ..ProbeStatus::default()
        }),
    );
    capture.about(
        100,
        0,
        Body::LeakSuspect(LeakSuspect {
            growth_bytes_per_s: RATE,
            summary: "anonymous memory of shop/cart/app grows 3 MiB/s".into(),
            ..LeakSuspect::default()
        }),
    );
    capture.oom(150, 0, 10, RATE);
    capture.death(150, 0, 10, of_incident(0));
    // A death may be written before its kill is complete.
    capture.death(330, 1, 161, of_incident(1));
    capture.oom(330, 1, 161, RATE + 1024.0);
    capture.oom(500, 2, 351, RATE - 1024.0);
    capture.about(
        700,
        3,
        Body::ReclaimStall(ReclaimStall {
            stall: StallKind::MemcgReclaim,
            new: 900,
            new_ns: 22_000_000_000,
            ..ReclaimStall::default()
        }),
    );
    capture.about(
        705,
        3,
        Body::Pressure(Pressure {
            resource: "memory".into(),
            some_ratio: Some(0.8),
            findings: vec![Finding {
                id: FindingId::Thrashing,
                summary: "shop/cart/app waits 80 % of the time for pages it threw out".into(),
                ..Finding::default()
            }],
            ..Pressure::default()
        }),
    );
    capture.about(
        706,
        3,
        Body::MemcgLimit(MemcgLimit {
            new: 2000,
            ..MemcgLimit::default()
        }),
    );
    let mut liveness = killed(
        DeathCause::LivenessKill,
        137,
        Some(9),
        "the kubelet restarts app: its liveness probe failed",
    );
    liveness.verdict.kubernetes_will_report = Some(KubernetesReport {
        oom_killed: Some(true),
        wrong: true,
        why: "an earlier kill of a child is still counted".into(),
    });
    capture.death(720, 3, 540, liveness);
    capture.push(
        800,
        Body::Loss(Loss {
            reason: "bulk_ring_full".into(),
            count: 7,
            total: 7,
            ring: None,
            hook: None,
        }),
    );
    capture.oom(870, 4, 745, RATE);
    capture
}

#[test]
fn five_restarts_with_mixed_causes() {
    let story = five_restarts().story();
    let times: Vec<_> = story.deaths.iter().map(|death| death.time).collect();
    assert_eq!(
        times,
        [150, 330, 500, 720, 870].map(at),
        "each death once, in order"
    );
    assert_eq!(
        story.pattern.summary,
        "5 deaths in 12 min: 4 × container OOM at 512 MiB growing 3 MiB/s, 1 × liveness kill \
         during reclaim stall. An instance lived for 2 min (median). What Kubernetes reports is \
         wrong for 1 of 5. The capture has holes: there may have been more.",
    );
    assert_eq!(story.pattern.next_steps.len(), 2);
    let container = &story.containers[0];
    assert_eq!((container.ends, container.restart_count), (5, Some(4)));
    let first = &story.deaths[0];
    assert_eq!(
        (first.role, first.exit_code),
        (Some(ProcessRole::Init), Some(137))
    );
    assert_eq!(
        first.runtime_reason.as_deref(),
        Some("Error"),
        "from its process_death"
    );
    assert_eq!(first.lead_up.said.len(), 1);
    assert_eq!(first.restarted_after_ms, None);
    let liveness = &story.deaths[3];
    assert_eq!(liveness.lead_up.held_up_by, Some(HeldUp::ReclaimStall));
    assert_eq!(liveness.lead_up.max_hits, Some(2000));
    assert_eq!(liveness.restarted_after_ms, Some(40_000));
    assert_eq!(
        story.deaths[4].lead_up.held_up_by, None,
        "what was before belongs to that one"
    );
    assert_committed(
        "probe-user/tests/events/golden/story.txt",
        &render(&story, false),
    );
}

#[test]
fn a_death_is_joined_with_its_kill_by_pid_and_start_where_it_has_no_incident() {
    let mut anonymous = of_incident(0);
    anonymous.incident = None;
    // (death at, started at, deaths told)
    for (second, started, told) in [(151, 10, 1), (151, 149, 2), (300, 10, 2)] {
        let mut capture = Capture::default();
        capture.oom(150, 0, 10, 1.0);
        capture.death(second, 0, started, anonymous.clone());
        assert_eq!(capture.story().deaths.len(), told, "{second} {started}");
    }
}

#[test]
fn victims_of_a_kill_that_is_not_in_the_capture_are_one_death() {
    let mut capture = Capture::default();
    let mut child = of_incident(0);
    child.role = Some(ProcessRole::Child);
    child.container_survived = Some(false);
    capture.death(150, 0, 10, child);
    capture.death(150, 0, 10, of_incident(0));
    let story = capture.story();
    let [death] = &story.deaths[..] else {
        panic!("{:?}", story.deaths);
    };
    assert_eq!((death.role, death.others), (Some(ProcessRole::Init), 1));
}

#[test]
fn those_that_go_with_their_containers_first_process_are_a_number() {
    let mut taken = killed(
        DeathCause::InitDied,
        137,
        Some(9),
        "its pid namespace ended",
    );
    taken.role = Some(ProcessRole::Child);
    taken.others = 3;
    let mut capture = Capture::default();
    capture.death(50, 0, 10, taken.clone());
    capture.death(
        50,
        0,
        10,
        killed(DeathCause::AppExit, 1, None, "it exited with code 1"),
    );
    capture.death(400, 1, 60, taken);
    let story = capture.story();
    let others: Vec<_> = story
        .deaths
        .iter()
        .map(|death| (death.cause, death.others))
        .collect();
    assert_eq!(
        others,
        [(DeathCause::AppExit, 4), (DeathCause::InitDied, 3)]
    );
}

#[test]
fn a_container_that_lives_on_has_not_ended() {
    let mut capture = Capture::default();
    let mut kill = kill(0, 10, 1.0);
    kill.victims[0].container_init = Some(false);
    capture.push(100, Body::OomKill(Box::new(kill)));
    let outcome = OomOutcome {
        incident: incident(0),
        container_survived: Some(true),
        late_victims: 2,
        ..OomOutcome::default()
    };
    capture.push(101, Body::OomOutcome(outcome));
    let story = capture.story();
    assert_eq!(
        (story.containers[0].ends, story.containers[0].survived),
        (0, 1)
    );
    assert_eq!(story.deaths[0].others, 2);
    assert!(
        story
            .pattern
            .summary
            .contains("whose containers were not seen to end"),
        "{}",
        story.pattern.summary
    );
}

#[test]
fn what_a_kill_said_of_kubernetes_falls_with_the_container() {
    for survived in [true, false] {
        let mut capture = Capture::default();
        let mut kill = kill(0, 10, 1.0);
        kill.victims[0].container_init = Some(false);
        capture.push(100, Body::OomKill(Box::new(kill)));
        let outcome = OomOutcome {
            incident: incident(0),
            container_survived: Some(survived),
            ..OomOutcome::default()
        };
        capture.push(101, Body::OomOutcome(outcome));
        let death = &capture.story().deaths[0];
        assert_eq!(death.container_ended, Some(!survived));
        assert_eq!(death.kubernetes_will_report.is_some(), survived);
    }
}

#[test]
fn what_pattern_words_say() {
    let rows = [
        (
            DeathCause::RuntimeStop,
            None,
            143,
            "1 death: stop by the runtime.",
        ),
        (
            DeathCause::RuntimeStopGraceExpired,
            Some(9),
            137,
            "1 death: kill after the grace period.",
        ),
        (
            DeathCause::Crash,
            Some(11),
            139,
            "1 death: crash (SIGSEGV).",
        ),
        (DeathCause::AppExit, None, 2, "1 death: exit with code 2."),
        (
            DeathCause::Unknown,
            Some(9),
            137,
            "1 death: death of unknown cause with code 137.",
        ),
        (
            DeathCause::KilledByProcess,
            Some(9),
            137,
            "1 death: kill by another process (SIGKILL).",
        ),
    ];
    for (cause, signal, code, summary) in rows {
        let mut capture = Capture::default();
        capture.death(50, 0, 10, killed(cause, code, signal, "x"));
        assert_eq!(capture.story().pattern.summary, summary);
    }
}

#[test]
fn what_held_it_up() {
    let stall = |stall, cgroup: Option<Cgroup>| {
        Body::ReclaimStall(ReclaimStall {
            stall,
            cgroup,
            new_ns: 2_000_000_000,
            ..ReclaimStall::default()
        })
    };
    let pressure = |resource: &str, ratio| {
        Body::Pressure(Pressure {
            resource: resource.into(),
            some_ratio: Some(ratio),
            ..Pressure::default()
        })
    };
    let rows = [
        (
            stall(StallKind::MemcgReclaim, None),
            true,
            Some(HeldUp::ReclaimStall),
        ),
        (
            stall(StallKind::HighThrottle, None),
            true,
            Some(HeldUp::MemoryThrottling),
        ),
        (
            stall(StallKind::DirectReclaim, None),
            false,
            Some(HeldUp::ReclaimStall),
        ),
        (
            stall(StallKind::DirectReclaim, Some(samples::cgroup(7, "/other"))),
            false,
            None,
        ),
        (pressure("cpu", 0.5), true, Some(HeldUp::CpuPressure)),
        (pressure("io", 0.5), false, Some(HeldUp::IoPressure)),
        (pressure("io", 0.01), false, None),
    ];
    for (body, is_its_own, held_up) in rows {
        for (second, held_up) in [(95, held_up), (20, None), (101, None)] {
            let mut capture = Capture::default();
            if is_its_own {
                capture.about(second, 0, body.clone());
            } else {
                capture.push(second, body.clone());
            }
            capture.death(
                100,
                0,
                5,
                killed(DeathCause::LivenessKill, 137, Some(9), "x"),
            );
            let found = capture.story().deaths[0].lead_up.held_up_by;
            assert_eq!(found, held_up, "{body:?} at {second}");
        }
    }
}

#[test]
fn an_oom_that_killed_nobody_is_no_death() {
    let mut capture = Capture::default();
    let mut nobody = kill(0, 10, 1.0);
    nobody.outcome = Outcome::NothingKillable;
    nobody.victims.clear();
    capture.push(90, Body::OomKill(Box::new(nobody)));
    capture.death(100, 0, 5, killed(DeathCause::AppExit, 1, None, "x"));
    let story = capture.story();
    assert_eq!(story.deaths.len(), 1);
    assert_eq!(story.deaths[0].lead_up.ooms_without_kill, 1);
}

#[test]
fn a_kill_counts_for_every_pod_that_has_a_victim() {
    let mut group = kill(0, 10, 1.0);
    let mut other = group.victims[0].clone();
    other.k8s.as_mut().unwrap().pod.name = Some("other".into());
    other.k8s.as_mut().unwrap().pod.uid = None;
    other.container = Some(samples::container('f'));
    group.victims[0].role = Role::Group;
    group.victims.insert(0, other);
    group.limit = None;
    group.scope = Scope::Node;
    let mut capture = Capture::default();
    capture.push(90, Body::OomKill(Box::new(group)));
    let story = capture.story();
    assert_eq!(
        (story.deaths.len(), story.deaths[0].cause),
        (1, DeathCause::OomGroup)
    );
    assert_eq!(story.pattern.summary, "1 death: node OOM growing 1 B/s.");
}

#[test]
fn since_counts_from_the_last_event() {
    let capture = five_restarts();
    let since = |seconds| Query {
        since: Some(std::time::Duration::from_secs(seconds)),
        ..query()
    };
    assert_eq!(capture.tell(&since(200)).unwrap().deaths.len(), 2);
    assert_eq!(capture.tell(&since(u64::MAX)).unwrap().deaths.len(), 5);
    let none = Capture::tell(&capture, &since(0)).unwrap();
    assert_eq!(
        (none.deaths.len(), none.holes.len()),
        (1, 0),
        "the last event itself is in it"
    );
}

#[test]
fn which_pod_and_container() {
    let mut capture = five_restarts();
    let mut other = app(0);
    other.pod.name = Some("other".into());
    other.pod.uid = Some("u2".into());
    let death = Body::ProcessDeath(Box::new(killed(DeathCause::AppExit, 1, None, "x")));
    capture.push(900, death.clone()).k8s = Some(other);
    let ask = |pod: &str, namespace: Option<&str>, container: Option<&str>| {
        let query = Query {
            pod: pod.into(),
            namespace: namespace.map(Into::into),
            container: container.map(Into::into),
            since: None,
        };
        capture.tell(&query).map(|story| story.deaths.len())
    };
    assert_eq!(ask("other", None, None), Ok(1));
    assert_eq!(ask("u2", None, None), Ok(1));
    assert_eq!(ask(POD, Some("shop"), Some("app")), Ok(5));
    assert_eq!(ask(POD, None, Some("3333")), Ok(1));
    let missing = ask(POD, Some("test"), None).unwrap_err().to_string();
    assert!(missing.contains("about pod test/cart-"), "{missing}");
    assert!(
        missing.contains(&format!("shop/{POD}, shop/other")),
        "{missing}"
    );
    assert!(ask(POD, None, Some("nobody")).is_err());
    let empty = tell([], &query()).unwrap_err().to_string();
    assert!(empty.contains("none is about any pod"), "{empty}");

    // The same name elsewhere must be told apart; a pod without a name is known by its UID.
    let mut nameless = app(5);
    nameless.pod.name = None;
    nameless.namespace.name = None;
    capture.push(910, death.clone()).k8s = Some(nameless);
    assert_eq!(capture.story().deaths.len(), 6);
    let mut elsewhere = app(0);
    elsewhere.namespace.name = Some("test".into());
    capture.push(920, death).k8s = Some(elsewhere);
    let error = capture.tell(&query()).unwrap_err();
    assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
}

#[test]
fn holes_are_said() {
    let mut capture = five_restarts();
    capture.push(
        880,
        Body::Gap(Gap {
            counter: "c".into(),
            expected: 3,
            seen: 1,
            missing: 2,
            since: None,
        }),
    );
    capture.push(
        890,
        Body::ProbeStatus(ProbeStatus {
            attached: true,
            ..ProbeStatus::default()
        }),
    );
    capture.0.remove(3);
    let holes: Vec<_> = capture
        .story()
        .holes
        .into_iter()
        .map(|hole| hole.what)
        .collect();
    assert_eq!(
        holes,
        [
            "events 3 to 3 of the run are not in the capture: lost, or filtered away",
            "7 records were lost (bulk_ring_full)",
            "2 of 3 that c counted were not seen",
            "oomprobe was started anew: 10 s before it were not looked at",
        ]
    );
}

#[test]
fn a_huge_capture_takes_bounded_room_and_says_what_it_left_out() {
    let mut first = five_restarts();
    first.0.truncate(1);
    let many = (0..100_000_u64).map(|index| {
        let mut one = Capture::default();
        if index % 2 == 0 {
            one.death(
                index,
                0,
                index,
                killed(DeathCause::AppExit, 1, None, "it exited"),
            );
        } else {
            one.about(
                index,
                0,
                Body::MemcgLimit(MemcgLimit {
                    new: 1,
                    ..MemcgLimit::default()
                }),
            );
        }
        let mut event = one.0.remove(0);
        event.seq = index;
        event
    });
    let story = tell(many, &query()).unwrap();
    assert_eq!(story.deaths.len(), MOST_DEATHS);
    assert_eq!(story.left_out, 50_000 - MOST_DEATHS as u64);
    assert_eq!(story.span.events, 100_000);
    assert!(
        story
            .pattern
            .summary
            .contains("40000 older deaths are left out")
    );
    let text = render(&story, false);
    assert!(text.lines().count() < 300, "{}", text.lines().count());
}

#[test]
fn hostile_names_stay_text() {
    let evil = "a\x1b[2J\n\u{202e}$(reboot)".repeat(20);
    let mut capture = five_restarts();
    for event in &mut capture.0 {
        if let Body::ProcessDeath(death) = &mut event.body {
            death.verdict.summary.clone_from(&evil);
            death.verdict.evidence = vec![evil.clone(); 3];
            death.verdict.next_steps = vec![evil.clone()];
        }
        if let Body::Loss(loss) = &mut event.body {
            loss.reason.clone_from(&evil);
        }
        if let Some(process) = &mut event.process {
            process.comm = Some(evil.clone());
        }
        if let Some(container) = event.k8s.as_mut().and_then(|k8s| k8s.container.as_mut()) {
            container.name = Some(evil.clone());
        }
        event.host.name = Some(evil.clone());
    }
    let text = render(&capture.story(), false);
    assert!(!text.chars().any(|c| c != '\n' && is_hostile(c)), "{text}");
    for line in text.lines() {
        assert!(line.width() <= 100, "{} columns: {line}", line.width());
    }
}

#[test]
fn a_story_is_one_object_that_its_schema_describes() {
    let story = five_restarts().story();
    let json = serde_json::to_value(&story).unwrap();
    assert_eq!(
        (&json["schema"], &json["kind"]),
        (&"oomprobe/1".into(), &"story".into())
    );
    assert_eq!(
        serde_json::from_value::<Story>(json.clone()).unwrap(),
        story
    );
    let schema: Value = serde_json::from_str(&schema::story_json()).unwrap();
    let death = &schema["$defs"]["Death"]["properties"];
    for (object, properties) in [(&json, &schema["properties"]), (&json["deaths"][0], death)] {
        let mut names: Vec<_> = object.as_object().unwrap().keys().collect();
        let mut described: Vec<_> = properties.as_object().unwrap().keys().collect();
        names.sort();
        described.sort();
        assert_eq!(names, described);
    }
}
