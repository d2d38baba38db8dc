//! What a scenario expects of one death, compared with oomprobe's event.

use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cgroup::Container;
use crate::expect::{at, equal, text};
use crate::hog::End;

/// One death.
#[derive(Clone, Debug)]
pub struct Death {
    pid: i32,
    pod_uid: Option<String>,
    /// What the event must have, by dotted path: one of these.
    fields: Vec<(String, Vec<Value>)>,
}

impl Death {
    /// `pid` ended like this.
    pub fn of(pid: i32, end: End) -> Result<Self> {
        let death = Self {
            pid,
            pod_uid: None,
            fields: Vec::new(),
        };
        Ok(match end {
            End::Code(code) => death
                .is("exit_code", code)
                .is("signal", Value::Null)
                .is("sender", Value::Null)
                .is("fault", Value::Null)
                .is("core_dumped", false),
            End::Signal(number) => {
                let signal = Signal::try_from(number).context("signal")?;
                death
                    .is("exit_code", 128 + number)
                    .is("signal.number", number)
                    .is("signal.name", signal.as_str())
            }
        })
    }

    /// This signal ended it.
    pub fn by_signal(pid: i32, signal: Signal) -> Result<Self> {
        Self::of(pid, End::Signal(signal as i32))
    }

    /// The field at a dotted path is this.
    #[must_use]
    pub fn is(self, path: &str, expected: impl Into<Value>) -> Self {
        self.one_of(path, [expected.into()])
    }

    /// The field at a dotted path is one of these. Replaces what was expected of it, or of what it
    /// is part of.
    #[must_use]
    pub fn one_of<V: Into<Value>>(
        mut self,
        path: &str,
        expected: impl IntoIterator<Item = V>,
    ) -> Self {
        self.fields.retain(|(other, _)| {
            let part = path.strip_prefix(other.as_str());
            part.is_none_or(|rest| !rest.is_empty() && !rest.starts_with('.'))
        });
        let expected = expected.into_iter().map(Into::into).collect();
        self.fields.push((path.to_owned(), expected));
        self
    }

    /// It was this to its container, which did or did not live on. A container does not outlive its
    /// first process.
    #[must_use]
    pub fn inside(mut self, container: &Container, role: &str, survived: bool) -> Self {
        self.pod_uid = Some(container.pod_uid.clone());
        let path = text(container.cgroup.kernel_path().as_bytes());
        let survived = if role == "init" {
            Value::Null
        } else {
            survived.into()
        };
        self.is("k8s.pod.uid", container.pod_uid.as_str())
            .is("container.id", container.id.as_str())
            .is("cgroup.path", path)
            .is("role", role)
            .is("container_survived", survived)
    }

    /// The deadly signal came this way, from this process.
    #[must_use]
    pub fn sent(self, via: &str, by: i32) -> Self {
        self.is("sender.via", via).is("sender.process.pid", by)
    }

    /// The verdict's cause.
    #[must_use]
    pub fn because(self, cause: &str) -> Self {
        self.is("verdict.cause", cause)
    }

    /// Whether this is an event on the death of that process.
    pub fn is_told_by(&self, event: &Value) -> bool {
        event["kind"] == "process_death"
            && at(event, "process.pid") == self.pid
            && self
                .pod_uid
                .as_ref()
                .is_none_or(|uid| at(event, "k8s.pod.uid") == uid.as_str())
    }

    /// What is waited for, in words.
    pub fn name(&self) -> String {
        format!("process_death of {}", self.pid)
    }

    /// Compares with the event.
    pub fn check(&self, event: &Value) -> Result<()> {
        let fields = self.fields.iter().try_for_each(|(path, expected)| {
            if let [only] = expected.as_slice() {
                return equal(event, path, only.clone());
            }
            let found = at(event, path);
            ensure!(
                expected.contains(found),
                "{path} is {found}, expected one of {expected:?}"
            );
            Ok(())
        });
        let told = || {
            let told = at(event, "verdict.summary").as_str().unwrap_or_default();
            ensure!(!told.is_empty(), "the verdict is not put in words");
            Ok(())
        };
        fields
            .and_then(|()| told())
            .map_err(|error| anyhow!("{error:#}; event: {event}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event() -> Value {
        json!({
            "kind": "process_death", "process": {"pid": 42}, "k8s": {"pod": {"uid": "uid"}},
            "exit_code": 137, "signal": {"number": 9, "name": "SIGKILL"},
            "sender": {"via": "kill", "process": {"pid": 7}}, "core_dumped": false, "fault": null,
            "verdict": {"cause": "killed_by_process", "summary": "7 killed it"}
        })
    }

    fn death() -> Death {
        let mut death = Death::by_signal(42, Signal::SIGKILL)
            .unwrap()
            .sent("kill", 7)
            .is("core_dumped", false)
            .one_of("fault", [Value::Null, json!({})])
            .because("killed_by_process");
        death.pod_uid = Some("uid".into());
        death
    }

    #[test]
    fn accepts_what_is_expected() {
        assert!(death().is_told_by(&event()));
        death().check(&event()).unwrap();
    }

    #[test]
    fn refuses_every_single_deviation() {
        for (path, wrong) in [
            ("/exit_code", json!(9)),
            ("/signal", json!(null)),
            ("/signal/name", json!("SIGTERM")),
            ("/sender/via", json!("tkill")),
            ("/sender/process/pid", json!(8)),
            ("/core_dumped", json!(true)),
            ("/fault", json!(1)),
            ("/verdict/cause", json!("unknown")),
            ("/verdict/summary", json!("")),
        ] {
            let mut event = event();
            *event.pointer_mut(path).unwrap() = wrong;
            assert!(death().check(&event).is_err(), "{path}");
        }
    }

    #[test]
    fn others_are_told_apart() {
        for (path, other) in [
            ("/kind", json!("oom_kill")),
            ("/process/pid", json!(43)),
            ("/k8s/pod/uid", json!("other")),
        ] {
            let mut event = event();
            *event.pointer_mut(path).unwrap() = other;
            assert!(!death().is_told_by(&event), "{path}");
        }
    }

    #[test]
    fn a_part_replaces_the_whole() {
        let death = Death::of(1, End::Code(3)).unwrap().sent("kill", 2);
        assert!(death.fields.iter().all(|(path, _)| path != "sender"));
        assert!(death.fields.iter().any(|(path, _)| path == "signal"));
    }
}
