//! `/proc/kcore` (fs/proc/kcore.c): kernel memory as an ELF core file. Reading what is not mapped
//! gives zeros there, not an error, and never a fault.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
};

use super::{
    error::CensusError,
    memory::{Memory, RamSegment, half_at, quarter_at, word_at},
};

/// Where the kernel shows its memory.
pub const KCORE: &str = "/proc/kcore";
/// Where the kernel says how far it is locked down (security/lockdown/lockdown.c).
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

const EHDR_BYTES: usize = 64;
const PHDR_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Segments that are not linearly mapped memory have this physical address.
const NO_PADDR: u64 = u64::MAX;
/// The notes are a few KiB: registers, a `task_struct`, VMCOREINFO.
const MAX_NOTE_BYTES: u64 = 1 << 20;

/// One range of kernel addresses in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    bytes: u64,
    file_offset: u64,
    physical: u64,
}

/// The open file.
#[derive(Debug)]
pub struct Kcore {
    file: File,
    /// In order of addresses.
    segments: Vec<Segment>,
    vmcoreinfo: Vec<u8>,
}

impl Kcore {
    /// Opens the kernel's memory.
    pub fn open() -> Result<Self, CensusError> {
        Self::open_at(Path::new(KCORE), Path::new(LOCKDOWN))
    }

    fn open_at(path: &Path, lockdown: &Path) -> Result<Self, CensusError> {
        let mut file = File::open(path).map_err(|error| refusal(path, lockdown, error))?;
        let io = |source| CensusError::Io {
            path: path.into(),
            source,
        };
        // Runtimes mask it with /dev/null or with an empty file.
        if file.metadata().map_err(io)?.file_type().is_char_device() {
            return Err(CensusError::Masked(path.into()));
        }
        let mut ehdr = Vec::with_capacity(EHDR_BYTES);
        (&mut file)
            .take(EHDR_BYTES as u64)
            .read_to_end(&mut ehdr)
            .map_err(|error| refusal(path, lockdown, error))?;
        if ehdr.is_empty() {
            return Err(CensusError::Masked(path.into()));
        }
        let malformed = |problem| CensusError::Malformed {
            path: path.into(),
            problem,
        };
        let (first, count) = program_headers(&ehdr).map_err(malformed)?;
        let mut headers = vec![0; usize::from(count) * PHDR_BYTES];
        file.read_exact_at(&mut headers, first).map_err(io)?;
        let mut segments = Vec::new();
        let mut vmcoreinfo = Vec::new();
        for header in headers.chunks_exact(PHDR_BYTES) {
            let segment = Segment {
                address: word_at(header, 16),
                bytes: word_at(header, 40),
                file_offset: word_at(header, 8),
                physical: word_at(header, 24),
            };
            match half_at(header, 0) {
                PT_LOAD if segment.address.checked_add(segment.bytes).is_some() => {
                    segments.push(segment);
                }
                PT_NOTE => {
                    let len = word_at(header, 32).min(MAX_NOTE_BYTES);
                    let mut notes = vec![0; usize::try_from(len).unwrap_or(0)];
                    file.read_exact_at(&mut notes, segment.file_offset)
                        .map_err(io)?;
                    vmcoreinfo = note(&notes, b"VMCOREINFO").unwrap_or_default().to_vec();
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(malformed("it has no segment"));
        }
        segments.sort_unstable_by_key(|segment| segment.address);
        Ok(Self {
            file,
            segments,
            vmcoreinfo,
        })
    }

    /// The linearly mapped memory. The kernel's own image is mapped a second time elsewhere; that
    /// segment is told by `text`, an address in the image.
    pub fn ram(&self, text: u64, page_bytes: u64) -> Vec<RamSegment> {
        let is_ram = |segment: &&Segment| {
            segment.physical != NO_PADDR && text.wrapping_sub(segment.address) >= segment.bytes
        };
        self.segments
            .iter()
            .filter(is_ram)
            .map(|segment| RamSegment {
                first_pfn: segment.physical / page_bytes,
                pages: segment.bytes / page_bytes,
                address: segment.address,
            })
            .collect()
    }

    /// A number the kernel exports for dump tools: the value of the line `key=` of VMCOREINFO
    /// (kernel/vmcore_info.c), such as `NUMBER(VMEMMAP_START)`.
    pub fn vmcoreinfo(&self, key: &str) -> Option<u64> {
        let value = self
            .vmcoreinfo
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b"="))?;
        let value = str::from_utf8(value).ok()?.trim();
        value.strip_prefix("0x").map_or_else(
            || {
                let negative = || value.parse().map(i64::cast_unsigned);
                value.parse().or_else(|_| negative()).ok()
            },
            |hex| u64::from_str_radix(hex, 16).ok(),
        )
    }
}

impl Memory for Kcore {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let behind = self
            .segments
            .partition_point(|segment| segment.address <= address);
        let Some(segment) = behind.checked_sub(1).and_then(|at| self.segments.get(at)) else {
            return false;
        };
        let at = address - segment.address;
        if at.saturating_add(into.len() as u64) > segment.bytes {
            return false;
        }
        segment
            .file_offset
            .checked_add(at)
            .is_some_and(|offset| self.file.read_exact_at(into, offset).is_ok())
    }
}

/// What a refusal to open or read `path` means.
fn refusal(path: &Path, lockdown: &Path, source: io::Error) -> CensusError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT) => CensusError::NoKcore(path),
        Some(libc::EPERM) if is_confidential(lockdown) => CensusError::Lockdown(path),
        Some(libc::EPERM | libc::EACCES) => CensusError::NotPermitted(path),
        _ => CensusError::Io { path, source },
    }
}

/// `none integrity [confidentiality]`: the mode in force is in brackets.
fn is_confidential(lockdown: &Path) -> bool {
    fs::read_to_string(lockdown).is_ok_and(|text| text.contains("[confidentiality]"))
}

/// Offset and number of the program headers.
fn program_headers(ehdr: &[u8]) -> Result<(u64, u16), &'static str> {
    if ehdr.len() < EHDR_BYTES || !ehdr.starts_with(b"\x7fELF\x02") {
        return Err("no 64-bit ELF header");
    }
    if usize::from(quarter_at(ehdr, 54)) != PHDR_BYTES {
        return Err("program headers of unknown size");
    }
    Ok((word_at(ehdr, 32), quarter_at(ehdr, 56)))
}

/// Content of the first note of this name.
fn note<'a>(mut notes: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    while notes.len() >= 12 {
        let name_len = half_at(notes, 0) as usize;
        let desc_len = half_at(notes, 4) as usize;
        let desc_at = 12 + name_len.checked_next_multiple_of(4)?;
        let name = notes.get(12..)?.get(..name_len)?;
        let desc = notes.get(desc_at..)?.get(..desc_len)?;
        if name.strip_suffix(b"\0").unwrap_or(name) == wanted {
            return Some(desc);
        }
        let next = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
        notes = notes.get(next..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const DIRECT: u64 = 0xffff_8880_0000_0000;

    /// A core file with one page of memory, the kernel's image, vmalloc space and a note.
    fn core_file() -> Vec<u8> {
        let notes = [
            &5_u32.to_ne_bytes()[..],
            &4_u32.to_ne_bytes(),
            &1_u32.to_ne_bytes(),
            b"CORE\0\0\0\0regs",
            &11_u32.to_ne_bytes(),
            &62_u32.to_ne_bytes(),
            &0_u32.to_ne_bytes(),
            b"VMCOREINFO\0\0",
            b"PAGESIZE=4096\nNUMBER(PHYS_OFFSET)=0x40000000\nNUMBER(MINUS)=-2\n",
        ]
        .concat();
        let loads = [
            (TEXT, 0x1000, 0x100_0000),
            (DIRECT + 0x1000, 0x2000, 0x1000),
            (0xffff_c900_0000_0000, 0x1000, NO_PADDR),
        ];
        let mut file = vec![0; EHDR_BYTES];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32..40].copy_from_slice(&(EHDR_BYTES as u64).to_ne_bytes());
        file[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        file[56..58].copy_from_slice(&4_u16.to_ne_bytes());
        let header = |kind: u32, offset: u64, vaddr: u64, paddr: u64, len: u64| {
            [
                &kind.to_ne_bytes()[..],
                &[0; 4],
                &offset.to_ne_bytes(),
                &vaddr.to_ne_bytes(),
                &paddr.to_ne_bytes(),
                &len.to_ne_bytes(),
                &len.to_ne_bytes(),
                &[0; 8],
            ]
            .concat()
        };
        let notes_at = (EHDR_BYTES + 4 * PHDR_BYTES) as u64;
        file.extend(header(PT_NOTE, notes_at, 0, 0, notes.len() as u64));
        let mut at = notes_at + notes.len() as u64;
        for (vaddr, len, paddr) in loads {
            file.extend(header(PT_LOAD, at, vaddr, paddr, len));
            at += len;
        }
        file.extend(notes);
        for (fill, (_, len, _)) in (1_u8..).zip(loads) {
            file.extend(std::iter::repeat_n(fill, usize::try_from(len).unwrap()));
        }
        file
    }

    fn open(content: &[u8]) -> Result<Kcore, CensusError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, content).unwrap();
        Kcore::open_at(file.path(), Path::new("/nonexistent"))
    }

    #[test]
    fn addresses_are_found_in_their_segment() {
        let kcore = open(&core_file()).unwrap();
        let read = |address, len| {
            let mut bytes = vec![0; len];
            kcore.read(address, &mut bytes).then_some(bytes)
        };
        assert_eq!(read(TEXT, 2), Some(vec![1, 1]));
        assert_eq!(read(DIRECT + 0x1000, 1), Some(vec![2]));
        assert_eq!(read(DIRECT + 0x2fff, 1), Some(vec![2]));
        assert_eq!(read(0xffff_c900_0000_0000, 1), Some(vec![3]));
        assert_eq!(read(DIRECT + 0x2fff, 2), None, "across the end");
        for address in [0, DIRECT, DIRECT + 0x3000, u64::MAX] {
            assert_eq!(read(address, 1), None, "{address:#x}");
        }
    }

    #[test]
    fn memory_is_what_has_a_physical_address_and_is_not_the_image() {
        let ram = open(&core_file()).unwrap().ram(TEXT + 8, 4096);
        assert_eq!(
            ram,
            [RamSegment {
                first_pfn: 1,
                pages: 2,
                address: DIRECT + 0x1000
            }]
        );
    }

    #[test]
    fn constants_for_dump_tools_are_read() {
        let kcore = open(&core_file()).unwrap();
        assert_eq!(kcore.vmcoreinfo("PAGESIZE"), Some(4096));
        assert_eq!(kcore.vmcoreinfo("NUMBER(PHYS_OFFSET)"), Some(0x4000_0000));
        assert_eq!(kcore.vmcoreinfo("NUMBER(MINUS)"), Some(u64::MAX - 1));
        assert_eq!(kcore.vmcoreinfo("PAGE"), None);
    }

    #[test]
    fn what_is_not_a_core_file_is_refused_with_a_reason() {
        assert!(matches!(open(b""), Err(CensusError::Masked(_))));
        assert!(matches!(open(b"junk"), Err(CensusError::Malformed { .. })));
        let mut wide = core_file();
        wide[54] = 57;
        assert!(matches!(open(&wide), Err(CensusError::Malformed { .. })));
        for len in [
            EHDR_BYTES + 1,
            EHDR_BYTES + PHDR_BYTES,
            EHDR_BYTES + 4 * PHDR_BYTES + 8,
        ] {
            let error = open(&core_file()[..len]);
            assert!(matches!(error, Err(CensusError::Io { .. })), "{len}");
        }
        let nowhere = Path::new("/nonexistent");
        let masked = Kcore::open_at(Path::new("/dev/null"), nowhere);
        assert!(matches!(masked, Err(CensusError::Masked(_))));
        let absent = Kcore::open_at(nowhere, nowhere);
        assert!(matches!(absent, Err(CensusError::NoKcore(_))));
    }

    #[test]
    fn a_refusal_is_told_by_its_cause() {
        let lockdown = tempfile::NamedTempFile::new().unwrap();
        let error = |number| {
            refusal(
                Path::new(KCORE),
                lockdown.path(),
                io::Error::from_raw_os_error(number),
            )
        };
        fs::write(&lockdown, "none integrity [confidentiality]\n").unwrap();
        assert!(matches!(error(libc::EPERM), CensusError::Lockdown(_)));
        fs::write(&lockdown, "none [integrity] confidentiality\n").unwrap();
        assert!(matches!(error(libc::EPERM), CensusError::NotPermitted(_)));
        assert!(matches!(error(libc::EACCES), CensusError::NotPermitted(_)));
        assert!(matches!(error(libc::EIO), CensusError::Io { .. }));
    }

    #[test]
    fn torn_notes_end_the_search() {
        let notes = |name_len: u32, desc_len: u32| {
            [
                &name_len.to_ne_bytes()[..],
                &desc_len.to_ne_bytes(),
                &[0; 4],
                b"VMCOREINFO\0\0x",
            ]
            .concat()
        };
        assert_eq!(note(&notes(11, 1), b"VMCOREINFO"), Some(&b"x"[..]));
        for (name_len, desc_len) in [(11, 2), (u32::MAX, 1), (11, u32::MAX), (0, 0)] {
            assert_eq!(note(&notes(name_len, desc_len), b"VMCOREINFO"), None);
        }
    }
}
