//! The census of socket buffers on a real kernel: sockets that nobody reads are found, counted and
//! named. The kernel's own account of each socket is the oracle.
//!
//! Needs root. `cargo xtask test --only host` runs it; by itself:
//! `cargo test -p probe-user --test census -- --ignored --test-threads 1`; in a guest:
//!
//! ```console
//! $ RUSTFLAGS="-C target-feature=+crt-static" cargo test -p probe-user --test census --no-run \
//!     --target x86_64-unknown-linux-gnu
//! $ cargo xtask vm 6.12 --file <the binary>:bin/census -- census --ignored --test-threads 1
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which may panic"
)]

use std::{
    fs::{self, File},
    io::{Read, Write},
    mem,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::MetadataExt,
            net::{UnixDatagram, UnixStream},
        },
    },
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use oomprobe::leak::census::{self, Census, Group, Options, queue::Queue};

const NEEDS: &str = "needs root: see above";
/// What a buffer is filled with: its data is in kmalloc-1k then.
const PAYLOAD: [u8; 600] = [b'x'; 600];
const RCVBUF: libc::c_int = 60 << 20;
/// Of `SO_MEMINFO`.
const RMEM: usize = 0;
const WMEM_QUEUED: usize = 5;

/// A socket that nobody reads, and what the kernel says of it.
struct Unread {
    inode: u64,
    netns: u64,
    buffers: Option<u64>,
    bytes: Option<u64>,
}

impl Unread {
    /// Of the namespace this thread is in.
    fn new(socket: &impl AsFd, buffers: Option<u64>, bytes: Option<u32>) -> Self {
        Self {
            inode: inode(socket),
            netns: netns(),
            buffers,
            bytes: bytes.map(u64::from),
        }
    }

    /// The group of the socket, whose facts must be right.
    fn check<'a>(&self, census: &'a Census) -> &'a Group {
        let group = find(census, self.inode).expect("the socket is named");
        let facts = group.socket.as_ref().unwrap();
        assert_eq!(u64::from(facts.netns_inode), self.netns);
        assert!(facts.cgroup_id.is_some());
        if let Some(buffers) = self.buffers {
            assert_near(group.objects, buffers, "buffers");
        }
        if let Some(bytes) = self.bytes {
            assert_near(group.bytes, bytes, "bytes");
        }
        group
    }
}

#[test]
#[ignore = "needs root and 60 MB of kernel memory"]
fn sockets_that_nobody_reads() {
    own_netns();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    set(&udp, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RCVBUF);
    flood(udp.local_addr().unwrap(), 12_000);
    let taps = [packet_socket(), packet_socket()];
    flood(closed_port(), 5_000);
    let (mut unix_sender, unix) = UnixStream::pair().unwrap();
    set(&unix_sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, RCVBUF);
    unix_sender.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while sent < 10_000 && unix_sender.write(&PAYLOAD).is_ok() {
        sent += 1;
    }
    let (datagram_sender, datagrams) = UnixDatagram::pair().unwrap();
    datagram_sender.set_nonblocking(true).unwrap();
    let few = (0..100)
        .take_while(|_| datagram_sender.send(&PAYLOAD).is_ok())
        .count() as u64;
    assert!(sent == 10_000 && few > 5, "{sent} {few}");
    let unread = [
        Unread::new(&udp, Some(12_000), Some(meminfo(&udp)[RMEM])),
        Unread::new(
            &taps[0],
            Some(received(&taps[0])),
            Some(meminfo(&taps[0])[RMEM]),
        ),
        Unread::new(
            &taps[1],
            Some(received(&taps[1])),
            Some(meminfo(&taps[1])[RMEM]),
        ),
        Unread::new(&unix, Some(sent), None),
        Unread::new(&datagrams, Some(few), None),
    ];
    assert!(unread[1].buffers >= Some(5_000));

    // TCP: what the reader does not take, and what the sender cannot send.
    own_netns();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    set(&sender, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20);
    sender.set_nonblocking(true).unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until && sender.write(&[b'x'; 8192]).is_ok() {}
    // The last segments are acknowledged a little later.
    std::thread::sleep(Duration::from_secs(2));
    let tcp = [
        Unread::new(&receiver, None, Some(meminfo(&receiver)[RMEM])),
        Unread::new(&sender, None, Some(meminfo(&sender)[WMEM_QUEUED])),
    ];
    assert!(tcp[0].bytes > Some(10_000) && tcp[1].bytes > Some(500_000));

    let census = full();
    let [udp_group, taps_groups @ .., unix_group, datagrams_group] =
        unread.each_ref().map(|unread| unread.check(&census));
    assert_eq!(udp_group.destructor, None);
    for group in [udp_group, unix_group, datagrams_group] {
        assert_eq!(group.queue, Some(Queue::Receive));
    }
    for group in taps_groups {
        assert_eq!(group.destructor.as_deref(), Some("sock_rfree"));
        // Both hear each packet twice, sent and received: four share 1048 of its 1280 bytes.
        assert!(group.own_bytes * 10 < group.bytes * 5, "{group:?}");
        assert!(group.own_bytes * 10 > group.bytes * 3, "{group:?}");
    }
    let [_, sender_group] = tcp.each_ref().map(|unread| unread.check(&census));
    assert!(matches!(
        sender_group.queue,
        Some(Queue::Write | Queue::Sent)
    ));

    for share in [3, 10] {
        let options = Options {
            max_pages: Some(census.total_pages / share),
            time_limit: Duration::from_secs(60),
            ..Options::sample(share)
        };
        let sample = census::take(&options, &mut |_| {}).unwrap();
        report(&sample);
        assert!(!sample.full);
        // A sample may miss what is in few places; then it has nothing to say of it.
        let Some(group) = find(&sample, unread[0].inode) else {
            continue;
        };
        let off = (real(group.objects) / real(12_000) - 1.0).abs();
        assert!(
            off <= 4.0 * group.relative_error,
            "1/{share}: {} of 12000, {} was stated",
            group.objects,
            group.relative_error
        );
    }
}

#[test]
#[ignore = "needs root and 60 MB of kernel memory"]
fn traffic_does_not_confuse_it() {
    own_netns();
    let tap = packet_socket();
    flood(closed_port(), 5_000);
    let queued = received(&tap);
    shut(&tap);
    let unread = Unread::new(&tap, Some(queued), None);
    // Buffers come and go while others stay.
    let busy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = busy.local_addr().unwrap();
    busy.set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    // Even if the census fails.
    let until = Instant::now() + Duration::from_secs(120);
    let is_done = AtomicBool::new(false);
    let is_over = || is_done.load(Ordering::Relaxed) || Instant::now() > until;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                flood(address, 50);
                while busy.recv(&mut [0; 2048]).is_ok() && !is_over() {}
            }
        });
        let census = full();
        is_done.store(true, Ordering::Relaxed);
        unread.check(&census);
    });
}

/// Only what is already queued: the tap hears nothing more.
fn shut(tap: &impl AsFd) {
    let nothing = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.cast_unsigned().try_into().unwrap(),
        // The number of a device that is not there would be refused; loopback has number 1.
        sll_protocol: u16::to_be(0x88b5),
        sll_ifindex: 1,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a `sockaddr_ll` of the length given.
    let done = unsafe {
        libc::bind(
            tap.as_fd().as_raw_fd(),
            (&raw const nothing).cast(),
            socklen::<libc::sockaddr_ll>(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Takes a census of all memory and shows it.
fn full() -> Census {
    let census = census::take(&Options::full(), &mut |_| {}).expect(NEEDS);
    report(&census);
    assert!(census.full);
    census
}

fn report(census: &Census) {
    println!("{}", serde_json::to_string(census).unwrap());
    let mut slabinfo = String::new();
    File::open("/proc/slabinfo")
        .and_then(|mut file| file.read_to_string(&mut slabinfo))
        .unwrap();
    for line in slabinfo.lines().filter(|line| line.starts_with("skb")) {
        println!("{line}");
    }
}

fn find(census: &Census, inode: u64) -> Option<&Group> {
    census.groups.iter().find(|group| {
        let socket = group.socket.as_ref();
        socket.is_some_and(|socket| socket.inode == Some(inode))
    })
}

fn netns() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

/// Within 5 % of the truth.
fn assert_near(found: u64, truth: u64, what: &str) {
    assert!(
        found.abs_diff(truth) * 20 <= truth,
        "{found} {what} were found, {truth} there are"
    );
}

fn inode(socket: &impl AsFd) -> u64 {
    let link = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
    fs::metadata(link).unwrap().ino()
}

/// A network namespace of this thread's own, with loopback up.
fn own_netns() {
    // SAFETY: no memory is involved.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "{NEEDS}: {}", std::io::Error::last_os_error());
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING).try_into().unwrap();
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    // SAFETY: the option's value is an `int`.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            socklen::<libc::c_int>(),
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn get<T: Copy>(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, mut value: T) -> T {
    let mut len = socklen::<T>();
    // SAFETY: `value` has room for `len` bytes.
    let done = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    value
}

fn meminfo(socket: &impl AsFd) -> [u32; 9] {
    get(socket, libc::SOL_SOCKET, libc::SO_MEMINFO, [0; 9])
}

/// Hears all packets of the namespace.
fn packet_socket() -> OwnedFd {
    let protocol = i32::from(u16::to_be(0x0003));
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RCVBUF);
    socket
}

/// Packets that a packet socket has queued.
fn received(tap: &OwnedFd) -> u64 {
    const PACKET_STATISTICS: libc::c_int = 6;
    let [packets, drops] = get(tap, libc::SOL_PACKET, PACKET_STATISTICS, [0_u32; 2]);
    u64::from(packets - drops)
}

/// An address where nobody listens.
fn closed_port() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap()
}

/// Sends datagrams.
fn flood(to: SocketAddr, count: u32) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    for _ in 0..count {
        // Told of the closed port, which is not of interest.
        let _refused = socket.send_to(&PAYLOAD, to);
    }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(mem::size_of::<T>()).unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
const fn real(count: u64) -> f64 {
    count as f64
}
