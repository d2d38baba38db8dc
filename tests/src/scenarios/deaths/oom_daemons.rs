//! Userspace OOM killers as Debian packages them: each must be named.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::Stage;
use crate::block::Source;
use crate::deadline::until;
use crate::death::Death;
use crate::hog::{End, Hog};
use crate::memcg;
use crate::scenario::{Context, Need, Scenario};
use crate::scenarios::MIB;
use crate::scenarios::pressure::reader;

pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "earlyoom_kills",
        "earlyoom ends the largest process: SIGTERM or SIGKILL, before the kernel would",
        earlyoom_kills,
    )
    .needs(&[Need::Guest, Need::Program(EARLYOOM)]),
    Scenario::new(
        "systemd_oomd_kills",
        "systemd-oomd ends a container under memory pressure",
        systemd_oomd_kills,
    )
    .needs(&[Need::Guest, Need::CgroupV2, Need::Program(SYSTEMD_OOMD)]),
];

const EARLYOOM: &str = "/usr/bin/earlyoom";
const SYSTEMD_OOMD: &str = "/lib/systemd/systemd-oomd";

/// A daemon; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(program: &str, arguments: &[&str]) -> Result<Self> {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            // The results are on stdout.
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        Ok(Self(child))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The workload is ended by the daemon, and the event says so.
fn check(
    context: &Context,
    stage: &Stage,
    mut hog: Hog,
    (daemon, comm): (&Daemon, &str),
    survived: bool,
) -> Result<()> {
    let end = End::of(hog.wait(context.deadline)?)?;
    ensure!(
        [End::Signal(libc::SIGTERM), End::Signal(libc::SIGKILL)].contains(&end),
        "{end:?}"
    );
    context
        .check_death(
            &Death::of(hog.pid(), end)?
                .inside(&stage.container, "child", survived)
                .sent("kill", daemon.pid())
                .is("sender.process.comm", comm)
                .is("incident", ())
                .because("userspace_oom_killer"),
        )
        .map(drop)
}

fn earlyoom_kills(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x70)?;
    let _init = stage.with_init(context)?;
    let (total, available) = (meminfo_mib("MemTotal")?, meminfo_mib("MemAvailable")?);
    let percent = available * 100 / total;
    ensure!(percent > 50, "{available} of {total} MiB are available");
    let limits = format!("{},{}", percent - 20, percent - 25);
    let daemon = Daemon::start(EARLYOOM, &["-r", "0", "-m", &limits])?;
    // Far more than it needs to be seen, far less than there is.
    let mib = (total * 35 / 100).to_string();
    let hog = stage
        .spec()
        .oom_score_adj(500)
        .start(&["anon", &mib], context.deadline)?;
    check(context, &stage, hog, (&daemon, "earlyoom"), true)
}

fn meminfo_mib(key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib: u64 = line
        .and_then(|rest| rest.trim_start_matches(':').trim().strip_suffix(" kB"))
        .with_context(|| format!("/proc/meminfo: {key}"))?
        .parse()?;
    Ok(kib >> 10)
}

fn systemd_oomd_kills(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x71)?;
    fs::create_dir_all("/etc/systemd").context("/etc/systemd")?;
    fs::write(
        "/etc/systemd/oomd.conf",
        "[OOM]\nDefaultMemoryPressureDurationSec=1s\n",
    )
    .context("oomd.conf")?;
    let manager = Manager::listen()?;
    let daemon = Daemon::start(SYSTEMD_OOMD, &[])?;
    let pod = stage.container.cgroup.directory().parent();
    let pod = pod.context("a container is in a pod")?.to_owned();
    let _watched = manager.watch(&pod, context)?;

    // What is over memory.high and cannot be reclaimed waits, again and again. Only where the kernel
    // also scans for something to reclaim does the daemon kill.
    let source = Source::new(64)?;
    memcg::set_high(&stage.container.cgroup, 16 * MIB)?;
    let reading = reader(source.path(), 64, &[]);
    let _reader = stage.spec().start(&reading, context.deadline)?;
    let hog = stage.spec().start(&["anon", "64"], context.deadline)?;
    check(context, &stage, hog, (&daemon, "systemd-oomd"), false)
}

/// systemd's side of the socket on which systemd-oomd asks what to watch (varlink: JSON objects,
/// each ended by NUL; src/core/core-varlink.c).
struct Manager(UnixListener);

impl Manager {
    fn listen() -> Result<Self> {
        let socket = Path::new("/run/systemd/io.system.ManagedOOM");
        // Where the daemon has a socket of its own.
        fs::create_dir_all("/run/systemd/oom").context("/run/systemd/oom")?;
        // One of an earlier run in this guest.
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).context("socket for systemd-oomd")?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Answers the question: the cgroups in `directory` are to be killed at a memory pressure of
    /// 5 %. The daemon ends with the returned connection.
    fn watch(&self, directory: &Path, context: &Context) -> Result<UnixStream> {
        // A share of 2^32.
        const LIMIT: u32 = u32::MAX / 20;
        let stream = until(context.deadline, "systemd-oomd", || {
            Ok(self.0.accept().ok().map(|(stream, _)| stream))
        })?;
        stream.set_nonblocking(false)?;
        let mut question = Vec::new();
        BufReader::new(&stream).read_until(0, &mut question)?;
        ensure!(
            String::from_utf8_lossy(&question).contains("SubscribeManagedOOMCGroups"),
            "systemd-oomd asks {}",
            String::from_utf8_lossy(&question)
        );
        let below = directory.strip_prefix("/sys/fs/cgroup")?;
        let answer = serde_json::json!({
            "parameters": { "cgroups": [{
                "mode": "kill",
                "path": Path::new("/").join(below),
                "property": "ManagedOOMMemoryPressure",
                "limit": LIMIT,
            }]},
            "continues": true,
        });
        (&stream).write_all(format!("{answer}\0").as_bytes())?;
        Ok(stream)
    }
}
