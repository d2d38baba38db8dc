//! The kernel log, read from `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg), and the OOM
//! killer's reports and unhandled faults in it.
//!
//! The log is the last resort: the kernel limits the rate of all lines of a report but
//! "Killed process", and overwrites what is not read in time.

mod fault;
mod line;
mod reader;
mod report;

pub use fault::{Fault, FaultLog};
pub use line::{Constraint, Counter, Decision, Killed, Line, Usage};
pub use reader::{KmsgReader, Record, RecordHeader, Start, parse_record};
pub use report::{Assembler, Chosen, OomReport, Reaped, Trigger, Victim};
