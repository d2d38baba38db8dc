//! The kernel's lines about faults that no handler took (`debug.exception-trace`).
//!
//! `show_signal_msg()` (arch/x86/mm/fault.c): `comm[tid]: segfault at ADDRESS ip IP sp SP error E in
//! FILE[START+LENGTH]`; `show_signal()` (arch/x86/kernel/traps.c): `traps: comm[tid] trap divide error
//! ip:IP sp:SP error:E in FILE[START+LENGTH]`. Newer kernels write `[OFFSET,START+LENGTH]`, and may add
//! on which CPU. What the process and the file are called may hold anything, brackets and these very
//! words included; what is between is strict.

use std::{collections::VecDeque, path::Path};

use super::{KmsgReader, Record, Start};
use crate::{event::text, node::clock};

/// Faults remembered.
const KEPT: usize = 64;

/// How far the log's clock, which nobody adjusts, may be from the programs'.
const NEAR_NS: u64 = 30_000_000_000;

/// `TASK_COMM_LEN` without its NUL.
const MAX_COMM: usize = 15;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Name of the thread.
    pub comm: Vec<u8>,
    /// Address of the instruction.
    pub instruction: u64,
    /// The file that is mapped there, and an offset: as `libc.so.6+0x28000`. The instruction's in
    /// the file where the kernel tells it (6.12 does, 6.1 does not), else its offset in the mapping.
    pub mapping: Option<String>,
}

impl Fault {
    /// Reads the text of one record; `None` if it is about something else.
    pub fn parse(line: &[u8]) -> Option<Self> {
        Self::behind(line, b"]: segfault at ", segfault)
            .or_else(|| Self::behind(line.strip_prefix(b"traps: ")?, b"] ", trap))
    }

    /// With the first `mark` that `rest` can read on from.
    fn behind(
        line: &[u8],
        mark: &[u8],
        rest: impl Fn(&[u8]) -> Option<(u64, &[u8])>,
    ) -> Option<Self> {
        occurrences(line, mark).find_map(|at| {
            let (comm, tid) = thread(&line[..at])?;
            let (instruction, behind) = rest(&line[at + mark.len()..])?;
            Some(Self {
                tid,
                comm: comm.to_vec(),
                instruction,
                mapping: mapping(behind, instruction),
            })
        })
    }
}

/// `comm[tid`.
fn thread(head: &[u8]) -> Option<(&[u8], u32)> {
    let open = head.iter().rposition(|byte| *byte == b'[')?;
    if open > MAX_COMM {
        return None;
    }
    let tid = std::str::from_utf8(&head[open + 1..]).ok()?.parse().ok()?;
    Some((&head[..open], tid))
}

/// `ADDRESS ip IP sp SP error E`: the instruction, and what is behind.
fn segfault(rest: &[u8]) -> Option<(u64, &[u8])> {
    let (_, rest) = hex(rest)?;
    numbers(rest, [b" ip ", b" sp ", b" error "])
}

/// `what ip:IP sp:SP error:E`.
fn trap(rest: &[u8]) -> Option<(u64, &[u8])> {
    let at = occurrences(rest, b" ip:").next()?;
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b" -#".contains(byte);
    if !rest[..at].iter().all(is_plain) {
        return None;
    }
    numbers(&rest[at..], [b" ip:", b" sp:", b" error:"])
}

/// The first of hexadecimal numbers, each behind its name.
fn numbers<'a>(mut rest: &'a [u8], names: [&[u8]; 3]) -> Option<(u64, &'a [u8])> {
    let mut first = None;
    for name in names {
        let (number, behind) = hex(rest.strip_prefix(name)?)?;
        first = first.or(Some(number));
        rest = behind;
    }
    Some((first?, rest))
}

/// ` in FILE[START+LENGTH]` or ` in FILE[OFFSET,START+LENGTH]`.
fn mapping(behind: &[u8], instruction: u64) -> Option<String> {
    let rest = behind.strip_prefix(b" in ")?;
    let open = rest.iter().rposition(|byte| *byte == b'[')?;
    let (first, tail) = hex(&rest[open + 1..])?;
    let offset = match tail.first()? {
        b',' => first,
        b'+' => instruction.checked_sub(first)?,
        _ => return None,
    };
    Some(format!("{}+{offset:#x}", text(&rest[..open])))
}

/// A hexadecimal number, and what is behind.
fn hex(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text
        .iter()
        .position(|byte| !byte.is_ascii_hexdigit())
        .unwrap_or(text.len());
    let number = std::str::from_utf8(&text[..end]).ok()?;
    Some((u64::from_str_radix(number, 16).ok()?, &text[end..]))
}

fn occurrences<'a>(text: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..text.len()).filter(move |&at| text[at..].starts_with(what))
}

/// The latest faults in the kernel's log.
#[derive(Debug)]
pub struct FaultLog {
    reader: KmsgReader,
    latest: Latest,
}

impl FaultLog {
    /// Follows `/dev/kmsg` at `path` from now on.
    pub fn open(path: &Path) -> Result<Self, crate::node::Error> {
        Ok(Self {
            reader: KmsgReader::open(path, Start::End)?,
            latest: Latest::default(),
        })
    }

    /// The last fault of a thread that was logged around a time in ns since boot.
    pub fn of(&mut self, tid: u32, comm: &[u8], boot_ns: u64) -> Option<&Fault> {
        let suspended_ns = clock::boot_ns().saturating_sub(clock::monotonic_ns());
        // An error other than "nothing more" is transient.
        while let Ok(Some(record)) = self.reader.next_record() {
            self.latest.push(record, suspended_ns);
        }
        self.latest.of(tid, comm, boot_ns)
    }
}

/// Faults with their times, ns since boot.
#[derive(Debug, Default)]
struct Latest(VecDeque<(u64, Fault)>);

impl Latest {
    fn push(&mut self, record: Record<'_>, suspended_ns: u64) {
        // What user space writes to the log has another facility than the kernel's, which is 0.
        if record.header.priority >> 3 != 0 {
            return;
        }
        let Some(fault) = Fault::parse(record.text) else {
            return;
        };
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        let at_ns = record.header.time_us.saturating_mul(1000);
        self.0
            .push_back((at_ns.saturating_add(suspended_ns), fault));
    }

    /// Thread ids are reused within seconds where many are made.
    fn of(&self, tid: u32, comm: &[u8], boot_ns: u64) -> Option<&Fault> {
        let is_it = |fault: &Fault| fault.tid == tid && fault.comm == comm;
        self.0
            .iter()
            .rev()
            .find(|(at_ns, fault)| is_it(fault) && at_ns.abs_diff(boot_ns) < NEAR_NS)
            .map(|(_, fault)| fault)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{RecordHeader, parse_record},
        *,
    };

    fn fault(comm: &str, tid: u32, instruction: u64, mapping: Option<&str>) -> Fault {
        Fault {
            tid,
            comm: comm.as_bytes().to_vec(),
            instruction,
            mapping: mapping.map(str::to_owned),
        }
    }

    /// The same 17 crashes of one program (statically linked, text mapped at 0x401000 from offset
    /// 0x1000 of the file) in guests: records of `/dev/kmsg` as read, not edited. Among the names of
    /// processes and files are some that look like parts of the line.
    const KERNELS: [(&str, &str, u64); 4] = [
        ("5.10", include_str!("testdata/faults-5.10.kmsg"), 0x40_1000),
        ("6.1", include_str!("testdata/faults-6.1.kmsg"), 0x40_1000),
        // These tell the offset in the file.
        ("6.12", include_str!("testdata/faults-6.12.kmsg"), 0x40_0000),
        ("7.3", include_str!("testdata/faults-7.3.kmsg"), 0x40_0000),
    ];

    #[test]
    fn lines_of_several_kernels() {
        /// By thread, counted from the first: where the instruction is.
        const CRASHES: [(u32, u64); 17] = [
            (0, 0x40_1697),  // a write to nowhere
            (1, 0),          // a jump to nowhere
            (2, 0x40_16b9),  // a division by 0
            (3, 0x40_16bd),  // no instruction
            (4, 0x40_16cb),  // an address that is none
            (5, 0x40_16d4),  // a breakpoint
            (7, 0x40_1668),  // in a second thread
            (8, 0x40_1715),  // as "]: segfault at "
            (9, 0x40_1738),  // as "a[1] ip 0\n\x1b[m\\"
            (10, 0x40_175e), // without a name
            (11, 0x40_178d), // a division by 0 as "x[7] trap int3 "
            (12, 0x40_179b), // no stack
            (13, ELSEWHERE), // in memory that is no file's and may not be executed
            (14, 0x40_17d0), // a privileged instruction
            (15, 0x40_17d6), // a breakpoint of hardware
            (16, 0x40_17dc), // an interrupt that is none
            (17, 0x40_1697), // in a file with a name like a whole line
        ];
        const ELSEWHERE: u64 = u64::MAX;
        for (kernel, log, start) in KERNELS {
            let faults = log.lines().map(|line| {
                let mut text = Vec::new();
                parse_record(line.as_bytes(), &mut text).unwrap();
                Fault::parse(&text).unwrap_or_else(|| panic!("{kernel}: {line}"))
            });
            let mut faults = faults.peekable();
            let first_tid = faults.peek().unwrap().tid;
            for (number, instruction) in CRASHES {
                let found = faults.next().unwrap();
                let file = match number {
                    17 => "e[1]: segfault at 0 ip 5 sp 6 error 4 in z[1+2",
                    _ => "crash",
                };
                let mapping = match instruction {
                    0 | ELSEWHERE => None,
                    _ => Some(format!("{file}+{:#x}", instruction - start)),
                };
                assert_eq!(found.tid, first_tid + number, "{kernel}");
                assert_eq!(found.mapping, mapping, "{kernel}: crash {number}");
                if instruction != ELSEWHERE {
                    assert_eq!(found.instruction, instruction, "{kernel}: crash {number}");
                }
            }
            assert_eq!(faults.next(), None, "{kernel}");
        }
    }

    #[test]
    fn names_that_look_like_the_rest() {
        let rows: [(&[u8], Option<Fault>); 5] = [
            (
                b"traps: crash[92] general protection fault ip:401136 sp:7fff0000 error:0",
                Some(fault("crash", 92, 0x40_1136, None)),
            ),
            (
                b"]: segfault at [5]: segfault at 0 ip 10 sp 20 error 6 in a[1+2][8+4]",
                Some(fault("]: segfault at ", 5, 0x10, Some("a[1+2]+0x8"))),
            ),
            (
                b"a[1] [6]: segfault at 0 ip 10 sp 20 error 6 in b]: segfault at 0[8+4]",
                Some(fault("a[1] ", 6, 0x10, Some("b]: segfault at 0+0x8"))),
            ),
            (b"oom_reaper: reaped process 12 (x), now anon-rss:0kB", None),
            (
                b"a name too long for one[6]: segfault at 0 ip 1 sp 2 error 6",
                None,
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(
                Fault::parse(line),
                expected,
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }

    /// A fault of thread `tid` at instruction `ip`, logged at `at_ms`.
    fn log(latest: &mut Latest, priority: u32, at_ms: u64, tid: u32, ip: u64) {
        let text = format!("a[{tid}]: segfault at 0 ip {ip:x} sp 2 error 6");
        let header = RecordHeader {
            priority,
            seq: 0,
            time_us: at_ms * 1000,
            continuation: false,
        };
        let text = text.as_bytes();
        latest.push(Record { header, text }, 7_000_000);
    }

    const KERNEL_INFO: u32 = 6;
    const USER_INFO: u32 = 1 << 3 | 6;

    #[test]
    fn a_fault_is_found_by_thread_and_time() {
        let at = |ms: u64| (ms + 7) * 1_000_000;
        let mut latest = Latest::default();
        log(&mut latest, KERNEL_INFO, 1_000, 5, 0x10);
        log(&mut latest, KERNEL_INFO, 100_000, 5, 0x20);
        log(&mut latest, KERNEL_INFO, 100_001, 6, 0x30);
        let instruction = |tid, at_ns| latest.of(tid, b"a", at_ns).map(|fault| fault.instruction);
        assert_eq!(instruction(5, at(1_500)), Some(0x10));
        assert_eq!(instruction(5, at(100_500)), Some(0x20));
        assert_eq!(instruction(5, at(50_000)), None, "of another process");
        assert_eq!(instruction(6, at(1_500)), None);
        assert_eq!(instruction(6, at(100_000)), Some(0x30));
    }

    #[test]
    fn user_space_cannot_forge_a_fault() {
        let mut latest = Latest::default();
        log(&mut latest, USER_INFO, 1_000, 5, 0x10);
        assert_eq!(latest.of(5, b"a", 1_000_000_000), None);
        assert_eq!(latest.of(7, b"b", 1_000_000_000), None);
    }

    #[test]
    fn old_faults_make_room() {
        let mut latest = Latest::default();
        for tid in 1..=1000 {
            log(&mut latest, KERNEL_INFO, 1_000, tid, 0x10);
        }
        assert_eq!(latest.0.len(), KEPT);
        assert!(latest.of(1000, b"a", 1_000_000_000).is_some());
        assert_eq!(latest.of(1, b"a", 1_000_000_000), None);
    }

    proptest! {
        #[test]
        fn total(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fault::parse(&line);
        }

        #[test]
        fn any_name(comm in "\\PC{0,3}", file in "\\PC{0,20}") {
            let line = format!("{comm}[7]: segfault at 0 ip 11 sp 2 error 6 in {file}[1+2]");
            let found = Fault::parse(line.as_bytes()).unwrap();
            prop_assert_eq!((found.tid, found.instruction), (7, 0x11));
        }
    }
}
