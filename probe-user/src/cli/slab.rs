//! `oomprobe slab`: which kernel caches are big or grow, and who allocates from one.

use std::io::{self, Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use super::triage::{Notice, duration};
use super::{Common, Output, exit, obstacle, runtime};
use crate::daemon::process::Stop;
use crate::event::Body;
use crate::leak::{slab, track};

/// How long to look without `--track`.
const LOOK: Duration = Duration::from_secs(3);

/// Arguments of `oomprobe slab`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  oomprobe slab                                        caches by size and growth, and what is no slab
  oomprobe slab --duration 60s                         a longer look: steady growth shows
  oomprobe slab -o json | jq '.balance.unaccounted_bytes'
  oomprobe slab --track dentry --duration 60s          who allocates it and does not free it
  oomprobe slab --track kmalloc-1k --sample 1          every object
  oomprobe slab --track kmalloc-1k --folded > stacks   for a flame graph, until SIGINT

Without --track it reads files only; most of them need root, and what it could not read it says.
Exit codes: 0 healthy, 4 findings; with --track 0, or 3 if no hook works; 1 failure, 2 usage.")]
pub struct Args {
    /// How to write the report [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
    /// How long to look, as 3s or 1m: growth is over this time [default: 3s; with --track until
    /// SIGINT]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// How many caches and cgroups to list; with --track, stacks
    #[arg(long, value_name = "N", default_value = "10")]
    top: usize,
    /// Follow the objects of this cache from allocation to free: a name as /proc/slabinfo has it, or
    /// kmalloc-1k for that size, or skb for socket buffers
    #[arg(long, value_name = "CACHE", value_parser = what)]
    track: Option<track::What>,
    #[command(flatten)]
    following: Following,
}

/// How objects are followed.
#[derive(Clone, Debug, clap::Args)]
pub struct Following {
    /// Share of the objects to follow, as 1/64; a power of two, 1 for all. Made smaller if it
    /// fills its table, unless it is 1
    #[arg(long, value_name = "SHARE", default_value = "1/64", value_parser = sample_bits,
          requires = "track")]
    pub(super) sample: u32,
    /// Objects that are younger are on their way and only counted
    #[arg(long, value_name = "TIME", default_value = "1s", requires = "track",
          value_parser = humantime::parse_duration)]
    pub(super) min_age: Duration,
    /// Write stacks as flame graph tools take them: functions from the outermost, and objects
    #[arg(long, requires = "track", conflicts_with = "output")]
    pub(super) folded: bool,
}

/// The cache that is meant by a name.
fn what(name: &str) -> Result<track::What, String> {
    if name.is_empty() || name.len() > 255 {
        return Err("must be the name of a cache".to_owned());
    }
    if name == "skb" {
        return Ok(track::What::Skb);
    }
    let Some(size) = name.strip_prefix("kmalloc-") else {
        return Ok(track::What::Cache(name.as_bytes().to_vec()));
    };
    let (digits, factor) = match size.strip_suffix('k') {
        Some(digits) => (digits, 1024),
        None => (size, 1),
    };
    let bytes = digits
        .parse()
        .ok()
        .and_then(|it: u32| it.checked_mul(factor));
    match bytes {
        Some(bytes) if (8..=8192).contains(&bytes) => Ok(track::What::Kmalloc(bytes)),
        _ => Err("kmalloc caches are known by size: kmalloc-8 to kmalloc-8k".to_owned()),
    }
}

/// Bits of a share that is a power of two.
pub(super) fn sample_bits(share: &str) -> Result<u32, String> {
    let wrong = || "must be 1 or 1/2, 1/4, … 1/65536".to_owned();
    let whole: u32 = match share.strip_prefix("1/") {
        Some(whole) => whole.parse().map_err(|_| wrong())?,
        None if share == "1" => 1,
        None => return Err(wrong()),
    };
    if whole.is_power_of_two() && whole <= 65_536 {
        Ok(whole.trailing_zeros())
    } else {
        Err(wrong())
    }
}

/// Looks or follows, reports, and says by its exit code whether something is wrong.
pub fn run(args: Args, common: Common) -> anyhow::Result<ExitCode> {
    if let Some(what) = args.track {
        let following = track::Options {
            host_root: common.host_root.clone(),
            cri_socket: common.cri_socket.clone(),
            what,
            sample_bits: args.following.sample,
            duration: args.duration,
            min_age: args.following.min_age,
            top: args.top,
        };
        return follow(&following, &common, args.output, args.following.folded);
    }
    let options = slab::Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        duration: args.duration.unwrap_or(LOOK),
        top: args.top,
    };
    let runtime = runtime()?;
    let notice = Notice::show(options.duration);
    let event = runtime.block_on(slab::run(&options));
    drop(notice);
    // A look-up that hangs on a dead disk must not hold up the end.
    runtime.shutdown_background();
    let event = event?;
    Output::or_default(args.output).write(&event)?;
    let healthy = matches!(&event.body, Body::SlabUsage(usage) if usage.healthy);
    Ok(ExitCode::from(if healthy { 0 } else { exit::FINDINGS }))
}

/// Follows objects until told to stop or the time is over, then writes what is not freed.
pub(super) fn follow(
    options: &track::Options,
    common: &Common,
    output: Option<Output>,
    folded: bool,
) -> anyhow::Result<ExitCode> {
    if let Some(missing) = obstacle(common) {
        eprintln!("oomprobe: cannot follow objects here: {missing}");
        return Ok(ExitCode::from(exit::UNSUPPORTED));
    }
    // Each stack is a line, and none is to be missed.
    let options = &track::Options {
        top: if folded { usize::MAX } else { options.top },
        ..options.clone()
    };
    let runtime = runtime()?;
    let event = runtime.block_on(async {
        let mut stop = Stop::new()?;
        let ready = || eprintln!("oomprobe: following; SIGINT ends it with a report");
        anyhow::Ok(track::run(options, stop.requested(), ready).await)
    })?;
    runtime.shutdown_background();
    let event = match event {
        Ok(event) => event,
        Err(error) if error.is_unsupported() => {
            eprintln!("oomprobe: {:#}", anyhow::Error::from(error));
            return Ok(ExitCode::from(exit::UNSUPPORTED));
        }
        Err(error) => return Err(error.into()),
    };
    match &event.body {
        Body::SkbOutstanding(outstanding) | Body::SlabOutstanding(outstanding) if folded => {
            match stdout().write_all(track::folded(outstanding).as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
                _ => {}
            }
        }
        _ => {
            Output::or_default(output).write(&event)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_powers_of_two() {
        for (share, bits) in [("1", 0), ("1/1", 0), ("1/64", 6), ("1/65536", 16)] {
            assert_eq!(sample_bits(share), Ok(bits));
        }
        for share in ["", "2", "1/0", "1/63", "1/131072", "64", "0.5", "1/-2"] {
            assert!(sample_bits(share).is_err(), "{share}");
        }
    }

    #[test]
    fn kmalloc_is_known_by_size() {
        assert_eq!(what("kmalloc-1k"), Ok(track::What::Kmalloc(1024)));
        assert_eq!(what("kmalloc-96"), Ok(track::What::Kmalloc(96)));
        assert_eq!(what("skb"), Ok(track::What::Skb));
        assert_eq!(what("dentry"), Ok(track::What::Cache(b"dentry".to_vec())));
        for name in [
            "",
            "kmalloc-",
            "kmalloc-cg-1k",
            "kmalloc-9999999k",
            "kmalloc-1m",
        ] {
            assert!(what(name).is_err(), "{name}");
        }
    }
}
