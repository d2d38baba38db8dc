//! Scenarios that make a real kernel kill, and the oracles that check what oomprobe said of it.

pub mod containerd;
