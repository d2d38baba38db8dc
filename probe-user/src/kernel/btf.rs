//! Reads the kernel's own type information (BTF): offsets, enumerators, prototypes.
//!
//! The format is `include/uapi/linux/btf.h`. Only what [`super::layout`] asks for is offered, and
//! only what every query needs is kept: the bytes as read, where each type starts, and an index
//! of names (about 7 MiB for a distribution kernel, all of it released on drop).
//!
//! Why not the `btf-rs` crate: it is well made and costs about the same (a copy in a memfd, mapped,
//! and a walk over all types for each name), but its licence is the LGPL, which asks whoever passes
//! on a static binary to make it relinkable. It serves as the oracle of the tests instead.
//!
//! Nothing here trusts the input: every read is bounded, every walk has a budget.

use std::{
    fmt, io,
    ops::Range,
    path::{Path, PathBuf},
};

use thiserror::Error;

mod types;

pub use types::{Field, Kind, Member, Type};
use types::{TYPE_BYTES, read_u32, vlen};

/// Where the running kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// `struct btf_header` up to and including `str_len`.
const HEADER_BYTES: usize = 24;
/// No name in a kernel is longer; what is has no name here.
const MAX_NAME_BYTES: usize = 4096;

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

/// The types of one kernel.
pub struct Btf {
    bytes: Vec<u8>,
    strings: Range<usize>,
    /// Where the record of type id `i + 1` starts.
    records: Vec<u32>,
    /// (hash of the name, id) of the named types that queries ask for, sorted.
    by_name: Vec<(u32, u32)>,
    enums: Vec<u32>,
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.records.len())
            .finish_non_exhaustive()
    }
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
    pub fn type_count(&self) -> usize {
        self.records.len()
    }

    /// The type with this id; id 0 is `void`.
    pub fn get(&self, id: u32) -> Option<Type<'_>> {
        let Some(index) = id.checked_sub(1) else {
            return Some(Type::void(self));
        };
        let start = *self.records.get(index as usize)?;
        Type::read(self, id, self.bytes.get(start as usize..)?)
    }

    /// All structs, unions, typedefs, functions and (per-CPU) variables of this name.
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
        self.named(name).any(|ty| ty.kind().is_composite())
    }

    /// True if the kernel has type information for a function of this name.
    ///
    /// That does not mean it can be attached to: inline copies have it too.
    pub fn has_func(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind() == Kind::Func)
    }

    /// True if the kernel has a per-CPU variable of this name; of others BTF does not tell.
    pub fn has_variable(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind() == Kind::Var)
    }

    /// True if the kernel defines a type of this name by `typedef`.
    pub fn has_typedef(&self, name: &str) -> bool {
        self.named(name).any(|ty| ty.kind() == Kind::Typedef)
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
        for candidate in self.named(ty).filter(|ty| ty.kind().is_composite()) {
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
            .filter(|ty| ty.kind().is_composite())
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
            .find(|ty| matches!(ty.kind(), Kind::Func | Kind::Typedef))
            .ok_or_else(|| Missing::Type {
                kind: "function or typedef",
                name: name.into(),
            })?;
        let mut proto = ty.target().ok_or_else(malformed)?;
        if proto.kind() == Kind::Ptr {
            proto = proto.target().ok_or_else(malformed)?;
        }
        if proto.kind() != Kind::FuncProto {
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
        let rest = strings.get(offset as usize..).unwrap_or_default();
        let len = rest.iter().take(MAX_NAME_BYTES).position(|&byte| byte == 0);
        len.map_or(&[], |len| &rest[..len])
    }
}

/// FNV-1a: names are short, and a collision costs one comparison.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
