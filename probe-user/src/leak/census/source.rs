//! The way in which memory is read here, and what has to be known before.

use std::path::Path;

use crate::kernel::{btf::Btf, kallsyms};

use super::{
    CensusError, Reader,
    bpf::{self, BpfReader},
    caches::{self, Cache, Symbols},
    kcore::Kcore,
    layout::Layout,
    memory::{Memory, Ram},
    own,
    scan::Scan,
};

/// `/proc/kcore`, or a BPF program where that is missing or masked.
#[derive(Debug)]
enum Way {
    Kcore(Kcore),
    Bpf(BpfReader),
}

impl Memory for Way {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        match self {
            Self::Kcore(kcore) => kcore.read(address, into),
            Self::Bpf(bpf) => bpf.read(address, into),
        }
    }
}

/// The running kernel's memory.
#[derive(Debug)]
pub(super) struct Source {
    memory: Way,
    ram: Ram,
    layout: Layout,
    symbols: Symbols,
    caches: Vec<Cache>,
    /// How it is read.
    pub(super) read_by: Reader,
}

impl Source {
    /// Finds out where everything is.
    pub(super) fn open() -> Result<Self, CensusError> {
        let symbols = Symbols::find(Path::new(kallsyms::KALLSYMS))?;
        let btf = Btf::running()?;
        let layout = Layout::resolve(&btf)?;
        let by_kcore = Kcore::open().and_then(|kcore| {
            let ram = ram_by_kcore(&kcore, &layout, &symbols)?;
            Ok((kcore, ram))
        });
        let (memory, ram, known, read_by) = match by_kcore {
            Ok((kcore, ram)) => (Way::Kcore(kcore), ram, None, Reader::Kcore),
            Err(reason) => {
                let kcore = Box::new(reason);
                let reader =
                    BpfReader::load().map_err(|bpf| CensusError::NoMemory { kcore, bpf })?;
                let (ram, known) = ram_by_bpf(&reader, &btf, &layout, &symbols)?;
                (Way::Bpf(reader), ram, known, Reader::Bpf)
            }
        };
        Ok(Self {
            caches: caches::find(&memory, &ram, &layout, &symbols, known)?,
            memory,
            ram,
            layout,
            symbols,
            read_by,
        })
    }

    /// A scan that has looked at nothing.
    pub(super) fn scan(&self) -> Scan<'_, impl Memory> {
        Scan::new(&self.memory, &self.ram, &self.layout, &self.caches)
    }

    /// The functions that start at `addresses`.
    pub(super) fn names(&self, addresses: &[u64]) -> Vec<Option<String>> {
        name(&self.symbols, addresses)
    }
}

/// The functions that start at `addresses`. Names are a comfort: without them the holders are
/// still told.
fn name(symbols: &Symbols, addresses: &[u64]) -> Vec<Option<String>> {
    let is_common = |&address: &u64| address == 0 || symbols.destructor(address).is_some();
    let frames = if addresses.iter().all(is_common) {
        Vec::new()
    } else {
        kallsyms::symbolise(Path::new(kallsyms::KALLSYMS), addresses).unwrap_or_default()
    };
    let start = |frame: kallsyms::Frame| (frame.offset_bytes == 0).then_some(frame.function);
    addresses
        .iter()
        .zip(frames.into_iter().chain(std::iter::repeat(None)))
        .map(|(&address, frame)| {
            let common = symbols.destructor(address).map(str::to_owned);
            common.or_else(|| frame.and_then(start))
        })
        .collect()
}

/// Where memory and its page descriptors are, by the segments of `/proc/kcore`.
fn ram_by_kcore(kcore: &Kcore, layout: &Layout, symbols: &Symbols) -> Result<Ram, CensusError> {
    let page_bytes = rustix::param::page_size() as u64;
    let page_struct_bytes = layout.slab.bytes as u64;
    let constant = kcore.vmcoreinfo("NUMBER(VMEMMAP_START)");
    let vmemmap = match (constant, kcore.vmcoreinfo("NUMBER(PHYS_OFFSET)")) {
        // arm64: the first descriptor is that of the first page there is.
        (Some(start), Some(first)) => {
            start.wrapping_sub((first / page_bytes).wrapping_mul(page_struct_bytes))
        }
        _ => base(kcore, symbols.vmemmap_base()?)?,
    };
    Ok(Ram {
        segments: kcore.ram(symbols.text()?, page_bytes),
        vmemmap,
        page_struct_bytes,
        page_bytes,
    })
}

/// The same by `/proc/iomem`; and the address of a cache, if that was found on the way.
fn ram_by_bpf(
    memory: &BpfReader,
    btf: &Btf,
    layout: &Layout,
    symbols: &Symbols,
) -> Result<(Ram, Option<u64>), CensusError> {
    let page_bytes = rustix::param::page_size() as u64;
    let (direct_map, vmemmap, known) = match (symbols.page_offset_base(), symbols.vmemmap_base()) {
        (Ok(direct_map), Ok(vmemmap)) => (base(memory, direct_map)?, base(memory, vmemmap)?, None),
        (_, Err(reason)) | (Err(reason), _) => {
            let found = own::find(memory, btf, layout, page_bytes)?.ok_or(reason)?;
            (found.direct_map, found.vmemmap, Some(found.cache))
        }
    };
    let iomem = Path::new(bpf::IOMEM);
    let segments = bpf::ram(iomem, direct_map, page_bytes).map_err(|source| CensusError::Io {
        path: iomem.into(),
        source,
    })?;
    let ram = Ram {
        segments,
        vmemmap,
        page_struct_bytes: layout.slab.bytes as u64,
        page_bytes,
    };
    Ok((ram, known))
}

/// The address that the kernel variable at `variable` holds.
fn base(memory: &impl Memory, variable: u64) -> Result<u64, CensusError> {
    memory.pointer(variable).ok_or(CensusError::NoCaches)
}
