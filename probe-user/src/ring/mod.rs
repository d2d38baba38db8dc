//! From ring buffer bytes to typed records.

pub mod decode;
pub mod reader;
