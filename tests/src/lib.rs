//! Scenarios that make a real kernel kill, and the oracles that check what oomprobe said of it.

pub mod cgroup;
pub mod containerd;
pub mod deadline;
pub mod expect;
pub mod hog;
pub mod mount;
pub mod oracle;
pub mod scenario;
pub mod scenarios;
pub mod tracer;
