//! The guest's `/init`: mounts what a node has, runs one command, reports how it ended, powers off.
//!
//! Started by `cargo xtask vm`; `xtask/src/vm/protocol.rs` is the agreement between the two.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use protocol::{Kind, Spec, TerminalSize};

// The host side lives in xtask, which must build even when the tests do not.
#[path = "../../../xtask/src/vm/protocol.rs"]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the reading half is the host's")
)]
mod protocol;

/// Port of the framed stream to the host.
static HOST: OnceLock<Mutex<File>> = OnceLock::new();

const DEFAULT_PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

/// Exit status of a command that could not be started, as shells have it.
const CANNOT_RUN: i32 = 127 << 8;

fn main() {
    // A panic of pid 1 would otherwise show only as a kernel panic without its cause. The hook
    // serves every thread, also where the profile aborts instead of unwinding.
    std::panic::set_hook(Box::new(|panic| fail(&format!("vm-init: {panic}"))));
    match run() {
        Ok(status) => {
            let _ = send(Kind::Exit, &status.to_le_bytes());
            power_off()
        }
        Err(error) => fail(&format!("vm-init: {error:#}")),
    }
}

fn run() -> Result<i32> {
    ensure!(
        std::process::id() == 1,
        "this program is the /init of a test guest"
    );
    mount("devtmpfs", "/dev").context("nothing works without /dev")?;
    open_host_port()?;
    mount("proc", "/proc")?;
    mount("sysfs", "/sys")?;
    // What a kernel was built without is left out: the command finds out what is missing as it
    // would on a node.
    for (fs, target) in [
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("securityfs", "/sys/kernel/security"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        warn_if_failed(&format!("mount {target}"), mount(fs, target));
    }
    enable_controllers();
    warn_if_failed("loopback", loopback_up());
    warn_if_failed("host name", fs::write("/proc/sys/kernel/hostname", "guest"));

    let spec = fs::read(Path::new("/").join(protocol::SPEC_PATH))
        .context("read what to run")
        .and_then(|json| serde_json::from_slice(&json).context("parse what to run"))?;
    run_command(&spec)
}

/// Runs the command of `spec` and returns its wait status once all its output is sent.
fn run_command(spec: &Spec) -> Result<i32> {
    let (program, arguments) = spec.argv.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", "/root")
        .env("TERM", "linux")
        .envs(&spec.env)
        .current_dir(&spec.cwd);
    let terminal = spec
        .terminal
        .map(|size| attach_terminal(&mut command, size))
        .transpose()?;
    if terminal.is_none() {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let text = format!(
                "vm-init: cannot run {program:?} in {:?}: {error}\n",
                spec.cwd
            );
            send(Kind::Stderr, text.as_bytes())?;
            return Ok(CANNOT_RUN);
        }
    };
    // The command keeps the other ends of pipes and terminal; ours would hide the end of output.
    drop(command);
    let mut relays = Vec::new();
    if let Some(master) = terminal {
        let keyboard = master.try_clone()?;
        thread::spawn(move || relay_keyboard(keyboard));
        relays.push(relay(Kind::Stdout, master));
    }
    relays.extend(child.stdout.take().map(|pipe| relay(Kind::Stdout, pipe)));
    relays.extend(child.stderr.take().map(|pipe| relay(Kind::Stderr, pipe)));

    let status = reap_until(child.id().try_into().context("pid")?)?;
    // What the command left running would keep the pipes open. As in a container, the end of the
    // command is the end of everything.
    // SAFETY: kill has no memory preconditions; -1 spares the caller and, being pid 1, nothing else.
    unsafe { libc::kill(-1, libc::SIGKILL) };
    for relay in relays {
        let _ = relay.join();
    }
    Ok(status)
}

/// Reaps every child, orphans of the command among them, until `pid` ends.
fn reap_until(pid: libc::pid_t) -> Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
            ended if ended == pid => return Ok(status),
            -1 => {
                let error = io::Error::last_os_error();
                ensure!(
                    error.kind() == io::ErrorKind::Interrupted,
                    "waitpid: {error}"
                );
            }
            _orphan => {}
        }
    }
}

/// Copies `from` to the host until its end.
fn relay(kind: Kind, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; protocol::FRAME_MAX_BYTES];
        // A terminal whose other side is closed reads as EIO: an end like any other.
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            if let Err(error) = send(kind, &buffer[..n]) {
                fail(&format!("vm-init: send output: {error}"));
            }
        }
    })
}

/// Copies what the host types to the command's terminal.
fn relay_keyboard(mut terminal: File) {
    let Ok(mut host) = File::open("/dev/ttyS1") else {
        return;
    };
    let _ = io::copy(&mut host, &mut terminal);
}

/// Gives `command` a new terminal as its controlling one and returns the other side of it.
fn attach_terminal(command: &mut Command, size: TerminalSize) -> Result<File> {
    let window = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: the out-pointers are valid, name and termios may be null, `window` is only read.
    let failed = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const window,
        )
    };
    ensure!(
        failed == 0,
        "open a terminal: {}",
        io::Error::last_os_error()
    );
    // SAFETY: openpty just returned both descriptors; nothing else owns them.
    let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    set_close_on_exec(&master)?;
    set_close_on_exec(&slave)?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(master)
}

fn set_close_on_exec(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Opens the port to the host as a plain byte pipe and says hello.
fn open_host_port() -> Result<()> {
    let mut port = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .context("open /dev/ttyS1, the port to the host")?;
    // SAFETY: termios is plain data, filled by tcgetattr before it is used; the descriptor is open.
    let failed = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        libc::tcgetattr(port.as_raw_fd(), &raw mut settings) != 0 || {
            libc::cfmakeraw(&raw mut settings);
            libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings) != 0
        }
    };
    ensure!(!failed, "set up /dev/ttyS1: {}", io::Error::last_os_error());
    port.write_all(protocol::HELLO)
        .context("say hello to the host")?;
    let _ = HOST.set(Mutex::new(port));
    Ok(())
}

fn send(kind: Kind, payload: &[u8]) -> io::Result<()> {
    let host = HOST.get().ok_or(io::ErrorKind::NotConnected)?;
    let mut port = host.lock().unwrap_or_else(PoisonError::into_inner);
    protocol::write_frame(&mut *port, kind, payload)
}

fn mount(fs: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {target}"))?;
    let (source, path) = (CString::new(fs)?, CString::new(target)?);
    // SAFETY: both strings are NUL-terminated and live through the call; data may be null.
    let failed = unsafe {
        libc::mount(
            source.as_ptr(),
            path.as_ptr(),
            source.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    ensure!(
        failed == 0,
        "mount {fs} on {target}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

/// Passes every resource controller the kernel has on to the root's children.
fn enable_controllers() {
    let Ok(available) = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") else {
        return;
    };
    for controller in available.split_whitespace() {
        if ["memory", "pids", "cpu", "io", "cpuset"].contains(&controller) {
            // One by one: a controller that cannot be had must not take the others with it.
            let enable = format!("+{controller}");
            let enabled = fs::write("/sys/fs/cgroup/cgroup.subtree_control", &enable);
            warn_if_failed(&format!("{enable} in the root cgroup"), enabled);
        }
    }
}

fn loopback_up() -> Result<()> {
    let name: &CStr = c"lo";
    // SAFETY: ifreq is plain data; the name fits with its NUL; the socket is closed at the end.
    let failed = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(name.as_ptr(), request.ifr_name.as_mut_ptr(), 3);
        request.ifr_ifru.ifru_flags = 0x1 | 0x40; // IFF_UP | IFF_RUNNING
        let socket = OwnedFd::from_raw_fd(match libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) {
            -1 => return Err(io::Error::last_os_error().into()),
            fd => fd,
        });
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    ensure!(failed == 0, "set lo up: {}", io::Error::last_os_error());
    Ok(())
}

fn warn_if_failed<E: Into<anyhow::Error>>(what: &str, result: std::result::Result<(), E>) {
    if let Err(error) = result {
        say(&format!("vm-init: {what}: {:#}", error.into()));
    }
}

/// Puts a line on the kernel console, which the host shows when a run fails.
fn say(text: &str) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = writeln!(kmsg, "<3>{text}");
    }
}

fn fail(text: &str) -> ! {
    say(text);
    let text = text.as_bytes();
    let _ = send(
        Kind::Failure,
        &text[..text.len().min(protocol::FRAME_MAX_BYTES)],
    );
    power_off()
}

fn power_off() -> ! {
    if let Some(host) = HOST.get() {
        // A panicking thread may hold the lock for good; its frame is cut anyway.
        if let Ok(port) = host.try_lock() {
            // SAFETY: the descriptor is open.
            unsafe { libc::tcdrain(port.as_raw_fd()) };
        }
    }
    // SAFETY: neither call touches memory of ours; as pid 1 reboot does not return.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    // Returning from pid 1 would be a kernel panic; the host ends the guest after its patience.
    loop {
        thread::park();
    }
}
