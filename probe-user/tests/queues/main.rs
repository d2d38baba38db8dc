//! Real queues, filled in a network namespace of their own, as `leak::queues` finds them.
//!
//! Needs root. `cargo xtask test --only host` runs it; by itself, or copied into a guest:
//! `cargo test -p probe-user --test queues -- --ignored --nocapture --test-threads=1`.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod net;

use std::ffi::CString;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines, Read as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use oomprobe::event::FindingId;
use oomprobe::leak::queues::{self, Kind, Queue, Queues};
use oomprobe::verdict::queues::{Owner, judge};

/// Set for this program, started again in a namespace of its own to fill queues there.
const HOLDER: &str = "OOMPROBE_TEST_HOLDER";

const QDISC_PACKETS: u32 = 3000;
const NFQUEUE_PACKETS: u32 = 2000;
const TUN_PACKETS: u32 = 700;
const UNACCEPTED_BYTES: u32 = 20_000;
/// Each holds 2 MB and more.
const ORPHANS: u32 = 12;

/// A process that holds queues full, in its own network namespace.
struct Holder {
    child: Child,
    netns: u64,
    /// What it said it made.
    made: Vec<String>,
    /// Kept open: it writes once more when it ends.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "holder",
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(HOLDER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        // SAFETY: a single system call, which is safe between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut made = Vec::new();
        loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("the holder ended"))
                .unwrap();
            match line.rsplit_once("made ") {
                Some((_, "all")) => break,
                Some((_, what)) => made.push(what.to_owned()),
                None => {}
            }
        }
        let link = fs::read_link(format!("/proc/{}/ns/net", child.id())).unwrap();
        let digits: String = link
            .to_str()
            .unwrap()
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        Self {
            child,
            netns: digits.parse().unwrap(),
            made,
            _stdout: lines,
        }
    }

    /// Ends it at once: it leaves its devices behind.
    fn kill(mut self) {
        self.child.kill().unwrap();
    }

    fn made(&self, what: &str) -> bool {
        self.made.iter().any(|made| made == what)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends by itself, and takes its devices along.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Not a test: what [`Holder::start`] runs.
#[test]
#[ignore = "is started by the other test"]
fn holder() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    net::up("lo");
    let connections = net::connections(UNACCEPTED_BYTES as usize, ORPHANS as usize);
    println!("made tcp");
    net::fragment();
    println!("made fragment");

    net::veth("oomq0", "oomq1");
    for (device, address) in [("oomq0", [10, 9, 0, 1]), ("oomq1", [10, 7, 0, 1])] {
        net::up(device);
        net::address(device, address.into());
    }
    net::neighbour("oomq0", [10, 9, 0, 2].into());
    println!("made {}", net::holding_qdisc("oomq0", QDISC_PACKETS * 2));
    net::send(SocketAddrV4::new([10, 9, 0, 2].into(), 9), QDISC_PACKETS);
    net::unresolved("oomq1", [10, 7, 0, 77].into());
    println!("made neighbour");

    let tun = net::tun("oomtun0");
    if tun.is_ok() {
        net::up("oomtun0");
        net::address("oomtun0", [10, 8, 0, 1].into());
        net::send(SocketAddrV4::new([10, 8, 0, 2].into(), 9), TUN_PACKETS);
        println!("made tun");
    } else {
        eprintln!("no tun device: {tun:?}");
    }

    let nfqueue = net::nfqueue_without_verdicts();
    match &nfqueue {
        Ok(_) => {
            net::send(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9), NFQUEUE_PACKETS);
            println!("made nfqueue");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("no nfqueue: this kernel lacks nft_queue");
        }
        Err(error) => panic!("nfqueue: {error}"),
    }
    println!("made all");
    // Until the test is done with it.
    let _ = std::io::stdin().read(&mut [0]);
    // The packets hold the sockets that sent them, these the namespace, and that the device: left as
    // it is, it would be there for ever.
    net::remove("oomq0");
    drop((connections, tun, nfqueue));
}

fn look() -> Queues {
    queues::look(Path::new("/"), Instant::now() + Duration::from_secs(60))
}

fn one<'a>(queues: &'a [&Queue], what: &str, wanted: impl Fn(&Kind) -> bool) -> &'a Queue {
    let mut matching = queues.iter().filter(|queue| wanted(&queue.kind));
    let found = matching.next();
    assert!(matching.next().is_none(), "one {what}: {queues:#?}");
    found.unwrap_or_else(|| panic!("no {what}: {queues:#?}"))
}

fn finding(queue: &Queue) -> Option<FindingId> {
    judge(queue, Owner::default()).map(|finding| finding.id)
}

/// Queues of packets: how many, and whose fault it is.
fn check_packets(holder: &Holder, mine: &[&Queue]) {
    let pid = holder.child.id();
    let qdisc = one(
        mine,
        "qdisc",
        |kind| matches!(kind, Kind::Qdisc { discipline, .. } if holder.made(discipline)),
    );
    // The tbf lets a packet pass; the neighbour discovery of IPv6 may add some.
    let packets = qdisc.packets.unwrap();
    let expected = u64::from(QDISC_PACKETS) - u64::from(!holder.made("netem"));
    assert!((expected..expected + 20).contains(&packets), "{qdisc:?}");
    assert!(qdisc.bytes.unwrap() >= expected * 1042, "{qdisc:?}");
    assert_eq!(qdisc.device.as_deref(), Some("oomq0"));
    assert_eq!(finding(qdisc), Some(FindingId::QdiscBacklog));
    if let Kind::Qdisc {
        discipline,
        delay_ns,
        ..
    } = &qdisc.kind
        && discipline == "netem"
    {
        assert_eq!(*delay_ns, Some(3_000_000_000_000));
        assert_eq!(qdisc.limit_packets, Some(u64::from(QDISC_PACKETS) * 2));
    }

    if holder.made("nfqueue") {
        let nfqueue = one(mine, "nfqueue", |kind| {
            matches!(kind, Kind::Nfqueue { queue: 0, .. })
        });
        assert!(
            nfqueue.packets >= Some(NFQUEUE_PACKETS.into()),
            "{nfqueue:?}"
        );
        assert_eq!(nfqueue.owners, [pid]);
        assert_eq!(finding(nfqueue), Some(FindingId::NfqueueNoVerdict));
        let Kind::Nfqueue {
            socket_rmem_bytes,
            numbered,
            ..
        } = &nfqueue.kind
        else {
            unreachable!();
        };
        assert!(
            *socket_rmem_bytes >= Some(u64::from(NFQUEUE_PACKETS) * 256),
            "{nfqueue:?}"
        );
        assert_eq!(Some(*numbered), nfqueue.packets);
    }

    if holder.made("tun") {
        let tun = one(mine, "tun", |kind| {
            matches!(kind, Kind::Tun { files: 1, .. })
        });
        assert_eq!(tun.limit_packets, Some(500));
        assert!((450..=500).contains(&tun.packets.unwrap()), "{tun:?}");
        assert_eq!(tun.owners, [pid]);
        assert_eq!(finding(tun), Some(FindingId::TunQueue));
    }
}

/// Queues of the protocols.
fn check_protocols(holder: &Holder, mine: &[&Queue]) {
    let unaccepted = one(mine, "unaccepted connection", |kind| {
        matches!(kind, Kind::TcpUnaccepted { port: 7001, .. })
    });
    assert_eq!(unaccepted.bytes, Some(UNACCEPTED_BYTES.into()));
    assert_eq!(unaccepted.owners, [holder.child.id()]);
    let orphans = one(mine, "orphans", |kind| {
        matches!(kind, Kind::TcpOrphans { .. })
    });
    assert_eq!(
        orphans.kind,
        Kind::TcpOrphans {
            sockets: ORPHANS.into()
        }
    );
    assert!(orphans.bytes > Some(16 << 20), "{orphans:?}");

    let fragments = one(mine, "fragments", |kind| {
        matches!(
            kind,
            Kind::Fragments {
                ip: 4,
                datagrams: 1
            }
        )
    });
    assert!(fragments.bytes > Some(0) && fragments.limit_bytes > fragments.bytes);

    let neighbour = one(mine, "neighbour", |kind| {
        matches!(kind, Kind::NeighbourUnresolved { entries: 1 })
    });
    assert_eq!(neighbour.device.as_deref(), Some("oomq1"));
    assert!(neighbour.limit_bytes > Some(0));
}

#[test]
#[ignore = "needs root"]
fn every_queue_of_another_namespace_is_found() {
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let holder = Holder::start();
    let pid = holder.child.id();
    let all = look();
    println!("{}", serde_json::to_string_pretty(&all).unwrap());
    assert_eq!(fs::read_link("/proc/self/ns/net").unwrap(), own);
    let namespace = |namespace: &&queues::Namespace| namespace.inode == holder.netns;
    let namespace = all.looked_at.namespaces.iter().find(namespace).unwrap();
    assert_eq!(namespace.pids, [pid]);
    let not_read: Vec<_> = all
        .not_looked_at
        .iter()
        .filter(|not| not.what.contains("net:["))
        .collect();
    assert!(not_read.is_empty(), "{not_read:#?}");
    let mine: Vec<&Queue> = all
        .found
        .iter()
        .filter(|queue| queue.netns == Some(holder.netns))
        .collect();

    check_packets(&holder, &mine);
    check_protocols(&holder, &mine);

    let netns = holder.netns;
    drop(holder);
    let after = look();
    assert!(
        after
            .looked_at
            .namespaces
            .iter()
            .all(|namespace| namespace.inode != netns)
    );
    assert!(after.found.iter().all(|queue| queue.netns != Some(netns)));
}

/// A namespace kept by a mount, as CNI does.
struct Mounted {
    at: tempfile::NamedTempFile,
}

impl Mounted {
    fn new(pid: u32) -> Self {
        let at = tempfile::NamedTempFile::new().unwrap();
        let of = CString::new(format!("/proc/{pid}/ns/net")).unwrap();
        let none: *const libc::c_char = std::ptr::null();
        // SAFETY: both paths end with NUL and outlive the call; a bind mount needs no more.
        let result = unsafe {
            libc::mount(
                of.as_ptr(),
                path(at.path()).as_ptr(),
                none,
                libc::MS_BIND,
                none.cast(),
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        Self { at }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What waits in it would keep the namespace for ever.
        let namespace = fs::File::open(self.at.path()).unwrap();
        let removed = std::thread::spawn(move || {
            // SAFETY: no preconditions; only this thread moves.
            let moved = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
            net::remove("oomq0");
        })
        .join();
        assert!(removed.is_ok() || std::thread::panicking());
        // SAFETY: the path ends with NUL and outlives the call.
        unsafe { libc::umount2(path(self.at.path()).as_ptr(), libc::MNT_DETACH) };
    }
}

fn path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_namespace_without_processes_is_found_where_it_is_mounted() {
    let holder = Holder::start();
    let netns = holder.netns;
    let mounted = Mounted::new(holder.child.id());
    holder.kill();
    let all = look();
    let namespace = |namespace: &&queues::Namespace| namespace.inode == netns;
    let namespace = all.looked_at.namespaces.iter().find(namespace).unwrap();
    assert_eq!(namespace.processes, 0);
    assert_eq!(namespace.mounted_at.as_deref(), mounted.at.path().to_str());
    let of_netns = |queue: &&Queue| queue.netns == Some(netns);
    let mine: Vec<&Queue> = all.found.iter().filter(of_netns).collect();
    // Whoever sent the packets is gone, and they are still there.
    let qdisc = one(&mine, "qdisc", |kind| matches!(kind, Kind::Qdisc { .. }));
    assert!(
        qdisc.packets >= Some(u64::from(QDISC_PACKETS) - 1),
        "{qdisc:?}"
    );
    assert_eq!(finding(qdisc), Some(FindingId::QdiscBacklog));
    // These ended with the files of their process.
    assert!(
        mine.iter()
            .all(|queue| !matches!(queue.kind, Kind::Nfqueue { .. } | Kind::Tun { .. }))
    );

    drop(mounted);
    assert!(
        look()
            .looked_at
            .namespaces
            .iter()
            .all(|namespace| namespace.inode != netns)
    );
}

#[test]
#[ignore = "needs root"]
fn no_time_is_told() {
    let queues = queues::look(Path::new("/"), Instant::now());
    assert_eq!(queues.looked_at.namespaces, []);
    assert!(!queues.not_looked_at.is_empty());
}
