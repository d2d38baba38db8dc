//! One file per command.

pub mod resolve;
