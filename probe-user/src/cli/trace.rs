//! `oomprobe trace`: events live.

use std::{io::stdout, process::ExitCode, time::Duration};

use super::{Common, Output, colour, ended, exit, obstacle};
use crate::{
    daemon::{self, Deaths, Filter, Options},
    sink::{json::Json, terminal::Terminal},
};

/// Arguments of `oomprobe trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  oomprobe trace                                      follow, readable on a terminal
  oomprobe trace -o json > kills.ndjson               NDJSON, also the default in a pipe
  oomprobe trace --duration 10m --pod cart-7d9f       one pod, for ten minutes
  oomprobe trace --leaks 5m -o json                   and who holds the kernel's memory
  oomprobe trace --all-deaths -o json | jq -c 'select(.kind == \"process_death\")'

The first event is probe_status: from then on no kill is missed, or a gap event says so.
SIGINT and SIGTERM drain what was seen and exit 0.")]
pub struct Args {
    /// How to write events [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
    /// Stop after this long, as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Time between two heartbeat events; 0s for none
    #[arg(long, value_name = "TIME", default_value = "60s", env = "OOMPROBE_HEARTBEAT",
          value_parser = humantime::parse_duration)]
    heartbeat: Duration,
    /// Stop after this many kills, when what became of them is known
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// How long memory must grow before it is called a leak
    #[arg(long, value_name = "TIME", default_value = "10m", env = "OOMPROBE_LEAK_WINDOW",
          value_parser = humantime::parse_duration)]
    leak_window: Duration,
    /// Look at kernel memory as often as this, as 1m: who holds socket buffers, who allocates those
    /// that are not freed, which slab caches are big. One buffer in 64 is followed
    #[arg(long, value_name = "INTERVAL", env = "OOMPROBE_LEAKS", value_parser = looks)]
    leaks: Option<Duration>,
    /// Tell of every process that dies, not only of those in containers that were killed, failed or
    /// were a container's first
    #[arg(long, env = "OOMPROBE_ALL_DEATHS")]
    all_deaths: bool,
    /// Only events about the pod of this name
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Only events about this Kubernetes namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only events about this container: its name, its id, or the start of its id
    #[arg(long, value_name = "NAME|ID")]
    container: Option<String>,
}

/// Parses the time between two looks at kernel memory.
fn looks(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_secs(10)..=Duration::from_secs(86_400)).contains(&every) {
        Ok(every)
    } else {
        Err("must be between 10s and 24h: a look takes some seconds".to_owned())
    }
}

/// Follows until told to stop.
pub fn run(args: Args, common: Common) -> anyhow::Result<ExitCode> {
    if let Some(missing) = obstacle(&common) {
        eprintln!("oomprobe: cannot trace here: {missing}");
        return Ok(ExitCode::from(exit::UNSUPPORTED));
    }
    let options = Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        heartbeat: args.heartbeat,
        duration: args.duration,
        count: args.count,
        leak_window: args.leak_window,
        leaks: args.leaks,
        deaths: if args.all_deaths {
            Deaths::All
        } else {
            Deaths::Containers
        },
        filter: Filter {
            pod: args.pod,
            namespace: args.namespace,
            container: args.container,
            cgroup: None,
        },
    };
    let ending = match Output::or_default(args.output) {
        Output::Json => daemon::run(options, Json::new(stdout()), || ()),
        Output::Pretty => daemon::run(options, Terminal::new(stdout(), colour()), || ()),
    }?;
    Ok(ended(ending))
}
