//! Traffic over loopback, and sockets that hold something: what is measured with and without a tracer.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::bench::{
    process,
    worker::{self, Worker},
};

/// Packets on their way at most, so that none is lost; so many that neither thread has to wait for the
/// other whenever something else runs on its CPU.
pub(super) const WINDOW: u64 = 1024;

/// Of each write and read of a stream.
const CHUNK_BYTES: usize = 64 << 10;

/// How long a packet may take: loopback loses none.
const PATIENCE: Duration = Duration::from_secs(10);

/// One pair of sockets of so many holds a packet.
const HOLDING: u64 = 10;

/// Room for what is on its way, and for what is not read; the kernel doubles them.
const WINDOW_BYTES: libc::c_int = 4 << 20;
const UNREAD_BYTES: libc::c_int = 1 << 29;

/// What is done for each amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Packets go from one thread to another.
    Udp,
    /// MiB go from one thread to another, in one stream.
    Tcp,
    /// Unix sockets are opened and kept.
    Sockets,
    /// Packets are sent to a socket that nobody reads.
    Unread,
}

/// Does the work for each amount read from stdin: a line with the wall clock and CPU time it took, ns.
#[derive(Debug, Args)]
pub(crate) struct TrafficArgs {
    #[arg(value_enum)]
    work: Work,
    /// Bytes in a packet
    #[arg(long, default_value_t = 600)]
    payload: usize,
}

/// Is the workload. Who sends has the last CPU, who receives the first.
pub(crate) fn work(args: &TrafficArgs) -> Result<()> {
    let cpus = process::cpus()?;
    let (first, last) = cpus.first().zip(cpus.last()).context("no CPU")?;
    worker::settle(Some(*first))?;
    let cpu_ns = || process::cpu_ns(std::process::id());
    match args.work {
        Work::Udp => {
            let mut udp = Udp::start(args.payload, *last)?;
            worker::serve(cpu_ns, |packets| udp.pass(packets))
        }
        Work::Tcp => {
            let mut tcp = Tcp::start(*last)?;
            worker::serve(cpu_ns, |mib| tcp.pass(mib))
        }
        Work::Sockets => {
            raise_descriptor_limit()?;
            let mut pairs = Vec::new();
            worker::serve(cpu_ns, |sockets| open(&mut pairs, sockets / 2))
        }
        Work::Unread => {
            let mut unread = Unread::open()?;
            let packet = vec![1; args.payload];
            worker::serve(cpu_ns, |packets| unread.fill(&packet, packets))
        }
    }
}

/// Starts the workload.
pub(super) fn start(work: Work, payload: usize) -> Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    let name = work.to_possible_value().context("a hidden workload")?;
    command
        .args(["bench-traffic", name.get_name()])
        .args(["--payload", &payload.to_string()]);
    Worker::start(command)
}

struct Udp {
    receiver: UdpSocket,
    buffer: Vec<u8>,
    arrived: Arc<AtomicU64>,
    orders: Sender<u64>,
}

impl Udp {
    fn start(payload: usize, cpu: usize) -> Result<Self> {
        let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        set_buffer(&receiver, libc::SO_RCVBUFFORCE, WINDOW_BYTES)?;
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
        sender.connect(receiver.local_addr()?)?;
        let (orders, taken) = channel();
        let arrived = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&arrived);
        thread::spawn(move || {
            process::pin(&[cpu])?;
            send_all(&sender, &vec![1; payload], &taken, &seen)
        });
        Ok(Self {
            receiver,
            buffer: vec![0; payload],
            arrived,
            orders,
        })
    }

    fn pass(&mut self, packets: u64) -> Result<()> {
        self.orders.send(packets).context("the sender has ended")?;
        for _ in 0..packets {
            self.receiver
                .recv(&mut self.buffer)
                .context("a packet did not come")?;
            self.arrived.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }
}

fn send_all(
    socket: &UdpSocket,
    packet: &[u8],
    orders: &Receiver<u64>,
    arrived: &AtomicU64,
) -> Result<()> {
    let mut sent = 0;
    for packets in orders {
        for _ in 0..packets {
            while sent - arrived.load(Ordering::Acquire) >= WINDOW {
                thread::yield_now();
            }
            socket.send(packet).context("send")?;
            sent += 1;
        }
    }
    Ok(())
}

struct Tcp {
    receiver: TcpStream,
    buffer: Vec<u8>,
    orders: Sender<u64>,
}

impl Tcp {
    fn start(cpu: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("TCP socket")?;
        let mut sender = TcpStream::connect(listener.local_addr()?).context("connect")?;
        let (receiver, _) = listener.accept().context("accept")?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let (orders, taken): (_, Receiver<u64>) = channel();
        thread::spawn(move || -> Result<()> {
            process::pin(&[cpu])?;
            let chunk = vec![1; CHUNK_BYTES];
            for mib in taken {
                for _ in 0..chunks(mib) {
                    sender.write_all(&chunk).context("send")?;
                }
            }
            Ok(())
        });
        Ok(Self {
            receiver,
            buffer: vec![0; CHUNK_BYTES],
            orders,
        })
    }

    fn pass(&mut self, mib: u64) -> Result<()> {
        self.orders.send(mib).context("the sender has ended")?;
        for _ in 0..chunks(mib) {
            self.receiver
                .read_exact(&mut self.buffer)
                .context("the stream stands still")?;
        }
        Ok(())
    }
}

fn chunks(mib: u64) -> u64 {
    (mib << 20) / CHUNK_BYTES as u64
}

fn open(held: &mut Vec<(UnixDatagram, UnixDatagram)>, pairs: u64) -> Result<()> {
    for number in 0..pairs {
        let pair = UnixDatagram::pair().context("a pair of sockets")?;
        if number % HOLDING == 0 {
            pair.0.send(&[1]).context("send")?;
        }
        held.push(pair);
    }
    Ok(())
}

/// As many descriptors as this process may have at all.
fn raise_descriptor_limit() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives both calls.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if done {
        Ok(())
    } else {
        Err(io::Error::last_os_error()).context("descriptor limit")
    }
}

/// Room of a socket, whatever the machine allows those who are not root.
fn set_buffer(socket: &impl AsRawFd, option: libc::c_int, bytes: libc::c_int) -> Result<()> {
    // SAFETY: the value outlives the call and is as long as told.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            libc::socklen_t::try_from(size_of_val(&bytes))?,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error()).context("size of a socket's buffer");
    }
    Ok(())
}

/// A stream between two sockets of which one is never read. Unix sockets: each packet of theirs points to
/// its socket, so that a census need not look for it.
struct Unread {
    sender: UnixStream,
    /// Keeps what is sent to it.
    _receiver: UnixStream,
}

impl Unread {
    fn open() -> Result<Self> {
        let (sender, receiver) = UnixStream::pair().context("a pair of sockets")?;
        set_buffer(&sender, libc::SO_SNDBUFFORCE, UNREAD_BYTES)?;
        // More than there is room for is an error, not a wait without an end.
        sender.set_nonblocking(true)?;
        Ok(Self {
            sender,
            _receiver: receiver,
        })
    }

    fn fill(&mut self, packet: &[u8], packets: u64) -> Result<()> {
        for _ in 0..packets {
            self.sender.write_all(packet).context("send")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_sent_comes() {
        let cpu = process::cpus().unwrap()[0];
        let Ok(mut udp) = Udp::start(64, cpu) else {
            // Buffers as large are for root.
            assert!(!crate::debian::is_root().unwrap());
            return;
        };
        udp.pass(3 * WINDOW).unwrap();
        udp.pass(1).unwrap();
        assert_eq!(udp.arrived.load(Ordering::Acquire), 3 * WINDOW + 1);
        Tcp::start(cpu).unwrap().pass(2).unwrap();
    }

    #[test]
    fn one_pair_in_ten_holds_a_packet() {
        let mut pairs = Vec::new();
        open(&mut pairs, 20).unwrap();
        let holding = pairs.iter().filter(|(_, end)| {
            end.set_nonblocking(true).unwrap();
            end.recv(&mut [0]).is_ok()
        });
        assert_eq!(holding.count(), 2);
    }
}
