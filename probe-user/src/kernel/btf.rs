//! Reads the kernel's own type information (BTF): offsets, enumerators, prototypes.
//!
//! The format is `include/uapi/linux/btf.h`. Only what [`super::layout`] asks for is offered, and
//! only what every query needs is kept: the bytes as read, where each type starts, and an index
//! of names (about 7 MiB for a distribution kernel, all of it released on drop).
//!
//! Why not the `btf-rs` crate: its cheap backend maps a file and slices it unchecked, so a torn
//! file panics; its other backend, the only one that takes bytes, needs 40 MiB; and its licence
//! (LGPL) weighs on everyone who passes on a static binary. It serves as the oracle of the tests.
//!
//! Nothing here trusts the input: every read is bounded, every walk has a budget.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use thiserror::Error;

/// Where the running kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// `struct btf_header` up to and including `str_len`.
const HEADER_BYTES: usize = 24;
/// `struct btf_type`.
const TYPE_BYTES: usize = 12;
/// Longest chain of typedefs, qualifiers, arrays or anonymous members followed.
const MAX_DEPTH: u32 = 32;
/// Most members looked at in one search; the largest kernel struct has some hundreds.
const MAX_MEMBERS: u32 = 1 << 16;
/// Pointers of the kernels oomprobe runs on.
const POINTER_BYTES: u32 = 8;

/// Why a BTF file cannot be used.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read kernel type information {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Not BTF, of another byte order, or torn.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// A type of a kind this reader does not know, whose length is therefore unknown too.
    #[error("BTF type {id} is of unknown kind {kind}")]
    UnknownKind {
        /// Type id.
        id: u32,
        /// `BTF_INFO_KIND`.
        kind: u32,
    },
}

/// Why a query has no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Missing {
    /// No type of that name and kind.
    #[error("no {kind} {name}")]
    Type {
        /// `struct`, `typedef`, …
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The type has no such member.
    #[error("{ty} has no member {member}")]
    Member {
        /// Type searched.
        ty: String,
        /// One step of the path.
        member: String,
    },
    /// The member is a bitfield, which a byte offset cannot address.
    #[error("{ty}.{member} is a bitfield")]
    Bitfield {
        /// Type searched.
        ty: String,
        /// One step of the path.
        member: String,
    },
    /// Something of another kind than asked for.
    #[error("{what} is not {wanted}")]
    Kind {
        /// What was looked at.
        what: String,
        /// What it should have been.
        wanted: &'static str,
    },
    /// Several answers that disagree.
    #[error("{0} is ambiguous")]
    Ambiguous(String),
    /// The types contradict each other or never end.
    #[error("malformed BTF at {0}")]
    Malformed(String),
}

/// `BTF_KIND_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub enum Kind {
    Void,
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Typedef,
    Volatile,
    Const,
    Restrict,
    Func,
    FuncProto,
    Var,
    Datasec,
    Float,
    DeclTag,
    TypeTag,
    Enum64,
}

impl Kind {
    const ALL: [Self; 20] = [
        Self::Void,
        Self::Int,
        Self::Ptr,
        Self::Array,
        Self::Struct,
        Self::Union,
        Self::Enum,
        Self::Fwd,
        Self::Typedef,
        Self::Volatile,
        Self::Const,
        Self::Restrict,
        Self::Func,
        Self::FuncProto,
        Self::Var,
        Self::Datasec,
        Self::Float,
        Self::DeclTag,
        Self::TypeTag,
        Self::Enum64,
    ];

    fn from_info(info: u32) -> Option<Self> {
        // Bits 29 and 30 are unused so far. Taking them along makes a kernel that starts to use
        // them an unknown kind instead of a misread one.
        Self::ALL.get((info >> 24 & 0x7f) as usize).copied()
    }

    /// Bytes that follow the `struct btf_type`.
    const fn tail_bytes(self, vlen: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => 12 * vlen,
            Self::Enum | Self::FuncProto => 8 * vlen,
            _ => 0,
        }
    }

    /// Whether queries look types of this kind up by name.
    const fn is_indexed(self) -> bool {
        matches!(
            self,
            Self::Struct | Self::Union | Self::Typedef | Self::Func
        )
    }

    const fn is_composite(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
    }
}

/// The types of one kernel.
#[derive(Debug)]
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where the record of type id `i + 1` starts.
    records: Vec<u32>,
    /// (hash of the name, id) of the named types that queries ask for, sorted.
    by_name: Vec<(u32, u32)>,
    enums: Vec<u32>,
}

impl Btf {
    /// The running kernel's types.
    pub fn running() -> Result<Self, BtfError> {
        Self::from_file(Path::new(VMLINUX))
    }

    /// The types in a raw BTF file.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.into(),
            source,
        })?;
        Self::from_bytes(bytes)
    }

    /// The types in raw BTF.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let header = |at| read_u32(&bytes, at).ok_or(BtfError::Malformed("shorter than a header"));
        let (magic, header_len) = (header(0)?, header(4)? as usize);
        if magic & 0xffff != u32::from(MAGIC) {
            return Err(BtfError::Malformed(
                "no BTF magic in this machine's byte order",
            ));
        }
        if magic >> 16 & 0xff != 1 {
            return Err(BtfError::Malformed("unknown version"));
        }
        if header_len < HEADER_BYTES {
            return Err(BtfError::Malformed("header too short"));
        }
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            let end = start.checked_add(len)?;
            (end <= bytes.len()).then_some(start..end)
        };
        let types = section(header(8)? as usize, header(12)? as usize)
            .ok_or(BtfError::Malformed("types beyond the end"))?;
        let strings = section(header(16)? as usize, header(20)? as usize)
            .ok_or(BtfError::Malformed("strings beyond the end"))?;

        let mut btf = Self {
            bytes,
            strings,
            records: Vec::new(),
            by_name: Vec::new(),
            enums: Vec::new(),
        };
        btf.index(types)?;
        Ok(btf)
    }

    /// Finds where each type starts and what it is called, in one pass.
    fn index(&mut self, types: Range<usize>) -> Result<(), BtfError> {
        let mut at = types.start;
        let mut id = 0;
        while at < types.end {
            id += 1;
            let record = self.bytes.get(at..types.end).unwrap_or_default();
            let info = read_u32(record, 4).ok_or(BtfError::Malformed("torn type"))?;
            let kind = Kind::from_info(info)
                .filter(|&kind| kind != Kind::Void)
                .ok_or(BtfError::UnknownKind {
                    id,
                    kind: info >> 24 & 0x7f,
                })?;
            let len = TYPE_BYTES + kind.tail_bytes(vlen(info));
            if len > record.len() {
                return Err(BtfError::Malformed("torn type"));
            }
            let start = u32::try_from(at).map_err(|_| BtfError::Malformed("larger than 4 GiB"))?;
            self.records.push(start);
            if kind.is_indexed() {
                let name = self.string(read_u32(&self.bytes, at).unwrap_or(0));
                if !name.is_empty() {
                    self.by_name.push((hash(name), id));
                }
            } else if matches!(kind, Kind::Enum | Kind::Enum64) {
                self.enums.push(id);
            }
            at += len;
        }
        self.by_name.sort_unstable();
        Ok(())
    }

    /// Number of types, `void` not counted.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// True if there is no type at all.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The type with this id; id 0 is `void`.
    pub fn get(&self, id: u32) -> Option<Type<'_>> {
        let Some(index) = id.checked_sub(1) else {
            return Some(Type {
                btf: self,
                id,
                record: &[],
                kind: Kind::Void,
            });
        };
        let record = self
            .bytes
            .get(*self.records.get(index as usize)? as usize..)?;
        let info = read_u32(record, 4)?;
        let kind = Kind::from_info(info)?;
        let record = record.get(..TYPE_BYTES + kind.tail_bytes(vlen(info)))?;
        Some(Type {
            btf: self,
            id,
            record,
            kind,
        })
    }

    /// All structs, unions, typedefs and functions of this name.
    pub fn named<'a>(&'a self, name: &str) -> impl Iterator<Item = Type<'a>> {
        let wanted = hash(name.as_bytes());
        let first = self.by_name.partition_point(|&(hash, _)| hash < wanted);
        self.by_name[first..]
            .iter()
            .take_while(move |&&(hash, _)| hash == wanted)
            .filter_map(|&(_, id)| self.get(id))
            .filter(move |ty| ty.name() == name.as_bytes())
    }

    /// True if the kernel defines a struct or union of this name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind.is_composite())
    }

    /// True if the kernel has type information for a function of this name.
    ///
    /// That does not mean it can be attached to: inline copies have it too.
    pub fn has_func(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind == Kind::Func)
    }

    /// Member at `path` (dots between steps) of struct or union `ty`.
    ///
    /// Members of anonymous structs and unions are reached as if they were direct. Where several
    /// types share the name, those that have the member must agree on its offset.
    pub fn field(&self, ty: &str, path: &str) -> Result<Field<'_>, Missing> {
        let mut found: Option<Field<'_>> = None;
        let mut failed = Missing::Type {
            kind: "struct",
            name: ty.into(),
        };
        for candidate in self.named(ty).filter(|ty| ty.kind.is_composite()) {
            match candidate.field(path) {
                Ok(field) if found.is_some_and(|other| other.offset != field.offset) => {
                    return Err(Missing::Ambiguous(format!("{ty}.{path}")));
                }
                Ok(field) => found = Some(field),
                Err(missing) => failed = missing,
            }
        }
        found.ok_or(failed)
    }

    /// Size of struct or union `ty` in bytes.
    pub fn size(&self, ty: &str) -> Result<u32, Missing> {
        let mut sizes = self
            .named(ty)
            .filter(|ty| ty.kind.is_composite())
            .map(Type::size);
        let first = sizes.next().flatten().ok_or_else(|| Missing::Type {
            kind: "struct",
            name: ty.into(),
        })?;
        if sizes.any(|size| size != Some(first)) {
            return Err(Missing::Ambiguous(format!("size of {ty}")));
        }
        Ok(first)
    }

    /// Value of the enumerator `name`, whichever enum it belongs to.
    pub fn enumerator(&self, name: &str) -> Result<i64, Missing> {
        let mut found = None;
        for ty in self.enums.iter().filter_map(|&id| self.get(id)) {
            for (_, value) in ty
                .enumerators()
                .filter(|(other, _)| *other == name.as_bytes())
            {
                if found.is_some_and(|other| other != value) {
                    return Err(Missing::Ambiguous(name.into()));
                }
                found = Some(value);
            }
        }
        found.ok_or_else(|| Missing::Type {
            kind: "enumerator",
            name: name.into(),
        })
    }

    /// Parameter types of a function, or of a `btf_trace_<tracepoint>` typedef.
    ///
    /// The first parameter of the latter is the registered `void *`, not an argument.
    pub fn parameters(&self, name: &str) -> Result<Vec<Type<'_>>, Missing> {
        let malformed = || Missing::Malformed(name.into());
        let ty = self
            .named(name)
            .find(|ty| matches!(ty.kind, Kind::Func | Kind::Typedef))
            .ok_or_else(|| Missing::Type {
                kind: "function or typedef",
                name: name.into(),
            })?;
        let mut proto = ty.target().ok_or_else(malformed)?;
        if proto.kind == Kind::Ptr {
            proto = proto.target().ok_or_else(malformed)?;
        }
        if proto.kind != Kind::FuncProto {
            return Err(Missing::Kind {
                what: name.into(),
                wanted: "a function",
            });
        }
        proto
            .entries(8)
            .map(|entry| self.get(entry(4)).ok_or_else(malformed))
            .collect()
    }

    /// The string at `offset`, empty if there is none.
    fn string(&self, offset: u32) -> &[u8] {
        let strings = &self.bytes[self.strings.clone()];
        let string = strings.get(offset as usize..).unwrap_or_default();
        string
            .iter()
            .position(|&byte| byte == 0)
            .map_or(&[], |len| &string[..len])
    }
}

/// A member found by [`Btf::field`].
#[derive(Clone, Copy, Debug)]
pub struct Field<'a> {
    /// Bytes from the start of the outermost struct.
    pub offset: u32,
    /// Type, without typedefs and qualifiers.
    pub ty: Type<'a>,
}

/// One member of a struct or union, as written.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Empty for an anonymous struct or union.
    pub name: &'a [u8],
    /// Type id.
    pub ty: u32,
    /// Bits from the start of the struct.
    pub bit_offset: u32,
    /// Width in bits, 0 for an ordinary member.
    pub bitfield_bits: u32,
}

/// One type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    btf: &'a Btf,
    id: u32,
    record: &'a [u8],
    kind: Kind,
}

impl std::fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} {} #{}",
            self.kind,
            String::from_utf8_lossy(self.name()),
            self.id
        )
    }
}

impl<'a> Type<'a> {
    /// Type id.
    pub const fn id(self) -> u32 {
        self.id
    }

    /// `BTF_KIND_*`.
    pub const fn kind(self) -> Kind {
        self.kind
    }

    /// Name, empty for an anonymous type.
    pub fn name(self) -> &'a [u8] {
        self.btf.string(self.word(0))
    }

    /// Another type of the same kernel.
    #[cfg(test)]
    pub(super) fn by_id(self, id: u32) -> Self {
        self.btf.get(id).unwrap()
    }

    /// The record as written: `struct btf_type` and what follows it.
    #[cfg(test)]
    pub(super) const fn record(self) -> &'a [u8] {
        self.record
    }

    /// Size in bytes; `None` for `void`, functions and types that never end.
    pub fn size(self) -> Option<u32> {
        let mut ty = self;
        let mut count = 1_u32;
        for _ in 0..MAX_DEPTH {
            let own = match ty.kind {
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float => ty.word(8),
                Kind::Ptr => POINTER_BYTES,
                Kind::Array => {
                    count = count.checked_mul(ty.word(TYPE_BYTES + 8))?;
                    ty = ty.target()?;
                    continue;
                }
                _ if ty.is_alias() => {
                    ty = ty.target()?;
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(own);
        }
        None
    }

    /// This type without typedefs, qualifiers and tags.
    pub fn peeled(self) -> Option<Self> {
        let mut ty = self;
        for _ in 0..MAX_DEPTH {
            if !ty.is_alias() {
                return Some(ty);
            }
            ty = ty.target()?;
        }
        None
    }

    const fn is_alias(self) -> bool {
        matches!(
            self.kind,
            Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag
        )
    }

    /// What a pointer points to, an array consists of, a typedef, qualifier or function refers to.
    pub fn target(self) -> Option<Self> {
        let id = match self.kind {
            Kind::Array => self.word(TYPE_BYTES),
            Kind::Ptr | Kind::Func | Kind::Var | Kind::DeclTag => self.word(8),
            _ if self.is_alias() => self.word(8),
            _ => return None,
        };
        self.btf.get(id)
    }

    /// Number of elements of an array.
    pub fn array_len(self) -> Option<u32> {
        (self.kind == Kind::Array).then(|| self.word(TYPE_BYTES + 8))
    }

    /// Members of a struct or union, in order; none for other kinds.
    pub fn members(self) -> impl Iterator<Item = Member<'a>> {
        let packs_bits = self.word(4) >> 31 == 1;
        let entry_bytes = if self.kind.is_composite() { 12 } else { 0 };
        self.entries(entry_bytes).map(move |entry| {
            let position = entry(8);
            let (bit_offset, bitfield_bits) = if packs_bits {
                (position & 0xff_ffff, position >> 24)
            } else {
                (position, 0)
            };
            Member {
                name: self.btf.string(entry(0)),
                ty: entry(4),
                bit_offset,
                bitfield_bits,
            }
        })
    }

    /// Name and value of each enumerator; none for other kinds.
    pub fn enumerators(self) -> impl Iterator<Item = (&'a [u8], i64)> {
        let signed = self.word(4) >> 31 == 1;
        let (entry_bytes, wide) = match self.kind {
            Kind::Enum => (8, false),
            Kind::Enum64 => (12, true),
            _ => (0, false),
        };
        self.entries(entry_bytes).map(move |entry| {
            let low = entry(4);
            let value = if wide {
                (u64::from(entry(8)) << 32 | u64::from(low)).cast_signed()
            } else if signed {
                i64::from(low.cast_signed())
            } else {
                i64::from(low)
            };
            (self.btf.string(entry(0)), value)
        })
    }

    /// Member at `path` of this struct or union; see [`Btf::field`].
    pub fn field(self, path: &str) -> Result<Field<'a>, Missing> {
        let mut at = Field {
            offset: 0,
            ty: self,
        };
        for step in path.split('.') {
            let (member, base_bits) = at.ty.find(step.as_bytes(), &mut Budget::default())?;
            let ty_name = || String::from_utf8_lossy(at.ty.name()).into_owned();
            let malformed = || Missing::Malformed(format!("{}.{step}", ty_name()));
            let bits = base_bits
                .checked_add(member.bit_offset)
                .ok_or_else(malformed)?;
            let ty = self
                .btf
                .get(member.ty)
                .and_then(Type::peeled)
                .ok_or_else(malformed)?;
            if member.bitfield_bits != 0 || bits % 8 != 0 || ty.is_partial_int() {
                return Err(Missing::Bitfield {
                    ty: ty_name(),
                    member: step.into(),
                });
            }
            let offset = at.offset.checked_add(bits / 8).ok_or_else(malformed)?;
            at = Field { offset, ty };
        }
        Ok(at)
    }

    /// The member called `name`, depth first, and the bits before the struct that holds it.
    fn find(self, name: &[u8], budget: &mut Budget) -> Result<(Member<'a>, u32), Missing> {
        let missing = || Missing::Member {
            ty: String::from_utf8_lossy(self.name()).into_owned(),
            member: String::from_utf8_lossy(name).into_owned(),
        };
        for member in self.members() {
            budget.members = budget.members.checked_sub(1).ok_or_else(missing)?;
            if member.name == name {
                return Ok((member, 0));
            }
            if !member.name.is_empty() || budget.depth == 0 {
                continue;
            }
            let Some(inner) = self.btf.get(member.ty).and_then(Type::peeled) else {
                continue;
            };
            budget.depth -= 1;
            let found = inner.find(name, budget);
            budget.depth += 1;
            if let Ok((found, bits)) = found {
                let bits = bits.checked_add(member.bit_offset).ok_or_else(missing)?;
                return Ok((found, bits));
            }
        }
        Err(missing())
    }

    /// Old style of a bitfield: an integer narrower than its storage.
    fn is_partial_int(self) -> bool {
        self.kind == Kind::Int && self.word(TYPE_BYTES) & 0xff != self.word(8).saturating_mul(8)
    }

    /// The `vlen` entries after the type, each a reader of words at byte offsets within it.
    fn entries(self, entry_bytes: usize) -> impl Iterator<Item = impl Fn(usize) -> u32 + 'a> {
        let tail = self.record.get(TYPE_BYTES..).unwrap_or_default();
        let tail = if entry_bytes == 0 { &[] } else { tail };
        tail.chunks_exact(entry_bytes.max(1))
            .map(|entry| move |at| read_u32(entry, at).unwrap_or(0))
    }

    fn word(self, at: usize) -> u32 {
        read_u32(self.record, at).unwrap_or(0)
    }
}

/// What a search may still spend.
struct Budget {
    members: u32,
    depth: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            members: MAX_MEMBERS,
            depth: MAX_DEPTH,
        }
    }
}

/// `BTF_INFO_VLEN`, with the unused bits that follow it (see [`Kind::from_info`]).
const fn vlen(info: u32) -> usize {
    (info & 0xff_ffff) as usize
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}

/// FNV-1a: names are short, and a collision costs one comparison.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
