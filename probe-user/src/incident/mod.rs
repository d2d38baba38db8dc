//! From records to explained kills: join, gather evidence, find the limit, fill in the event.

pub mod assemble;
pub mod evidence;
pub mod explain;
pub mod fold;
pub mod limit;
pub mod who;
