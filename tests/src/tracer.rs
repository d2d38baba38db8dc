//! Runs `oomprobe trace -o json` and collects its events.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::deadline::until;

/// For attaching and for ending; a guest without KVM needs most of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Standard output and standard error.
const OUTPUTS: usize = 2;

/// A running tracer; killed when dropped.
#[derive(Debug)]
pub struct Tracer {
    child: Mutex<Child>,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    events: Mutex<Vec<Value>>,
    /// Lines that break the promise of one JSON object a line.
    bad_lines: Mutex<Vec<String>>,
    stderr: Mutex<Vec<u8>>,
    paused: AtomicBool,
    /// How many of its outputs are at their end.
    ended: AtomicUsize,
}

impl Tracer {
    /// Starts it with further arguments and waits until it says that its hooks are attached.
    pub fn start(oomprobe: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(oomprobe)
            .args(["trace", "-o", "json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", oomprobe.display()))?;
        let stdout = child.stdout.take().context("stdout of the tracer")?;
        let mut stderr = child.stderr.take().context("stderr of the tracer")?;
        let output = Arc::new(Output::default());
        let tracer = Self {
            child: Mutex::new(child),
            output: Arc::clone(&output),
        };
        let errors = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stderr.read(&mut piece) {
                lock(&errors.stderr).extend_from_slice(&piece[..length]);
            }
            errors.ended.fetch_add(1, Ordering::AcqRel);
        });
        std::thread::spawn(move || output.collect(stdout));
        let status = tracer.wait_for("probe_status", Instant::now() + PATIENCE, |event| {
            event["kind"] == "probe_status"
        })?;
        ensure!(
            status["attached"] == true,
            "the tracer is not attached: {status}"
        );
        ensure!(
            status["seq"] == 0,
            "probe_status is not the first event: {status}"
        );
        Ok(tracer)
    }

    /// Whether it has closed its outputs, and all that was in them is here.
    pub fn has_ended(&self) -> bool {
        self.output.ended.load(Ordering::Acquire) == OUTPUTS
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.output.events).clone()
    }

    /// The first event that `wanted` accepts, waiting for it.
    pub fn wait_for(
        &self,
        what: &str,
        deadline: Instant,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(deadline, what, || {
            let ended = self.has_ended();
            if let Some(event) = lock(&self.output.events).iter().find(|event| wanted(event)) {
                return Ok(Some(event.clone()));
            }
            ensure!(!ended, "the tracer ended without {what}");
            Ok(None)
        })
        .with_context(|| self.last_words())
    }

    /// Stops taking what the tracer writes, or goes on with it.
    pub fn pause_reading(&self, paused: bool) {
        self.output.paused.store(paused, Ordering::Release);
    }

    /// Checks what holds for every stream: JSON lines, no raw control bytes, and no number missing but
    /// those of events that a `loss` event says found the queue of the output full: this reader may be
    /// too slow for a flood on a busy machine.
    pub fn check_stream(&self) -> Result<()> {
        if let Some(line) = lock(&self.output.bad_lines).first() {
            bail!("not a clean JSON line: {line}");
        }
        // Read first: what it says of the events holds for all that come after.
        let has_ended = self.has_ended();
        let (mut due, mut missing) = (0, 0);
        for event in lock(&self.output.events).iter() {
            ensure!(
                event["schema"] == "oomprobe/1",
                "schema {}",
                event["schema"]
            );
            let seq = event["seq"].as_u64().context("an event without seq")?;
            let skipped = seq.checked_sub(due);
            missing +=
                skipped.with_context(|| format!("seq {seq} where {due} was due: {event}"))?;
            due = seq + 1;
            if event["kind"] != "loss" {
                ensure!(missing == 0, "{missing} events are missing before {event}");
            } else if event["reason"] == "sink_queue_full" {
                let told = event["count"].as_u64().context("a loss without count")?;
                ensure!(told == missing, "{missing} events are missing at {event}");
                missing = 0;
            }
        }
        // Of several losses the one that explains the hole may still be on its way.
        ensure!(
            missing == 0 || !has_ended,
            "{missing} events are missing at the end"
        );
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(lock(&self.child).id()).context("pid of the tracer")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to the tracer"))
    }

    /// Waits for its end and for the last of its output.
    pub fn wait_end(&self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        let status = until(deadline, "end of the tracer", || {
            Ok(lock(&self.child).try_wait()?)
        })
        .with_context(|| self.last_words())?;
        until(deadline, "end of the tracer's output", || {
            Ok(self.has_ended().then_some(()))
        })?;
        Ok(status)
    }

    /// Interrupts it; it must flush, say nothing of a panic and exit 0.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGINT)?;
        self.check_end()
    }

    /// Its end must be clean: exit code 0, no panic, a whole stream.
    pub fn check_end(&self) -> Result<()> {
        let status = self.wait_end()?;
        ensure!(
            status.code() == Some(0),
            "the tracer: {status}\n{}",
            self.last_words()
        );
        let panicked = String::from_utf8_lossy(&lock(&self.output.stderr)).contains("panicked");
        ensure!(!panicked, "the tracer panicked\n{}", self.last_words());
        self.check_stream()
    }

    /// End of its stderr.
    pub fn last_words(&self) -> String {
        let stderr = lock(&self.output.stderr);
        let tail = &stderr[stderr.len().saturating_sub(2000)..];
        format!("stderr of the tracer: {:?}", String::from_utf8_lossy(tail))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Output {
    fn collect(&self, stdout: ChildStdout) {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while let Ok(1..) = reader.read_until(b'\n', &mut line) {
            while self.paused.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(20));
            }
            let content = line.strip_suffix(b"\n").unwrap_or(&line);
            let clean = line.ends_with(b"\n") && !content.iter().any(u8::is_ascii_control);
            match serde_json::from_slice(content) {
                Ok(event @ Value::Object(_)) if clean => lock(&self.events).push(event),
                _ => lock(&self.bad_lines).push(String::from_utf8_lossy(&line).into_owned()),
            }
            line.clear();
        }
        self.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// A thread that panicked while it held the lock left whole values behind: every critical section
/// here is one push.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STATUS: &str =
        r#"echo '{"schema":"oomprobe/1","kind":"probe_status","attached":true,"seq":0}'"#;
    const WAIT: &str = "while :; do sleep 0.05; done";

    /// A tracer made of shell commands.
    fn start(script: &str) -> Result<Tracer> {
        // A fork by another test would hold the file open for writing while this one executes it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = lock(&ONE_AT_A_TIME);
        let directory = tempfile::tempdir()?;
        let program = directory.path().join("tracer");
        // A shell cannot trap what was ignored when it began, as in a background job.
        let shebang = "#!/usr/bin/env -S --default-signal=INT sh";
        fs::write(
            &program,
            format!("{shebang}\ntrap 'exit 0' INT\n{script}\n"),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Tracer::start(&program, &[])
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn collects_events_and_ends_cleanly() {
        let event = r#"echo '{"schema":"oomprobe/1","kind":"oom_kill","seq":1}'"#;
        let tracer = start(&format!("{STATUS}; {event}; {WAIT}")).unwrap();
        tracer
            .wait_for("kill", soon(), |event| event["kind"] == "oom_kill")
            .unwrap();
        tracer.stop().unwrap();
        assert_eq!(tracer.events().len(), 2);
    }

    #[test]
    fn an_unattached_tracer_is_refused() {
        let status = STATUS.replace("true", "false");
        assert!(start(&format!("{status}; {WAIT}")).is_err());
        let error = start("echo no BTF >&2; exit 3").unwrap_err();
        assert!(format!("{error:#}").contains("no BTF"), "{error:#}");
    }

    /// Whether a stream with these after its first event is taken for whole.
    fn is_whole(events: &[&str]) -> bool {
        let lines = events
            .iter()
            .map(|event| format!("echo '{{\"schema\":\"oomprobe/1\",{event}}}'; "));
        let tracer = start(&format!("{STATUS}; {}{WAIT}", lines.collect::<String>())).unwrap();
        until(soon(), "all events", || {
            Ok((tracer.events().len() > events.len()).then_some(()))
        })
        .unwrap();
        tracer.stop().is_ok()
    }

    #[test]
    fn a_hole_in_the_sequence_is_seen_unless_it_is_told() {
        let beat = r#""kind":"heartbeat","seq":3"#;
        let full = |seq: u64, count: u64| {
            format!(r#""kind":"loss","reason":"sink_queue_full","count":{count},"seq":{seq}"#)
        };
        let other = r#""kind":"loss","reason":"death_ring_full","count":9,"seq":3"#;
        assert!(!is_whole(&[beat]));
        assert!(!is_whole(&[other]));
        assert!(!is_whole(&[&full(3, 1)]));
        assert!(is_whole(&[&full(3, 2)]));
        assert!(is_whole(&[other, &full(4, 2)]));
        // Numbers do not go back.
        assert!(!is_whole(&[&full(3, 2), beat]));
    }

    #[test]
    fn bad_lines_panics_and_exit_codes_are_seen() {
        for end in [
            "echo half",
            "printf '{}'",
            "echo \"thread 'x' panicked\" >&2",
            "exit 1",
        ] {
            let tracer = start(&format!("{STATUS}; {end}; exit 0")).unwrap();
            assert!(tracer.check_end().is_err(), "{end}");
        }
    }
}
