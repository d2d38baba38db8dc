//! `oomprobe explain`: the story of one pod.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write as _, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};

use super::{Common, Output, colour, ended, exit, obstacle};
use crate::{
    daemon::{self, Deaths, Filter, Options},
    event::{Event, Time, escape},
    sink::{self, Sink, terminal},
    story::{Collector, Query, Story},
};

/// Longer than any event: a kill with a thousand victims has less.
const LONGEST_LINE_BYTES: u64 = 16 << 20;

/// Between two heartbeats of a live capture: they tell how long it was followed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Arguments of `oomprobe explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  oomprobe explain --pod cart-7d9f --from events.ndjson       from what `trace -o json` wrote
  oomprobe explain --pod cart-7d9f --from - --since 1h        the last hour of what is piped in
  oomprobe explain --pod cart-7d9f --namespace shop           live: Ctrl-C ends it and tells
  oomprobe explain --pod cart-7d9f --duration 10m -o json     live for ten minutes, for machines

A file that `trace` still writes can be read at any time; lines that are no events are skipped,
counted and said on stderr. A live story needs root, as `trace` does; one from a file does not.
Exit codes: 0 told, 1 failure (as no such pod in the capture), 2 usage, 3 cannot trace here.")]
pub struct Args {
    /// The pod: its name; with --from also its UID
    #[arg(long, value_name = "NAME")]
    pod: String,
    /// Its namespace; needed only if the name is used in more than one
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Only this container: its name, its id, or the start of its id
    #[arg(long, value_name = "NAME|ID")]
    container: Option<String>,
    /// Events as `oomprobe trace -o json` writes them; - for standard input; without it this node is
    /// followed live
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Only this long before the last event of the capture, as 1h
    #[arg(long, value_name = "TIME", requires = "from", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Follow this long, as 90s or 10m
    #[arg(long, value_name = "TIME", conflicts_with = "from",
          value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// How to write the story [default: pretty on a terminal, else json]
    #[arg(short, long, value_enum, env = "OOMPROBE_OUTPUT")]
    output: Option<Output>,
}

/// Reads or follows, and tells.
pub fn run(args: Args, common: Common) -> anyhow::Result<ExitCode> {
    let query = Query {
        pod: args.pod,
        namespace: args.namespace,
        container: args.container,
        since: args.since,
    };
    let (story, code) = if let Some(from) = &args.from {
        (from_capture(from, query)?, ExitCode::SUCCESS)
    } else if let Some(missing) = obstacle(&common) {
        eprintln!("oomprobe: cannot trace here: {missing}\n  or tell from a capture: --from FILE");
        return Ok(ExitCode::from(exit::UNSUPPORTED));
    } else {
        live(query, args.duration, common)?
    };
    let text = match Output::or_default(args.output) {
        Output::Json => serde_json::to_string(&story)? + "\n",
        Output::Pretty => terminal::story::render(&story, colour()),
    };
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(code)
}

fn from_capture(from: &Path, query: Query) -> anyhow::Result<Story> {
    let mut collector = Collector::new(query);
    let (name, read) = if from == Path::new("-") {
        let read = read(io::stdin().lock(), &mut collector);
        ("standard input".to_owned(), read)
    } else {
        let name = escape(&from.to_string_lossy()).into_owned();
        let file = File::open(from).with_context(|| {
            format!("cannot open {name}; `oomprobe trace -o json > FILE` writes a capture")
        })?;
        let read = read(BufReader::new(file), &mut collector);
        (name, read)
    };
    let read = read.with_context(|| format!("cannot read {name}"))?;
    if read.events == 0 {
        let why = read.first_bad.map(|(_, why)| format!(" ({why})"));
        bail!(
            "{name} has no events{}; `oomprobe trace -o json > FILE` writes a capture",
            why.unwrap_or_default()
        );
    }
    if let Some((number, why)) = &read.first_bad {
        let lines = match read.bad {
            1 => "1 line is no event and was skipped".to_owned(),
            bad => format!("{bad} lines are no events and were skipped"),
        };
        eprintln!("oomprobe: {name}: {lines}; first line {number}: {why}");
    }
    if read.is_torn {
        eprintln!("oomprobe: {name}: the last line has no end: perhaps it is still being written");
    }
    collector
        .tell()
        .map_err(|error| anyhow::anyhow!("{}", escape(&error.to_string())))
}

/// How reading a capture went.
#[derive(Debug, Default)]
struct Read {
    events: u64,
    /// Lines that are no events.
    bad: u64,
    /// Number of the first of them, and what is wrong with it.
    first_bad: Option<(u64, String)>,
    /// Whether the input ends within a line that is no event yet.
    is_torn: bool,
}

fn read(mut input: impl BufRead, collector: &mut Collector) -> io::Result<Read> {
    let mut read = Read::default();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = (&mut input)
            .take(LONGEST_LINE_BYTES)
            .read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        let is_ended = line.last() == Some(&b'\n');
        let is_too_long = !is_ended && length as u64 == LONGEST_LINE_BYTES;
        if is_too_long {
            input.skip_until(b'\n')?;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => {
                read.events += 1;
                collector.push(&event);
            }
            Err(_) if !is_ended && !is_too_long => read.is_torn = true,
            Err(error) => {
                read.bad += 1;
                read.first_bad
                    .get_or_insert_with(|| (number, escape(&error.to_string()).into_owned()));
            }
        }
    }
    Ok(read)
}

fn live(
    query: Query,
    duration: Option<Duration>,
    common: Common,
) -> anyhow::Result<(Story, ExitCode)> {
    let options = Options {
        host_root: common.host_root,
        cri_socket: common.cri_socket,
        heartbeat: HEARTBEAT,
        duration,
        count: None,
        leak_window: daemon::LEAK_WINDOW,
        leaks: None,
        deaths: Deaths::Containers,
        filter: Filter {
            pod: Some(query.pod.clone()),
            namespace: query.namespace.clone(),
            container: query.container.clone(),
            cgroup: None,
        },
    };
    let collector = Arc::new(Mutex::new(Collector::new(query.clone())));
    let sink = Collect(Arc::clone(&collector));
    let ending = daemon::run(options, sink, move || {
        let how = if duration.is_some() {
            ""
        } else {
            "; Ctrl-C ends it and tells"
        };
        eprintln!("oomprobe: following pod {}{how}", escape(&query.pod));
    })?;
    let mut kept = collector.lock().unwrap_or_else(PoisonError::into_inner);
    let collector = std::mem::replace(&mut *kept, Collector::new(Query::default()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = Time::from_unix_ns(u64::try_from(now.as_nanos())?);
    let story = collector.tell_live(now)?;
    Ok((story, ended(ending)))
}

/// Keeps events for the story.
struct Collect(Arc<Mutex<Collector>>);

impl Sink for Collect {
    fn write(&mut self, event: &Event) -> Result<(), sink::Error> {
        let mut collector = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        collector.push(event);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Body, Heartbeat, Host};

    fn line() -> String {
        let event = Event::new(
            Time::from_unix_ns(1),
            1,
            0,
            Host::default(),
            Body::Heartbeat(Heartbeat::default()),
        );
        serde_json::to_string(&event).unwrap()
    }

    fn read_all(input: &[u8]) -> Read {
        let mut collector = Collector::new(Query::default());
        read(input, &mut collector).unwrap()
    }

    #[test]
    fn bad_lines_are_skipped_and_counted() {
        let good = line();
        let input = format!("{good}\n\nnot json\n{{\"kind\":\"heartbeat\"}}\n{good}\r\n");
        let result = read_all(input.as_bytes());
        assert_eq!((result.events, result.bad, result.is_torn), (2, 2, false));
        assert_eq!(result.first_bad.unwrap().0, 3);
        let result = read_all(b"\xff\xfe\n\0\n");
        assert_eq!((result.events, result.bad), (0, 2));
    }

    #[test]
    fn a_capture_torn_at_any_byte_is_read_up_to_there() {
        let good = line();
        let input = format!("{good}\n{good}");
        for end in 0..=input.len() {
            let result = read_all(&input.as_bytes()[..end]);
            let whole = u64::from(end >= good.len()) + u64::from(end == input.len());
            assert_eq!((result.events, result.bad), (whole, 0), "{end}");
            let is_within = end != 0 && !(good.len()..=good.len() + 1).contains(&end);
            assert_eq!(result.is_torn, is_within && end != input.len(), "{end}");
        }
    }

    #[test]
    fn a_line_without_end_is_bad_and_not_kept() {
        let length = usize::try_from(LONGEST_LINE_BYTES).unwrap();
        let mut input = vec![b'['; length + 10];
        input.push(b'\n');
        input.extend_from_slice(line().as_bytes());
        let result = read_all(&input);
        assert_eq!((result.events, result.bad), (1, 1));
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let error = from_capture(Path::new("/no/such/file"), Query::default()).unwrap_err();
        assert!(
            format!("{error:#}").contains("oomprobe trace -o json"),
            "{error:#}"
        );
    }
}
