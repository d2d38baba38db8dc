//! Memory pressure: sampled, remembered, judged.
//!
//! `sample` is what one look at a cgroup or at the node gives; everything else here works on
//! series of them: `series` measures one, `leak` looks for what grows and does not come back.

pub mod leak;
pub mod sample;
pub mod series;
