//! `/proc/vmallocinfo`: who holds vmalloc areas. Only root may read it.

use std::collections::HashMap;
use std::path::Path;

use super::text::{self, Error, ParseError};

/// Functions whose areas are kernel stacks, which `KernelStack` counts too (`kernel/fork.c`; which of
/// them is named depends on what the compiler inlined).
const STACKS: [&[u8]; 4] = [
    b"alloc_thread_stack_node",
    b"dup_task_struct",
    b"copy_process",
    b"kernel_clone",
];

/// One caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The function that made the areas.
    pub function: Vec<u8>,
    /// Bytes of pages in them.
    pub bytes: u64,
    /// Areas.
    pub areas: u64,
}

/// Reads `<proc>/vmallocinfo`: callers of areas that have pages, biggest first.
pub fn read(proc: &Path) -> Result<Vec<Holder>, Error> {
    let page_bytes = rustix::param::page_size() as u64;
    text::parse_file(proc.join("vmallocinfo"), &mut Vec::new(), |content| {
        parse(content, page_bytes)
    })
}

/// Bytes that hold kernel stacks.
pub fn stack_bytes(holders: &[Holder]) -> u64 {
    let stacks = holders.iter().filter(|holder| {
        let name = holder.function.split(|byte| *byte == b'.').next();
        name.is_some_and(|name| STACKS.contains(&name))
    });
    stacks.map(|holder| holder.bytes).sum()
}

/// `start-end size caller+offset/size … pages=N vmalloc …`; areas without pages map something else.
fn parse(content: &[u8], page_bytes: u64) -> Result<Vec<Holder>, ParseError> {
    let mut by_function: HashMap<&[u8], (u64, u64)> = HashMap::new();
    for (line, content) in text::lines(content) {
        let mut words = content
            .split(|byte| *byte == b' ')
            .filter(|word| !word.is_empty());
        let (_range, _size) = words.next().zip(words.next()).ok_or(ParseError {
            line,
            expected: "\"start-end size caller …\"",
        })?;
        let Some(caller) = words.next() else { continue };
        let Some(pages) = words.find_map(|word| word.strip_prefix(b"pages=")) else {
            continue;
        };
        let pages = text::decimal(pages).ok_or(ParseError {
            line,
            expected: "\"pages=number\"",
        })?;
        let function = caller.split(|byte| *byte == b'+').next().unwrap_or(caller);
        let (bytes, areas) = by_function.entry(function).or_default();
        *bytes = bytes.saturating_add(pages.saturating_mul(page_bytes));
        *areas += 1;
    }
    let mut holders: Vec<Holder> = by_function
        .into_iter()
        .map(|(function, (bytes, areas))| Holder {
            function: function.to_vec(),
            bytes,
            areas,
        })
        .collect();
    holders.sort_by(|a, b| {
        let by_size = b.bytes.cmp(&a.bytes);
        by_size.then_with(|| a.function.cmp(&b.function))
    });
    Ok(holders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_add_up_and_stacks_are_told_apart() {
        let content = b"0x01-0x02   20480 irq_init_percpu_irqstack+0xca/0x100 vmap\n\
            0x03-0x04   49152 queue_stack_map_alloc+0x34/0xa0 pages=11 vmalloc N0=11\n\
            0x05-0x06   20480 dup_task_struct.isra.0+0x94/0x3e0 pages=4 vmalloc N0=4\n\
            0x05-0x06   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4\n\
            0x07-0x08   20480 queue_stack_map_alloc+0x34/0xa0 pages=4 vmalloc\n\
            0x09-0x0a    8192 vm_map_ram\n";
        let holders = parse(content, 4096).unwrap();
        assert_eq!(holders.len(), 3);
        assert_eq!(holders[0].function, b"queue_stack_map_alloc");
        assert_eq!((holders[0].bytes, holders[0].areas), (15 * 4096, 2));
        assert_eq!(stack_bytes(&holders), 8 * 4096);
        assert_eq!(parse(b"x\n", 4096).unwrap_err().line, 1);
    }
}
