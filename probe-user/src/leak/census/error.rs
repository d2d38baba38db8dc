//! Why a census cannot be taken, and what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::kernel::{
    btf::{BtfError, Missing},
    kallsyms::{KallsymsError, NoAddress},
};

/// Why a census cannot be taken.
#[derive(Debug, Error)]
pub enum CensusError {
    /// There is no such file: CONFIG_PROC_KCORE is off.
    #[error("this kernel has no {0} (CONFIG_PROC_KCORE is off)")]
    NoKcore(PathBuf),
    /// A container runtime has put an empty file over it.
    #[error(
        "{0} is masked, as container runtimes do; run on the host or in a privileged container \
         (securityContext.privileged, or procMount: Unmasked)"
    )]
    Masked(PathBuf),
    /// The kernel keeps its memory from everyone.
    #[error(
        "{0} cannot be opened: the kernel is locked down (lockdown=confidentiality), which no \
         privilege overrides; boot with lockdown=integrity or less"
    )]
    Lockdown(PathBuf),
    /// Not privileged enough.
    #[error("{0} cannot be opened: run as root with CAP_SYS_RAWIO")]
    NotPermitted(PathBuf),
    /// Any other failure to read it.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Not the ELF core file it should be.
    #[error("{path} is not a core file of a 64-bit kernel: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel's types cannot be read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A type is not as this reader knows it.
    #[error("this kernel's types are not as the census knows them: {0}")]
    Layout(#[from] Missing),
    /// The kernel's symbols cannot be read.
    #[error(transparent)]
    Kallsyms(#[from] KallsymsError),
    /// A variable of the kernel was not found.
    #[error("address of kernel variable `{name}`: {reason}")]
    Symbol {
        /// Its name.
        name: &'static str,
        /// Why there is no address.
        reason: NoAddress,
    },
    /// Neither way to read memory is open.
    #[error("{kcore}; nor can memory be read by a BPF program: {bpf}")]
    NoMemory {
        /// What is wrong with `/proc/kcore`.
        kcore: Box<CensusError>,
        /// What the kernel answered to the program.
        bpf: io::Error,
    },
    /// Its variables do not hold what they should.
    #[error("the kernel's caches of socket buffers were not found in its memory")]
    NoCaches,
}
