//! Netlink messages, as far as the workloads need them: see netlink(7), rtnetlink(7).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

/// `struct nlmsghdr`: length, type, flags, sequence number, sender.
const HEADER_BYTES: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// Attributes, each padded to four bytes.
#[derive(Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Result<Self> {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len())?;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        Ok(self)
    }

    pub(super) fn nesting(self, kind: u16, inner: &Self) -> Result<Self> {
        let nested = u16::try_from(libc::NLA_F_NESTED)?;
        self.with(kind | nested, &inner.0)
    }

    /// Behind these bytes, as options that are a structure and more.
    pub(super) fn behind(mut self, fixed: &[u8]) -> Vec<u8> {
        self.0.splice(..0, fixed.iter().copied());
        self.0
    }
}

/// A message of this type, with these `NLM_F_` flags: a fixed part, then attributes.
pub(super) fn message(kind: u16, flags: i32, fixed: &[u8], rest: Attributes) -> Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + fixed.len() + rest.0.len())?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | flags)?;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.resize(HEADER_BYTES, 0);
    message.extend(rest.behind(fixed));
    Ok(message)
}

/// A socket to the kernel.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// One that hears what is told to these groups.
    pub(super) fn open(protocol: SockProtocol, groups: u32) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)
            .context("netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups)).context("bind to netlink")?;
        Ok(Self(socket))
    }

    /// Sends messages at once. The last asks for an answer (`NLM_F_ACK`); if one of them fails, that
    /// is told first.
    pub(super) fn ask(&self, messages: &[Vec<u8>]) -> Result<()> {
        let socket = self.0.as_raw_fd();
        send(socket, &messages.concat(), MsgFlags::empty()).context("send to netlink")?;
        let mut answer = [0; 8192];
        let length = recv(socket, &mut answer, MsgFlags::empty()).context("netlink's answer")?;
        let error = answer
            .get(..length)
            .and_then(|answer| answer.get(HEADER_BYTES..)?.first_chunk())
            .context("netlink's answer is too short")?;
        let error = i32::from_ne_bytes(*error);
        ensure!(error == 0, "netlink: {}", Errno::from_raw(-error));
        Ok(())
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
