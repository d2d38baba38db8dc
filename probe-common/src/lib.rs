//! What the BPF programs and the daemon of oomprobe must agree on.
//!
//! [`layout`] carries facts about the running kernel from the daemon into the programs;
//! [`wire`] carries what the programs saw back to the daemon; [`limits`] bounds both.
#![no_std]

pub mod layout;
pub mod limits;
pub mod outstanding;
pub mod wire;
