//! From the running kernel to loaded programs: facts → decision → load.
//!
//! [`facts`] reads what the machine allows and decides nothing; [`problems`] says what to do about
//! what it does not allow. [`layout`] resolves, from the kernel's own types ([`btf`]), every offset
//! and enumerator the programs need; absence is a value with a reason, never a guess from a version
//! number. What follows decides which hook serves each signal from these alone, so that the
//! decision can be tested with facts made up, and only then loads. [`kallsyms`] looks up addresses
//! and names the frames of kernel stacks.

pub mod btf;
pub mod capability;
pub mod facts;
pub mod kallsyms;
pub mod layout;
pub mod problems;

#[cfg(test)]
mod golden;
