//! The daemon side of oomprobe.
//!
//! Data flows one way: [`kernel`] loads the BPF programs, ring records are decoded, given an
//! identity, joined into incidents, explained by a verdict and written by a sink.

pub mod cli;
pub mod daemon;
pub mod event;
pub mod identity;
pub mod incident;
pub mod kernel;
pub mod leak;
pub mod node;
pub mod pressure;
pub mod ring;
pub mod sink;
pub mod story;
pub mod triage;
pub mod verdict;
