//! Readings of procfs, cgroupfs and the kernel log.
//!
//! Every reading takes its root as an argument, so that `--host-root` and tests can point it
//! elsewhere. Parsers take bytes and are total; readers add the path to their errors. A value the
//! kernel does not print is `None`, never 0. Sizes are bytes.

pub mod cgroup;
pub mod clock;
pub mod cpu;
pub mod dir;
pub mod disk;
pub mod host;
pub mod kmsg;
pub mod kubelet;
pub mod memcg;
pub mod meminfo;
pub mod oom_score;
pub mod process;
pub mod psi;
pub mod slabinfo;
pub mod sysctl;
pub(crate) mod text;
pub mod vmallocinfo;
pub mod vmstat;
pub mod zoneinfo;

pub use text::{Error, ParseError, TextFile, single_number};
