//! One file per command, and the options they share.

pub mod demo;
pub mod doctor;
pub mod explain;
pub mod resolve;
pub mod schema;
pub mod skb;
pub mod slab;
pub mod trace;
pub mod triage;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::{
    daemon::Ending,
    event::Event,
    kernel::facts::{Facts, Roots},
    sink::{self, Sink, json::Json, terminal::Terminal},
};

/// Exit codes, as `--help` lists them.
pub mod exit {
    /// Something failed.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// A privilege or kernel feature is missing; the message says which and what to do.
    pub const UNSUPPORTED: u8 = 3;
    /// Something is wrong with the node (`triage`, `skb`, `slab`).
    pub const FINDINGS: u8 = 4;
}

/// Why was it OOM-killed, and whose limit was it?
#[derive(Debug, Parser)]
#[command(
    name = "oomprobe",
    version = concat!(env!("CARGO_PKG_VERSION"), " (bpf ", env!("OOMPROBE_BPF_ID"), ")"),
    max_term_width = 100,
    after_help = "\
Examples:
  oomprobe trace                          follow kills on this node, readable
  oomprobe trace -o json | jq .verdict    the same for machines
  oomprobe trace --namespace shop         only kills that concern one namespace
  oomprobe triage                         what is wrong with this node's memory, now
  oomprobe skb                            who holds socket buffers, and does not read them
  oomprobe slab                           which kernel caches are big or grow
  oomprobe explain --pod X --from FILE    the story of one pod, from what trace wrote
  oomprobe demo                           see one: a contained kill in a scratch cgroup
  oomprobe doctor                         what this kernel allows, and what to do about the rest

Exit codes: 0 ok, 1 failure, 2 usage, 3 a needed privilege or kernel feature is missing,
4 triage, skb or slab found something.
stdout carries data only; everything else goes to stderr."
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// Options common to all commands.
#[derive(Clone, Debug, clap::Args)]
pub struct Common {
    /// Root of the host's file system, where a container has it mounted
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/",
        env = "OOMPROBE_HOST_ROOT"
    )]
    pub host_root: PathBuf,
    /// Socket of the container runtime; without it the usual places are tried
    #[arg(long, global = true, value_name = "PATH", env = "OOMPROBE_CRI_SOCKET")]
    pub cri_socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Follow OOM kills live, explained
    Trace(trace::Args),
    /// Tell the story of one pod: its deaths, what led up to each, and the pattern
    Explain(explain::Args),
    /// Take one look at this node: what is wrong with its memory, with evidence, in seconds
    Triage(triage::Args),
    /// Tell who holds socket buffers now, however long ago they came, and how much of the slab that is
    Skb(skb::Args),
    /// Say which kernel caches are big or grow, and what kernel memory is in none of them
    Slab(slab::Args),
    /// Cause a contained OOM kill in a scratch cgroup, trace it, explain it, clean up
    Demo(demo::Args),
    /// Say what this kernel allows, which hook serves each signal, and what to do about the rest
    Doctor(doctor::Args),
    /// Tell which container and pod a cgroup path, a cgroup id or a pid belongs to
    #[command(after_help = "\
Examples:
  oomprobe resolve /kubepods/burstable/pod6a4ce4a0-ba47-11ea-b2a7-0cc47ac5979e
  oomprobe resolve --pid 4242
  find /sys/fs/cgroup -type d -printf '/%P\\n' | oomprobe resolve -")]
    Resolve(resolve::Args),
    /// Print the JSON Schema of every event, or of a story
    Schema(schema::Args),
    /// Print a shell completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Allocates memory for `demo` until it is killed
    #[command(hide = true)]
    DemoHog(demo::HogArgs),
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person at a terminal.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl Output {
    /// The choice, or what fits where standard output goes.
    pub fn or_default(choice: Option<Self>) -> Self {
        choice.unwrap_or_else(|| {
            if stdout().is_terminal() {
                Self::Pretty
            } else {
                Self::Json
            }
        })
    }

    /// Writes one event to standard output. Whether somebody still reads it: one who went away is no
    /// failure.
    fn write(self, event: &Event) -> Result<bool, sink::Error> {
        let written = match self {
            Self::Json => Json::new(stdout()).write(event),
            Self::Pretty => Terminal::new(stdout(), colour()).write(event),
        };
        match written {
            Ok(()) => Ok(true),
            Err(sink::Error::Closed) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What asynchronous work runs on.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Whether to use colour on standard output: only on a terminal and without `NO_COLOR`
/// (<https://no-color.org>).
pub fn colour() -> bool {
    stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Runs the command line and says how it ended.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout and are no failure; a closed stdout is none either.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oomprobe: {error:#}");
            ExitCode::from(exit::FAILURE)
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Trace(args) => trace::run(args, cli.common),
        Command::Explain(args) => explain::run(args, cli.common),
        Command::Triage(args) => triage::run(&args, cli.common),
        Command::Skb(args) => skb::run(&args, cli.common),
        Command::Slab(args) => slab::run(args, cli.common),
        Command::Demo(args) => demo::run(&args, cli.common),
        Command::Doctor(args) => doctor::run(&args, &cli.common),
        Command::DemoHog(args) => demo::hog(&args),
        Command::Resolve(args) => {
            let Common {
                host_root,
                cri_socket,
            } = cli.common;
            let runtime = runtime()?;
            let result = runtime.block_on(resolve::run(
                args,
                resolve::Options {
                    cri_socket,
                    host_root,
                },
            ));
            // A look-up that hangs on a dead disk must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Command::Schema(args) => {
            schema::run(&args, stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "oomprobe", &mut script);
            io::Write::write_all(&mut stdout().lock(), &script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The exit code for how a daemon ended; what is worth saying is said on stderr.
fn ended(ending: Ending) -> ExitCode {
    match ending {
        Ending::Written | Ending::Closed => ExitCode::SUCCESS,
        Ending::Failed(error) => {
            eprintln!("oomprobe: cannot write to stdout: {error}");
            ExitCode::from(exit::FAILURE)
        }
        Ending::Stuck(events) => {
            eprintln!(
                "oomprobe: the reader of stdout does not read: up to {events} events were given up"
            );
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// What tracing cannot do without, said before anything is tried, with its remedy; `None` if nothing
/// is missing.
fn obstacle(common: &Common) -> Option<String> {
    let facts = Facts::gather(&Roots {
        proc: common.host_root.join("proc"),
        sys: common.host_root.join("sys"),
    });
    let problems: Vec<String> = facts
        .problems()
        .into_iter()
        .filter(|problem| problem.blocks)
        .map(|problem| format!("{}\n  remedy: {}", problem.detail, problem.remedy))
        .collect();
    (!problems.is_empty()).then(|| problems.join("\n"))
}
