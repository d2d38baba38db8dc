//! Files that are sockets, and what their queues hold. All of it is probed: a socket may be closed
//! while it is looked at.

use core::{marker::PhantomData, ptr::NonNull};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use probe_common::layout::ABSENT;

use super::{Access, Cgroup, Probed};

/// `SOCKFS_MAGIC` (include/uapi/linux/magic.h).
const SOCKFS_MAGIC: u64 = 0x534f_434b;

/// Flags of [`Sock::cgroup_id`]'s pointer where it shares its word with a class id: "no pointer"
/// and "not counted" (`struct sock_cgroup_data`, include/linux/cgroup-defs.h).
const IS_DATA: u64 = 1;
const FLAGS: u64 = 3;

pointer! {
    /// `struct file`.
    File,
    /// `struct inode`.
    Inode,
    /// `struct super_block`.
    SuperBlock,
    /// `struct socket`.
    Socket,
    /// `struct sock`, and the larger ones that begin with it.
    Sock,
    /// `struct sk_buff_head`.
    Queue,
    /// `struct net`.
    Net,
    /// `struct numa_drop_counters`.
    DropCounters,
}

/// The address `offset` bytes behind `base`; `None` for a member this kernel lacks.
#[inline(always)]
fn behind(base: *const u8, offset: u32) -> Option<*const u8> {
    (offset != ABSENT).then(|| (base as u64).wrapping_add(u64::from(offset)) as *const u8)
}

impl File<Probed> {
    #[inline(always)]
    fn inode(self) -> Option<Inode<Probed>> {
        Inode::new(self.get(layout!(file__f_inode))?)
    }
    /// Number of its inode.
    #[inline(always)]
    pub fn inode_number(self) -> Option<u64> {
        self.inode()?.get(layout!(inode__i_ino))
    }
    /// The socket, if it is one: sockfs allocates both as one piece.
    #[inline(always)]
    pub fn socket(self) -> Option<Socket<Probed>> {
        let inode = self.inode()?;
        let super_block = SuperBlock::<Probed>::new(inode.get(layout!(inode__i_sb))?)?;
        if super_block.get::<u64>(layout!(super_block__s_magic))? != SOCKFS_MAGIC {
            return None;
        }
        let (socket, inode_at) = (
            layout!(socket_alloc__socket),
            layout!(socket_alloc__vfs_inode),
        );
        if socket == ABSENT || inode_at == ABSENT {
            return None;
        }
        let start = (inode.address() as u64).wrapping_sub(u64::from(inode_at));
        Socket::new(start.wrapping_add(u64::from(socket)) as *const u8)
    }
}

impl Socket<Probed> {
    #[inline(always)]
    pub fn sk(self) -> Option<Sock<Probed>> {
        Sock::new(self.get(layout!(socket__sk))?)
    }
}

impl Queue<Probed> {
    /// Buffers in it.
    #[inline(always)]
    pub fn qlen(self) -> u32 {
        self.get(layout!(sk_buff_head__qlen)).unwrap_or(0)
    }
    /// Address of the first buffer, 0 if there is none.
    #[inline(always)]
    pub fn oldest(self) -> u64 {
        let first: u64 = self.get(layout!(sk_buff_head__next)).unwrap_or(0);
        // An empty list refers to itself.
        if first == self.address() as u64 {
            return 0;
        }
        first
    }
}

macro_rules! members {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $field:ident;)*) => {
        impl Sock<Probed> {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(self) -> Option<$ty> {
                    self.get(layout!($field))
                }
            )*
        }
    };
}

members! {
    family: u16 = sock_common__skc_family;
    state: u8 = sock_common__skc_state;
    sk_type: u16 = sock__sk_type;
    protocol: u16 = sock__sk_protocol;
    rmem_alloc: u32 = sock__rmem_alloc;
    backlog_len: u32 = sock__backlog_len;
    wmem_alloc: u32 = sock__sk_wmem_alloc;
    wmem_queued: u32 = sock__sk_wmem_queued;
    rcvbuf: u32 = sock__sk_rcvbuf;
    sndbuf: u32 = sock__sk_sndbuf;
    ack_backlog: u32 = sock__sk_ack_backlog;
    local_port: u16 = sock_common__skc_num;
    /// Big endian.
    remote_port: u16 = sock_common__skc_dport;
    copied_seq: u32 = tcp_sock__copied_seq;
    retransmits: u8 = icsk__retransmits;
    probes_out: u8 = icsk__probes_out;
    backoff: u8 = icsk__backoff;
    /// Big endian.
    packet_protocol: u16 = packet_sock__num;
    packet_ifindex: u32 = packet_sock__ifindex;
    netlink_portid: u32 = netlink_sock__portid;
    unix_peer: u64 = unix_sock__peer;
}

impl Sock<Probed> {
    #[inline(always)]
    pub fn receive_queue(self) -> Queue<Probed> {
        self.queue(layout!(sock__sk_receive_queue))
    }
    #[inline(always)]
    pub fn write_queue(self) -> Queue<Probed> {
        self.queue(layout!(sock__sk_write_queue))
    }
    #[inline(always)]
    pub fn error_queue(self) -> Queue<Probed> {
        self.queue(layout!(sock__sk_error_queue))
    }
    #[inline(always)]
    pub fn reader_queue(self) -> Queue<Probed> {
        self.queue(layout!(udp_sock__reader_queue))
    }
    /// The queue at `offset`. Without a branch for one this kernel lacks: nothing can be read at
    /// such an address, and what cannot be read is empty.
    #[inline(always)]
    fn queue(self, offset: u32) -> Queue<Probed> {
        let address = (self.address() as u64).wrapping_add(u64::from(offset)) as *mut u8;
        // An address in the kernel plus an offset is not null.
        Queue(
            NonNull::new(address).unwrap_or(NonNull::dangling()),
            PhantomData,
        )
    }
    #[inline(always)]
    pub fn netns(self) -> Option<u32> {
        let (namespace, inum) = (layout!(net__ns), layout!(ns_common__inum));
        if namespace == ABSENT || inum == ABSENT {
            return None;
        }
        Net::<Probed>::new(self.get(layout!(sock_common__skc_net))?)?.get(namespace + inum)
    }
    /// kernfs id of the cgroup that made it.
    #[inline(always)]
    pub fn cgroup_id(self) -> Option<u64> {
        let word: u64 = self.get(layout!(sock__sk_cgrp_data))?;
        if word & IS_DATA != 0 {
            return None;
        }
        Cgroup::<Probed>::new((word & !FLAGS) as *const u8)?
            .kn()?
            .id()
    }
    /// What was dropped for want of room.
    #[inline(always)]
    pub fn drops(self) -> Option<u32> {
        let plain: u32 = self.get(layout!(sock__sk_drops))?;
        let counters = self.get(layout!(sock__sk_drop_counters));
        let Some(counters) = counters.and_then(DropCounters::<Probed>::new) else {
            return Some(plain);
        };
        let drops0: u32 = counters.get(layout!(numa_drop_counters__drops0))?;
        let drops1: u32 = counters.get(layout!(numa_drop_counters__drops1))?;
        Some(drops0.wrapping_add(drops1))
    }
    /// Pages of the ring that it receives into.
    #[inline(always)]
    pub fn rx_ring_pages(self) -> u64 {
        self.ring_pages(layout!(packet_sock__rx_ring))
    }
    /// Pages of the ring that it sends from.
    #[inline(always)]
    pub fn tx_ring_pages(self) -> u64 {
        self.ring_pages(layout!(packet_sock__tx_ring))
    }
    #[inline(always)]
    fn ring_pages(self, ring: u32) -> u64 {
        let (blocks, pages) = (
            layout!(packet_ring_buffer__pg_vec_len),
            layout!(packet_ring_buffer__pg_vec_pages),
        );
        if ring == ABSENT || blocks == ABSENT || pages == ABSENT {
            return 0;
        }
        let blocks: u32 = self.get(ring + blocks).unwrap_or(0);
        let pages: u32 = self.get(ring + pages).unwrap_or(0);
        u64::from(blocks) * u64::from(pages)
    }
    /// Copies both addresses: 16 bytes each of IPv6, else the first four.
    #[inline(always)]
    pub fn addresses(self, is_ipv6: bool, local: &mut [u8; 16], remote: &mut [u8; 16]) {
        if is_ipv6 {
            self.copy(layout!(sock_common__skc_v6_rcv_saddr), local, 16);
            self.copy(layout!(sock_common__skc_v6_daddr), remote, 16);
        } else {
            self.copy(layout!(sock_common__skc_rcv_saddr), local, 4);
            self.copy(layout!(sock_common__skc_daddr), remote, 4);
        }
    }
    #[inline(always)]
    fn copy(self, offset: u32, to: &mut [u8; 16], bytes: u32) {
        let Some(from) = behind(self.address(), offset) else {
            return;
        };
        // SAFETY: the destination is that large; the source may be anything.
        unsafe {
            bpf_probe_read_kernel(to.as_mut_ptr().cast(), bytes, from.cast());
        }
    }
}
