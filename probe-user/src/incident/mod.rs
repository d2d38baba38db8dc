//! From records to explained kills and deaths: join, gather evidence, find the limit, fill in the event.

pub mod assemble;
pub mod balance;
pub mod death;
pub mod evidence;
pub mod explain;
pub mod fold;
pub mod limit;
pub mod who;
