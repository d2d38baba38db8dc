//! `oomprobe skb`: who holds socket buffers.

use std::io::{IsTerminal as _, stderr};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::slab::{self, Following};
use super::{Common, Output, exit, runtime};
use crate::daemon::process::Stop;
use crate::event::Body;
use crate::leak::holders::{self, NoWay, Reports};
use crate::leak::{census::Progress, track};

/// Time between two looks, if none is asked for.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Arguments of `oomprobe skb`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  oomprobe skb                                       who holds socket buffers, and who does not read
  oomprobe skb --track --duration 60s                who allocates what is not freed, by stack and pod
  oomprobe skb --duration 30s                        a longer look: what is read rarely, what grows
  oomprobe skb --watch 10s                           again and again: what a restart gave back
  oomprobe skb --census full                         count every buffer in the slabs, not a sample
  oomprobe skb -o json | jq '.balance, .census'      what the slab caches say, and what is explained
  oomprobe skb -o json | jq -r '.findings[].next_steps[0]'

It finds what sockets hold however long ago they got it: nothing has to run before. Two looks tell
what is read and what is not. Nothing is changed on the node and no kernel module is loaded.
Exit codes: 0 nothing is held that should not be, 4 findings; 1 failure, 2 usage, 3 not permitted.")]
pub struct Args {
    /// How to write the report [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
    /// Time between two looks, as 2s or 1m; 0s for a single look [default: 2s; with --track until
    /// SIGINT]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// Look again after so long, until SIGINT, and tell what changed since
    #[arg(long, value_name = "TIME", value_parser = pause, conflicts_with = "track")]
    watch: Option<Duration>,
    /// How thoroughly to look into the slabs, which sees what no socket has
    #[arg(long, value_enum, value_name = "HOW", default_value = "sample")]
    census: holders::Thoroughness,
    /// How many holders to list; with --track, stacks
    #[arg(long, value_name = "N", default_value = "10")]
    top: usize,
    /// Follow socket buffers from allocation to free, from now on: who allocates what is not freed
    #[arg(long, conflicts_with = "census")]
    track: bool,
    #[command(flatten)]
    following: Following,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration <= Duration::from_secs(3600) {
        Ok(duration)
    } else {
        Err("must be at most 1h".to_owned())
    }
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = duration(text)?;
    if pause >= Duration::from_secs(1) {
        Ok(pause)
    } else {
        Err("must be at least 1s: a look costs what it looks at".to_owned())
    }
}

/// How far the census is, in one line of the terminal.
fn tell(progress: Progress) {
    let percent = progress.sampled_pages.saturating_mul(100) / progress.wanted_pages.max(1);
    let end = if percent >= 100 { "\r\x1b[K" } else { "" };
    eprint!(
        "\rlooking into slabs: {percent:>3} %, {} buffers{end}",
        progress.objects
    );
}

/// Looks, reports, and says by its exit code whether something is held that should not be.
pub fn run(args: &Args, common: Common) -> anyhow::Result<ExitCode> {
    if args.track {
        let options = track::Options {
            host_root: common.host_root.clone(),
            cri_socket: common.cri_socket.clone(),
            what: track::What::Skb,
            sample_bits: args.following.sample,
            duration: args.duration,
            min_age: args.following.min_age,
            top: args.top,
        };
        return slab::follow(&options, &common, args.output, args.following.folded);
    }
    // Descriptors of others are for root only; the memory of others is not enough.
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "oomprobe: sockets of other users are shown to root only; \
             run it with sudo, in a pod as privileged and with hostPID"
        );
        return Ok(ExitCode::from(exit::UNSUPPORTED));
    }
    let options = holders::Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        duration: args.duration.unwrap_or(BETWEEN_LOOKS),
        top: args.top,
        census: args.census,
        progress: if args.census == holders::Thoroughness::Full && stderr().is_terminal() {
            tell
        } else {
            |_| {}
        },
    };
    let runtime = runtime()?;
    let output = Output::or_default(args.output);
    let found = runtime.block_on(report(options, args.watch, output));
    // A look-up that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    let found = match found? {
        Ok(found) => found,
        Err(no_way) => {
            eprintln!("oomprobe: cannot find sockets here: {no_way}");
            return Ok(ExitCode::from(exit::UNSUPPORTED));
        }
    };
    Ok(ExitCode::from(if found { exit::FINDINGS } else { 0 }))
}

/// Writes one report, or one after the other until it is told to stop. Whether the last had findings.
async fn report(
    options: holders::Options,
    watch: Option<Duration>,
    output: Output,
) -> anyhow::Result<Result<bool, NoWay>> {
    let mut stop = Stop::new()?;
    let mut stop = pin!(stop.requested());
    let mut reports = Reports::open(options);
    let mut found = None;
    loop {
        let event = tokio::select! {
            () = stop.as_mut() => {
                let found = found.context("interrupted before there was a report")?;
                return Ok(Ok(found));
            }
            event = reports.next() => event,
        };
        let event = match event {
            Ok(event) => event,
            Err(no_way) => return Ok(Err(no_way)),
        };
        let findings = matches!(&event.body, Body::SkbHolders(held) if !held.findings.is_empty());
        found = Some(findings);
        let is_read = output.write(&event)?;
        let Some(pause) = watch.filter(|_| is_read) else {
            return Ok(Ok(findings));
        };
        tokio::select! {
            () = stop.as_mut() => return Ok(Ok(findings)),
            () = tokio::time::sleep(pause) => {}
        }
    }
}
