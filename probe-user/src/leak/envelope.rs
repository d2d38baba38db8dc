//! What an event of a single run carries beside its body.

use std::path::Path;

use crate::event::{Body, Event, Host, Time};
use crate::node::clock::{BootClock, boot_ns};
use crate::node::host;

/// The node, and the offset of its clocks.
pub(super) struct Envelope {
    host: Host,
    clock: BootClock,
}

impl Envelope {
    /// Finds out about the host at `host_root`.
    pub(super) fn of(host_root: &Path) -> Self {
        let proc = host_root.join("proc");
        let from_env = std::env::var("NODE_NAME").ok();
        Self {
            host: Host {
                name: host::node_name(from_env.as_deref(), &proc).ok(),
                boot_id: host::boot_id(&proc).ok(),
            },
            clock: BootClock::now(),
        }
    }

    /// Name of the node.
    pub(super) fn node_name(&self) -> Option<&str> {
        self.host.name.as_deref()
    }

    /// An event of this moment.
    pub(super) fn event(&self, seq: u64, body: Body) -> Event {
        let boot_ns = boot_ns();
        let since_epoch = self
            .clock
            .wall_time(boot_ns)
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let unix_ns = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        let time = Time::from_unix_ns(unix_ns);
        Event::new(time, boot_ns, seq, self.host.clone(), body)
    }
}
