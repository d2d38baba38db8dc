//! `oomprobe resolve`: from a cgroup path, a cgroup id or a pid to container and pod.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::identity::hierarchy::{self, Hierarchies};
use crate::identity::names::{DEFAULT_DEADLINE, Known, NameError, Names, Resolver};
use crate::identity::tree::Tree;
use crate::identity::{Claim, Orchestrator, path, pid};

/// A line of input longer than this is cut: the kernel knows no longer path than 4 KiB.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Lines read ahead from standard input.
const READ_AHEAD: usize = 64;

/// Arguments of `oomprobe resolve`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    /// Cgroup paths from the root of their hierarchy; `-` reads one a line from standard input
    #[arg(value_name = "PATH")]
    pub paths: Vec<std::ffi::OsString>,
    /// Cgroup id: the inode number of a cgroup's directory. Repeatable
    #[arg(long = "id", value_name = "ID")]
    pub ids: Vec<u64>,
    /// Process id. Repeatable
    #[arg(long = "pid", value_name = "PID")]
    pub pids: Vec<u32>,
}

/// What `resolve` takes from the options common to all commands.
#[derive(Clone, Debug)]
pub struct Options {
    /// CRI socket to ask instead of the usual ones.
    pub cri_socket: Option<PathBuf>,
    /// `/`, or where the host's root is mounted.
    pub host_root: PathBuf,
}

/// Answers every argument with one JSON object a line on standard output.
///
/// Exits 1 if an id or a pid leads to no cgroup; a path always has an answer.
pub async fn run(args: Args, options: Options) -> anyhow::Result<ExitCode> {
    match answer_all(args, &options, io::stdout()).await {
        // The reader has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        other => other,
    }
}

async fn answer_all(args: Args, options: &Options, out: impl Write) -> anyhow::Result<ExitCode> {
    let mut answers = Answers {
        resolver: Resolver::new(&options.host_root, options.cri_socket.as_deref()),
        out,
        failed: false,
    };
    for argument in args.paths {
        if argument == "-" {
            let mut lines = stdin_lines();
            while let Some(line) = lines.recv().await {
                let line = line.context("standard input")?;
                answers.path(&line.bytes, line.is_cut).await?;
            }
        } else {
            answers.path(argument.as_encoded_bytes(), false).await?;
        }
    }
    if !args.ids.is_empty() {
        let hierarchies = hierarchy::find(&options.host_root)?;
        let mut tree = Tree::open(&hierarchies).context("cgroup hierarchy")?;
        for id in args.ids {
            answers.id(&mut tree, &hierarchies, id).await?;
        }
    }
    for pid in args.pids {
        answers.pid(&options.host_root, pid).await?;
    }
    Ok(if answers.failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// One answer: the claim's keys at the top level, then what the look-up added.
#[derive(Serialize)]
struct Answer<'a> {
    path: Option<String>,
    #[serde(flatten)]
    claim: &'a Claim,
    #[serde(skip_serializing_if = "Option::is_none")]
    k8s: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolution: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl<'a> Answer<'a> {
    fn new(path: Option<&[u8]>, claim: &'a Claim) -> Self {
        Self {
            path: path.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
            claim,
            k8s: None,
            container: None,
            resolution: None,
            cgroup: None,
            process: None,
            error: None,
        }
    }
}

struct Answers<W> {
    resolver: Resolver,
    out: W,
    failed: bool,
}

impl<W: Write> Answers<W> {
    async fn path(&mut self, path: &[u8], is_cut: bool) -> anyhow::Result<()> {
        let claim = path::parse(path);
        let mut answer = Answer::new(Some(path), &claim);
        if is_cut {
            answer.error = Some(format!("line cut after {MAX_LINE_BYTES} bytes"));
        }
        self.with_names(answer).await
    }

    async fn id(
        &mut self,
        tree: &mut Tree,
        hierarchies: &Hierarchies,
        id: u64,
    ) -> anyhow::Result<()> {
        let unified = hierarchies.unified.as_ref();
        let mut numbers = [Some(&hierarchies.memory), unified]
            .into_iter()
            .flatten()
            .map(|mount| mount.hierarchy);
        // An id says nothing about its hierarchy; memory's is what this tool is about.
        let located = numbers.find_map(|number| Some((number, tree.path(number, id)?)));
        let cgroup = |hierarchy| Some(json!({ "id": id, "hierarchy": hierarchy }));
        let Some((number, located)) = located else {
            let claim = Claim::of(Orchestrator::None);
            return self.failure(&Answer {
                cgroup: cgroup(None),
                error: Some(format!("cgroup id {id}: no such cgroup")),
                ..Answer::new(None, &claim)
            });
        };
        let claim = path::parse(&located.path);
        let answer = Answer {
            cgroup: cgroup(Some(number)),
            ..Answer::new(Some(&located.path), &claim)
        };
        self.with_names(answer).await
    }

    async fn pid(&mut self, host_root: &Path, pid: u32) -> anyhow::Result<()> {
        let process = Some(json!({ "pid": pid }));
        match pid::membership(host_root, pid) {
            Ok(found) => {
                let error = found
                    .conflict
                    .then(|| format!("pid {pid}: its hierarchies name different containers"));
                let answer = Answer {
                    process,
                    cgroup: Some(json!({ "hierarchy": found.hierarchy })),
                    error,
                    ..Answer::new(Some(&found.path), &found.claim)
                };
                self.with_names(answer).await
            }
            Err(reason) => {
                let claim = Claim::of(Orchestrator::None);
                let error = match reason.kind() {
                    io::ErrorKind::NotFound => format!("pid {pid}: no such process"),
                    _ => format!("pid {pid}: {reason}"),
                };
                self.failure(&Answer {
                    process,
                    error: Some(error),
                    ..Answer::new(None, &claim)
                })
            }
        }
    }

    async fn with_names(&mut self, mut answer: Answer<'_>) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEFAULT_DEADLINE;
        let names = self.resolver.names(answer.claim, deadline).await;
        let known = names.known.as_deref();
        answer.k8s = kubernetes(answer.claim, known);
        answer.container = container(answer.claim, known);
        answer.resolution = resolution(&names);
        self.print(&answer)
    }

    fn failure(&mut self, answer: &Answer<'_>) -> anyhow::Result<()> {
        self.failed = true;
        self.print(answer)
    }

    fn print(&mut self, answer: &Answer<'_>) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        self.out.write_all(&line).context("standard output")?;
        // Whoever feeds us line by line waits for this one.
        self.out.flush().context("standard output")
    }
}

/// `k8s`, nested so that a dotted path is the OpenTelemetry attribute.
fn kubernetes(claim: &Claim, known: Option<&Known>) -> Option<Value> {
    let of = |field: fn(&Known) -> Option<&String>| known.and_then(field);
    let uid = claim
        .pod_uid
        .as_ref()
        .or_else(|| of(|k| k.pod_uid.as_ref()));
    let object = compact(json!({
        "pod": compact(json!({ "name": of(|k| k.pod_name.as_ref()), "uid": uid })),
        "namespace": compact(json!({ "name": of(|k| k.namespace.as_ref()) })),
        "container": compact(json!({
            "name": of(|k| k.container_name.as_ref()),
            "restart_count": known.and_then(|known| known.restart_count),
        })),
    }));
    (!object.is_null()).then_some(object)
}

/// `container`, likewise.
fn container(claim: &Claim, known: Option<&Known>) -> Option<Value> {
    let id = claim.container_id.as_ref()?;
    let runtime = claim.runtime.or_else(|| known?.runtime);
    let image = known.and_then(|known| known.image.as_ref());
    Some(compact(json!({
        "id": id,
        "runtime": runtime,
        "image": compact(json!({ "name": image })),
        "role": known.and_then(|known| known.role).or(claim.role),
    })))
}

/// Where the names came from, or why they did not. None where there are none to be had.
fn resolution(names: &Names) -> Option<Value> {
    if names.known.is_none() && names.error.is_none() {
        return None;
    }
    Some(json!({
        "resolved_by": names.known.as_ref().map(|known| known.resolved_by),
        "trusted": names.trusted,
        "latency_us": names.latency_us,
        "error": names.error.as_ref().map(NameError::to_string),
    }))
}

/// Drops null members; null itself if nothing is left.
fn compact(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.retain(|_, member| !member.is_null());
        if members.is_empty() {
            return Value::Null;
        }
    }
    value
}

struct Line {
    bytes: Vec<u8>,
    is_cut: bool,
}

/// Lines of standard input, read on a thread of their own so that sockets are served meanwhile.
fn stdin_lines() -> mpsc::Receiver<io::Result<Line>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut input = io::stdin().lock();
        while let Some(line) = read_line(&mut input).transpose() {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Next line without its end; None at the end of input. Takes no more memory than
/// [`MAX_LINE_BYTES`], whatever comes.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    let mut is_cut = false;
    let mut is_end = true;
    loop {
        let chunk = match input.fill_buf() {
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if chunk.is_empty() {
            break;
        }
        is_end = false;
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let content = &chunk[..newline.unwrap_or(chunk.len())];
        let room = MAX_LINE_BYTES - bytes.len();
        is_cut |= content.len() > room;
        bytes.extend_from_slice(&content[..content.len().min(room)]);
        let used = newline.map_or(chunk.len(), |at| at + 1);
        input.consume(used);
        if newline.is_some() {
            break;
        }
    }
    Ok((!is_end).then_some(Line { bytes, is_cut }))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(mut input: &[u8]) -> Vec<(Vec<u8>, bool)> {
        std::iter::from_fn(|| read_line(&mut input).unwrap())
            .map(|line| (line.bytes, line.is_cut))
            .collect()
    }

    #[test]
    fn every_line_counts_also_an_empty_or_unfinished_one() {
        let lines = read_all(b"/a\n\n\xff\xfe\n/last");
        let expect: [&[u8]; 4] = [b"/a", b"", b"\xff\xfe", b"/last"];
        assert_eq!(lines, expect.map(|bytes| (bytes.to_vec(), false)));
        assert_eq!(read_all(b""), []);
        assert_eq!(read_all(b"\n").len(), 1);
    }

    #[test]
    fn an_endless_line_is_cut() {
        let mut input = vec![b'x'; 3 * MAX_LINE_BYTES];
        input.extend_from_slice(b"\n/next\n");
        let lines = read_all(&input);
        assert_eq!(lines[0], (vec![b'x'; MAX_LINE_BYTES], true));
        assert_eq!(lines[1], (b"/next".to_vec(), false));
    }
}
