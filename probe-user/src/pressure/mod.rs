//! Memory pressure: sampled, remembered, judged.
//!
//! `sample` is what one look at a cgroup or at the node gives; everything else here works on
//! series of them. `driver` decides who is looked at when; `watch` finds cgroups, `watched` keeps
//! them; `look` and `node` read files, `recorder` remembers, `quota` waits for
//! processors, `history` tells what led up to a kill.
//! `series` measures one, `leak` looks for what grows and does not come back.

pub mod cgroup;
pub mod driver;
pub mod history;
pub mod leak;
pub mod look;
pub mod metrics;
pub mod node;
pub mod psi_trigger;
pub mod quota;
pub mod recorder;
pub mod sample;
pub mod series;
pub mod watch;
pub mod watched;

pub use driver::{AtKill, Look, Pressure, Shortfall, Tick};
