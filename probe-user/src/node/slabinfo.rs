//! `/proc/slabinfo` (slabinfo(5)): memory of the kernel's object caches. Only root may read it.

use std::path::Path;

use super::text::{self, Error, ParseError};

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its name. Caches that the kernel merged go by the name of one of them.
    pub name: Vec<u8>,
    /// Objects in use. Free objects that processors keep for themselves count as used.
    pub objects: u64,
    /// Bytes that one object takes, padding and what the allocator adds included.
    pub object_bytes: u64,
    /// Bytes of the slabs it holds, free objects included.
    pub bytes: u64,
}

/// Parses the content of the file. `page_bytes` is the size of a page, in which slabs are counted.
pub fn parse(content: &[u8], page_bytes: u64) -> Result<Vec<Cache>, ParseError> {
    let mut caches = Vec::new();
    for (line, content) in text::lines(content) {
        if content.starts_with(b"#") || content.starts_with(b"slabinfo ") {
            continue;
        }
        caches.push(cache(content, page_bytes).ok_or(ParseError {
            line,
            expected: "\"name active_objs num_objs objsize objperslab pagesperslab : … : slabdata \
                       active_slabs num_slabs …\"",
        })?);
    }
    Ok(caches)
}

fn cache(line: &[u8], page_bytes: u64) -> Option<Cache> {
    // A name may hold anything but a line break: the numbers are found from the first colon that
    // "tunables" follows.
    let (head, rest) = text::cut_last(line, b" : tunables ")?;
    let (_, slabs) = text::cut(rest, b" : slabdata ")?;
    let mut numbers = head
        .rsplit(|&byte| byte == b' ')
        .filter(|word| !word.is_empty());
    let mut number = || text::decimal(numbers.next()?);
    let pages_per_slab = number()?;
    let (_objects_per_slab, object_bytes, _all) = (number()?, number()?, number()?);
    let objects = number()?;
    let slabs = slabs
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty())
        .nth(1)
        .and_then(text::decimal)?;
    let rest: Vec<&[u8]> = numbers.collect();
    let mut name = Vec::new();
    for word in rest.iter().rev() {
        if !name.is_empty() {
            name.push(b' ');
        }
        name.extend_from_slice(word);
    }
    Some(Cache {
        name,
        objects,
        object_bytes,
        bytes: slabs.checked_mul(pages_per_slab)?.checked_mul(page_bytes)?,
    })
}

/// Reads `<proc>/slabinfo`: all caches, biggest first.
pub fn read(proc: &Path) -> Result<Vec<Cache>, Error> {
    let page_bytes = rustix::param::page_size() as u64;
    let mut caches = text::parse_file(proc.join("slabinfo"), &mut Vec::new(), |content| {
        parse(content, page_bytes)
    })?;
    caches.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    Ok(caches)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> …\n";

    #[test]
    fn bytes_are_those_of_the_slabs() {
        let content = format!(
            "{HEAD}skbuff_head_cache    3008   3008    256   32    2 : tunables    0    0    0 : \
             slabdata     94     94      0\n\
             odd name : x   1 2 8 512 1 : tunables 0 0 0 : slabdata 1 3 0\n"
        );
        let caches = parse(content.as_bytes(), 4096).unwrap();
        assert_eq!(caches[0].name, b"skbuff_head_cache");
        assert_eq!((caches[0].objects, caches[0].object_bytes), (3008, 256));
        assert_eq!(caches[0].bytes, 94 * 2 * 4096);
        assert_eq!(caches[1].name, b"odd name : x");
        assert_eq!(caches[1].bytes, 3 * 4096);
    }

    #[test]
    fn a_torn_line_is_named() {
        let content = format!("{HEAD}dentry 1 2 192 21 1 : tunables 0 0 0 : slabd");
        assert_eq!(parse(content.as_bytes(), 4096).unwrap_err().line, 3);
    }

    #[test]
    fn reads_this_machine() {
        let Ok(caches) = read(Path::new("/proc")) else {
            eprintln!("skipped: /proc/slabinfo cannot be read");
            return;
        };
        assert!(caches.iter().any(|cache| cache.name == b"dentry"));
        assert!(caches.is_sorted_by(|a, b| a.bytes >= b.bytes));
    }
}
