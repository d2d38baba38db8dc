//! A network namespace of one's own, and devices in it.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

pub(super) const LOOPBACK: &str = "lo";

/// Moves to a new network namespace, whose loopback device is up.
pub(crate) fn own() -> Result<()> {
    own_without_devices()?;
    up(LOOPBACK)
}

/// Moves to a new network namespace, whose loopback device is down.
pub(super) fn own_without_devices() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("new network namespace")
}

/// Inode of the namespace that this process is in.
pub(super) fn inode() -> Result<u64> {
    let path = "/proc/self/ns/net";
    Ok(std::fs::metadata(path).context(path)?.ino())
}

/// Switches a device on.
pub(super) fn up(device: &str) -> Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP)?;
    ask(libc::SIOCSIFFLAGS, &mut request).with_context(|| format!("{device} up"))
}

/// Gives a device that leads to one other its own address, and that one's.
pub(super) fn set_addresses(device: &str, own: Ipv4Addr, peer: Ipv4Addr) -> Result<()> {
    for (what, address) in [(libc::SIOCSIFADDR, own), (libc::SIOCSIFDSTADDR, peer)] {
        let mut request = request(device)?;
        request.ifr_ifru.ifru_addr = socket_address(address)?;
        ask(what, &mut request).with_context(|| format!("{address} of {device}"))?;
    }
    Ok(())
}

fn socket_address(address: Ipv4Addr) -> Result<libc::sockaddr> {
    // SAFETY: all zero is a valid value of it.
    let mut told: libc::sockaddr = unsafe { std::mem::zeroed() };
    told.sa_family = libc::sa_family_t::try_from(libc::AF_INET)?;
    // `struct sockaddr_in`: the port, then the address.
    for (to, from) in told.sa_data.iter_mut().skip(2).zip(address.octets()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(told)
}

/// Sets the size of a device's packets.
pub(super) fn set_mtu(device: &str, bytes: i32) -> Result<()> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_mtu = bytes;
    ask(libc::SIOCSIFMTU, &mut request).with_context(|| format!("MTU of {device}"))
}

/// Sets how many packets wait for a device at most.
pub(super) fn set_queue_length(device: &str, packets: u32) -> Result<()> {
    let mut request = request(device)?;
    // All its numbers are in one place.
    request.ifr_ifru.ifru_mtu = packets.try_into()?;
    ask(libc::SIOCSIFTXQLEN, &mut request).with_context(|| format!("queue length of {device}"))
}

/// The number of a device.
pub(super) fn index(device: &str) -> Result<i32> {
    let mut request = request(device)?;
    ask(libc::SIOCGIFINDEX, &mut request).with_context(|| format!("number of {device}"))?;
    // SAFETY: the kernel has just written this one.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// A request about a device: all but the name is zero.
pub(super) fn request(device: &str) -> Result<libc::ifreq> {
    // SAFETY: all zero is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(
        device.len() < request.ifr_name.len(),
        "{device} is too long"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn ask(what: libc::Ioctl, request: &mut libc::ifreq) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("UDP socket")?;
    // SAFETY: the request outlives the call, and is of the type that these ioctls take.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut *request) };
    Errno::result(done)?;
    Ok(())
}
