//! From the running kernel to loaded programs: facts → decision → load.
//!
//! [`facts`] reads what the machine allows and decides nothing. [`layout`] resolves, from the
//! kernel's own types ([`btf`]), every offset and enumerator the programs need; absence is a
//! value with a reason, never a guess from a version number. [`ladder`] says which hooks can
//! serve each signal; [`loader`] takes the best the kernel accepts. [`pressure`] reads what
//! they count. [`open_files`] finds sockets and what they hold; [`track`] is a ladder of its own:
//! objects from allocation to free. [`kallsyms`] names the frames of kernel stacks.

pub mod btf;
pub mod capability;
pub mod facts;
pub mod kallsyms;
pub mod ladder;
pub mod layout;
pub mod loader;
pub mod open_files;
pub mod pressure;
pub mod problems;
pub mod track;

#[cfg(test)]
mod golden;
