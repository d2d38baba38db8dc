//! `oomprobe triage`: one look at this node.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use super::{Common, Output, exit, runtime};
use crate::event::Body;
use crate::triage;

/// Arguments of `oomprobe triage`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  oomprobe triage                                       what is wrong here, and what to run next
  oomprobe triage --duration 30s --top 20               a longer look, more cgroups
  oomprobe triage -o json | jq '.findings[].summary'    for machines
  oomprobe triage > /dev/null || page-somebody          by exit code

It reads files, and needs no privilege for most of them; what it could not read it says. Only where
slab fills the node it looks for the sockets that hold it, as oomprobe skb does: that needs root.
Exit codes: 0 healthy, 4 findings; 1 failure, 2 usage.")]
pub struct Args {
    /// How to write the report [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
    /// How long to look, as 2s or 1m: rates are over this time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    duration: Duration,
    /// How many cgroups to list
    #[arg(long, value_name = "N", default_value = "10")]
    top: usize,
}

/// Parses the length of a look.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_millis(100)..=Duration::from_secs(600);
    if bounds.contains(&duration) {
        Ok(duration)
    } else {
        Err("must be between 100ms and 10m".to_owned())
    }
}

/// Looks, reports, and says by its exit code whether something is wrong.
pub fn run(args: &Args, common: Common) -> anyhow::Result<ExitCode> {
    let options = triage::Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        duration: args.duration,
        top: args.top,
    };
    let runtime = runtime()?;
    let notice = Notice::show(args.duration);
    let event = runtime.block_on(triage::run(&options));
    drop(notice);
    // A look-up that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    let event = event?;
    Output::or_default(args.output).write(&event)?;
    let healthy = matches!(&event.body, Body::Triage(triage) if triage.healthy);
    Ok(ExitCode::from(if healthy { 0 } else { exit::FINDINGS }))
}

/// A line that says what takes so long, for a person who waits; it is gone when the report comes.
pub(super) struct Notice;

impl Notice {
    /// Shows it, if standard error is a terminal.
    pub(super) fn show(duration: Duration) -> Option<Self> {
        let mut stderr = io::stderr();
        if !stderr.is_terminal() {
            return None;
        }
        let text = humantime::format_duration(duration);
        // Nothing is lost with a line that cannot be written.
        let _ = write!(stderr, "oomprobe: looking at this node for {text} …");
        let _ = stderr.flush();
        Some(Self)
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
