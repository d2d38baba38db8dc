//! The caches of socket buffers: where they are and how their slabs are laid out.

use std::{fs, path::Path};

use super::{
    error::CensusError,
    layout::Layout,
    memory::{Memory, Ram, is_kernel},
};
use crate::kernel::kallsyms::{self, Symbol};

/// Where merged caches are links to what they were merged to.
const SYSFS: &str = "/sys/kernel/slab";
/// No kernel has as many caches; a list that is longer never ends.
const MAX_CACHES: usize = 4096;
/// Nor slabs of a higher order (`MAX_PAGE_ORDER` is 10).
const MAX_ORDER: u32 = 10;
/// Socket buffers are a few hundred bytes; what is larger is not such a cache.
const MAX_OBJECT_BYTES: u32 = 1 << 16;

/// What the objects of a cache are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// `struct sk_buff`.
    Skb,
    /// `struct sk_buff_fclones`: a buffer and room for its clone.
    Pair,
    /// Data of small buffers, counted only: the buffers they belong to say who holds them.
    Data,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its name. Merged caches go by the name of one of them.
    pub name: &'static str,
    /// What its objects are.
    pub objects: Objects,
    /// Address of its `struct kmem_cache`.
    pub address: u64,
    /// Bytes from one object to the next.
    pub size_bytes: u64,
    /// Bytes of an object as it was asked for.
    pub object_bytes: u64,
    /// Where a free object keeps its pointer to the next.
    pub free_offset: u64,
    /// What that pointer is scrambled with.
    pub random: Option<u64>,
    /// Bytes before the first object.
    pub red_left_pad: u64,
    /// Order of its slabs; those made when memory was short may be smaller.
    pub order: u32,
}

/// Kernel variables that hold the address of a cache, its member of `net_hotdata` and its name.
const WANTED: [(&str, &str, Objects); 3] = [
    ("skbuff_head_cache", "skbuff_head_cache", Objects::Skb),
    ("skbuff_fclone_cache", "skbuff_fclone_cache", Objects::Pair),
    ("skb_small_head_cache", "skbuff_small_head", Objects::Data),
];

/// Functions that give back what a buffer was charged with. Those that are missing here cost
/// another pass of the symbol table.
const DESTRUCTORS: [&str; 12] = [
    "__sock_wfree",
    "netlink_skb_destructor",
    "sock_edemux",
    "sock_efree",
    "sock_ofree",
    "sock_pfree",
    "sock_rfree",
    "sock_rmem_free",
    "sock_wfree",
    "tcp_wfree",
    "unix_destruct_scm",
    "unix_wfree",
];

/// Addresses of kernel variables and functions.
#[derive(Clone, Debug)]
pub struct Symbols {
    hotdata: Symbol,
    slab_caches: Symbol,
    caches: [Symbol; 3],
    vmemmap_base: Symbol,
    page_offset_base: Symbol,
    destructors: Vec<(u64, &'static str)>,
    text: Symbol,
}

impl Symbols {
    /// Finds them in one pass of the symbol table.
    pub fn find(path: &Path) -> Result<Self, CensusError> {
        let names = [
            "net_hotdata",
            "slab_caches",
            WANTED[0].0,
            WANTED[1].0,
            WANTED[2].0,
            "vmemmap_base",
            "_stext",
            "page_offset_base",
        ];
        let all: Vec<&str> = names.into_iter().chain(DESTRUCTORS).collect();
        let found = kallsyms::find(path, &all)?;
        let symbol = |at: usize| found.get(at).cloned().unwrap_or_default();
        Ok(Self {
            hotdata: symbol(0),
            slab_caches: symbol(1),
            caches: [symbol(2), symbol(3), symbol(4)],
            vmemmap_base: symbol(5),
            text: symbol(6),
            page_offset_base: symbol(7),
            destructors: DESTRUCTORS
                .into_iter()
                .zip(found.iter().skip(names.len()))
                .filter_map(|(name, symbol)| Some((symbol.address().ok()?, name)))
                .collect(),
        })
    }

    /// The function at `address`, if it is a common destructor of buffers.
    pub fn destructor(&self, address: u64) -> Option<&'static str> {
        let found = self.destructors.iter().find(|(at, _)| *at == address);
        found.map(|(_, name)| *name)
    }

    /// An address in the kernel's image.
    pub fn text(&self) -> Result<u64, CensusError> {
        self.text.address().map_err(|reason| CensusError::Symbol {
            name: "_stext",
            reason,
        })
    }

    /// The variable that holds where physical memory is mapped (x86 with KASLR).
    pub fn page_offset_base(&self) -> Result<u64, CensusError> {
        let name = "page_offset_base";
        let address = self.page_offset_base.address();
        address.map_err(|reason| CensusError::Symbol { name, reason })
    }

    /// The variable that holds the address of the first `struct page` (x86 with KASLR).
    pub fn vmemmap_base(&self) -> Result<u64, CensusError> {
        self.vmemmap_base
            .address()
            .map_err(|reason| CensusError::Symbol {
                name: "vmemmap_base",
                reason,
            })
    }
}

/// Finds the caches of socket buffers, by variables or from the `known` address of one cache. At
/// least that of plain buffers must be found.
pub fn find(
    memory: &impl Memory,
    ram: &Ram,
    layout: &Layout,
    symbols: &Symbols,
    known: Option<u64>,
) -> Result<Vec<Cache>, CensusError> {
    let hotdata = symbols.hotdata.address().ok();
    let members = [
        layout.hotdata.skbuff_cache,
        layout.hotdata.skbuff_fclone_cache,
        layout.hotdata.skb_small_head_cache,
    ];
    let mut listed = None;
    let mut caches: Vec<Cache> = Vec::new();
    for (at, (_, name, objects)) in WANTED.into_iter().enumerate() {
        let own = symbols.caches[at].address().ok();
        let variable = own.or_else(|| Some(hotdata? + members[at]? as u64));
        let by_name = || {
            let all: &Vec<(String, u64)> =
                listed.get_or_insert_with(|| by_name(memory, layout, symbols, known));
            let wanted = aliases(Path::new(SYSFS), name);
            let found = all.iter().find(|(other, _)| wanted.contains(other))?;
            Some(found.1)
        };
        let address = variable
            .and_then(|variable| memory.pointer(variable))
            .or_else(by_name);
        let cache = address.and_then(|address| read(memory, ram, layout, address, name, objects));
        caches.extend(cache);
    }
    let has_plain = caches.iter().any(|cache| cache.objects == Objects::Skb);
    has_plain.then_some(caches).ok_or(CensusError::NoCaches)
}

/// The names of all caches that `name` was merged with, and itself: of these, the list of caches
/// knows only one.
fn aliases(sysfs: &Path, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let Ok(merged) = fs::read_link(sysfs.join(name)) else {
        return names;
    };
    for entry in fs::read_dir(sysfs).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == merged) {
            names.extend(entry.file_name().into_string());
        }
    }
    names
}

/// Name and address of all caches, from the list `slab_caches`.
fn by_name(
    memory: &impl Memory,
    layout: &Layout,
    symbols: &Symbols,
    known: Option<u64>,
) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    // The list is a circle; from a cache it leads through the head, which has no name, and ends
    // before that cache.
    let of_known = || Some(known? + layout.cache.list as u64);
    let Some(head) = symbols.slab_caches.address().ok().or_else(of_known) else {
        return found;
    };
    found.extend(known.map(|cache| (WANTED[0].1.to_owned(), cache)));
    let mut node = memory.pointer(head);
    while let Some(at) = node.filter(|&at| at != head && found.len() < MAX_CACHES) {
        let cache = at.wrapping_sub(layout.cache.list as u64);
        let name = memory
            .pointer(cache + layout.cache.name as u64)
            .and_then(|name| memory.name::<64>(name));
        found.push((name.unwrap_or_default(), cache));
        node = memory.pointer(at);
    }
    found
}

fn read(
    memory: &impl Memory,
    ram: &Ram,
    layout: &Layout,
    address: u64,
    name: &'static str,
    objects: Objects,
) -> Option<Cache> {
    let half = |at: usize| memory.half(address + at as u64);
    let size = half(layout.cache.size)?;
    let object = half(layout.cache.object_size)?;
    let free_offset = half(layout.cache.offset)?;
    let oo = half(layout.cache.oo)?;
    let pad = layout.cache.red_left_pad.map_or(Some(0), half)?;
    let random = match layout.cache.random {
        Some(at) => Some(memory.word(address + at as u64)?),
        None => None,
    };
    let order = oo >> 16;
    let holds_buffers = match objects {
        Objects::Skb => object as usize >= layout.skb.bytes,
        Objects::Pair => object as usize > layout.skb.skb2 + layout.skb.bytes,
        Objects::Data => true,
    };
    let slab_bytes = ram.page_bytes << order.min(MAX_ORDER);
    let is_sane = is_kernel(address)
        && order <= MAX_ORDER
        && (64..MAX_OBJECT_BYTES).contains(&size)
        && object <= size
        && free_offset < size
        && pad < size
        && holds_buffers
        && u64::from(oo & 0xffff) * u64::from(size) <= slab_bytes;
    is_sane.then(|| Cache {
        name,
        objects,
        address,
        size_bytes: size.into(),
        object_bytes: object.into(),
        free_offset: free_offset.into(),
        random,
        red_left_pad: pad.into(),
        order,
    })
}
