//! One BTF type: what it is called, how large it is, what it is made of.

use std::fmt;

use super::{Btf, Missing};

/// `struct btf_type`.
pub(super) const TYPE_BYTES: usize = 12;
/// Longest chain of typedefs, qualifiers, arrays or anonymous members followed.
const MAX_DEPTH: u32 = 32;
/// Most members looked at in one search; the largest kernel struct has some hundreds.
const MAX_MEMBERS: u32 = 1 << 16;
/// Pointers of the kernels oomprobe runs on.
const POINTER_BYTES: u32 = 8;

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

    pub(super) fn from_info(info: u32) -> Option<Self> {
        // Bits 29 and 30 are unused so far. Taking them along makes a kernel that starts to use
        // them an unknown kind instead of a misread one.
        Self::ALL.get((info >> 24 & 0x7f) as usize).copied()
    }

    /// Bytes that follow the `struct btf_type`.
    pub(super) const fn tail_bytes(self, vlen: usize) -> usize {
        match self {
            Self::Int | Self::Var | Self::DeclTag => 4,
            Self::Array => 12,
            Self::Struct | Self::Union | Self::Datasec | Self::Enum64 => 12 * vlen,
            Self::Enum | Self::FuncProto => 8 * vlen,
            _ => 0,
        }
    }

    /// Whether queries look types of this kind up by name.
    pub(super) const fn is_indexed(self) -> bool {
        matches!(
            self,
            Self::Struct | Self::Union | Self::Typedef | Self::Func | Self::Var
        )
    }

    pub(super) const fn is_composite(self) -> bool {
        matches!(self, Self::Struct | Self::Union)
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

impl fmt::Debug for Type<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// Type 0, which has no record.
    pub(super) const fn void(btf: &'a Btf) -> Self {
        Self {
            btf,
            id: 0,
            record: &[],
            kind: Kind::Void,
        }
    }

    /// The type whose record starts `bytes`.
    pub(super) fn read(btf: &'a Btf, id: u32, bytes: &'a [u8]) -> Option<Self> {
        let info = read_u32(bytes, 4)?;
        let kind = Kind::from_info(info)?;
        let record = bytes.get(..TYPE_BYTES + kind.tail_bytes(vlen(info)))?;
        Some(Self {
            btf,
            id,
            record,
            kind,
        })
    }

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
    pub(in crate::kernel) fn by_id(self, id: u32) -> Self {
        self.btf.get(id).unwrap()
    }

    /// The record as written: `struct btf_type` and what follows it.
    #[cfg(test)]
    pub(in crate::kernel) const fn record(self) -> &'a [u8] {
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
            let ty_name = || String::from_utf8_lossy(at.ty.name()).into_owned();
            let malformed = || Missing::Malformed(format!("{}.{step}", ty_name()));
            let (member, bits) = at
                .ty
                .find(step.as_bytes(), &mut Budget::default())
                .ok_or_else(|| Missing::Member {
                    ty: ty_name(),
                    member: step.into(),
                })?;
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

    /// The member called `name`, depth first, and its bits from the start of this type.
    fn find(self, name: &[u8], budget: &mut Budget) -> Option<(Member<'a>, u32)> {
        for member in self.members() {
            budget.members = budget.members.checked_sub(1)?;
            if member.name == name {
                return Some((member, member.bit_offset));
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
            if let Some((found, bits)) = found {
                return Some((found, bits.checked_add(member.bit_offset)?));
            }
        }
        None
    }

    /// Old style of a bitfield: an integer narrower than its storage.
    fn is_partial_int(self) -> bool {
        self.kind == Kind::Int && self.word(TYPE_BYTES) & 0xff != self.word(8).saturating_mul(8)
    }

    /// The `vlen` entries after the type, each a reader of words at byte offsets within it.
    pub(super) fn entries(
        self,
        entry_bytes: usize,
    ) -> impl Iterator<Item = impl Fn(usize) -> u32 + 'a> {
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
pub(super) const fn vlen(info: u32) -> usize {
    (info & 0xff_ffff) as usize
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*word))
}
