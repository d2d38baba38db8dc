//! A netlink socket that asks and reads: framing and bounds by `netlink-packet-core`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, sendto,
    socket_with, sockopt,
};

/// `NETLINK_ROUTE` is number 0, which is how no protocol is told.
pub(super) const ROUTE: Option<Protocol> = None;

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER_LEN: usize = 16;

// linux/netlink.h
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;

/// The kernel fills at most 32 KiB at once, but for a single message that is longer.
const BUFFER_LEN: usize = 64 << 10;

/// Most messages of one answer. Neighbours are the most numerous, with some 10⁵.
const MOST_MESSAGES: usize = 1 << 20;

/// How often to ask anew for what changes while it is told.
const TRIES: usize = 3;

/// Longest wait for a part of an answer. The kernel answers while it is asked.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("netlink: {0}")]
    Io(#[from] io::Error),
    #[error("the kernel refused: {0}")]
    Refused(io::Error),
    #[error("a torn netlink message")]
    Torn,
    #[error("an answer of more than {MOST_MESSAGES} netlink messages")]
    Endless,
    #[error("it changed each time it was read")]
    Changing,
    #[error("no time left")]
    NoTime,
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<netlink_packet_core::DecodeError> for Error {
    fn from(_: netlink_packet_core::DecodeError) -> Self {
        Self::Torn
    }
}

/// Gets type and payload of messages.
pub(super) type Visit<'a> = dyn FnMut(u16, &[u8]) -> Result<(), Error> + 'a;

/// A part of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// The last one.
    pub(super) end: bool,
    /// Something was added or removed meanwhile, so that the answer may lack or repeat something.
    interrupted: bool,
}

/// A socket of the namespace its thread was in when it was opened.
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    deadline: Instant,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(super) fn open(protocol: Option<Protocol>, deadline: Instant) -> Result<Self, Error> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            fd,
            sequence: 0,
            deadline,
            buffer: vec![0; BUFFER_LEN],
        })
    }

    /// All objects of a kind: what `parse` makes of the payload of each message of type `answer`.
    pub(super) fn dump<T>(
        &mut self,
        request: u16,
        answer: u16,
        payload: &[u8],
        parse: impl Fn(&[u8]) -> Result<Option<T>, Error>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..TRIES {
            self.send(request, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
            let mut found = Vec::new();
            let mut left = MOST_MESSAGES;
            let mut part = Part::default();
            while !part.end {
                let received = self.receive(&mut |kind, payload| {
                    left = left.checked_sub(1).ok_or(Error::Endless)?;
                    if kind == answer {
                        found.extend(parse(payload)?);
                    }
                    Ok(())
                })?;
                part.end = received.end;
                part.interrupted |= received.interrupted;
            }
            if !part.interrupted {
                return Ok(found);
            }
        }
        Err(Error::Changing)
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Error> {
        self.sequence += 1;
        let length = HEADER_LEN + payload.len();
        let mut message = vec![0; length];
        let mut header = NetlinkBuffer::new(&mut message);
        header.set_length(u32::try_from(length).map_err(|_| Error::Torn)?);
        header.set_message_type(kind);
        header.set_flags(flags);
        header.set_sequence_number(self.sequence);
        message[HEADER_LEN..].copy_from_slice(payload);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.fd, &message, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// Receives one datagram.
    fn receive(&mut self, visit: &mut Visit<'_>) -> Result<Part, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::NoTime);
        }
        sockopt::set_socket_timeout(
            &self.fd,
            sockopt::Timeout::Recv,
            Some(left.min(PATIENCE).max(Duration::from_millis(1))),
        )?;
        let received = recvfrom(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC);
        let (_, length, from) = match received {
            Err(rustix::io::Errno::AGAIN) => return Err(Error::NoTime),
            Err(rustix::io::Errno::INTR) => return Ok(Part::default()),
            other => other?,
        };
        // Other processes may be allowed to write to this socket.
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        if from.is_some_and(|from| from.pid() != 0) {
            return Ok(Part::default());
        }
        let datagram = self.buffer.get(..length).ok_or(Error::Torn)?;
        messages(datagram, self.sequence, visit)
    }
}

/// Calls `visit` with type and payload of each message of `datagram` that answers the request
/// with this number.
pub(super) fn messages(
    datagram: &[u8],
    sequence: u32,
    visit: &mut Visit<'_>,
) -> Result<Part, Error> {
    let mut part = Part::default();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        let length = message.length() as usize;
        if message.sequence_number() == sequence {
            let payload = message.payload();
            part.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match message.message_type() {
                NLMSG_NOOP => {}
                NLMSG_DONE | NLMSG_ERROR => {
                    status(payload)?;
                    part.end = true;
                    return Ok(part);
                }
                kind => visit(kind, payload)?,
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(part)
}

/// What `NLMSG_ERROR` and `NLMSG_DONE` begin with: 0 or a negative errno.
fn status(payload: &[u8]) -> Result<(), Error> {
    match i32_at(payload, 0) {
        Some(0) => Ok(()),
        Some(errno) => Err(Error::Refused(io::Error::from_raw_os_error(
            errno.saturating_neg(),
        ))),
        None => Err(Error::Torn),
    }
}

/// Type and value of each attribute.
pub(super) fn attributes(payload: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Error>> {
    netlink_packet_core::NlasIterator::new(payload).map(|attribute| {
        let attribute = attribute?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        let value = attribute.into_inner().get(4..length).ok_or(Error::Torn)?;
        Ok((kind, value))
    })
}

/// The bytes after a fixed header, which hold attributes.
pub(super) fn after(payload: &[u8], header_len: usize) -> Result<&[u8], Error> {
    payload.get(header_len..).ok_or(Error::Torn)
}

/// A string attribute, without its NUL.
pub(super) fn string(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == 0).next().unwrap_or_default()
}

macro_rules! number_at {
    ($($name:ident: $type:ty),*) => {$(
        /// The number at this offset, in the byte order of the machine.
        pub(super) fn $name(bytes: &[u8], offset: usize) -> Option<$type> {
            let end = offset.checked_add(size_of::<$type>())?;
            Some(<$type>::from_ne_bytes(bytes.get(offset..end)?.try_into().ok()?))
        }
    )*};
}

number_at!(u16_at: u16, u32_at: u32, u64_at: u64, i32_at: i32);
