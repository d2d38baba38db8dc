//! What stands between this machine and a full answer, and what to do about it.

use serde::Serialize;

use super::{
    capability::{Capabilities, Capability},
    facts::{Facts, Lockdown, MemoryController},
};

/// One thing that narrows what oomprobe can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Short stable name, for filters.
    pub id: &'static str,
    /// What is wrong and what it costs.
    pub detail: String,
    /// What to do: a command to paste where there is one.
    pub remedy: String,
    /// True if nothing can be traced because of it; false if it only narrows an answer.
    pub blocks: bool,
}

impl Facts {
    /// What is known to stand in the way, most severe first. The unknown is no problem.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |id, detail: String, remedy: &str| {
            let blocks = BLOCKING.contains(&id)
                || BLOCKING_CAPABILITIES
                    .iter()
                    .any(|name| detail.starts_with(name));
            problems.push(Problem {
                id,
                detail,
                remedy: remedy.into(),
                blocks,
            });
        };

        if self.btf == Some(false) {
            report(
                "btf",
                "the kernel shows no type information: no BPF program can be loaded".into(),
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as those of current \
                 distributions are",
            );
        }
        if self.lockdown == Some(Lockdown::Confidentiality) {
            report(
                "lockdown",
                "kernel lockdown is in confidentiality mode: programs may not read kernel memory"
                    .into(),
                "boot with lockdown=integrity",
            );
        }
        for (capability, cost) in COSTS {
            let granted = |set: Capabilities| set.grants(*capability);
            if self.capabilities.is_some_and(|set| !granted(set)) {
                let (name, number) = (capability.name(), capability.number());
                report(
                    "capability",
                    format!("{name} ({number}) is not in effect: {cost}"),
                    &format!(
                        "run as root; in Kubernetes: securityContext: {{capabilities: {{add: \
                         [{}]}}}}",
                        name.trim_start_matches("CAP_")
                    ),
                );
            }
        }
        if self
            .mounts
            .as_ref()
            .is_some_and(|mounts| mounts.tracefs.is_none())
        {
            report(
                "tracefs",
                "tracefs is not mounted: classic tracepoints cannot be found".into(),
                "mount -t tracefs tracefs /sys/kernel/tracing",
            );
        }
        if self.kprobes == Some(false) {
            report(
                "kprobes",
                "the kernel has no kprobes: the limit owner is inferred from counters".into(),
                "none needed where fentry serves; else boot a kernel with CONFIG_KPROBE_EVENTS=y",
            );
        }
        match self.cgroups.as_ref().map(|cgroups| &cgroups.memory) {
            Some(MemoryController::Absent) => report(
                "memory_controller",
                "no memory controller: only the node's own limit is known".into(),
                "boot without cgroup_disable=memory, with cgroup_enable=memory where the \
                 distribution turns it off",
            ),
            Some(MemoryController::Unreadable(mount)) => report(
                "memory_controller",
                format!("{} does not list its controllers", mount.display()),
                "mount the host's cgroup file system: -v /sys/fs/cgroup:/sys/fs/cgroup:ro",
            ),
            _ => {}
        }
        if self.in_host_pid_namespace == Some(false) {
            report(
                "pid_namespace",
                "not in the host's pid namespace: pids in events cannot be looked up in /proc"
                    .into(),
                "in Kubernetes: hostPID: true; with docker: --pid=host",
            );
        }
        if self.psi == Some(false) {
            report(
                "psi",
                "pressure stall information is off: stall times are unknown".into(),
                "boot with psi=1",
            );
        }
        if self.kptr_restrict == Some(2) {
            report(
                "kptr_restrict",
                "kernel addresses are hidden: kernel stacks have no names".into(),
                "sysctl -w kernel.kptr_restrict=1",
            );
        }
        problems
    }
}

/// Problems that bar tracing altogether.
const BLOCKING: &[&str] = &["btf", "lockdown"];

/// And the capabilities whose lack does.
const BLOCKING_CAPABILITIES: &[&str] = &["CAP_BPF ", "CAP_PERFMON "];

/// What oomprobe cannot do without each capability.
const COSTS: &[(Capability, &str)] = &[
    (Capability::Bpf, "no BPF program can be loaded"),
    (
        Capability::Perfmon,
        "no tracing program can be loaded or attached",
    ),
    (
        Capability::SysResource,
        "oom_score_adj cannot be lowered, nor RLIMIT_MEMLOCK raised",
    ),
    (
        Capability::SysPtrace,
        "command lines of other users' processes may be unreadable",
    ),
    (
        Capability::DacReadSearch,
        "log directories of other users may be unreadable",
    ),
    (Capability::Syslog, "kernel stacks have no names"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::facts::{CgroupMode, Cgroups, Mounts};

    fn ids(facts: &Facts) -> Vec<&'static str> {
        facts.problems().iter().map(|problem| problem.id).collect()
    }

    #[test]
    fn the_unknown_is_no_problem() {
        assert_eq!(Facts::default().problems(), []);
    }

    #[test]
    fn each_known_lack_is_a_problem() {
        let facts = Facts {
            btf: Some(false),
            mounts: Some(Mounts::default()),
            lockdown: Some(Lockdown::Confidentiality),
            kprobes: Some(false),
            kptr_restrict: Some(2),
            capabilities: Some(Capabilities(!(1 << Capability::SysResource.number()))),
            cgroups: Some(Cgroups {
                mode: CgroupMode::V1,
                v2_mount: None,
                memory: MemoryController::Absent,
            }),
            psi: Some(false),
            in_host_pid_namespace: Some(false),
            ..Facts::default()
        };
        let expected = [
            "btf",
            "lockdown",
            "capability",
            "tracefs",
            "kprobes",
            "memory_controller",
            "pid_namespace",
            "psi",
            "kptr_restrict",
        ];
        assert_eq!(ids(&facts), expected);
        assert!(
            facts
                .problems()
                .iter()
                .all(|problem| !problem.remedy.is_empty())
        );
    }

    #[test]
    fn a_missing_capability_is_named_with_its_remedy() {
        let set = !(1 << Capability::Syslog.number());
        let facts = Facts {
            capabilities: Some(Capabilities(set)),
            ..Facts::default()
        };
        let problems = facts.problems();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].detail.starts_with("CAP_SYSLOG (34)"),
            "{}",
            problems[0].detail
        );
        assert!(
            problems[0].remedy.contains("add: [SYSLOG]"),
            "{}",
            problems[0].remedy
        );
    }

    #[test]
    fn root_without_capabilities_lacks_them_all() {
        let facts = Facts {
            capabilities: Some(Capabilities(0)),
            ..Facts::default()
        };
        assert_eq!(facts.problems().len(), COSTS.len());
    }
}
