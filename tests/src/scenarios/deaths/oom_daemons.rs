//! Userspace OOM killers: each must be named. All but oomd are Debian's own programs.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{Stage, path};
use crate::block::Source;
use crate::deadline::until;
use crate::death::Death;
use crate::hog::{End, Hog, Spec};
use crate::memcg;
use crate::meminfo;
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
    Scenario::new(
        "nohang_kills",
        "nohang, a script, ends the largest process",
        nohang_kills,
    )
    .needs(&[Need::Guest, Need::Program(NOHANG)]),
    Scenario::new(
        "oomd_kills",
        "oomd, by name and place: the same name in a container is none",
        oomd_kills,
    ),
];

const EARLYOOM: &str = "/usr/bin/earlyoom";
const NOHANG: &str = "/usr/sbin/nohang";
/// All of its settings have to be there.
const NOHANG_CONFIG: &str = "/etc/nohang/nohang.conf";
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
    let (total, available) = node_mib()?;
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

fn nohang_kills(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x72)?;
    let _init = stage.with_init(context)?;
    let (total, available) = node_mib()?;
    let percent = available * 100 / total;
    ensure!(percent > 60, "{available} of {total} MiB are available");
    let packaged = fs::read_to_string(NOHANG_CONFIG).context(NOHANG_CONFIG)?;
    // It acts below half of all memory at the most.
    let config = packaged.lines().map(|line| match line.split(' ').next() {
        Some(name @ "soft_threshold_min_mem") => format!("{name} = 48 %"),
        Some(name @ "hard_threshold_min_mem") => format!("{name} = 44 %"),
        _ => line.to_owned(),
    });
    let config = config.collect::<Vec<_>>().join("\n");
    let directory = tempfile::tempdir().context("directory for a configuration")?;
    let file = directory.path().join("nohang.conf");
    fs::write(&file, config + "\n").context("nohang.conf")?;
    let file = file.to_str().context("nohang.conf")?;
    let daemon = Daemon::start(NOHANG, &["--monitor", "--config", file])?;
    // A third of it is left.
    let mib = (total * (percent - 33) / 100).to_string();
    let hog = stage
        .spec()
        .oom_score_adj(500)
        .start(&["anon", &mib], context.deadline)?;
    check(context, &stage, hog, (&daemon, "nohang"), true)
}

/// oomd is not packaged. What is known of it is its name; it kills one process after the other.
fn oomd_kills(context: &mut Context) -> Result<()> {
    let stage = Stage::new(context, 0x73)?;
    let _init = stage.with_init(context)?;
    let service = context.scratch.child("oomd.service")?;
    let elsewhere = Stage::new(context, 0x74)?;
    for (place, cause) in [
        (&service, "userspace_oom_killer"),
        (&elsewhere.container.cgroup, "killed_by_process"),
    ] {
        let mut victim = stage.idle(context)?;
        let pid = victim.pid().to_string();
        let mut oomd = Spec::inside(place)
            .comm(b"oomd")
            .start(&["send", &pid, "9"], context.deadline)?;
        let sent = oomd.wait(context.deadline)?;
        ensure!(sent.success(), "the sender: {sent}");
        let end = End::of(victim.wait(context.deadline)?)?;
        ensure!(end == End::Signal(libc::SIGKILL), "{end:?}");
        context.check_death(
            &Death::of(victim.pid(), end)?
                .inside(&stage.container, "child", true)
                .sent("kill", oomd.pid())
                .is("sender.process.comm", "oomd")
                .is("sender.cgroup.path", path(place))
                .is("incident", ())
                .because(cause),
        )?;
    }
    Ok(())
}

/// Memory of the node, all and available, MiB.
fn node_mib() -> Result<(u64, u64)> {
    let (total, available) = (meminfo::bytes("MemTotal")?, meminfo::bytes("MemAvailable")?);
    Ok((total >> 20, available >> 20))
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
