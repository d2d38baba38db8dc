//! A netlink socket that hears news and does not read them.

use std::process::ExitCode;

use anyhow::Result;
use nix::sys::socket::{SockProtocol, setsockopt, sockopt::RcvBufForce};

use super::netlink::Netlink;
use super::network::{self, LOOPBACK};

/// News beyond those that fit.
const LOST: u32 = 100;

pub(super) fn netlink(bytes: usize) -> Result<ExitCode> {
    // Nothing else happens to a device that is down.
    network::own_without_devices()?;
    let groups = u32::try_from(libc::RTMGRP_LINK)?;
    let subscriber = Netlink::open(SockProtocol::NetlinkRoute, groups)?;
    // The kernel doubles it.
    setsockopt(&subscriber, RcvBufForce, &(bytes / 2))?;
    let mut news = 0;
    while super::drops(&subscriber)? < LOST {
        // Each change is told.
        news += 1;
        network::set_mtu(LOOPBACK, 2000 + i32::try_from(news % 2)?)?;
    }
    super::hold(&subscriber, news - super::drops(&subscriber)?)
}
