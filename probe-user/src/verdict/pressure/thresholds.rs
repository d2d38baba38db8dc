//! From where on something counts as wrong. Each is meant to stand above what a healthy busy node
//! shows: a full page cache, steady kswapd, some refaults, a container that reads files at its
//! limit. A source is named where there is one; all others are judgement, tried on made-up samples
//! only.

/// Share of time in which some task waits for memory (PSI `some`). The kernel's documentation
/// wakes at 15 % of a second in its example. That reclaim of clean page cache at a limit stays
/// below is an assumption.
pub(super) const WAITING: f64 = 0.10;

/// Share of time in which no task gets on (PSI `full`). GLib calls 100 ms in 2 s critical;
/// systemd-oomd kills at 60 % over 30 s.
pub(super) const STANDING: f64 = 0.05;

/// PSI `some` from which a wait without a named cause is worth saying.
pub(super) const WAITING_UNNAMED: f64 = 0.25;

/// Refaults a second under which they explain no wait: with a slow disk of 10 ms a page, 100 of
/// them are one task's whole second.
pub(super) const REFAULTS_PER_S: f64 = 100.0;

/// Refaults over pages reclaimed: half of what was thrown out was needed.
pub(super) const REFAULT_RATIO: f64 = 0.5;

/// Refaults a second of a whole node that does not account for waiting (PSI is off), and entries
/// into direct reclaim a second: together they are no more than a hint.
pub(super) const BLIND_REFAULTS_PER_S: f64 = 1_000.0;
pub(super) const BLIND_DIRECT_PER_S: f64 = 10.0;

/// Pages a second in both directions that make swapping a thrash: 1 MiB/s each way of 4 KiB
/// pages. Pages going out only are just idle ones being put away.
pub(super) const SWAP_PAGES_PER_S: f64 = 256.0;

/// Pages a second scanned for the node as a whole (kswapd and direct reclaim; reclaim for a
/// cgroup's limit is not counted there): 4 MiB/s of 4 KiB pages.
pub(super) const NODE_SCAN_PER_S: f64 = 1_000.0;

/// Share of the limit that cannot be given back (all but page cache and reclaimable slab, with
/// swap full or none): the last tenth is what reclaim lives on.
pub(super) const FULL_RATIO: f64 = 0.90;

/// The same share from which any further hit of the limit ends in a kill soon.
pub(super) const BRIM_RATIO: f64 = 0.97;

/// Share of the limit from which a counter that has no hits to show counts as at the limit.
pub(super) const AT_LIMIT_RATIO: f64 = 0.98;

/// Share of usage from which one kind of memory is what fills the limit.
pub(super) const DOMINANT_RATIO: f64 = 0.5;

/// The same for socket buffers and kernel memory, which nobody plans for.
pub(super) const UNPLANNED_RATIO: f64 = 0.3;

/// Growth within the window, over the limit, that shows that it goes on.
pub(super) const GROWING_RATIO: f64 = 0.01;

/// Growth of anonymous memory over the limit that is a spike, and within how long, s. The window
/// of one look must be enough to see it.
pub(super) const SPIKE_RATIO: f64 = 0.5;
pub(super) const SPIKE_WITHIN_S: f64 = 5.5;

/// Share of page cache that is dirty or being written from which the disk is what it waits for.
/// The kernel makes writers wait at 20 % (`vm.dirty_ratio`).
pub(super) const DIRTY_RATIO: f64 = 0.2;

/// One cgroup's share of all memory taken in the window that makes it the neighbour.
pub(super) const NEIGHBOUR_RATIO: f64 = 0.6;

/// Bytes a second it must take at least: less cannot press a node.
pub(super) const NEIGHBOUR_BYTES_PER_S: f64 = 16.0 * 1024.0 * 1024.0;

/// Available memory over all memory that is nearly nothing: the kubelet evicts at 100 MiB.
pub(super) const EXHAUSTED_RATIO: f64 = 0.04;

/// The same where tasks wait already.
pub(super) const SHORT_RATIO: f64 = 0.10;

/// Free swap over all swap that is as good as none.
pub(super) const SWAP_FULL_RATIO: f64 = 0.10;

/// Share of the node that protection (`memory.min`, `memory.low`) may hold.
pub(super) const PROTECTED_RATIO: f64 = 0.3;

/// Unreclaimable slab over all memory; a busy node has a few percent.
pub(super) const SLAB_RATIO: f64 = 0.2;

/// Looks that show a growth to be steady, and the least step between two of them over the mean one.
pub(super) const STEADY_LOOKS: usize = 5;
pub(super) const STEADY_EVENNESS: f64 = 0.5;

/// Growth that is worth a word: at least this much, and at its rate at the limit within so long, s.
pub(super) const STEADY_BYTES: u64 = 4 << 20;
pub(super) const SOON_S: f64 = 300.0;
