//! Kernel symbols: addresses by name, names by address.
//!
//! The table has 100 000 to 200 000 lines, so it is never held: each query reads it once, as a
//! stream, and keeps only what was asked for.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Where the running kernel lists its symbols.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// No kernel function is as long: an address further from the symbol before it is in none.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;

/// No program of ours is as long.
const MAX_BPF_BYTES: u64 = 64 << 10;

/// Why the symbols cannot be read.
#[derive(Debug, Error)]
#[error("cannot read kernel symbols {path}: {source}")]
pub struct KallsymsError {
    path: PathBuf,
    source: io::Error,
}

/// Why a symbol has no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoAddress {
    /// The kernel lists no such symbol; data symbols need CONFIG_KALLSYMS_ALL.
    #[error("the kernel lists no such symbol")]
    Unknown,
    /// Several symbols have this name.
    #[error("the kernel has several symbols of this name")]
    Ambiguous,
    /// Addresses read as zero.
    #[error(
        "kernel addresses are hidden; run with CAP_SYSLOG and `sysctl -w kernel.kptr_restrict=1`"
    )]
    Hidden,
}

/// What the kernel lists under one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// Number of functions of this name; a kprobe by name needs exactly one.
    pub functions: u32,
    /// Number of variables of this name.
    pub variables: u32,
    /// Address of the first, 0 if hidden.
    first_address: u64,
}

impl Symbol {
    fn offer(&mut self, line: &Line<'_>) {
        if self.functions + self.variables == 0 {
            self.first_address = line.address;
        }
        if line.is_function() {
            self.functions += 1;
        } else {
            self.variables += 1;
        }
    }

    /// The address, if the name is unambiguous and addresses are shown.
    pub fn address(&self) -> Result<u64, NoAddress> {
        match (self.functions + self.variables, self.first_address) {
            (0, _) => Err(NoAddress::Unknown),
            (2.., _) => Err(NoAddress::Ambiguous),
            (_, 0) => Err(NoAddress::Hidden),
            (_, address) => Ok(address),
        }
    }
}

/// A place in kernel code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Function that holds the address.
    pub function: String,
    /// Bytes from its start.
    pub offset_bytes: u64,
    /// Module it belongs to; `None` for the kernel itself.
    pub module: Option<String>,
}

/// A function of the kernel itself, or a BPF program, and the code up to the next symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Its name.
    pub name: String,
}

impl Function {
    /// The place at `address`, which is inside.
    pub fn frame(&self, address: u64) -> Frame {
        Frame {
            function: self.name.clone(),
            offset_bytes: address.saturating_sub(self.start),
            module: None,
        }
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{:#x}", self.function, self.offset_bytes)?;
        self.module
            .as_ref()
            .map_or(Ok(()), |module| write!(f, " [{module}]"))
    }
}

/// Looks `names` up in the symbol table at `path`; the answers are in the order of the names.
pub fn find(path: &Path, names: &[&str]) -> Result<Vec<Symbol>, KallsymsError> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_unstable_by_key(|&index| names[index]);
    let mut found = vec![Symbol::default(); names.len()];
    for_each_line(path, |line| {
        let start = order.partition_point(|&index| names[index].as_bytes() < line.name);
        for &index in order[start..]
            .iter()
            .take_while(|&&i| names[i].as_bytes() == line.name)
        {
            let symbol: &mut Symbol = &mut found[index];
            symbol.offer(&line);
        }
    })?;
    Ok(found)
}

/// In one pass of the symbol table at `path`: the symbol `name`, and all functions of the kernel
/// itself, and BPF programs, whose name is `wanted`. None of these if addresses are hidden.
pub fn survey(
    path: &Path,
    name: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<(Symbol, Vec<Function>), KallsymsError> {
    let mut symbol = Symbol::default();
    let mut functions: Vec<Function> = Vec::new();
    let mut is_last_open = false;
    for_each_line(path, |line| {
        if line.name == name.as_bytes() {
            symbol.offer(&line);
        }
        if line.address == 0 {
            return;
        }
        match line.module {
            None => {}
            // BPF code comes in no order; the next start below an address is its program all the
            // same.
            Some(b"bpf") => {
                if let Some(name) = str::from_utf8(line.name).ok().filter(|name| wanted(name)) {
                    let (start, name) = (line.address, name.to_owned());
                    let end = start.saturating_add(MAX_BPF_BYTES);
                    functions.push(Function { start, end, name });
                    is_last_open = false;
                }
                return;
            }
            Some(_) => return,
        }
        // The table is in the order of addresses; where it is not, a function ends too early.
        if let Some(last) = functions.last_mut().filter(|_| is_last_open) {
            if line.address == last.start {
                // A second name; the first is the one the kernel prints too.
                return;
            }
            last.end = line
                .address
                .clamp(last.start, last.start + MAX_FUNCTION_BYTES);
            is_last_open = false;
        }
        if let Some(name) = str::from_utf8(line.name).ok().filter(|name| wanted(name))
            && line.is_function()
        {
            let (start, name) = (line.address, name.to_owned());
            functions.push(Function {
                start,
                end: start,
                name,
            });
            is_last_open = true;
        }
    })?;
    Ok((symbol, functions))
}

/// Names the code at each of `addresses`, using the symbol table at `path`; `None` for an address
/// in no listed function, and for all of them if addresses are hidden.
pub fn symbolise(path: &Path, addresses: &[u64]) -> Result<Vec<Option<Frame>>, KallsymsError> {
    let mut nearest: Vec<Nearest> = addresses.iter().map(|&at| Nearest::new(at)).collect();
    for_each_line(path, |line| {
        if line.is_function() {
            for nearest in &mut nearest {
                nearest.offer(&line);
            }
        }
    })?;
    Ok(nearest.into_iter().map(Nearest::into_frame).collect())
}

/// The function closest below an address so far. The table approaches an address from below, so
/// the names are overwritten many times, in place.
struct Nearest {
    address: u64,
    start: u64,
    function: Vec<u8>,
    module: Vec<u8>,
}

impl Nearest {
    const fn new(address: u64) -> Self {
        Self {
            address,
            start: 0,
            function: Vec::new(),
            module: Vec::new(),
        }
    }

    fn offer(&mut self, line: &Line<'_>) {
        let Some(offset_bytes) = self.address.checked_sub(line.address) else {
            return;
        };
        // The first of several names for one address is the one the kernel prints too.
        if offset_bytes >= MAX_FUNCTION_BYTES || line.address <= self.start {
            return;
        }
        self.start = line.address;
        self.function.clear();
        self.function.extend_from_slice(line.name);
        self.module.clear();
        self.module
            .extend_from_slice(line.module.unwrap_or_default());
    }

    fn into_frame(self) -> Option<Frame> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (self.start != 0).then(|| Frame {
            function: text(&self.function),
            offset_bytes: self.address - self.start,
            module: (!self.module.is_empty()).then(|| text(&self.module)),
        })
    }
}

/// `ffffffff81000000 T name`, for modules followed by `[module]`.
struct Line<'a> {
    address: u64,
    kind: u8,
    name: &'a [u8],
    module: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let address = u64::from_str_radix(str::from_utf8(words.next()?).ok()?, 16).ok()?;
        let kind = *words.next()?.first()?;
        let name = words.next()?;
        let module = words
            .next()
            .and_then(|word| word.strip_prefix(b"[")?.strip_suffix(b"]"));
        Some(Self {
            address,
            kind,
            name,
            module,
        })
    }

    const fn is_function(&self) -> bool {
        matches!(self.kind, b't' | b'T' | b'w' | b'W')
    }
}

fn for_each_line(path: &Path, f: impl FnMut(Line<'_>)) -> Result<(), KallsymsError> {
    File::open(path)
        .and_then(|file| parse_lines(BufReader::with_capacity(64 << 10, file), f))
        .map_err(|source| KallsymsError {
            path: path.into(),
            source,
        })
}

fn parse_lines(mut table: impl BufRead, mut f: impl FnMut(Line<'_>)) -> io::Result<()> {
    let mut line = Vec::new();
    while table.read_until(b'\n', &mut line)? > 0 {
        if let Some(line) = Line::parse(&line) {
            f(line);
        }
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81000000 T _text
ffffffff81000000 T startup_64
ffffffff81000100 t count_events
ffffffff81000200 T oom_kill_process
ffffffff81000200 t oom_kill_process_alias
ffffffff81000300 t count_events
ffffffff82000000 D __per_cpu_offset
not a symbol
ffffffffc0000000 t zram_write\t[zram]
ffffffffc0000040 t zram_read\t[zram]
";

    fn table(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn symbols_are_found_in_one_pass() {
        let file = table(TABLE);
        let names = [
            "oom_kill_process",
            "__per_cpu_offset",
            "nonesuch",
            "count_events",
        ];
        let found = find(file.path(), &names).unwrap();
        assert_eq!(
            (found[0].functions, found[0].address()),
            (1, Ok(0xffff_ffff_8100_0200))
        );
        assert_eq!(
            (found[1].variables, found[1].address()),
            (1, Ok(0xffff_ffff_8200_0000))
        );
        assert_eq!(
            (found[2].functions, found[2].address()),
            (0, Err(NoAddress::Unknown))
        );
        assert_eq!(
            (found[3].functions, found[3].address()),
            (2, Err(NoAddress::Ambiguous))
        );
    }

    #[test]
    fn a_name_asked_for_twice_is_answered_twice() {
        let file = table(TABLE);
        let found = find(file.path(), &["_text", "_text"]).unwrap();
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0].functions, 1);
    }

    #[test]
    fn hidden_addresses_still_say_what_exists() {
        let file = table("0000000000000000 T oom_kill_process\n");
        let found = find(file.path(), &["oom_kill_process"]).unwrap();
        assert_eq!(
            (found[0].functions, found[0].address()),
            (1, Err(NoAddress::Hidden))
        );
        assert_eq!(
            symbolise(file.path(), &[0xffff_ffff_8100_0200]).unwrap(),
            [None]
        );
    }

    #[test]
    fn addresses_are_named() {
        let file = table(TABLE);
        let addresses = [
            0xffff_ffff_8100_02f0,
            0xffff_ffff_8100_0100,
            0xffff_ffff_c000_0044,
            0xffff_ffff_9000_0000,
            0x10,
        ];
        let frames: Vec<_> = symbolise(file.path(), &addresses)
            .unwrap()
            .into_iter()
            .map(|frame| frame.map(|frame| frame.to_string()))
            .collect();
        let expected = [
            Some("oom_kill_process+0xf0"),
            Some("count_events+0x0"),
            Some("zram_read+0x4 [zram]"),
        ];
        assert_eq!(frames[..3], expected.map(|frame| frame.map(str::to_owned)));
        assert_eq!(frames[3..], [None, None]);
    }

    #[test]
    fn a_survey_knows_where_functions_end() {
        let file = table(TABLE);
        let wanted = |name: &str| name.starts_with("oom_") || name.starts_with("zram");
        let (symbol, functions) = survey(file.path(), "__per_cpu_offset", wanted).unwrap();
        assert_eq!(symbol.address(), Ok(0xffff_ffff_8200_0000));
        let [function] = &functions[..] else {
            panic!("{functions:?}")
        };
        assert_eq!(function.end, 0xffff_ffff_8100_0300);
        let frame = function.frame(0xffff_ffff_8100_02f0).to_string();
        assert_eq!(frame, "oom_kill_process+0xf0");
        let hidden = table("0000000000000000 T oom_kill_process\n");
        assert_eq!(survey(hidden.path(), "x", wanted).unwrap().1, []);
    }

    #[test]
    fn an_unreadable_table_is_named() {
        let error = find(Path::new("/nonexistent/kallsyms"), &["_text"]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/kallsyms"));
    }

    #[test]
    fn the_running_kernel_lists_its_symbols() {
        // Names are shown without privileges; addresses may not be.
        let found = find(Path::new(KALLSYMS), &["out_of_memory"]).unwrap();
        assert!(found[0].functions >= 1);
    }
}
