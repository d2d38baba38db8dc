//! Boots one guest under QEMU, relays what its command writes and watches it to its end.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::protocol::{self, Kind};
use crate::cmd;

/// The program that runs guests.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// Kernel command line of every guest.
///
/// Lockup and stall watchdogs are off because under TCG on a busy machine they cry wolf; with
/// them gone, every "BUG:" on the console is a real one. Only errors reach the console: a serial
/// line is slow, and writing an OOM report there would hold up the kill under test.
///
/// On a busy host an emulated timer may not tick in the few milliseconds that the kernel watches
/// it for, which makes it panic: hence `no_timer_check`.
///
/// Emulated processors share one time stamp counter, but claim nothing of the sort. A kernel that
/// takes it for unstable keeps `sched_clock()` within a tick of the last tick it saw
/// (`kernel/sched/clock.c`). When the host takes the guest's time away, that clock stands still, and
/// what it missed goes to whatever runs when the tick comes: PSI, which tests compare with, is off
/// by more than the 5 % they allow. Hence `tsc=reliable`.
const KERNEL_COMMAND_LINE: &str = "rdinit=/init console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check \
    tsc=reliable mitigations=off nowatchdog rcupdate.rcu_cpu_stall_suppress=1 workqueue.watchdog_thresh=0";

/// Console lines that mean the guest is beyond help.
const FATAL_CONSOLE: [&str; 2] = ["Kernel panic", "BUG:"];

/// How long a crashed guest may go on printing its report, and a finished one may take to power off.
const GRACE: Duration = Duration::from_secs(10);

/// Lines of console shown with a failure.
const TAIL_LINES: usize = 40;

/// The virtual machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    /// NUMA nodes that share the memory evenly; the first has all processors.
    pub(crate) numa_nodes: u32,
    /// Words added to the kernel command line.
    pub(crate) append: String,
    /// Wall-clock limit from start to power-off; `None` for an interactive guest.
    pub(crate) timeout: Option<Duration>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            memory_mib: 1024,
            cpus: 2,
            numa_nodes: 1,
            append: String::new(),
            timeout: Some(Duration::from_secs(300)),
        }
    }
}

impl Machine {
    /// QEMU's words for the NUMA nodes; none for a machine without them.
    fn numa_arguments(&self) -> Vec<String> {
        if self.numa_nodes < 2 {
            return Vec::new();
        }
        let mib = self.memory_mib / self.numa_nodes;
        (0..self.numa_nodes)
            .flat_map(|node| {
                let last = self.cpus.saturating_sub(1);
                let cpus = if node == 0 {
                    format!(",cpus=0-{last}")
                } else {
                    String::new()
                };
                [
                    "-object".to_owned(),
                    format!("memory-backend-ram,id=node{node},size={mib}M"),
                    "-numa".to_owned(),
                    format!("node,nodeid={node},memdev=node{node}{cpus}"),
                ]
            })
            .collect()
    }
}

/// Which output of the command a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How QEMU executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// One thread per processor.
    Tcg,
    /// All processors take turns on one thread.
    TcgSingle,
}

/// What moves between the threads that read from QEMU and the one that decides.
enum Event {
    Console(Vec<u8>),
    Frame(Kind, Vec<u8>),
    /// The guest's `/init` runs.
    Init,
    /// The result port ended in the middle of something, or QEMU said why it ended.
    Broken(String),
}

/// Boots `vmlinuz` with `initramfs` and hands every piece of output to `sink` as it arrives.
///
/// Returns the status of the guest's command. The console goes to `console_log`; a guest that
/// crashes, hangs or garbles its results is an error that ends with the console's last lines.
pub(crate) fn boot(
    accelerator: Accelerator,
    vmlinuz: &Path,
    initramfs: &[u8],
    machine: &Machine,
    keyboard: Option<Box<dyn Read + Send>>,
    console_log: &Path,
    sink: &mut dyn FnMut(Stream, &[u8]),
) -> Result<ExitStatus> {
    // Unlinked first: another guest of the same kernel may still be writing the old one.
    let _ = fs::remove_file(console_log);
    let log = File::create(console_log)
        .with_context(|| format!("create console log {}", console_log.display()))?;
    let mut guest = Guest::start(accelerator, vmlinuz, initramfs, machine, keyboard)?;
    let mut watch = Watch::new(log, machine.timeout);
    let result = watch.until_exit(&mut guest, sink);
    drop(guest);
    result.map_err(|error| {
        anyhow!(
            "guest with kernel {}: {error:#}\nthe end of its console, {}:\n{}",
            vmlinuz.display(),
            console_log.display(),
            watch.console_tail()
        )
    })
}

/// A running QEMU; dropping it ends it.
struct Guest {
    qemu: Child,
    events: mpsc::Receiver<Event>,
}

impl Guest {
    fn start(
        accelerator: Accelerator,
        vmlinuz: &Path,
        initramfs: &[u8],
        machine: &Machine,
        keyboard: Option<Box<dyn Read + Send>>,
    ) -> Result<Self> {
        // Sockets and an unnamed file, so that nothing is left behind however this ends.
        let (console, qemu_console) = UnixStream::pair().context("create socket pair")?;
        let (port, qemu_port) = UnixStream::pair().context("create socket pair")?;
        let initrd = unnamed_file(initramfs).context("hold the initramfs in memory")?;

        let mut command = Command::new(QEMU);
        command
            .args(["-machine", "q35", "-cpu", "max"])
            .args(["-accel", accelerator.as_argument()])
            .args(["-smp", &machine.cpus.to_string()])
            .args(["-m", &machine.memory_mib.to_string()])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(vmlinuz)
            .args(["-initrd", &format!("/proc/self/fd/{}", initrd.as_raw_fd())])
            .args([
                "-append",
                &format!("{KERNEL_COMMAND_LINE} {}", machine.append),
            ]);
        command.args(machine.numa_arguments());
        for (name, socket) in [("console", &qemu_console), ("port", &qemu_port)] {
            command
                .args([
                    "-chardev",
                    &format!("socket,id={name},fd={}", socket.as_raw_fd()),
                ])
                .args(["-serial", &format!("chardev:{name}")]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let inherited = [
            qemu_console.as_raw_fd(),
            qemu_port.as_raw_fd(),
            initrd.as_raw_fd(),
        ];
        // SAFETY: only async-signal-safe calls between fork and exec.
        unsafe { command.pre_exec(move || prepare_child(inherited)) };
        let mut qemu = command.spawn().with_context(|| format!("start {QEMU}"))?;

        let (sender, events) = mpsc::channel();
        let console_sender = sender.clone();
        thread::spawn(move || read_console(console, &console_sender));
        if let Some(mut keyboard) = keyboard {
            let mut to_guest = port.try_clone().context("clone socket")?;
            // Detached: it sits in read(2) on the terminal when the guest is gone.
            thread::spawn(move || io::copy(&mut keyboard, &mut to_guest));
        }
        let stderr = qemu.stderr.take().context("QEMU's stderr")?;
        thread::spawn(move || read_port(port, stderr, &sender));
        Ok(Self { qemu, events })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if QEMU is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Accelerator {
    fn as_argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
            Self::TcgSingle => "tcg,thread=single",
        }
    }

    /// The emulation to use with this machine's QEMU.
    ///
    /// Before 8.1 a processor may translate code that another one is patching: kernels that flip
    /// a static key then die of an `int3`, about once in 30 boots. Taking turns, they cannot.
    pub(crate) fn emulation() -> Result<Self> {
        let version = cmd::output(Command::new(QEMU).arg("--version"))?;
        let version = parse_version(&version)
            .with_context(|| format!("`{QEMU} --version` says {version:?}"))?;
        Ok(if version < (8, 1) {
            Self::TcgSingle
        } else {
            Self::Tcg
        })
    }
}

/// What is known of a guest so far.
struct Watch {
    log: File,
    started: Instant,
    timeout: Option<Duration>,
    /// Set when the guest's fate is known and only its last words are awaited.
    last_words_until: Option<Instant>,
    console: VecDeque<String>,
    console_line: Vec<u8>,
    /// The console line that condemned the guest.
    fatal: Option<String>,
    init_runs: bool,
    output_bytes: u64,
}

impl Watch {
    fn new(log: File, timeout: Option<Duration>) -> Self {
        Self {
            log,
            started: Instant::now(),
            timeout,
            last_words_until: None,
            console: VecDeque::new(),
            console_line: Vec::new(),
            fatal: None,
            init_runs: false,
            output_bytes: 0,
        }
    }

    fn until_exit(
        &mut self,
        guest: &mut Guest,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus> {
        let mut exit = None;
        loop {
            match self.next(guest)? {
                Some(Event::Console(bytes)) => self.take_console(&bytes)?,
                Some(Event::Frame(Kind::Stdout, bytes)) => self.pass(Stream::Stdout, &bytes, sink),
                Some(Event::Frame(Kind::Stderr, bytes)) => self.pass(Stream::Stderr, &bytes, sink),
                Some(Event::Frame(Kind::Exit, status)) => {
                    let status = <[u8; 4]>::try_from(status.as_slice())
                        .map_err(|_| anyhow!("exit status of {} bytes", status.len()))?;
                    exit = Some(ExitStatus::from_raw(i32::from_le_bytes(status)));
                    self.last_words_until.get_or_insert(Instant::now() + GRACE);
                }
                Some(Event::Frame(Kind::Failure, text)) => {
                    bail!("{}", String::from_utf8_lossy(&text));
                }
                Some(Event::Init) => self.init_runs = true,
                // A crash explains itself on the console; what follows is only its echo.
                Some(Event::Broken(_)) if exit.is_some() || self.fatal.is_some() => {}
                Some(Event::Broken(why)) => bail!("{why}"),
                // All is said, or the grace is over.
                None => break,
            }
        }
        if let Some(line) = &self.fatal {
            bail!("the kernel crashed: {line}");
        }
        exit.context("the guest went down before its command ended")
    }

    /// Next event; `None` when there will be no more or nothing more is worth waiting for.
    fn next(&self, guest: &Guest) -> Result<Option<Event>> {
        let timeout_at = self.timeout.map(|timeout| self.started + timeout);
        let received = match self.last_words_until.or(timeout_at) {
            Some(until) => guest
                .events
                .recv_timeout(until.saturating_duration_since(Instant::now())),
            None => guest.events.recv().map_err(RecvTimeoutError::from),
        };
        match received {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) if self.last_words_until.is_some() => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!(
                "no end after {} s: {}",
                self.started.elapsed().as_secs(),
                match (self.init_runs, self.output_bytes) {
                    (false, _) => "the kernel had not reached /init".to_owned(),
                    (true, bytes) => format!("the command ran and had written {bytes} bytes"),
                }
            ),
        }
    }

    fn pass(&mut self, stream: Stream, bytes: &[u8], sink: &mut dyn FnMut(Stream, &[u8])) {
        self.output_bytes += bytes.len() as u64;
        sink(stream, bytes);
    }

    fn take_console(&mut self, bytes: &[u8]) -> Result<()> {
        self.log.write_all(bytes).context("write console log")?;
        for &byte in bytes {
            if byte != b'\n' {
                self.console_line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.console_line)
                .trim_end()
                .to_owned();
            self.console_line.clear();
            if self.fatal.is_none() && FATAL_CONSOLE.iter().any(|mark| line.contains(mark)) {
                self.fatal = Some(line.clone());
                self.last_words_until = Some(Instant::now() + GRACE);
            }
            self.console.push_back(line);
            if self.console.len() > TAIL_LINES {
                self.console.pop_front();
            }
        }
        Ok(())
    }

    fn console_tail(&self) -> String {
        let mut tail = String::new();
        let rest = String::from_utf8_lossy(&self.console_line);
        let rest = (!rest.is_empty()).then_some(rest.as_ref());
        for line in self.console.iter().map(String::as_str).chain(rest) {
            // A guest can write anything to its console; a terminal must not obey it.
            tail.push_str("  | ");
            tail.extend(line.chars().filter(|c| *c == '\t' || !c.is_control()));
            tail.push('\n');
        }
        tail
    }
}

fn read_console(mut console: UnixStream, events: &Sender<Event>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = console.read(&mut buffer) {
        if events.send(Event::Console(buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

/// Reads frames until the guest is gone, then what QEMU itself had to say.
fn read_port(port: UnixStream, mut stderr: impl Read, events: &Sender<Event>) {
    let mut port = BufReader::new(port);
    let error = match relay_frames(&mut port, events) {
        Ok(()) => None,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => Some(format!("read the guest's results: {error}")),
    };
    let why = error.or_else(|| {
        let mut complaint = String::new();
        let _ = stderr.read_to_string(&mut complaint);
        let complaint = complaint.trim();
        (!complaint.is_empty()).then(|| complaint.to_owned())
    });
    if let Some(why) = why {
        let _ = events.send(Event::Broken(why));
    }
}

fn relay_frames(port: &mut impl Read, events: &Sender<Event>) -> io::Result<()> {
    protocol::read_hello(port)?;
    let _ = events.send(Event::Init);
    while let Some((kind, payload)) = protocol::read_frame(port)? {
        if events.send(Event::Frame(kind, payload)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Major and minor number in `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .split_once("version ")?
        .1
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Runs between fork and exec: QEMU keeps `inherited` and dies with the thread that started it.
fn prepare_child(inherited: [RawFd; 3]) -> io::Result<()> {
    for fd in inherited {
        // SAFETY: the descriptors are open in the parent until spawn returns.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: PR_SET_PDEATHSIG takes a signal number only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn unnamed_file(data: &[u8]) -> Result<File> {
    // SAFETY: the name is NUL-terminated and static.
    let fd = unsafe { libc::memfd_create(c"initramfs".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, io::Error::last_os_error());
    // SAFETY: memfd_create just returned this descriptor; nothing else owns it.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(data)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_version(debian), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.3"), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version unknown"), None);
    }

    fn watch_after(console: &[u8]) -> Watch {
        let mut watch = Watch::new(tempfile::tempfile().unwrap(), None);
        for piece in console.chunks(7) {
            watch.take_console(piece).unwrap();
        }
        watch
    }

    #[test]
    fn a_crash_on_the_console_condemns_the_guest_even_in_pieces() {
        let crash = b"[ 1.0] fine\r\n[ 2.0] Kernel panic - not syncing: x\r\nCall Trace:\r\n";
        let watch = watch_after(crash);
        assert_eq!(
            watch.fatal.as_deref(),
            Some("[ 2.0] Kernel panic - not syncing: x")
        );
        assert!(watch.last_words_until.is_some());
        assert!(watch_after(b"debugging\r\nKernel pan").fatal.is_none());
    }

    #[test]
    fn the_tail_is_short_and_cannot_command_a_terminal() {
        let mut console = "old\r\n".repeat(100).into_bytes();
        console.extend_from_slice(b"\x1b[2Jlast\r\nunfinished");
        let tail = watch_after(&console).console_tail();
        assert!(tail.ends_with("  | [2Jlast\n  | unfinished\n"), "{tail}");
        assert_eq!(tail.lines().count(), TAIL_LINES + 1);
    }
}
