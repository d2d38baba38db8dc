//! Memory pressure: sampled, remembered, judged.
//!
//! `sample` is what one look at a cgroup or at the node gives; everything else here works on
//! series of them.

pub mod sample;
