use std::sync::LazyLock;

use super::{EarlierOom, Facts, FailedExec, NodeState, OomPart, process_death};
use crate::event::{
    Before, Cgroup, Confidence, Container, CpuThrottled, DeathCause as C, DeathVerdict, Fault, K8s,
    K8sContainer, Process, ProcessDeath, ProcessRole, RuntimeStatus, Sender, Signal, StopRequest,
    Via,
};

fn sender(comm: &str, via: Via) -> Sender {
    Sender {
        via,
        process: Some(Process {
            pid: Some(77),
            uid: Some(0),
            comm: Some(comm.to_owned()),
            ..Process::default()
        }),
        cgroup: Some(Cgroup {
            path: Some("/system.slice/some.service".to_owned()),
            ..Cgroup::default()
        }),
        ..Sender::default()
    }
}

fn by(signal: u32, sender: Option<Sender>) -> ProcessDeath {
    ProcessDeath {
        exit_code: 128 + signal,
        signal: Some(Signal::of(signal)),
        sender,
        ..ProcessDeath::default()
    }
}

fn exit(code: u32) -> ProcessDeath {
    ProcessDeath {
        exit_code: code,
        ..ProcessDeath::default()
    }
}

fn asked(mut death: ProcessDeath, killed_after_ms: Option<u64>) -> ProcessDeath {
    death.stop_request = Some(StopRequest {
        signal: Signal::of(15),
        sender: sender("runc", Via::Kill),
        siblings_too: None,
        took_ms: 30_000,
        killed_after_ms,
    });
    death
}

fn sandbox(mut death: ProcessDeath, stopped: bool) -> ProcessDeath {
    death.role = Some(ProcessRole::Init);
    death.runtime = Some(RuntimeStatus {
        sandbox_stopped: Some(stopped),
        ..RuntimeStatus::default()
    });
    death
}

static VICTIM: LazyLock<Process> = LazyLock::new(|| Process {
    pid: Some(42),
    ..Process::default()
});

fn verdict<'a>(death: &'a ProcessDeath, change: impl FnOnce(&mut Facts<'a>)) -> (C, Confidence) {
    let verdict = explained(death, change);
    (verdict.cause, verdict.confidence)
}

fn explained<'a>(death: &'a ProcessDeath, change: impl FnOnce(&mut Facts<'a>)) -> DeathVerdict {
    let mut facts = Facts {
        process: &VICTIM,
        k8s: None,
        container: None,
        death,
        oom: None,
        earlier_oom: None,
        failed_exec: None,
        node: NodeState::default(),
    };
    change(&mut facts);
    process_death(&facts)
}

#[test]
#[expect(clippy::large_stack_arrays, reason = "a table")]
fn every_cause_is_told_from_its_evidence() {
    use Confidence::{High, Low, Medium};

    let kill = |comm, via| by(9, Some(sender(comm, via)));
    let mut in_container = sender("runc", Via::Kill);
    in_container.container = Some(Container::default());
    for (death, cause, confidence) in [
        (by(9, None), C::Unknown, Low),
        (kill("runc", Via::Unknown), C::Unknown, Low),
        (kill("runc", Via::Kill), C::RuntimeStop, Medium),
        (kill("runc", Via::CgroupKill), C::RuntimeStop, Medium),
        (
            asked(kill("runc", Via::Kill), Some(30_000)),
            C::RuntimeStopGraceExpired,
            High,
        ),
        (
            asked(by(15, Some(sender("crun", Via::Kill))), None),
            C::RuntimeStop,
            High,
        ),
        (asked(ProcessDeath::default(), None), C::RuntimeStop, High),
        (
            sandbox(kill("runc", Via::Kill), false),
            C::LivenessKill,
            Medium,
        ),
        (kill("systemd-oomd", Via::Kill), C::UserspaceOomKiller, High),
        (kill("bash", Via::CgroupKill), C::CgroupKill, High),
        (kill("bash", Via::Kill), C::KilledByProcess, High),
        (by(9, Some(in_container)), C::KilledByProcess, High),
        (by(11, Some(sender("app", Via::Fault))), C::Crash, High),
        (by(11, None), C::Crash, Medium),
        (
            by(11, Some(sender("bash", Via::Kill))),
            C::KilledByProcess,
            High,
        ),
        (by(31, Some(sender("app", Via::Seccomp))), C::Seccomp, High),
        (
            by(24, Some(sender("app", Via::ResourceLimit))),
            C::ResourceLimit,
            High,
        ),
        (kill("app", Via::ParentDeath), C::InitDied, High),
        (kill("app", Via::PidNamespace), C::InitDied, High),
        (kill("app", Via::ResourceLimit), C::ResourceLimit, Medium),
        (
            ProcessDeath {
                exit_code: 137,
                ..ProcessDeath::default()
            },
            C::AppExit,
            High,
        ),
    ] {
        assert_eq!(verdict(&death, |_| ()), (cause, confidence), "{death:?}");
    }
}

#[test]
fn an_oom_victim_is_one_whoever_else_signalled_it() {
    let death = by(9, Some(sender("runc", Via::Kill)));
    for (part, cause) in [
        (OomPart::Chosen, C::OomKill),
        (OomPart::TakenAlong, C::OomGroup),
    ] {
        let found = verdict(&death, |facts| facts.oom = Some(part));
        assert_eq!(found, (cause, Confidence::High));
    }
}

#[test]
fn an_eviction_needs_a_stopped_pod_and_a_node_below_the_threshold() {
    let death = by(9, Some(sender("runc", Via::Kill)));
    for (stopped, siblings_too, available, cause) in [
        (true, None, 99, C::Eviction),
        (true, None, 100, C::RuntimeStop),
        (false, None, 99, C::LivenessKill),
        (false, Some(false), 99, C::LivenessKill),
        // The sandbox goes last, and another container takes its time.
        (false, Some(true), 99, C::Eviction),
        (false, Some(true), 100, C::RuntimeStop),
    ] {
        let mut death = sandbox(death.clone(), stopped);
        if siblings_too.is_some() {
            death = asked(death, None);
        }
        if let Some(request) = &mut death.stop_request {
            request.siblings_too = siblings_too;
        }
        let found = verdict(&death, |facts| {
            facts.node.available_bytes = Some(available);
            facts.node.eviction_threshold_bytes = Some(100);
        });
        assert_eq!(found.0, cause, "{stopped} {siblings_too:?} {available}");
    }
}

#[test]
fn an_exit_right_after_an_oom_kill_says_so() {
    let process = Process::default();
    let death = ProcessDeath {
        exit_code: 137,
        ..ProcessDeath::default()
    };
    for (ms_before, is_told) in [(40, true), (60_000, false)] {
        let oom = EarlierOom {
            incident: "i1".into(),
            comm: "worker".into(),
            ms_before,
        };
        let facts = Facts {
            process: &process,
            k8s: None,
            container: None,
            death: &death,
            oom: None,
            earlier_oom: Some(&oom),
            failed_exec: None,
            node: NodeState::default(),
        };
        let summary = process_death(&facts).summary;
        assert_eq!(summary.contains("after an OOM kill"), is_told, "{summary}");
    }
}

#[test]
fn the_kernel_names_no_sender() {
    use Confidence::{High, Low, Medium};

    for (signal, cause, confidence) in [
        (13, C::OwnSignal, High),
        (14, C::OwnSignal, High),
        (1, C::OwnSignal, High),
        (3, C::OwnSignal, High),
        (40, C::OwnSignal, Medium),
        (9, C::Unknown, Low),
        (11, C::Crash, High),
    ] {
        let found = explained(&by(signal, Some(sender("bystander", Via::Kernel))), |_| ());
        assert_eq!(
            (found.cause, found.confidence),
            (cause, confidence),
            "{signal}"
        );
        assert!(!format!("{found:?}").contains("bystander"), "{found:?}");
    }
}

#[test]
fn a_signal_to_itself_is_told_from_a_crash() {
    for (signal, cause) in [(6, C::Crash), (3, C::OwnSignal), (9, C::OwnSignal)] {
        let mut own = sender("app", Via::Tkill);
        own.process.as_mut().unwrap().pid = Some(42);
        assert_eq!(verdict(&by(signal, Some(own)), |_| ()).0, cause, "{signal}");
    }
    assert_eq!(verdict(&by(3, None), |_| ()).0, C::Unknown);
}

#[test]
fn a_runtime_is_believed_for_who_it_is() {
    use Confidence::{High, Medium};

    let with = |comm: &str, uid, path: &str| {
        let mut sender = sender(comm, Via::Kill);
        sender.process.as_mut().unwrap().uid = Some(uid);
        sender.cgroup = Some(Cgroup {
            id: None,
            path: Some(path.to_owned()),
        });
        sender
    };
    for (comm, uid, path, cause, confidence) in [
        (
            "runc",
            0,
            "/system.slice/containerd.service",
            C::RuntimeStopGraceExpired,
            High,
        ),
        (
            "podman",
            1000,
            "/user.slice/a",
            C::RuntimeStopGraceExpired,
            Medium,
        ),
        (
            "systemd-oomd",
            998,
            "/system.slice/systemd-oomd.service",
            C::UserspaceOomKiller,
            High,
        ),
        (
            "earlyoom",
            1000,
            "/user.slice/a",
            C::UserspaceOomKiller,
            Medium,
        ),
        ("bash", 0, "/user.slice/a", C::KilledByProcess, High),
    ] {
        let death = asked(by(9, Some(with(comm, uid, path))), Some(30_000));
        assert_eq!(verdict(&death, |_| ()), (cause, confidence), "{comm}");
    }
}

#[test]
fn a_grace_period_expires_only_after_the_runtimes_own_request() {
    for (asked_by, after_ms, cause) in [
        ("runc", 30_000, C::RuntimeStopGraceExpired),
        ("runc", 1_000, C::RuntimeStopGraceExpired),
        ("runc", 400, C::RuntimeStop),
        ("bash", 30_000, C::RuntimeStop),
    ] {
        let mut death = asked(by(9, Some(sender("runc", Via::Kill))), Some(after_ms));
        death.stop_request.as_mut().unwrap().sender = sender(asked_by, Via::Kill);
        assert_eq!(verdict(&death, |_| ()).0, cause, "{asked_by} {after_ms}");
    }
}

#[test]
fn an_exit_on_request_follows_the_rule_of_a_kill() {
    for (code, stopped, cause) in [
        (0, false, C::LivenessKill),
        (143, true, C::Eviction),
        (1, false, C::LivenessKill),
    ] {
        let death = sandbox(asked(exit(code), None), stopped);
        let found = explained(&death, |facts| {
            facts.node.available_bytes = Some(1);
            facts.node.eviction_threshold_bytes = Some(100);
        });
        assert_eq!(found.cause, cause, "{code}");
        assert!(
            format!("{:?}", found.evidence).contains("in time"),
            "{found:?}"
        );
    }
    // An executed process is not the container.
    let mut probe = sandbox(by(9, Some(sender("runc", Via::Kill))), false);
    probe.role = Some(ProcessRole::Exec);
    assert_eq!(verdict(&probe, |_| ()).0, C::RuntimeStop);
}

#[test]
fn an_old_request_is_no_reason_for_an_exit() {
    for (signal, took_ms, cause) in [
        (15, 600_000, C::RuntimeStop),
        (15, 86_400_000, C::AppExit),
        // A thread dump.
        (3, 600_000, C::AppExit),
        (3, 5_000, C::RuntimeStop),
    ] {
        let mut death = asked(exit(1), None);
        if let Some(request) = &mut death.stop_request {
            request.signal = Signal::of(signal);
            request.took_ms = took_ms;
        }
        assert_eq!(verdict(&death, |_| ()).0, cause, "{signal} {took_ms}");
    }
}

#[test]
fn a_pod_that_ends_is_told_from_a_probe_by_its_other_containers() {
    for (siblings_too, cause) in [
        (None, C::LivenessKill),
        (Some(false), C::LivenessKill),
        (Some(true), C::RuntimeStopGraceExpired),
    ] {
        let killed = by(9, Some(sender("runc", Via::Kill)));
        let mut death = sandbox(asked(killed, Some(30_000)), false);
        if let Some(request) = &mut death.stop_request {
            request.siblings_too = siblings_too;
        }
        assert_eq!(verdict(&death, |_| ()).0, cause, "{siblings_too:?}");
    }
}

#[test]
fn a_liveness_kill_cites_a_command_that_had_just_failed() {
    let killed = by(9, Some(sender("runc", Via::Kill)));
    for (ms_before, was_late, stopped, cited) in [
        (200, true, false, Some("for taking too long 200 ms before")),
        (200, false, false, Some("exit code 7 200 ms before")),
        (60_000, true, false, None),
        // A pod that ends is none that a probe restarts.
        (200, true, true, None),
    ] {
        let failed = FailedExec {
            comm: "curl".to_owned(),
            exit_code: 7,
            was_late,
            ms_before,
        };
        let death = sandbox(asked(killed.clone(), Some(30_000)), stopped);
        let found = explained(&death, |facts| facts.failed_exec = Some(&failed));
        let is_cited = found.summary.contains("had just failed");
        assert_eq!(is_cited, cited.is_some(), "{found:?}");
        let evidence = found.evidence.join("; ");
        let is_told = cited.is_none_or(|cited| evidence.contains(cited));
        assert!(is_told, "{evidence}");
    }
}

#[test]
fn a_liveness_kill_after_a_stall_cites_it() {
    let death = sandbox(
        asked(by(9, Some(sender("runc", Via::Kill))), Some(30_000)),
        false,
    );
    for (stall_ms, is_cited) in [(20_000.0, true), (100.0, false)] {
        let before = Before {
            stall_ms: Some(stall_ms),
            span_ms: 60_000.0,
            max_hits: Some(7),
            ..Before::default()
        };
        let death = ProcessDeath {
            before: Some(before),
            ..death.clone()
        };
        let found = explained(&death, |_| ());
        assert_eq!(found.summary.contains("stood still"), is_cited, "{found:?}");
        assert!(format!("{:?}", found.evidence).contains("grace period was over"));
    }
}

#[test]
fn a_liveness_kill_under_a_cpu_limit_cites_that() {
    let killed = by(9, Some(sender("runc", Via::Kill)));
    let death = sandbox(asked(killed, Some(30_000)), false);
    for (throttled_periods, is_cited) in [(90, true), (9, false)] {
        let death = ProcessDeath {
            before: Some(Before {
                cpu_throttled: Some(CpuThrottled {
                    throttled_periods,
                    throttled_ratio: 0.9,
                    throttled_ms: 8_000.0,
                    window_ms: 12_000.0,
                }),
                ..Before::default()
            }),
            ..death.clone()
        };
        let found = explained(&death, |_| ());
        assert_eq!(found.summary.contains("stood still"), is_cited, "{found:?}");
        let evidence = format!("{:?}", found.evidence);
        assert_eq!(evidence.contains("CPU limit stopped it in 90 %"), is_cited);
    }
}

#[test]
fn a_crash_tells_where() {
    let at = |address: &str| {
        let mut death = by(11, Some(sender("app", Via::Fault)));
        death.fault = Some(Fault {
            address: Some(address.to_owned()),
            instruction: Some("0x7f00".to_owned()),
            mapping: Some("libc.so.6+0x28000".to_owned()),
            ..Fault::default()
        });
        explained(&death, |_| ()).evidence.join("; ")
    };
    assert!(at("0x10").contains("null pointer"));
    let wild = at("0xdeadbeef");
    assert!(
        !wild.contains("null pointer") && wild.contains("libc.so.6+0x28000"),
        "{wild}"
    );
}

#[test]
fn sigsys_of_a_filter_is_seccomp_however_it_came() {
    let mut death = by(31, None);
    assert_eq!(verdict(&death, |_| ()).0, C::Unknown);
    death.fault = Some(Fault {
        syscall: Some(165),
        ..Fault::default()
    });
    assert_eq!(verdict(&death, |_| ()).0, C::Seccomp);
}

#[test]
fn what_kubernetes_will_say_and_whether_it_is_true() {
    let k8s = K8s::default();
    let oom = EarlierOom {
        incident: "i1".into(),
        comm: "worker".into(),
        ms_before: 60_000,
    };
    for (reason, is_oom, earlier, says, wrong) in [
        (None, true, false, Some(true), false),
        (None, false, false, Some(false), false),
        (None, false, true, Some(true), true),
        (Some("OOMKilled"), true, false, Some(true), false),
        (Some("OOMKilled"), false, false, Some(true), true),
        (Some("OOMKilled"), false, true, Some(true), true),
        (Some("Error"), true, false, Some(false), true),
        (Some("Error"), false, true, Some(false), false),
    ] {
        let mut death = by(11, Some(sender("app", Via::Fault)));
        death.role = Some(ProcessRole::Init);
        death.runtime = reason.map(|reason: &str| RuntimeStatus {
            exit_code: Some(139),
            reason: Some(reason.to_owned()),
            ..RuntimeStatus::default()
        });
        let report = |death: &ProcessDeath| {
            explained(death, |facts| {
                facts.k8s = Some(&k8s);
                facts.oom = is_oom.then_some(OomPart::Chosen);
                facts.earlier_oom = earlier.then_some(&oom);
            })
            .kubernetes_will_report
        };
        let found = report(&death).unwrap();
        assert_eq!(
            (found.oom_killed, found.wrong),
            (says, wrong),
            "{reason:?} {found:?}"
        );
        death.role = Some(ProcessRole::Child);
        assert_eq!(report(&death), None);
    }
}

#[test]
fn steps_quote_names_and_leave_out_what_is_not_known() {
    let mut k8s = K8s::default();
    k8s.pod.name = Some("cart; reboot".to_owned());
    k8s.namespace.name = Some("shop".to_owned());
    k8s.container = Some(K8sContainer {
        name: Some("app".to_owned()),
        ..K8sContainer::default()
    });
    let mut death = by(11, Some(sender("app", Via::Fault)));
    death.core_dumped = true;
    death.role = Some(ProcessRole::Init);
    let steps = explained(&death, |facts| facts.k8s = Some(&k8s)).next_steps;
    assert_eq!(
        &steps[..2],
        [
            "kubectl -n shop logs 'cart; reboot' -c app --previous --tail=50",
            "coredumpctl info 42"
        ]
    );
    let none = explained(&ProcessDeath::default(), |facts| facts.k8s = Some(&k8s));
    assert_eq!(none.next_steps, Vec::<String>::new());
    let bare = explained(&death, |_| ()).next_steps;
    assert!(
        !bare.iter().any(|step| step.contains("kubectl")),
        "{bare:?}"
    );
}
