//! Deaths, each with the verdict that its evidence leads to.

use oomprobe::event::{
    Before, Body, Event, Fault, Process, ProcessDeath, ProcessRole, Qos, RuntimeStatus, Sender,
    Signal, StopRequest, Time, Via,
};
use oomprobe::verdict::death::{
    EarlierOom, Facts, NodeState, OomPart, process_death,
    restarts::{History, RestartKey, label},
};

use super::{GIB, MIB, NOW, cgroup, container, container_path, event, k8s, process};

/// A name that tries to take over the terminal and the shell.
const HOSTILE: &str = "\x1b]0;own\x07\n$(id)";

/// One sample: a name, who died, how, and what else is known.
struct Case {
    name: &'static str,
    comm: &'static str,
    death: ProcessDeath,
    oom: Option<OomPart>,
    earlier_oom: Option<EarlierOom>,
    available_bytes: u64,
    /// Ended like this so often before.
    before: u64,
}

fn ended(name: &'static str, exit_code: u32) -> Case {
    let signal = exit_code.checked_sub(128).filter(|&number| number > 0);
    Case {
        name,
        comm: "cart",
        death: ProcessDeath {
            exit_code,
            signal: signal.map(Signal::of),
            cgroup: Some(cgroup(u64::from('a'), &container_path('a'))),
            role: Some(ProcessRole::Init),
            lifetime_ms: Some(754_000),
            peak_rss_bytes: Some(312 * MIB),
            ..ProcessDeath::default()
        },
        oom: None,
        earlier_oom: None,
        available_bytes: 6 * GIB,
        before: 0,
    }
}

fn sender(comm: &str, pid: u32, via: Via, path: &str) -> Sender {
    Sender {
        via,
        sent_at: Some(Time::from_unix_ns(NOW - 2_000_000)),
        si_code: (via == Via::Kill).then(|| "SI_USER".to_owned()),
        process: Some(Process {
            uid: Some(0),
            ..process(comm, pid, 8 * MIB, -999)
        }),
        parent_comm: Some("containerd-shim".to_owned()),
        cgroup: Some(cgroup(7, path)),
        ..Sender::default()
    }
}

fn runc(signal: u32) -> Sender {
    Sender {
        si_code: Some(Signal::code_name(signal.cast_signed(), 0)),
        ..sender("runc", 900, Via::Kill, "/system.slice/containerd.service")
    }
}

fn request(took_ms: u64, killed_after_ms: Option<u64>) -> StopRequest {
    StopRequest {
        signal: Signal::of(15),
        sender: runc(15),
        siblings_too: None,
        took_ms,
        killed_after_ms,
    }
}

fn status(exit_code: i32, reason: &str, sandbox_stopped: bool) -> RuntimeStatus {
    RuntimeStatus {
        exit_code: Some(exit_code),
        reason: Some(reason.to_owned()),
        sandbox_stopped: Some(sandbox_stopped),
        grace_period_ms: Some(30_000),
    }
}

fn stalled() -> Before {
    Before {
        max_hits: Some(2_076),
        stall_ms: Some(31_400.0),
        thrashed: Some(true),
        span_ms: 60_000.0,
        ..Before::default()
    }
}

fn cases() -> Vec<Case> {
    let mut oom = ended("oom", 137);
    oom.oom = Some(OomPart::Chosen);
    oom.before = 4;
    oom.death.incident = Some("0b1c2d3e-98765000000".to_owned());
    oom.death.runtime = Some(status(137, "OOMKilled", false));
    oom.death.sender = Some(sender("cart", 4711, Via::OomKiller, &container_path('a')));

    let mut stopped = ended("stopped", 0);
    stopped.death.stop_request = Some(request(1_204, None));
    stopped.death.runtime = Some(status(0, "Completed", true));

    let mut expired = ended("grace_expired", 137);
    expired.death.sender = Some(runc(9));
    expired.death.stop_request = Some(request(30_011, Some(30_002)));
    expired.death.runtime = Some(status(137, "Error", true));

    let mut liveness = ended("liveness", 137);
    liveness.death.sender = Some(runc(9));
    liveness.death.stop_request = Some(request(30_011, Some(30_002)));
    liveness.death.runtime = Some(status(137, "Error", false));
    liveness.death.before = Some(stalled());
    liveness.before = 1;

    let mut evicted = ended("evicted", 137);
    evicted.death.sender = Some(runc(9));
    evicted.death.stop_request = Some(request(1_003, Some(1_001)));
    evicted.death.runtime = Some(status(137, "Error", true));
    evicted.available_bytes = 60 * MIB;

    let mut earlyoom = ended("earlyoom", 137);
    earlyoom.death.sender = Some(Sender {
        parent_comm: Some("systemd".to_owned()),
        ..sender("earlyoom", 611, Via::Kill, "/system.slice/earlyoom.service")
    });

    let mut by_pod = ended("by_another_pod", 137);
    let mut other = sender("chaos", 5150, Via::Kill, &container_path('b'));
    other.parent_comm = Some("sh".to_owned());
    other.k8s = Some(k8s(Some("monkey"), Qos::BestEffort));
    other.container = Some(container('b'));
    by_pod.death.sender = Some(other);

    let mut cgroup_kill = ended("cgroup_kill", 137);
    let mut writer = sender("bash", 70, Via::CgroupKill, "/user.slice/user-1000.slice");
    writer.parent_comm = Some("sshd".to_owned());
    cgroup_kill.death.sender = Some(writer);
    cgroup_kill.death.others = 41;

    let mut crash = ended("crash", 139);
    crash.death.core_dumped = true;
    crash.death.sender = Some(Sender {
        si_code: Some("SEGV_MAPERR".to_owned()),
        ..sender("cart", 4711, Via::Fault, &container_path('a'))
    });
    crash.death.fault = Some(Fault {
        address: Some("0x10".to_owned()),
        instruction: Some("0x55d0c5f2a1b9".to_owned()),
        mapping: Some("cart+0x11b9".to_owned()),
        syscall: None,
    });
    crash.death.runtime = Some(status(139, "Error", false));

    let mut seccomp = ended("seccomp", 159);
    seccomp.death.sender = Some(Sender {
        via: Via::Seccomp,
        ..Sender::default()
    });
    seccomp.death.fault = Some(Fault {
        syscall: Some(165),
        ..Fault::default()
    });

    let mut exit = ended("exit_after_oom_of_child", 1);
    exit.earlier_oom = Some(EarlierOom {
        incident: "0b1c2d3e-98765000000".to_owned(),
        comm: "worker".to_owned(),
        ms_before: 312,
    });
    exit.death.runtime = Some(status(1, "OOMKilled", false));

    let mut probe = ended("exec_probe", 1);
    probe.comm = HOSTILE;
    probe.death.role = Some(ProcessRole::Exec);
    probe.death.container_survived = Some(true);

    let mut child = ended("oom_of_child", 137);
    child.oom = Some(OomPart::Chosen);
    child.death.role = Some(ProcessRole::Child);
    child.death.container_survived = Some(true);
    child.death.incident = Some("0b1c2d3e-98765000000".to_owned());

    let unknown = ended("unknown", 137);
    vec![
        oom,
        stopped,
        expired,
        liveness,
        evicted,
        earlyoom,
        by_pod,
        cgroup_kill,
        crash,
        seccomp,
        exit,
        probe,
        child,
        unknown,
    ]
}

/// Deaths by name.
pub(crate) fn deaths() -> Vec<(&'static str, Event)> {
    cases().into_iter().map(told).collect()
}

fn told(case: Case) -> (&'static str, Event) {
    let Case {
        name,
        comm,
        mut death,
        oom,
        earlier_oom,
        available_bytes,
        before,
    } = case;
    let process = Process {
        cmdline: None,
        ..process(comm, 4711, 300 * MIB, 985)
    };
    let (pod, container) = (k8s(Some("app"), Qos::Burstable), container('a'));
    let facts = Facts {
        process: &process,
        k8s: Some(&pod),
        container: Some(&container),
        death: &death,
        oom,
        earlier_oom: earlier_oom.as_ref(),
        failed_exec: None,
        node: NodeState {
            available_bytes: Some(available_bytes),
            eviction_threshold_bytes: Some(100 * MIB),
        },
    };
    let verdict = process_death(&facts);
    let words = label(&facts, &verdict);
    let mut history = History::default();
    for minute in 0..=before {
        let key = RestartKey::of(Some(&pod), Some(&container)).unwrap();
        let at_ns = minute * 150_000_000_000;
        death.restarts = Some(history.add(key, at_ns, verdict.cause, &words));
    }
    death.kubernetes_says_oomkilled = verdict
        .kubernetes_will_report
        .as_ref()
        .and_then(|report| report.oom_killed);
    death.verdict = verdict;
    let event = event(Body::ProcessDeath(Box::new(death)))
        .about(Some(pod), Some(container))
        .of(process);
    (name, event)
}
