//! TCP that is not read. The kernel puts what comes in small pieces together: many packets are few
//! buffers.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::{RECEIVE_BUFFER, network};

/// A window that stays closed for so long is one that the receiver will not open.
const PATIENCE: Duration = Duration::from_secs(60);

/// The window grows with pieces that fill their buffers, and with small ones to some MiB only
/// (`tcp_grow_window()`).
pub(super) fn tcp(bytes: usize, piece: usize, is_read: bool) -> Result<ExitCode> {
    network::own()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("TCP socket")?;
    // Connections inherit it.
    setsockopt(&listener, RcvBufForce, &RECEIVE_BUFFER).context("SO_RCVBUFFORCE")?;
    let address = listener.local_addr().context("address of the socket")?;
    let mut sender = TcpStream::connect(address).context("connect")?;
    sender.set_nodelay(true).context("TCP_NODELAY")?;
    sender
        .set_write_timeout(Some(PATIENCE))
        .context("SO_SNDTIMEO")?;
    let (mut receiver, _) = listener.accept().context("accept")?;
    let mut piece = vec![1; piece];
    let packets = bytes.div_ceil(piece.len());
    for _ in 0..packets {
        sender.write_all(&piece).context("write")?;
    }
    super::tell(std::process::id(), &receiver, packets.try_into()?)?;
    if !is_read {
        return Ok(crate::wait_to_be_killed());
    }
    println!("ready");
    loop {
        sender.write_all(&piece).context("write")?;
        receiver.read_exact(&mut piece).context("read")?;
    }
}
