//! The pass over all open files that finds sockets: a program of its own, loaded for one look and
//! gone after it.

use std::io;
use std::mem::size_of;

use aya::{Btf, Ebpf, EbpfLoader, programs::Iter};
use probe_common::{
    layout::{ABSENT, KernelLayout},
    wire::HeldSocket,
};

use super::loader::{LoadError, OBJECT, raise_memlock, reason};

const PROGRAM: &str = "sockets";
const HOOK: &str = "task_file";

/// Maps of other programs, which the object brings along: as small as the kernel allows.
const NOT_NEEDED: &[&str] = &[
    "CRITICAL", "BULK", "DEATHS", "VICTIMS", "LIMITS", "STALLS", "WAITING", "SENT", "DULL",
];

/// Records that are read at once: the kernel hands out 32 KiB at a time (`bpf_seq_read()`).
const CHUNK_BYTES: usize = 64 << 10;

/// Why no pass can be made.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The object could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel's types lack what tells a socket from other files.
    #[error("this kernel's type information lacks {0}")]
    Layout(&'static str),
    /// The kernel has no such iterator, or refused the program.
    #[error("the kernel refused the iterator over open files: {0}")]
    Refused(String),
    /// The pass broke off.
    #[error("the pass over open files broke off")]
    Read(#[source] io::Error),
    /// The pass ended within a record.
    #[error("the pass over open files ended {0} bytes into a record")]
    Torn(usize),
}

/// The loaded program. Dropping it unloads it.
pub struct OpenFiles {
    ebpf: Ebpf,
}

impl OpenFiles {
    /// Loads the program.
    pub fn load(layout: &KernelLayout) -> Result<Self, PassError> {
        for (field, value) in [
            ("file.f_inode", layout.file__f_inode),
            ("super_block.s_magic", layout.super_block__s_magic),
            ("socket_alloc", layout.socket_alloc__socket),
            ("socket.sk", layout.socket__sk),
            ("sock.sk_receive_queue", layout.sock__sk_receive_queue),
            ("sk_buff_head.qlen", layout.sk_buff_head__qlen),
        ] {
            if value == ABSENT {
                return Err(PassError::Layout(field));
            }
        }
        raise_memlock();
        let mut loader = EbpfLoader::new();
        loader.override_global("LAYOUT", layout, true);
        for map in NOT_NEEDED {
            loader.map_max_entries(map, 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(LoadError::from)?;
        let btf = Btf::from_sys_fs().map_err(LoadError::from)?;
        program(&mut ebpf)?
            .load(HOOK, &btf)
            .map_err(|error| PassError::Refused(reason(&error)))?;
        Ok(Self { ebpf })
    }

    /// Hands every open descriptor of a socket to `each`, in the order of processes; one socket may
    /// come many times. Memory does not grow with their number.
    pub fn pass(&mut self, each: impl FnMut(&HeldSocket)) -> Result<(), PassError> {
        let program = program(&mut self.ebpf)?;
        let refused = |error| PassError::Refused(reason(&error));
        let link = program.attach().map_err(refused)?;
        let link = program.take_link(link).map_err(refused)?;
        let file = link
            .into_file()
            .map_err(|error| PassError::Refused(error.to_string()))?;
        records(file, each)
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter, PassError> {
    let program = ebpf
        .program_mut(PROGRAM)
        .ok_or(LoadError::Missing(PROGRAM))?;
    program
        .try_into()
        .map_err(|error| PassError::Refused(reason(&error)))
}

/// Cuts what `file` gives into records.
fn records(mut file: impl io::Read, mut each: impl FnMut(&HeldSocket)) -> Result<(), PassError> {
    const RECORD: usize = size_of::<HeldSocket>();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut filled = 0;
    loop {
        match file.read(&mut chunk[filled..]) {
            Ok(0) if filled == 0 => return Ok(()),
            Ok(0) => return Err(PassError::Torn(filled)),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PassError::Read(error)),
        }
        let whole = filled - filled % RECORD;
        for record in chunk[..whole].chunks_exact(RECORD) {
            each(&bytemuck::pod_read_unaligned(record));
        }
        chunk.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in pieces of a size that does not fit.
    struct Pieces<'a>(&'a [u8]);

    impl io::Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(out.len()).min(1000);
            out[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn sockets(count: u32) -> Vec<u8> {
        let record = |fd| HeldSocket {
            fd,
            ..bytemuck::Zeroable::zeroed()
        };
        (0..count)
            .flat_map(|fd| bytemuck::bytes_of(&record(fd)).to_vec())
            .collect()
    }

    #[test]
    fn records_come_whole_whatever_the_reads() {
        let bytes = sockets(1000);
        let mut seen = Vec::new();
        records(Pieces(&bytes), |record| seen.push(record.fd)).unwrap();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_torn_record_is_an_error_and_what_came_before_it_is_not_lost() {
        let bytes = sockets(2);
        let mut seen = 0;
        let result = records(Pieces(&bytes[..bytes.len() - 1]), |_| seen += 1);
        let expected = size_of::<HeldSocket>() - 1;
        assert!(matches!(result, Err(PassError::Torn(left)) if left == expected));
        assert_eq!(seen, 1);
    }
}
