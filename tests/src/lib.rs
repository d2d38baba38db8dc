//! Scenarios that make a real kernel kill or wait for memory, and the oracles that check what oomprobe said of it.

pub mod block;
pub mod cgroup;
pub mod containerd;
pub mod deadline;
pub mod death;
pub mod expect;
pub mod following;
pub mod hog;
pub mod memcg;
pub mod meminfo;
pub mod modules;
pub mod mount;
pub mod oracle;
pub mod scenario;
pub mod scenarios;
pub mod skb;
pub mod tracer;
pub mod unified;
