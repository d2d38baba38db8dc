//! From records to incidents: one per invocation of the OOM killer.

pub mod assemble;
