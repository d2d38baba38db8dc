//! `cargo xtask vm` and the guest half of `cargo xtask run --vm`.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::check::check;
use super::kernels::Matrix;
use super::terminal::{self, RawTerminal};
use super::{Job, Stream, Vm};
use crate::cache::Cache;

/// Runs a command, or a shell, in a guest of any kernel of the matrix.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// Label of the matrix, `newest`, or path of a vmlinuz.
    #[arg(required_unless_present_any = ["list", "check"])]
    kernel: Option<String>,

    /// List the kernels of the matrix.
    #[arg(long, conflicts_with = "kernel")]
    list: bool,

    /// Boot the kernel, or each of the matrix, and check that output and exit code come back.
    #[arg(long, conflicts_with_all = ["list", "command"])]
    check: bool,

    /// Memory of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,

    /// Processors of the guest.
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,

    /// Seconds after which the guest is ended; an interactive shell has no limit.
    #[arg(long, value_name = "S", default_value_t = 300)]
    timeout: u64,

    /// Words for the kernel's command line.
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        allow_hyphen_values = true
    )]
    append: String,

    /// Put a file of the host into the guest; may be repeated.
    #[arg(long = "file", value_name = "HOST:GUEST", value_parser = parse_file)]
    files: Vec<(PathBuf, String)>,

    /// Command to run; a shell if there is none.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// `cargo xtask vm`: the exit code is the command's.
pub(crate) fn vm(cache: &Cache, args: VmArgs) -> Result<ExitCode> {
    let matrix = Matrix::load()?;
    if args.check {
        let all = matrix.series.iter().map(|series| series.label.as_str());
        let kernels: Vec<&str> = match &args.kernel {
            Some(kernel) => vec![kernel],
            None => all.collect(),
        };
        return check(cache, &kernels).map(|()| ExitCode::SUCCESS);
    }
    let Some(kernel) = args.kernel else {
        return list(cache, &matrix).map(|()| ExitCode::SUCCESS);
    };
    let mut job = Job::new(args.command);
    job.files = args.files;
    job.machine.memory_mib = args.memory;
    job.machine.cpus = args.cpus;
    job.machine.append = args.append;
    job.machine.timeout = Some(Duration::from_secs(args.timeout));
    run_job(cache, &kernel, job)
}

/// `cargo xtask run --vm KERNEL -- ARGS`: runs the static program `oomprobe` with `args`.
pub(crate) fn run(
    cache: &Cache,
    kernel: &str,
    oomprobe: &Path,
    args: &[String],
) -> Result<ExitCode> {
    let mut job = Job::new(std::iter::once("oomprobe").chain(args.iter().map(String::as_str)));
    job.files
        .push((oomprobe.to_owned(), "bin/oomprobe".to_owned()));
    run_job(cache, kernel, job)
}

fn run_job(cache: &Cache, kernel: &str, mut job: Job) -> Result<ExitCode> {
    let shell = job.argv.is_empty().then(terminal::size);
    if let Some(None) = shell {
        bail!("give a command after `--`, or run this on a terminal for a shell");
    }
    let kernel = Matrix::load()?.kernel(cache, kernel)?;
    let vm = Vm::prepare()?;
    let status = if let Some(Some(size)) = shell {
        job.argv = vec!["/bin/sh".to_owned(), "-l".to_owned()];
        job.machine.timeout = None;
        if let Ok(term) = std::env::var("TERM") {
            job.env.insert("TERM".to_owned(), term);
        }
        eprintln!(
            "shell in a guest with kernel {}; `exit` ends it",
            kernel.label
        );
        let _raw = RawTerminal::enter().context("take over the terminal")?;
        vm.boot(
            &kernel,
            &job,
            Some((size, Box::new(io::stdin()))),
            &mut pass_through,
        )?
    } else {
        vm.stream(&kernel, &job, &mut pass_through)?
    };
    Ok(exit_code(status))
}

fn pass_through(stream: Stream, bytes: &[u8]) {
    let written = match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Stream::Stderr => io::stderr().write_all(bytes),
    };
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("cannot pass on the guest's output: {error}");
        }
        // Nobody listens any more. The guest dies with this process.
        std::process::exit(128 + libc::SIGPIPE);
    }
}

/// The code a shell would show.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

fn list(cache: &Cache, matrix: &Matrix) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{:6} {:8} {:48} VERSION", "LABEL", "STATE", "PACKAGE")?;
    for series in &matrix.series {
        let (state, package, version) = match (series.cached(cache), series.available(cache)) {
            (Some(cached), Ok(newest)) if !cached.is_from(&newest) => {
                ("outdated", newest.name, newest.version)
            }
            (Some(cached), _) => ("cached", cached.package, cached.version),
            (None, Ok(newest)) => ("", newest.name, newest.version),
            (None, Err(error)) => ("missing", format!("{error:#}"), String::new()),
        };
        writeln!(out, "{:6} {state:8} {package:48} {version}", series.label)?;
    }
    Ok(())
}

fn parse_file(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && !guest.is_empty() => {
            Ok((PathBuf::from(host), guest.to_owned()))
        }
        _ => Err("give HOST:GUEST, a file here and its path there".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_given_as_host_and_guest_path() {
        let parsed = parse_file("a:b/c:/bin/x");
        assert_eq!(parsed, Ok((PathBuf::from("a:b/c"), "/bin/x".to_owned())));
        for bad in ["", "a", "a:", ":b"] {
            assert!(parse_file(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let code = |raw| format!("{:?}", exit_code(ExitStatus::from_raw(raw)));
        let plain = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(0), plain(0));
        assert_eq!(code(7 << 8), plain(7));
        assert_eq!(code(libc::SIGKILL), plain(137));
    }
}
