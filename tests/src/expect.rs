//! What a scenario expects of one OOM kill, compared with the kernel's report and with oomprobe's
//! event.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::cgroup::{Cgroup, Container};
use crate::oracle::{Kill, Summary};

/// Slack for resident memory: the kernel's per-CPU counters and the time between two reads.
const RSS_SLACK_BYTES: u64 = 2 << 20;

/// Why a process is a victim, in the words of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The OOM killer chose it.
    Chosen,
    /// It is in the same `memory.oom.group`.
    Group,
    /// It shares the chosen one's memory; the kernel's log does not name it.
    SharesMm,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Group => "group",
            Self::SharesMm => "shares_mm",
        }
    }
}

/// One process that must die.
#[derive(Clone, Debug)]
pub struct Victim {
    /// Process id.
    pub pid: i32,
    /// The thread that the kernel names.
    pub tid: i32,
    /// Why it dies.
    pub role: Role,
}

/// One OOM kill.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Everyone who must die of it, the chosen one first.
    pub victims: Vec<Victim>,
    scope: &'static str,
    message: &'static str,
    limit: Option<(OsString, u64)>,
    cgroup: Option<OsString>,
    mostly: &'static [&'static str],
    causes: &'static [&'static str],
    container: Option<(String, String)>,
    container_init: Option<bool>,
}

impl Expected {
    /// `pid` is chosen because a limit of `scope` was hit.
    pub fn kill(pid: i32, scope: &'static str) -> Self {
        Self {
            victims: vec![Victim {
                pid,
                tid: pid,
                role: Role::Chosen,
            }],
            scope,
            message: "Memory cgroup out of memory",
            limit: None,
            cgroup: None,
            mostly: &[],
            causes: &[],
            container: None,
            container_init: None,
        }
    }

    /// Another victim of the same kill.
    #[must_use]
    pub fn and(mut self, pid: i32, role: Role) -> Self {
        self.victims.push(Victim {
            pid,
            tid: pid,
            role,
        });
        self
    }

    /// The kernel names this thread of the chosen process.
    #[must_use]
    pub fn by_thread(mut self, tid: i32) -> Self {
        self.victims[0].tid = tid;
        self
    }

    /// The kernel's words for it.
    #[must_use]
    pub fn message(mut self, message: &'static str) -> Self {
        self.message = message;
        self
    }

    /// Whose limit, and how much it is.
    #[must_use]
    pub fn limit(mut self, cgroup: &Cgroup, bytes: u64) -> Self {
        self.limit = Some((cgroup.kernel_path(), bytes));
        self
    }

    /// Where the chosen victim is.
    #[must_use]
    pub fn inside(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.kernel_path());
        self
    }

    /// The chosen victim is in this container.
    #[must_use]
    pub fn inside_container(mut self, container: &Container, is_init: bool) -> Self {
        self.container = Some((container.pod_uid.clone(), container.id.clone()));
        self.container_init = Some(is_init);
        self.inside(&container.cgroup)
    }

    /// These fields of `memory` hold most of what is charged (none: there is no such owner), and
    /// the verdict is one of `causes`.
    #[must_use]
    pub fn because(
        mut self,
        mostly: &'static [&'static str],
        causes: &'static [&'static str],
    ) -> Self {
        (self.mostly, self.causes) = (mostly, causes);
        self
    }

    /// Compares with the kernel's line on the chosen victim and, where the rate limit let it
    /// through, with its summary.
    pub fn check_kernel(&self, kill: &Kill, summary: Option<&Summary>) -> Result<()> {
        ensure!(
            kill.message == self.message,
            "the kernel says {:?}",
            kill.message
        );
        let Some(summary) = summary else {
            return Ok(());
        };
        let limit = self.limit.as_ref().map(|(path, _)| path.as_bytes());
        ensure!(
            summary.limit_path.as_deref() == limit,
            "the kernel says {summary:?}"
        );
        let constraint = match self.scope {
            "node" | "sysrq" => "CONSTRAINT_NONE",
            "cpuset" => "CONSTRAINT_CPUSET",
            "mempolicy" => "CONSTRAINT_MEMORY_POLICY",
            _ => "CONSTRAINT_MEMCG",
        };
        ensure!(
            summary.constraint == constraint,
            "the kernel says {summary:?}"
        );
        Ok(())
    }

    /// Compares with the event; `kills` are the kernel's lines on those victims it names.
    pub fn check_event(&self, event: &Value, kills: &[Kill]) -> Result<()> {
        self.check_fields(event, kills)
            .map_err(|error| anyhow!("{error:#}; event: {event}"))
    }

    fn check_fields(&self, event: &Value, kills: &[Kill]) -> Result<()> {
        equal(event, "outcome", "killed")?;
        equal(event, "scope", self.scope)?;
        equal(event, "message", self.message)?;
        self.check_victims(event, kills)?;
        if let Some((path, bytes)) = &self.limit {
            equal(event, "limit.cgroup.path", text(path.as_bytes()))?;
            equal(event, "limit.limit_bytes", *bytes)?;
            let usage = at(event, "limit.usage_bytes")
                .as_u64()
                .context("limit.usage_bytes")?;
            // Dying processes and a few others may charge past the limit.
            ensure!(
                usage.abs_diff(*bytes) <= bytes / 10,
                "usage {usage} is not what hits a limit of {bytes}"
            );
        } else {
            equal(event, "limit", Value::Null)?;
        }
        if let Some((pod, container)) = &self.container {
            for subject in ["", "victims.0."] {
                equal(event, &format!("{subject}k8s.pod.uid"), pod.as_str())?;
                equal(event, &format!("{subject}container.id"), container.as_str())?;
            }
            equal(event, "k8s.qos", "burstable")?;
        }
        if let Some(is_init) = self.container_init {
            equal(event, "victims.0.container_init", is_init)?;
            equal(event, "verdict.kubernetes_will_report.oom_killed", is_init)?;
        }
        self.check_memory(event)
    }

    fn check_victims(&self, event: &Value, kills: &[Kill]) -> Result<()> {
        let victims = at(event, "victims").as_array().context("victims")?;
        let seen: BTreeSet<(u64, u64, &str)> = victims
            .iter()
            .map(|victim| {
                let id = |key| at(victim, key).as_u64().unwrap_or(0);
                let role = at(victim, "role").as_str().unwrap_or("");
                (id("process.pid"), id("process.tid"), role)
            })
            .collect();
        let expected: BTreeSet<(u64, u64, &str)> = self
            .victims
            .iter()
            .map(|victim| {
                let id = |id: i32| u64::try_from(id).unwrap_or(0);
                (id(victim.pid), id(victim.tid), victim.role.name())
            })
            .collect();
        ensure!(seen == expected, "victims {seen:?}, expected {expected:?}");
        ensure!(victims.len() == expected.len(), "a victim is listed twice");
        equal(event, "victims.0.role", "chosen")?;
        equal(event, "victims.0.process.pid", self.victims[0].pid)?;
        if let Some(path) = &self.cgroup {
            equal(event, "victims.0.cgroup.path", text(path.as_bytes()))?;
        }
        for kill in kills {
            let victim = victims
                .iter()
                .find(|victim| at(victim, "process.tid") == kill.tid)
                .with_context(|| format!("no victim {}", kill.tid))?;
            equal(victim, "process.comm", text(&kill.comm))?;
            equal(victim, "process.oom_score_adj", kill.oom_score_adj)?;
            // A group's members may have freed memory between the event's read and the line.
            if victim["role"] == "chosen" {
                let anon = at(victim, "process.rss.anon_bytes")
                    .as_u64()
                    .context("anon rss")?;
                ensure!(
                    anon.abs_diff(kill.anon_rss_bytes) <= RSS_SLACK_BYTES,
                    "anon rss {anon}, kernel {}",
                    kill.anon_rss_bytes
                );
            }
        }
        Ok(())
    }

    fn check_memory(&self, event: &Value) -> Result<()> {
        let bytes = |key: &str| event["memory"][key].as_i64().unwrap_or(0);
        let total = bytes("total_bytes");
        // On a busy machine the victim may be gone before the tracer gets a processor: the event
        // says so, and claims nothing about memory it did not see.
        let seen = event["memory"]["read_usage_bytes"]
            .as_i64()
            .is_none_or(|read| read * 4 > total * 3);
        if !self.mostly.is_empty() && seen {
            let part: i64 = self.mostly.iter().map(|key| bytes(key)).sum();
            ensure!(
                part * 2 > total && total > 0,
                "{:?}: {part} of {total} bytes",
                self.mostly
            );
        }
        if !self.causes.is_empty() {
            let cause = at(event, "verdict.cause").as_str().unwrap_or("");
            ensure!(
                self.causes.contains(&cause) || (!seen && cause == "unknown"),
                "verdict {cause}, expected {:?}",
                self.causes
            );
        }
        Ok(())
    }
}

/// Whether this is an `oom_kill` event with `pid` among its victims.
pub fn names_victim(event: &Value, pid: i32) -> bool {
    event["kind"] == "oom_kill"
        && event["victims"]
            .as_array()
            .is_some_and(|victims| victims.iter().any(|victim| victim["process"]["pid"] == pid))
}

/// The value at a dotted path; null where there is none.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .fold(value, |value, key| match key.parse::<usize>() {
            Ok(index) => &value[index],
            Err(_) => &value[key],
        })
}

/// Fails unless the value at a dotted path is the expected one.
pub fn equal(value: &Value, path: &str, expected: impl Into<Value>) -> Result<()> {
    let (found, expected) = (at(value, path), expected.into());
    ensure!(*found == expected, "{path} is {found}, expected {expected}");
    Ok(())
}

/// Fails if events tell of a loss. That a kernel skipped calls of a hook says nothing about what was
/// looked for here, which shows as missing if it was among them.
pub fn nothing_lost(events: &[Value]) -> Result<()> {
    let lost = events.iter().find(|event| match event["kind"].as_str() {
        Some("loss") => event["reason"] != "program_skipped",
        Some("gap") => true,
        _ => false,
    });
    match lost {
        Some(event) => bail!("something was lost: {event}"),
        None => Ok(()),
    }
}

/// Bytes as the event writes them: what is no UTF-8 becomes `\xNN`.
pub fn text(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expected() -> Expected {
        let mut expected = Expected::kill(42, "container")
            .and(43, Role::SharesMm)
            .because(&["anon_bytes"], &["spike"]);
        expected.limit = Some(("/pod/\u{1b}".into(), 32 << 20));
        expected.cgroup = Some("/pod/\u{1b}/x".into());
        expected.container = Some(("uid".into(), "id".into()));
        expected.container_init = Some(true);
        expected
    }

    fn kill() -> Kill {
        Kill {
            message: "Memory cgroup out of memory".into(),
            tid: 42,
            comm: b"\xffhog".to_vec(),
            anon_rss_bytes: 30 << 20,
            oom_score_adj: 0,
            time_us: 0,
        }
    }

    fn event() -> Value {
        json!({
            "kind": "oom_kill", "outcome": "killed", "scope": "container", "message": "Memory cgroup out of memory",
            "k8s": {"pod": {"uid": "uid"}, "qos": "burstable"}, "container": {"id": "id"},
            "limit": {
                "cgroup": {"path": "/pod/\u{1b}"}, "usage_bytes": 32 << 20, "limit_bytes": 32 << 20
            },
            "memory": {"anon_bytes": 30 << 20, "file_bytes": null, "total_bytes": 32 << 20},
            "victims": [
                {
                    "process": {
                        "pid": 42, "tid": 42, "comm": "\\xffhog", "oom_score_adj": 0,
                        "rss": {"anon_bytes": 29 << 20}
                    },
                    "cgroup": {"path": "/pod/\u{1b}/x"}, "role": "chosen", "container_init": true,
                    "k8s": {"pod": {"uid": "uid"}}, "container": {"id": "id"}
                },
                {"process": {"pid": 43, "tid": 43}, "role": "shares_mm"}
            ],
            "verdict": {"cause": "spike", "kubernetes_will_report": {"oom_killed": true}}
        })
    }

    #[test]
    fn accepts_what_is_expected() {
        expected().check_event(&event(), &[kill()]).unwrap();
        let victims = [41, 42, 43].map(|pid| names_victim(&event(), pid));
        assert_eq!(victims, [false, true, true]);
    }

    #[test]
    fn refuses_every_single_deviation() {
        for (path, wrong) in [
            ("/outcome", json!("nothing_killable")),
            ("/scope", json!("pod")),
            ("/message", json!("Out of memory")),
            ("/k8s/pod/uid", json!("other")),
            ("/k8s/qos", json!(null)),
            ("/container/id", json!("other")),
            ("/limit/cgroup/path", json!("/pod")),
            ("/limit/usage_bytes", json!(1 << 20)),
            ("/limit/limit_bytes", json!((32 << 20) + 4096)),
            ("/limit", json!(null)),
            ("/memory/anon_bytes", json!(10 << 20)),
            ("/victims", json!([])),
            ("/victims/0/process/pid", json!(41)),
            ("/victims/0/process/tid", json!(44)),
            ("/victims/0/process/comm", json!("hog")),
            ("/victims/0/process/oom_score_adj", json!(1)),
            ("/victims/0/process/rss/anon_bytes", json!(20 << 20)),
            ("/victims/0/cgroup/path", json!("/pod")),
            ("/victims/0/k8s/pod/uid", json!(null)),
            ("/victims/0/container/id", json!(null)),
            ("/victims/0/container_init", json!(null)),
            ("/victims/1/role", json!("group")),
            ("/victims/1/process/pid", json!(45)),
            ("/verdict/cause", json!("unknown")),
            ("/verdict/kubernetes_will_report/oom_killed", json!(false)),
        ] {
            let mut event = event();
            *event.pointer_mut(path).unwrap() = wrong;
            assert!(expected().check_event(&event, &[kill()]).is_err(), "{path}");
        }
    }
}
