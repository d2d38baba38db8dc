//! The tracers that follow socket buffers, and what each says of it in the end.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    bench::tool::{ATTACHED, bpftrace, with_tracefs},
    debian::Foreign,
};

/// How long a tracer may take to be attached, or to tell what it found.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same as oomprobe's tracepoints do, in bpftrace, of every buffer.
pub(super) const SCRIPT: &str = "\
tracepoint:kmem:kmem_cache_alloc /str(args->name) == \"skbuff_head_cache\"/ {
    @since[(uint64)args->ptr] = nsecs;
    @stack[(uint64)args->ptr] = kstack(32);
    @who[(uint64)args->ptr] = pid;
}
tracepoint:kmem:kmem_cache_free /@since[(uint64)args->ptr]/ {
    delete(@since[(uint64)args->ptr]);
    delete(@stack[(uint64)args->ptr]);
    delete(@who[(uint64)args->ptr]);
}
tracepoint:skb:consume_skb, tracepoint:skb:kfree_skb /@since[(uint64)args->skbaddr]/ {
    delete(@since[(uint64)args->skbaddr]);
    delete(@stack[(uint64)args->skbaddr]);
    delete(@who[(uint64)args->skbaddr]);
}
END { clear(@stack); clear(@who); }";

/// What bpftrace may hold: as many as oomprobe without sampling.
const BPFTRACE_KEYS: &str = "262144";

/// memleak tells every so many seconds, and once more in the end: that is what is read.
const NEVER_S: &str = "86400";

/// Of a stack on which a socket buffer is allocated, by the part of a function's name.
const ALLOCATORS: [&str; 3] = ["alloc_skb", "build_skb", "skb_clone"];

/// A tracer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// oomprobe, one object of 64.
    Sampled,
    /// oomprobe, all objects.
    All,
    Bpftrace,
    Memleak,
}

impl Kind {
    pub(super) const EACH: [Self; 4] = [Self::Sampled, Self::All, Self::Bpftrace, Self::Memleak];

    /// Allocations of a packet that it follows: memleak also its data.
    pub(super) const fn allocations_per_packet(self) -> u64 {
        match self {
            Self::Sampled | Self::All | Self::Bpftrace => 1,
            Self::Memleak => 2,
        }
    }

    /// How it says that it is attached.
    const fn ready(self) -> &'static str {
        match self {
            Self::Sampled | Self::All => "oomprobe: following",
            Self::Bpftrace => ATTACHED.trim_ascii_end(),
            Self::Memleak => "Tracing outstanding",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sampled => "oomprobe 1/64",
            Self::All => "oomprobe 1",
            Self::Bpftrace => "bpftrace",
            Self::Memleak => "memleak",
        })
    }
}

/// How to start them.
pub(super) struct Programs<'a> {
    pub(super) oomprobe: &'a Path,
    pub(super) memleak: Option<Foreign>,
}

impl Programs<'_> {
    fn command(&self, kind: Kind) -> Result<Command> {
        let oomprobe = |share| {
            let mut command = Command::new(self.oomprobe);
            command.args(["skb", "--track", "-o", "json", "--sample", share]);
            command
        };
        Ok(match kind {
            Kind::Sampled => oomprobe("1/64"),
            Kind::All => oomprobe("1"),
            Kind::Bpftrace => {
                let mut command = bpftrace(SCRIPT);
                command.env("BPFTRACE_MAP_KEYS_MAX", BPFTRACE_KEYS);
                command
            }
            Kind::Memleak => {
                let memleak = self.memleak.as_ref().context("there is no memleak")?;
                // Into a pipe it would say that it is attached when it ends.
                let mut command = with_tracefs("stdbuf");
                command
                    .arg("-oL")
                    .args(memleak.words())
                    .args(["--top", "100000", NEVER_S]);
                command
            }
        })
    }
}

/// What a tracer says in the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Claim {
    /// Allocations that it has not seen freed.
    pub(super) outstanding: u64,
    /// Frees that it knows it missed, a share of what it followed.
    pub(super) missed_ratio: Option<f64>,
    /// Hooks that oomprobe used.
    pub(super) hooks: Option<String>,
}

impl Claim {
    /// Whether oomprobe has hooks that miss next to nothing.
    pub(super) fn sees_all(&self) -> bool {
        let hooks = self.hooks.as_deref().unwrap_or_default();
        ["fentry:", "kprobe:"]
            .iter()
            .any(|kind| hooks.contains(kind))
    }
}

/// A running tracer, killed when dropped.
pub(super) struct Tracer {
    kind: Kind,
    child: Child,
    lines: Receiver<String>,
}

impl Tracer {
    /// Starts it and waits until it is attached.
    pub(super) fn start(programs: &Programs<'_>, kind: Kind) -> Result<Self> {
        let mut child = programs
            .command(kind)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {kind}"))?;
        let (sender, lines) = channel();
        pass_on(child.stdout.take().context("stdout")?, sender.clone());
        pass_on(child.stderr.take().context("stderr")?, sender);
        if kind == Kind::Bpftrace {
            let stdin = child.stdin.as_mut().context("stdin")?;
            stdin.write_all(ATTACHED.as_bytes()).context("stdin")?;
        }
        let tracer = Self { kind, child, lines };
        let before = tracer.lines_until(|line| line.starts_with(kind.ready()))?;
        match before {
            Said::Found => Ok(tracer),
            Said::Ended(words) => bail!("{kind} ended: {}", words.join(" / ")),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a user does, and has it tell.
    pub(super) fn end(mut self) -> Result<Claim> {
        match self.kind {
            // The command it waits for ends with its input.
            Kind::Bpftrace => drop(self.child.stdin.take()),
            _ => self.interrupt()?,
        }
        let Said::Ended(words) = self.lines_until(|_| false)? else {
            bail!("{} did not end", self.kind)
        };
        let claim = match self.kind {
            Kind::Sampled | Kind::All => of_oomprobe(&words),
            Kind::Bpftrace => of_bpftrace(&words),
            Kind::Memleak => of_memleak(&words),
        };
        claim.with_context(|| format!("{} said: {}", self.kind, words.join(" / ")))
    }

    fn interrupt(&self) -> Result<()> {
        let pid = libc::pid_t::try_from(self.child.id())?;
        // SAFETY: no pointers are passed; the process is this one's child and not waited for yet.
        if unsafe { libc::kill(pid, libc::SIGINT) } < 0 {
            return Err(io::Error::last_os_error()).context("SIGINT");
        }
        Ok(())
    }

    fn lines_until(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Said> {
        let deadline = Instant::now() + PATIENCE;
        let mut words = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if is_wanted(&line) => return Ok(Said::Found),
                Ok(line) => words.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(Said::Ended(words)),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} takes too long: {}", self.kind, words.join(" / "))
                }
            }
        }
    }
}

/// What came first: the line that was waited for, or the end, with all lines before it.
enum Said {
    Found,
    Ended(Vec<String>),
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(output: impl Read + Send + 'static, lines: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(io::Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

fn of_oomprobe(lines: &[String]) -> Option<Claim> {
    let event: Value = lines
        .iter()
        .find_map(|line| serde_json::from_str(line).ok())?;
    let hooks = event["hooks"].as_array()?.iter().filter_map(Value::as_str);
    Some(Claim {
        outstanding: event["objects"].as_u64()?,
        missed_ratio: event["accuracy"]["miss_ratio"].as_f64(),
        hooks: Some(hooks.collect::<Vec<_>>().join(", ")),
    })
}

/// One line for each buffer; none at all is an answer too, as bpftrace leaves out empty maps.
#[expect(clippy::unnecessary_wraps, reason = "as those of the others")]
fn of_bpftrace(lines: &[String]) -> Option<Claim> {
    let live = lines.iter().filter(|line| line.starts_with("@since["));
    Some(Claim {
        outstanding: live.count() as u64,
        ..Claim::default()
    })
}

/// `N bytes in M allocations from stack`, and the stack on the lines below.
fn of_memleak(lines: &[String]) -> Option<Claim> {
    lines
        .iter()
        .find(|line| line.contains("outstanding allocations"))?;
    let (mut outstanding, mut of_stack) = (0, None);
    for line in lines {
        if line.contains(" allocations from stack") {
            let mut words = line.split_whitespace().skip_while(|word| *word != "in");
            of_stack = Some(words.nth(1)?.parse::<u64>().ok()?);
        } else if ALLOCATORS.iter().any(|name| line.contains(name)) {
            outstanding += of_stack.take().unwrap_or_default();
        }
    }
    Some(Claim {
        outstanding,
        ..Claim::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_each_says_is_outstanding() {
        let event = r#"{"objects":64,"hooks":["a","b"],"accuracy":{"miss_ratio":0.5}}"#;
        let claim = of_oomprobe(&lines(&format!("oomprobe: words\n{event}"))).unwrap();
        assert_eq!((claim.outstanding, claim.missed_ratio), (64, Some(0.5)));
        assert_eq!(claim.hooks.as_deref(), Some("a, b"));
        assert_eq!(of_oomprobe(&lines("error")), None);

        let maps = "Attaching\n@since[1]: 5\n@since[2]: 6\n\n@who[1]: 1\n";
        assert_eq!(of_bpftrace(&lines(maps)).unwrap().outstanding, 2);

        let stacks = "[12:00:00] Top 2 stacks with outstanding allocations:\n\
                      \t512 bytes in 2 allocations from stack\n\
                      \t\t0 [<ffff>] <kmem_cache_alloc_node_noprof+0x1>\n\
                      \t\t1 [<ffff>] <__alloc_skb+0x2>\n\
                      \t\t2 [<ffff>] <alloc_skb_with_frags+0x2>\n\
                      \t99 bytes in 9 allocations from stack\n\
                      \t\t0 [<ffff>] <getname_flags+0x1>\n";
        assert_eq!(of_memleak(&lines(stacks)).unwrap().outstanding, 2);
        assert_eq!(of_memleak(&lines("Killed")), None);
    }
}
