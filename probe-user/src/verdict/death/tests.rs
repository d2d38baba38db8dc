use super::{EarlierOom, Facts, NodeState, OomPart, process_death};
use crate::event::{
    Confidence, Container, DeathCause as C, Process, ProcessDeath, RuntimeStatus, Sender, Signal,
    StopRequest, Via,
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

fn asked(mut death: ProcessDeath, killed_after_ms: Option<u64>) -> ProcessDeath {
    death.stop_request = Some(StopRequest {
        signal: Signal::of(15),
        sender: sender("runc", Via::Kill),
        took_ms: 30_000,
        killed_after_ms,
    });
    death
}

fn sandbox(mut death: ProcessDeath, stopped: bool) -> ProcessDeath {
    death.runtime = Some(RuntimeStatus {
        sandbox_stopped: Some(stopped),
        ..RuntimeStatus::default()
    });
    death
}

fn verdict(death: &ProcessDeath, change: impl FnOnce(&mut Facts<'_>)) -> (C, Confidence) {
    let process = Process {
        pid: Some(42),
        ..Process::default()
    };
    let mut facts = Facts {
        process: &process,
        k8s: None,
        container: None,
        death,
        oom: None,
        earlier_oom: None,
        before: None,
        node: NodeState::default(),
    };
    change(&mut facts);
    let verdict = process_death(&facts);
    (verdict.cause, verdict.confidence)
}

#[test]
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
        (kill("app", Via::OomKiller), C::OomKill, Medium),
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
    for (stopped, available, cause) in [
        (true, 99, C::Eviction),
        (true, 100, C::RuntimeStop),
        (false, 99, C::LivenessKill),
    ] {
        let found = verdict(&sandbox(death.clone(), stopped), |facts| {
            facts.node.available_bytes = Some(available);
            facts.node.eviction_threshold_bytes = Some(100);
        });
        assert_eq!(found.0, cause, "{stopped} {available}");
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
            before: None,
            node: NodeState::default(),
        };
        let summary = process_death(&facts).summary;
        assert_eq!(summary.contains("after an OOM kill"), is_told, "{summary}");
    }
}
