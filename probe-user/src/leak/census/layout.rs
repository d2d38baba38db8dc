//! Where the running kernel keeps what the census reads, from its BTF.

use crate::kernel::btf::{Btf, Kind, Missing, Type};

/// How a page tells that it is part of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlabMark {
    /// A bit of `page.flags` (until 6.9).
    Flag(u64),
    /// The top byte of `page.page_type` (from 6.12).
    Type(u32),
    /// In a way this reader does not know: only the cache pointer tells.
    Unknown,
}

/// `struct slab`, which overlays `struct page`; on kernels without it, `struct page` itself.
#[derive(Clone, Copy, Debug)]
pub struct SlabLayout {
    /// `sizeof(struct page)`.
    pub bytes: usize,
    /// `slab_cache`.
    pub cache: usize,
    /// `freelist`.
    pub freelist: usize,
    /// `counters`: inuse in bits 0-15, objects in bits 16-30.
    pub counters: usize,
    /// `page.flags`.
    pub flags: usize,
    /// `page.page_type`.
    pub page_type: usize,
    /// How the page tells what it is.
    pub mark: SlabMark,
}

/// `struct kmem_cache` (mm/slub.c).
#[derive(Clone, Copy, Debug)]
pub struct CacheLayout {
    /// `name`.
    pub name: usize,
    /// `list`.
    pub list: usize,
    /// `size`.
    pub size: usize,
    /// `object_size`.
    pub object_size: usize,
    /// `offset`.
    pub offset: usize,
    /// `oo`.
    pub oo: usize,
    /// `random`; without CONFIG_SLAB_FREELIST_HARDENED there is none, and freelists are plain.
    pub random: Option<usize>,
    /// `red_left_pad`; without CONFIG_SLUB_DEBUG there is none.
    pub red_left_pad: Option<usize>,
}

/// `struct sk_buff`, `sk_buff_fclones` and `skb_shared_info`.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct SkbLayout {
    /// `sizeof(struct sk_buff)`.
    pub bytes: usize,
    pub next: usize,
    pub prev: usize,
    pub dev: usize,
    pub sk: usize,
    pub destructor: usize,
    pub head: usize,
    pub data: usize,
    pub end: usize,
    pub truesize: usize,
    pub users: usize,
    /// The byte whose lowest bit is `cloned`; `None` if it is not where it is looked for.
    pub cloned: Option<usize>,
    /// `tcp_tsorted_anchor`, whose second word is `destructor`.
    pub tsorted: Option<usize>,
    /// `sk_buff_fclones.skb2`.
    pub skb2: usize,
    /// `sk_buff_fclones.fclone_ref`.
    pub fclone_ref: usize,
    /// `skb_shared_info.dataref`.
    pub dataref: usize,
}

/// `struct sock` and what it leads to.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct SockLayout {
    /// Bytes of `struct sock`.
    pub bytes: usize,
    pub family: usize,
    pub state: usize,
    pub prot: usize,
    pub net: usize,
    pub kind: usize,
    pub protocol: usize,
    pub rcvbuf: usize,
    pub sndbuf: usize,
    pub rmem: usize,
    pub receive_queue: usize,
    pub write_queue: usize,
    pub error_queue: usize,
    pub socket: usize,
    /// `udp_sock.reader_queue`.
    pub reader_queue: Option<usize>,
    /// `tcp_sock.tsorted_sent_queue`.
    pub tsorted_sent_queue: Option<usize>,
    /// `sk_cgrp_data`, which is a tagged pointer or starts with a plain one.
    pub cgroup: Option<usize>,
    /// `sk_buff_head.qlen`.
    pub qlen: usize,
    /// `proto.name`.
    pub prot_name: usize,
    /// `socket.sk`.
    pub socket_sk: usize,
    /// `socket_alloc.vfs_inode.i_ino`.
    pub inode: usize,
    /// `net.ns.inum`.
    pub net_inum: usize,
    /// `cgroup.kn`.
    pub cgroup_kn: usize,
    /// `kernfs_node.id`.
    pub kn_id: usize,
}

/// `struct net_device`.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct DeviceLayout {
    pub name: usize,
    pub ifindex: usize,
    pub net: usize,
}

/// Members of `struct net_hotdata` that point to the caches (from 6.9).
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub struct HotdataLayout {
    pub skbuff_cache: Option<usize>,
    pub skbuff_fclone_cache: Option<usize>,
    pub skb_small_head_cache: Option<usize>,
}

/// All offsets the census needs, in bytes.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "their types say what they are")]
pub struct Layout {
    pub slab: SlabLayout,
    pub cache: CacheLayout,
    pub skb: SkbLayout,
    pub sock: SockLayout,
    pub device: DeviceLayout,
    pub hotdata: HotdataLayout,
}

impl Layout {
    /// Resolves all offsets.
    pub fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let at = |ty, path| btf.field(ty, path).map(|field| field.offset as usize);
        Ok(Self {
            slab: slab(btf)?,
            cache: CacheLayout {
                name: at("kmem_cache", "name")?,
                list: at("kmem_cache", "list")?,
                size: at("kmem_cache", "size")?,
                object_size: at("kmem_cache", "object_size")?,
                offset: at("kmem_cache", "offset")?,
                oo: at("kmem_cache", "oo")?,
                random: at("kmem_cache", "random").ok(),
                red_left_pad: at("kmem_cache", "red_left_pad").ok(),
            },
            skb: SkbLayout {
                bytes: btf.size("sk_buff")? as usize,
                next: at("sk_buff", "next")?,
                prev: at("sk_buff", "prev")?,
                dev: at("sk_buff", "dev")?,
                sk: at("sk_buff", "sk")?,
                destructor: at("sk_buff", "destructor")?,
                head: at("sk_buff", "head")?,
                data: at("sk_buff", "data")?,
                end: at("sk_buff", "end")?,
                truesize: at("sk_buff", "truesize")?,
                users: at("sk_buff", "users")?,
                cloned: cloned(btf),
                tsorted: at("sk_buff", "tcp_tsorted_anchor").ok(),
                skb2: at("sk_buff_fclones", "skb2")?,
                fclone_ref: at("sk_buff_fclones", "fclone_ref")?,
                dataref: at("skb_shared_info", "dataref")?,
            },
            sock: sock(btf)?,
            device: DeviceLayout {
                name: at("net_device", "name")?,
                ifindex: at("net_device", "ifindex")?,
                net: at("net_device", "nd_net.net")?,
            },
            hotdata: HotdataLayout {
                skbuff_cache: at("net_hotdata", "skbuff_cache").ok(),
                skbuff_fclone_cache: at("net_hotdata", "skbuff_fclone_cache").ok(),
                skb_small_head_cache: at("net_hotdata", "skb_small_head_cache").ok(),
            },
        })
    }
}

fn slab(btf: &Btf) -> Result<SlabLayout, Missing> {
    // Split from `struct page` in 5.17.
    let ty = if btf.has_struct("slab") {
        "slab"
    } else {
        "page"
    };
    let at = |ty, path| btf.field(ty, path).map(|field| field.offset as usize);
    let mark = match (btf.enumerator("PGTY_slab"), btf.enumerator("PG_slab")) {
        (Ok(kind), _) => u32::try_from(kind).map_or(SlabMark::Unknown, SlabMark::Type),
        // In 6.10 and 6.11 the name stood for an inverted bit of the page type.
        (_, Ok(bit @ 0..64)) => SlabMark::Flag(1 << bit),
        _ => SlabMark::Unknown,
    };
    Ok(SlabLayout {
        bytes: btf.size("page")? as usize,
        cache: at(ty, "slab_cache")?,
        freelist: at(ty, "freelist")?,
        counters: at(ty, "counters")?,
        flags: at("page", "flags")?,
        page_type: at("page", "page_type")?,
        mark,
    })
}

fn sock(btf: &Btf) -> Result<SockLayout, Missing> {
    let at = |ty, path| btf.field(ty, path).map(|field| field.offset as usize);
    let in_sock = |path| at("sock", path);
    let socket_alloc = at("socket_alloc", "vfs_inode.i_ino")?;
    Ok(SockLayout {
        bytes: btf.size("sock")? as usize,
        family: in_sock("__sk_common.skc_family")?,
        state: in_sock("__sk_common.skc_state")?,
        prot: in_sock("__sk_common.skc_prot")?,
        net: in_sock("__sk_common.skc_net.net")?,
        kind: in_sock("sk_type")?,
        protocol: in_sock("sk_protocol")?,
        rcvbuf: in_sock("sk_rcvbuf")?,
        sndbuf: in_sock("sk_sndbuf")?,
        rmem: in_sock("sk_backlog.rmem_alloc")?,
        receive_queue: in_sock("sk_receive_queue")?,
        write_queue: in_sock("sk_write_queue")?,
        error_queue: in_sock("sk_error_queue")?,
        socket: in_sock("sk_socket")?,
        reader_queue: at("udp_sock", "reader_queue").ok(),
        tsorted_sent_queue: at("tcp_sock", "tsorted_sent_queue").ok(),
        // A tagged word until 5.14, the pointer itself from then on.
        cgroup: in_sock("sk_cgrp_data.cgroup")
            .or_else(|_| in_sock("sk_cgrp_data.val"))
            .ok(),
        qlen: at("sk_buff_head", "qlen")?,
        prot_name: at("proto", "name")?,
        socket_sk: at("socket", "sk")?,
        inode: socket_alloc.wrapping_sub(at("socket_alloc", "socket")?),
        net_inum: at("net", "ns.inum")?,
        cgroup_kn: at("cgroup", "kn")?,
        kn_id: at("kernfs_node", "id")?,
    })
}

/// `cloned` is a bitfield, to which [`Btf::field`] gives no offset.
fn cloned(btf: &Btf) -> Option<usize> {
    let member = btf
        .named("sk_buff")
        .filter(|ty| ty.kind() == Kind::Struct)
        .flat_map(Type::members)
        .find(|member| member.name == b"cloned")?;
    (member.bitfield_bits == 1 && member.bit_offset % 8 == 0)
        .then_some((member.bit_offset / 8) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_all_of_it() {
        let layout = Layout::resolve(&Btf::running().unwrap()).unwrap();
        assert!(layout.skb.cloned.is_some());
        assert!(layout.skb.tsorted.is_some());
        assert!(layout.sock.reader_queue.is_some());
        assert!(layout.sock.tsorted_sent_queue.is_some());
        assert!(layout.sock.cgroup.is_some());
        assert_ne!(layout.slab.mark, SlabMark::Unknown);
        // The destructor is the `prev` of the anchor: how a sent TCP segment is told.
        assert_eq!(layout.skb.tsorted.unwrap() + 8, layout.skb.destructor);
    }
}
