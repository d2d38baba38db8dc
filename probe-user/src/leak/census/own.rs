//! Where things are on a kernel that lists no variables (without CONFIG_KALLSYMS_ALL): by a buffer
//! of our own, whose address the calling thread's open files lead to.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

use super::{
    bpf::BpfReader,
    layout::Layout,
    memory::{Memory, word_at},
};
use crate::kernel::btf::{Btf, Missing};

/// Where x86 maps physical memory and its page descriptors unless it randomises them, with page
/// tables of four and of five levels (Documentation/arch/x86/x86_64/mm.rst).
const DEFAULTS: [(u64, u64); 2] = [
    (0xffff_8880_0000_0000, 0xffff_ea00_0000_0000),
    (0xff11_0000_0000_0000, 0xffd4_0000_0000_0000),
];
/// Name of the cache that buffers of one datagram come from.
const CACHE: &str = "skbuff_head_cache";

/// What a buffer of our own tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where physical address 0 is mapped.
    pub direct_map: u64,
    /// Where the `struct page` of pfn 0 is.
    pub vmemmap: u64,
    /// Address of the cache of plain buffers.
    pub cache: u64,
}

/// Members that lead from a thread to its open files.
struct Path {
    files: u64,
    fdt: u64,
    fd: u64,
    private_data: u64,
    sk: u64,
}

impl Path {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let at = |ty, path| btf.field(ty, path).map(|field| u64::from(field.offset));
        Ok(Self {
            files: at("task_struct", "files")?,
            fdt: at("files_struct", "fdt")?,
            fd: at("fdtable", "fd")?,
            private_data: at("file", "private_data")?,
            sk: at("socket", "sk")?,
        })
    }
}

/// Sends a datagram to ourselves and looks at where it is. `None` if no known place of the page
/// descriptors leads from it to the cache it must be of.
pub fn find(
    memory: &BpfReader,
    btf: &Btf,
    layout: &Layout,
    page_bytes: u64,
) -> Result<Option<Found>, Missing> {
    let path = Path::resolve(btf)?;
    let Ok((_sender, receiver)) = datagram() else {
        return Ok(None);
    };
    let skb = || {
        let task = memory.current_task().ok()?;
        let files = memory.pointer(task + path.files)?;
        let table = memory.pointer(memory.pointer(files + path.fdt)? + path.fd)?;
        let descriptor = u64::try_from(receiver.as_raw_fd()).ok()?;
        let file = memory.pointer(table + descriptor * 8)?;
        let socket = memory.pointer(file + path.private_data)?;
        let sk = memory.pointer(socket + path.sk)?;
        memory.pointer(sk + layout.sock.receive_queue as u64)
    };
    let Some(skb) = skb() else { return Ok(None) };
    let found = DEFAULTS.into_iter().find_map(|(direct_map, vmemmap)| {
        let pfn = skb.checked_sub(direct_map)? / page_bytes;
        let mut page = vec![0; layout.slab.bytes];
        let descriptor = vmemmap.checked_add(pfn.checked_mul(page.len() as u64)?)?;
        memory.read(descriptor, &mut page).then_some(())?;
        let cache = word_at(&page, layout.slab.cache);
        let name = memory.pointer(cache.checked_add(layout.cache.name as u64)?)?;
        (memory.name::<64>(name)? == CACHE).then_some(Found {
            direct_map,
            vmemmap,
            cache,
        })
    });
    Ok(found)
}

fn datagram() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (sender, receiver) = UnixDatagram::pair()?;
    sender.send(b"where am I?")?;
    Ok((sender, receiver))
}
