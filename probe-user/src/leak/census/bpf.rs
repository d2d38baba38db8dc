//! Kernel memory where `/proc/kcore` is missing or masked: a BPF program of a few instructions
//! that is attached to nothing and run by hand (`BPF_PROG_TEST_RUN` of a raw tracepoint program,
//! from 5.10). It copies what it is asked for into a map that is mapped here.
//!
//! `bpf_probe_read_kernel()` survives any address. It is refused where kcore is refused too
//! (lockdown=confidentiality), but a container that may trace may use it.

use std::{
    ffi::{c_long, c_void},
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    ptr::NonNull,
};

use super::memory::{Memory, RamSegment};

/// Where the kernel says what is where in physical memory; zeros without CAP_SYS_ADMIN.
pub const IOMEM: &str = "/proc/iomem";

/// Bytes read at once; charged to RLIMIT_MEMLOCK before 5.11.
const WINDOW_BYTES: u32 = 16 << 10;

/// Commands, types and flags of bpf(2) (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: c_long = 0;
const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_TEST_RUN: c_long = 10;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PSEUDO_MAP_VALUE: u8 = 2;
const BPF_FUNC_GET_CURRENT_TASK: i32 = 35;
const BPF_FUNC_PROBE_READ_KERNEL: i32 = 113;

/// `struct bpf_insn`.
#[repr(C)]
struct Insn {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// The attributes of `BPF_MAP_CREATE`, as far as they are used.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The attributes of `BPF_PROG_LOAD`, as far as they are used.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The attributes of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// Reads memory through a program.
#[derive(Debug)]
pub struct BpfReader {
    copies: OwnedFd,
    finds_task: OwnedFd,
    window: NonNull<u8>,
    /// The map the window shows.
    _map: OwnedFd,
}

impl BpfReader {
    /// Loads the program. Needs CAP_BPF and CAP_PERFMON.
    pub fn load() -> io::Result<Self> {
        let map = create(
            BPF_MAP_CREATE,
            &mut MapCreate {
                map_type: BPF_MAP_TYPE_ARRAY,
                key_size: 4,
                value_size: WINDOW_BYTES,
                max_entries: 1,
                map_flags: BPF_F_MMAPABLE,
            },
        )?;
        let window_bytes = WINDOW_BYTES.cast_signed();
        let window = map.as_raw_fd();
        let copies = program(&[
            insn(0xb7, 0, 0, 0, -1),                        // r0 = -1
            insn(0x79, 3, 1, 0, 0),                         // r3 = address
            insn(0x79, 2, 1, 8, 0),                         // r2 = length
            insn(0x25, 2, 0, 3, window_bytes),              // if r2 > window, go to the end
            insn(0x18, 1, BPF_PSEUDO_MAP_VALUE, 0, window), // r1 = window
            insn(0, 0, 0, 0, 0),
            insn(0x85, 0, 0, 0, BPF_FUNC_PROBE_READ_KERNEL),
            insn(0x95, 0, 0, 0, 0), // return r0
        ])?;
        let finds_task = program(&[
            insn(0x85, 0, 0, 0, BPF_FUNC_GET_CURRENT_TASK),
            insn(0x18, 1, BPF_PSEUDO_MAP_VALUE, 0, window), // r1 = window
            insn(0, 0, 0, 0, 0),
            insn(0x7b, 1, 0, 0, 0), // *r1 = r0
            insn(0xb7, 0, 0, 0, 0), // r0 = 0
            insn(0x95, 0, 0, 0, 0), // return r0
        ])?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let window = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                WINDOW_BYTES as usize,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if window == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reader = Self {
            copies,
            finds_task,
            window: NonNull::new(window.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?,
            _map: map,
        };
        // Running programs by hand is younger than the rest.
        reader.current_task()?;
        Ok(reader)
    }

    /// Address of the calling thread's `struct task_struct`.
    pub fn current_task(&self) -> io::Result<u64> {
        run(&self.finds_task, [0; 2])?;
        let mut word = [0; 8];
        self.copy_window(&mut word);
        Ok(u64::from_ne_bytes(word))
    }

    fn copy_window(&self, into: &mut [u8]) {
        let len = into.len().min(WINDOW_BYTES as usize);
        // SAFETY: the window is mapped for as long as `self` lives and is at least `len` long; the
        // program, its only writer, has returned.
        unsafe {
            self.window
                .as_ptr()
                .copy_to_nonoverlapping(into.as_mut_ptr(), len);
        }
    }
}

impl Memory for BpfReader {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let mut at = address;
        for part in into.chunks_mut(WINDOW_BYTES as usize) {
            let len = part.len() as u64;
            let is_copied = || run(&self.copies, [at, len]).is_ok_and(|failed| failed == 0);
            if at.checked_add(len).is_none() || !is_copied() {
                return false;
            }
            self.copy_window(part);
            at += len;
        }
        true
    }
}

impl Drop for BpfReader {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and nobody uses it any more. A failure leaves
        // it in place, which does no harm.
        unsafe {
            libc::munmap(self.window.as_ptr().cast::<c_void>(), WINDOW_BYTES as usize);
        }
    }
}

/// The linearly mapped memory by `/proc/iomem`; `direct_map` is where physical address 0 is mapped.
pub fn ram(iomem: &Path, direct_map: u64, page_bytes: u64) -> io::Result<Vec<RamSegment>> {
    let text = fs::read_to_string(iomem)?;
    let segments = text.lines().filter_map(|line| {
        let (range, what) = line.split_once(" : ")?;
        // Indented lines are parts of others.
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?.checked_add(1)?;
        let (first_pfn, end_pfn) = (start.div_ceil(page_bytes), end / page_bytes);
        (what == "System RAM" && first_pfn < end_pfn).then_some(RamSegment {
            first_pfn,
            pages: end_pfn - first_pfn,
            address: direct_map.wrapping_add(first_pfn * page_bytes),
        })
    });
    Ok(segments.collect())
}

/// Runs a program by hand; gives what it returns.
fn run(program: &OwnedFd, context: [u64; 2]) -> io::Result<u32> {
    let mut run = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ctx_size_in: u32::try_from(size_of_val(&context)).unwrap_or(0),
        ctx_in: address(&raw const context),
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    Ok(run.retval)
}

fn program(instructions: &[Insn]) -> io::Result<OwnedFd> {
    create(
        BPF_PROG_LOAD,
        &mut ProgLoad {
            prog_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
            insn_cnt: u32::try_from(instructions.len()).unwrap_or(0),
            insns: address(instructions.as_ptr()),
            license: address(c"Dual MIT/GPL".as_ptr()),
        },
    )
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// bpf(2) with a command that makes a descriptor.
fn create<T>(command: c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: `attributes` is what the command takes, with its size; what it points to is alive.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_iomem_calls_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            &file,
            "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n\
             00100000-00200fff : System RAM\n  00100000-001fffff : Kernel code\n\
             00300000-00300000 : System RAM\njunk\n",
        )
        .unwrap();
        let segments = ram(file.path(), 0xffff_8880_0000_0000, 4096).unwrap();
        let pages: Vec<_> = segments
            .iter()
            .map(|segment| (segment.first_pfn, segment.pages, segment.address))
            .collect();
        assert_eq!(
            pages,
            [
                (1, 0x9e, 0xffff_8880_0000_1000),
                (0x100, 0x101, 0xffff_8880_0010_0000)
            ]
        );
    }
}
