//! Writes the part of a kernel's BTF that the layout table asks for.

use std::collections::HashMap;

use super::super::{
    btf::{Btf, Kind, Type},
    layout::References,
};

/// Structs kept whole although nothing names them: wrappers such as `atomic_t`.
const SMALL_BYTES: u32 = 64;

/// Raw BTF with the types in `references`, whole. Pointers to anything else point to a forward
/// declaration, and larger structs inside keep only their size.
pub(super) fn write(btf: &Btf, references: &References) -> Vec<u8> {
    let mut writer = Writer {
        references,
        ids: HashMap::new(),
        records: Vec::new(),
        strings: Strings::new(),
    };
    for id in 1..=u32::try_from(btf.type_count()).unwrap() {
        let ty = btf.get(id).unwrap();
        let wanted = match ty.kind() {
            Kind::Struct | Kind::Union | Kind::Typedef => writer.is_named(ty),
            Kind::Enum | Kind::Enum64 => !writer.enumerators(ty).is_empty(),
            _ => false,
        };
        if wanted {
            writer.emit(ty, Keep::Whole);
        }
    }
    writer.finish()
}

/// BTF without any type.
pub(super) fn empty() -> Vec<u8> {
    assemble(&[], &Strings::new().bytes)
}

/// A typedef of itself, and a struct with that typedef and itself as members.
pub(super) fn looped() -> Vec<u8> {
    let mut strings = Strings::new();
    let (knot, typedef) = (strings.add(b"knot"), strings.add(b"typedef"));
    let records = [
        words(&[typedef, info(Kind::Typedef, 0), 1]),
        words(&[
            knot,
            info(Kind::Struct, 3),
            8,
            0,
            2,
            0,
            0,
            2,
            0,
            typedef,
            1,
            0,
        ]),
    ];
    assemble(&records, &strings.bytes)
}

/// How much of a type is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Keep {
    /// Members and what they are made of.
    Whole,
    /// Name and size, for what a struct contains.
    Size,
    /// A forward declaration, for what a pointer points to.
    Name,
}

struct Writer<'a> {
    references: &'a References,
    /// New id of each old one.
    ids: HashMap<(u32, Keep), u32>,
    records: Vec<Vec<u8>>,
    strings: Strings,
}

impl Writer<'_> {
    fn is_named(&self, ty: Type<'_>) -> bool {
        self.references
            .types
            .iter()
            .any(|name| name.as_bytes() == ty.name())
    }

    /// Enumerators of `ty` that the table asks for.
    fn enumerators<'t>(&self, ty: Type<'t>) -> Vec<(&'t [u8], i64)> {
        let wanted = &self.references.enumerators;
        ty.enumerators()
            .filter(|(name, _)| wanted.iter().any(|w| w.as_bytes() == *name))
            .collect()
    }

    /// The new id of `ty`, written first if need be. Structs the table asks for and small ones
    /// are kept whole whatever `keep` says.
    fn emit(&mut self, ty: Type<'_>, keep: Keep) -> u32 {
        let is_small = || ty.size().is_some_and(|size| size <= SMALL_BYTES);
        let keep = match (ty.kind(), keep) {
            (Kind::Void, _) => return 0,
            (Kind::Struct | Kind::Union, _) if self.is_named(ty) => Keep::Whole,
            (Kind::Struct | Kind::Union, Keep::Size) if ty.name().is_empty() || is_small() => {
                Keep::Whole
            }
            (_, keep) => keep,
        };
        if let Some(&id) = self.ids.get(&(ty.id(), keep)) {
            return id;
        }
        // The id is taken before the members are written: they may point back to it.
        self.records.push(Vec::new());
        let id = u32::try_from(self.records.len()).unwrap();
        self.ids.insert((ty.id(), keep), id);
        let record = self.record(ty, keep);
        self.records[id as usize - 1] = words(&record);
        id
    }

    fn record(&mut self, ty: Type<'_>, keep: Keep) -> Vec<u32> {
        let mut record: Vec<u32> = ty
            .record()
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        record[0] = self.strings.add(ty.name());
        match (ty.kind(), keep) {
            (Kind::Struct | Kind::Union, Keep::Whole) => {
                for (index, member) in ty.members().enumerate() {
                    record[3 + 3 * index] = self.strings.add(member.name);
                    record[4 + 3 * index] = self.emit(ty.by_id(member.ty), Keep::Size);
                }
            }
            (kind @ (Kind::Struct | Kind::Union), Keep::Size) => {
                record = vec![record[0], info(kind, 0), record[2]];
            }
            (Kind::Struct | Kind::Union, Keep::Name) => {
                record = vec![record[0], info(Kind::Fwd, 0), 0];
            }
            (Kind::Enum | Kind::Enum64, _) => {
                let kept = self.enumerators(ty);
                let count = u32::try_from(kept.len()).unwrap();
                record = vec![record[0], info(Kind::Enum, count), record[2]];
                for (name, value) in kept {
                    record.extend([self.strings.add(name), u32::try_from(value).unwrap()]);
                }
            }
            (Kind::Array, _) => {
                record[3] = self.emit(ty.target().unwrap(), keep);
                record[4] = self.emit(ty.by_id(record[4]), keep);
            }
            (Kind::FuncProto, _) => {
                record[2] = 0;
                for parameter in record[3..].chunks_exact_mut(2) {
                    parameter.copy_from_slice(&[0, self.emit(ty.by_id(parameter[1]), Keep::Name)]);
                }
            }
            (Kind::Ptr, _) => record[2] = self.emit(ty.target().unwrap(), Keep::Name),
            (Kind::Int | Kind::Fwd | Kind::Float, _) => {}
            _ => record[2] = self.emit(ty.target().unwrap(), keep),
        }
        record
    }

    fn finish(self) -> Vec<u8> {
        assemble(&self.records, &self.strings.bytes)
    }
}

/// The string section; each string is stored once.
struct Strings {
    offsets: HashMap<Vec<u8>, u32>,
    bytes: Vec<u8>,
}

impl Strings {
    fn new() -> Self {
        Self {
            offsets: HashMap::from([(Vec::new(), 0)]),
            bytes: vec![0],
        }
    }

    fn add(&mut self, string: &[u8]) -> u32 {
        *self.offsets.entry(string.to_vec()).or_insert_with(|| {
            let offset = u32::try_from(self.bytes.len()).unwrap();
            self.bytes.extend_from_slice(string);
            self.bytes.push(0);
            offset
        })
    }
}

fn info(kind: Kind, vlen: u32) -> u32 {
    (kind as u32) << 24 | vlen
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn assemble(records: &[Vec<u8>], strings: &[u8]) -> Vec<u8> {
    let types = records.concat();
    let [types_len, strings_len] =
        [types.len(), strings.len()].map(|len| u32::try_from(len).unwrap());
    let magic_version_flags = 0xeb9f | 1 << 16;
    let mut btf = words(&[
        magic_version_flags,
        24,
        0,
        types_len,
        types_len,
        strings_len,
    ]);
    btf.extend(types);
    btf.extend_from_slice(strings);
    btf
}
