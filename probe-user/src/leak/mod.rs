//! Kernel memory: who holds it, who leaks it, and where it went.

pub mod balance;
pub mod census;
mod envelope;
pub mod holders;
pub mod queues;
pub mod slab;
pub mod sockets;
pub mod track;
