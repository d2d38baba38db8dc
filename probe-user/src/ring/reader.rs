//! Reads a BPF ring as a stream of byte strings.

use std::io;

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use tokio::io::{Interest, unix::AsyncFd};

/// Most records taken before other work gets its turn.
const BATCH: usize = 256;

/// One ring, readable asynchronously.
pub struct Reader {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Reader {
    /// Registers the ring with the runtime.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // A ring never becomes writable; asking for that too, as `AsyncFd::new` does, is refused.
        // SAFETY: `RingBuf` owns its map's fd and returns the same one until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
        Ok(Self { ring })
    }

    /// Waits until there are records and appends them, up to a batch, to `out`. Dropped while it
    /// waits, it has taken nothing.
    pub async fn read(&mut self, out: &mut Vec<Bytes>) -> io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        let before = out.len();
        while out.len() - before < BATCH {
            let Some(item) = guard.get_inner_mut().next() else {
                // Readiness is edge-triggered: it may only be cleared once the ring is empty.
                guard.clear_ready();
                break;
            };
            out.push(Bytes::copy_from_slice(&item));
        }
        Ok(())
    }

    /// Takes up to a batch without waiting; whether there may be more.
    pub fn take_batch(&mut self, out: &mut Vec<Bytes>) -> bool {
        let ring = self.ring.get_mut();
        for _ in 0..BATCH {
            let Some(item) = ring.next() else {
                return false;
            };
            out.push(Bytes::copy_from_slice(&item));
        }
        true
    }

    /// Takes what is in the ring without waiting.
    pub fn drain(&mut self, out: &mut Vec<Bytes>) {
        while self.take_batch(out) {}
    }
}
