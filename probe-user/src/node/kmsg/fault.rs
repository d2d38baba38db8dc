//! The kernel's lines about faults that no handler took (`debug.exception-trace`).
//!
//! `show_signal_msg()` (arch/x86/mm/fault.c): `comm[tid]: segfault at ADDRESS ip IP sp SP error E in
//! FILE[START+LENGTH]`; `show_signal()` (arch/x86/kernel/traps.c): `traps: comm[tid] trap divide error
//! ip:IP sp:SP error:E in FILE[START+LENGTH]`. Newer kernels write `[OFFSET,START+LENGTH]`, and may add
//! on which CPU. What the process and the file are called may hold anything, brackets and these very
//! words included; what is between is strict.

use std::{collections::VecDeque, path::Path};

use super::{KmsgReader, Start};
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
    /// Address of the instruction.
    pub instruction: u64,
    /// The file that is mapped there, and the offset of the instruction in that mapping: as
    /// `libc.so.6+0x28000`.
    pub mapping: Option<String>,
}

impl Fault {
    /// Reads the text of one record; `None` if it is about something else.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let marks: [(&[u8], &[u8], fn(&[u8]) -> Option<(u64, &[u8])>); 2] = [
            (b"", b"]: segfault at ", segfault),
            (b"traps: ", b"] ", trap),
        ];
        marks.into_iter().find_map(|(prefix, mark, rest)| {
            let line = line.strip_prefix(prefix)?;
            occurrences(line, mark).find_map(|at| {
                let tid = tid(&line[..at])?;
                let (instruction, behind) = rest(&line[at + mark.len()..])?;
                Some(Self {
                    tid,
                    instruction,
                    mapping: mapping(behind, instruction),
                })
            })
        })
    }
}

/// `comm[tid`.
fn tid(head: &[u8]) -> Option<u32> {
    let open = head.iter().rposition(|byte| *byte == b'[')?;
    if open > MAX_COMM {
        return None;
    }
    std::str::from_utf8(&head[open + 1..]).ok()?.parse().ok()
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

/// The latest faults.
#[derive(Debug)]
pub struct FaultLog {
    reader: KmsgReader,
    faults: VecDeque<(u64, Fault)>,
}

impl FaultLog {
    /// Follows `/dev/kmsg` at `path` from now on.
    pub fn open(path: &Path) -> Result<Self, crate::node::Error> {
        Ok(Self {
            reader: KmsgReader::open(path, Start::End)?,
            faults: VecDeque::new(),
        })
    }

    /// The last fault of a thread that was logged around a time in ns since boot.
    pub fn of(&mut self, tid: u32, boot_ns: u64) -> Option<&Fault> {
        self.follow();
        self.faults
            .iter()
            .rev()
            .find(|(at_ns, fault)| fault.tid == tid && at_ns.abs_diff(boot_ns) < NEAR_NS)
            .map(|(_, fault)| fault)
    }

    fn follow(&mut self) {
        let suspended_ns = clock::boot_ns().saturating_sub(clock::monotonic_ns());
        // An error other than "nothing more" is transient.
        while let Ok(Some(record)) = self.reader.next_record() {
            if let Some(fault) = Fault::parse(record.text) {
                if self.faults.len() >= KEPT {
                    self.faults.pop_front();
                }
                let at_ns = record.header.time_us.saturating_mul(1000);
                self.faults
                    .push_back((at_ns.saturating_add(suspended_ns), fault));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(tid: u32, instruction: u64, mapping: Option<&str>) -> Option<Fault> {
        Some(Fault {
            tid,
            instruction,
            mapping: mapping.map(str::to_owned),
        })
    }

    #[test]
    fn lines_of_several_kernels() {
        let rows: [(&[u8], Option<Fault>); 10] = [
            // 5.10
            (
                b"crash[412]: segfault at 0 ip 0000561a8c7f5139 sp 00007ffc1b5a3c40 error 6 in crash[561a8c7f5000+1000]",
                fault(412, 0x561a_8c7f_5139, Some("crash+0x139")),
            ),
            // 6.1
            (
                b"crash[77]: segfault at dead0000 ip 000000000040110a sp 00007ffd00000000 error 4 in crash[401000+94000] likely on CPU 1 (core 1, socket 0)",
                fault(77, 0x40_110a, Some("crash+0x10a")),
            ),
            // 6.12
            (
                b"crash[77]: segfault at 10 ip 000000000040110a sp 00007ffd00000000 error 4 in crash[110a,400000+95000] likely on CPU 1 (core 1, socket 0)",
                fault(77, 0x40_110a, Some("crash+0x110a")),
            ),
            // Jumped to nowhere: nothing is mapped.
            (
                b"crash[9]: segfault at 0 ip 0000000000000000 sp 00007ffd00000000 error 14 likely on CPU 0 (core 0, socket 0)",
                fault(9, 0, None),
            ),
            (
                b"traps: crash[91] trap divide error ip:401136 sp:7fff0000 error:0 in crash[401000+94000]",
                fault(91, 0x40_1136, Some("crash+0x136")),
            ),
            (
                b"traps: crash[92] general protection fault ip:401136 sp:7fff0000 error:0",
                fault(92, 0x40_1136, None),
            ),
            // Names that look like the rest.
            (
                b"]: segfault at [5]: segfault at 0 ip 10 sp 20 error 6 in a[1+2][8+4]",
                fault(5, 0x10, Some("a[1+2]+0x8")),
            ),
            (
                b"a[1] [6]: segfault at 0 ip 10 sp 20 error 6 in b]: segfault at 0[8+4]",
                fault(6, 0x10, Some("b]: segfault at 0+0x8")),
            ),
            (b"oom_reaper: reaped process 12 (x), now anon-rss:0kB", None),
            (b"a name too long for one[6]: segfault at 0 ip 1 sp 2 error 6", None),
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
