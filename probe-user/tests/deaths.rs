//! Deaths and the signals before them as the programs record them, against what the parent gets.
//!
//! Needs root. `cargo xtask test --only host` runs it; by itself, or copied into a guest:
//! `cargo test -p probe-user --test deaths -- --ignored --test-threads=1`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use oomprobe::{
    kernel::{
        btf::Btf,
        facts::{Facts, Roots},
        ladder, layout,
        loader::Probe,
    },
    ring::decode::{Body, Record},
};
use probe_common::{
    layout::{ABSENT, KernelLayout, deaths},
    wire::{Death, Sent, info},
};

/// Set for a child that is this program, started again, and is to fault.
const FAULT: &str = "OOMPROBE_TEST_FAULT";
/// Value of [`FAULT`]: a handler sends the signal once more.
const HANDLED: &str = "handled";

const FAULT_ADDRESS: usize = 0x1234;
const IGNORED: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(30);

struct Deaths {
    probe: Probe,
    ring: RingBuf<MapData>,
}

impl Deaths {
    fn follow(mode: u32) -> Self {
        let btf = Btf::running().unwrap();
        let mut probe =
            Probe::attach(&layout(&btf), 0, mode, ladder::prefers_kprobe(&btf)).unwrap();
        let ring = probe.take_deaths().unwrap();
        Self { probe, ring }
    }

    /// Whether the death of `pid`, which is over, was told.
    fn has_one_of(&mut self, pid: u32) -> bool {
        let mut found = false;
        while let Some(item) = self.ring.next() {
            let record = Record::decode(&Bytes::copy_from_slice(&item)).unwrap();
            found |= matches!(record.body, Body::Death(death) if death.task.pid == pid);
        }
        found
    }

    /// The first death of one of `pids`, however many others die.
    fn first_of(&mut self, pids: &[u32]) -> (Death, Vec<Sent>) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            while let Some(item) = self.ring.next() {
                let record = Record::decode(&Bytes::copy_from_slice(&item)).unwrap();
                let Body::Death(death) = &record.body else {
                    panic!("{record:?}");
                };
                if pids.contains(&death.task.pid) {
                    return (**death, record.signals());
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("no death of {pids:?}");
    }

    /// Waits for the child and its death, which has the status that the child left.
    fn of(&mut self, child: &mut Child) -> (Death, Vec<Sent>) {
        let status = child.wait().unwrap().into_raw();
        let (death, signals) = self.first_of(&[child.id()]);
        assert_eq!(death.exit_code, status);
        (death, signals)
    }
}

fn layout(btf: &Btf) -> KernelLayout {
    layout::resolve(btf).layout().unwrap()
}

/// A cgroup of these tests.
struct Cgroup(PathBuf);

impl Cgroup {
    /// `None` if it has no `cgroup.kill`.
    fn create() -> Option<Self> {
        let root = Facts::gather(&Roots::default()).cgroups?.v2_mount?;
        let path = root.join(format!("oomprobe-deaths-{}", process::id()));
        fs::create_dir(&path).unwrap();
        let cgroup = Self(path);
        cgroup.0.join("cgroup.kill").exists().then_some(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A shell that has come as far as to print a line.
fn shell(script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    child
}

fn kill(child: &Child, signal: i32) {
    // SAFETY: a child that was not waited for.
    let failed = unsafe { libc::kill(child.id().cast_signed(), signal) };
    assert_eq!(failed, 0);
}

fn numbers(signals: &[Sent]) -> Vec<i32> {
    signals.iter().map(|sent| sent.signal).collect()
}

extern "C" fn send_again(signal: libc::c_int) {
    // SAFETY: both may be called in a handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[test]
#[ignore = "the other process of these tests"]
fn child() {
    if let Some(how) = env::var_os(FAULT) {
        if how == HANDLED {
            // SAFETY: the handler only sends the signal.
            unsafe {
                libc::signal(libc::SIGSEGV, send_again as *const () as libc::sighandler_t);
            }
        }
        // SAFETY: none; it is to fault.
        unsafe { (FAULT_ADDRESS as *mut u8).write_volatile(1) };
    }
}

#[test]
#[ignore = "needs root"]
fn a_deadly_signal_has_its_sender_and_what_asked_before() {
    let mut followed = Deaths::follow(deaths::CONTAINERS);
    // It starts no process, for which it might block signals: those that are blocked are not
    // ignored.
    let mut stubborn = shell("trap '' TERM; echo; read _");
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        kill(&stubborn, signal);
    }
    let (death, signals) = followed.of(&mut stubborn);
    assert_eq!(numbers(&signals), [libc::SIGKILL, libc::SIGTERM]);
    assert_eq!([signals[0].result, signals[1].result], [0, IGNORED]);
    for sent in &signals {
        assert_eq!(sent.sender.pid, process::id());
        assert_eq!(sent.target_start_boot_ns, death.task.start_boot_ns);
    }

    let mut polite = shell("trap 'exit 143' TERM; echo; while :; do sleep 0.1; done");
    kill(&polite, libc::SIGTERM);
    let (death, signals) = followed.of(&mut polite);
    assert_eq!((death.exit_code, numbers(&signals)), (143 << 8, vec![15]));
}

#[test]
#[ignore = "needs root"]
fn a_fault_has_its_address() {
    let mut followed = Deaths::follow(deaths::CONTAINERS);
    for how in ["", HANDLED] {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "child"])
            .env(FAULT, how)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (death, signals) = followed.of(&mut child);
        assert_eq!(numbers(&signals), [libc::SIGSEGV]);
        assert_eq!(signals[0].address, FAULT_ADDRESS as u64);
        assert_eq!(signals[0].sender.pid, death.task.pid);
    }
}

#[test]
#[ignore = "needs root"]
fn a_signal_has_its_system_call_where_the_kernel_tells() {
    let tells = layout(&Btf::running().unwrap()).BPF_FUNC_task_pt_regs != ABSENT;
    let expected = |number: i64| if tells { number } else { -1 };
    let mut followed = Deaths::follow(deaths::CONTAINERS);
    let mut killed = shell("echo; read _");
    kill(&killed, libc::SIGKILL);
    let (_, signals) = followed.of(&mut killed);
    assert_eq!(
        i64::from(signals[0].sender_syscall),
        expected(libc::SYS_kill)
    );

    let Some(cgroup) = Cgroup::create() else {
        eprintln!("no cgroup.kill: left out");
        return;
    };
    let mut killed = shell("echo; read _");
    fs::write(cgroup.0.join("cgroup.procs"), killed.id().to_string()).unwrap();
    fs::write(cgroup.0.join("cgroup.kill"), "1").unwrap();
    let (_, signals) = followed.of(&mut killed);
    assert_eq!(numbers(&signals), [libc::SIGKILL]);
    assert_eq!(signals[0].info, info::NONE);
    assert_eq!(
        i64::from(signals[0].sender_syscall),
        expected(libc::SYS_write)
    );
}

#[test]
#[ignore = "needs root"]
fn the_status_is_the_parents_whichever_thread_was_last() {
    let mut followed = Deaths::follow(deaths::CONTAINERS);
    let mut command = Command::new("true");
    // SAFETY: ends its threads and calls nothing that a fork may have left locked.
    unsafe {
        command.pre_exec(|| {
            thread::spawn(|| {
                thread::sleep(Duration::from_millis(300));
                libc::syscall(libc::SYS_exit, 7);
            });
            libc::syscall(libc::SYS_exit, 3);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    let (death, signals) = followed.of(&mut child);
    assert_ne!(death.task.tid, death.task.pid);
    assert_eq!(signals, []);
}

#[test]
#[ignore = "needs root"]
fn what_is_of_no_interest_is_not_recorded() {
    let mut followed = Deaths::follow(deaths::CONTAINERS);
    let fails = || Command::new("sh").args(["-c", "exit 1"]).spawn().unwrap();
    let (death, _) = followed.of(&mut fails());

    let mut fine = Command::new("true").spawn().unwrap();
    fine.wait().unwrap();
    let mut failed = fails();
    failed.wait().unwrap();
    let (first, _) = followed.first_of(&[fine.id(), failed.id()]);
    assert_eq!(first.task.pid, failed.id());

    followed.probe.dull(death.task.memcg_id);
    let mut dull = fails();
    dull.wait().unwrap();
    assert!(!followed.has_one_of(dull.id()));

    let mut all = Deaths::follow(deaths::ALL);
    let mut fine = Command::new("true").spawn().unwrap();
    let (_, signals) = all.of(&mut fine);
    assert_eq!(signals, []);
}
