//! From a cgroup to the container and pod it belongs to.
//!
//! The kernel copies a cgroup's names at the moment of an event; [`path`] reads them, so who was
//! meant is known even when the directory is long gone. Only the Kubernetes names need a look-up,
//! which [`names`] does against what the node itself keeps.

mod claim;
mod component;
mod handle;
pub mod hierarchy;
pub mod names;
pub mod path;
pub mod pid;
pub mod tree;

pub use claim::{Claim, Orchestrator, Qos, Role, Runtime};
