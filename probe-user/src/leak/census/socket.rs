//! Sockets and devices that buffers point to: read with care, believed only if all of it fits.

use std::collections::HashMap;

use serde::Serialize;

use super::{
    layout::{Layout, SockLayout},
    memory::{Memory, half_at, is_kernel, quarter_at, word_at},
};

/// Most sockets and devices that are remembered; beyond it they are read again each time.
const MAX_REMEMBERED: usize = 1 << 16;
/// Above all address families (`AF_MAX` is 46).
const MAX_FAMILY: u16 = 64;
/// Above all socket types (`SOCK_PACKET` is 10).
const MAX_TYPE: u16 = 16;
/// procfs inodes of namespaces start here (`PROC_DYNAMIC_FIRST`, fs/proc/generic.c); the initial
/// ones are just below.
const FIRST_NAMESPACE_INODE: u32 = 0xefff_0000;
/// The tags of `sock_cgroup_data.val` before 5.15: data instead of a pointer, no reference.
const CGROUP_IS_DATA: u64 = 1;
const CGROUP_TAGS: u64 = 3;

/// What the kernel knows of a socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketFacts {
    /// Address in the kernel, for joining with other readings; never printed.
    #[serde(skip)]
    pub address: u64,
    /// Address family, `AF_*`.
    pub family: u16,
    /// Socket type, `SOCK_*`.
    #[serde(rename = "type")]
    pub kind: u16,
    /// Protocol; for AF_PACKET 0, for AF_NETLINK the netlink family.
    pub protocol: u16,
    /// Name of the protocol in the kernel, such as `UDP` (`proto.name`).
    pub protocol_name: String,
    /// State: for TCP one of `TCP_*` (include/net/tcp_states.h).
    pub state: u8,
    /// Size of its receive buffer (`sk_rcvbuf`).
    pub rcvbuf_bytes: u32,
    /// Size of its send buffer (`sk_sndbuf`).
    pub sndbuf_bytes: u32,
    /// Bytes charged to its receive buffer (`sk_rmem_alloc`).
    pub rmem_bytes: u32,
    /// Buffers in its receive queue.
    pub receive_queue_len: u32,
    /// Buffers in its error queue.
    pub error_queue_len: u32,
    /// Inode of the socket, as in `/proc/<pid>/fd`; `None` if no file belongs to it any more.
    pub inode: Option<u64>,
    /// Inode of its network namespace, as in `/proc/<pid>/ns/net`.
    pub netns_inode: u32,
    /// Id of the cgroup that created it, on the v2 hierarchy (1 is its root).
    pub cgroup_id: Option<u64>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number in its namespace.
    pub ifindex: u32,
    /// Inode of its network namespace.
    pub netns_inode: Option<u32>,
}

/// Reads sockets and devices, each once.
#[derive(Debug)]
pub struct Directory<'a, M> {
    memory: &'a M,
    layout: &'a Layout,
    sockets: HashMap<u64, Option<SocketFacts>>,
    devices: HashMap<u64, Option<Device>>,
}

impl<'a, M: Memory> Directory<'a, M> {
    /// One that has read nothing.
    pub fn new(memory: &'a M, layout: &'a Layout) -> Self {
        Self {
            memory,
            layout,
            sockets: HashMap::new(),
            devices: HashMap::new(),
        }
    }

    /// The socket at `sk`, as it was when first asked for; `None` if there is none.
    pub fn socket(&mut self, sk: u64) -> Option<&SocketFacts> {
        if self.sockets.len() >= MAX_REMEMBERED {
            self.sockets.clear();
        }
        let (memory, layout) = (self.memory, &self.layout.sock);
        self.sockets
            .entry(sk)
            .or_insert_with(|| read_socket(memory, layout, sk))
            .as_ref()
    }

    /// The device at `dev`, as it was when first asked for; `None` if there is none.
    pub fn device(&mut self, dev: u64) -> Option<&Device> {
        if self.devices.len() >= MAX_REMEMBERED {
            self.devices.clear();
        }
        let (memory, layout) = (self.memory, self.layout);
        self.devices
            .entry(dev)
            .or_insert_with(|| read_device(memory, layout, dev))
            .as_ref()
    }
}

/// Reads the socket at `sk`; `None` unless all that must be there is.
pub fn read_socket(memory: &impl Memory, layout: &SockLayout, sk: u64) -> Option<SocketFacts> {
    if !is_kernel(sk) || !sk.is_multiple_of(8) {
        return None;
    }
    let mut bytes = vec![0; layout.bytes];
    if !memory.read(sk, &mut bytes) {
        return None;
    }
    let (quarter, half) = (|at| quarter_at(&bytes, at), |at| half_at(&bytes, at));
    let pointer = |at| Some(word_at(&bytes, at)).filter(|&value| is_kernel(value));
    let (family, kind) = (quarter(layout.family), quarter(layout.kind));
    if family >= MAX_FAMILY || kind >= MAX_TYPE {
        return None;
    }
    pointer(layout.receive_queue)?;
    let protocol_name = memory.name::<32>(pointer(layout.prot)? + layout.prot_name as u64)?;
    let netns_inode = namespace(memory, layout, pointer(layout.net)?)?;
    let inode = pointer(layout.socket).and_then(|socket| {
        // A tun device has a socket without an inode of its own, and no family.
        let owner = memory.word(socket + layout.socket_sk as u64)?;
        let inode = memory.word(socket.wrapping_add(layout.inode as u64))?;
        (owner == sk && family != 0 && inode != 0).then_some(inode)
    });
    Some(SocketFacts {
        address: sk,
        family,
        kind,
        protocol: quarter(layout.protocol),
        protocol_name,
        state: bytes.get(layout.state).copied().unwrap_or(0),
        rcvbuf_bytes: half(layout.rcvbuf),
        sndbuf_bytes: half(layout.sndbuf),
        rmem_bytes: half(layout.rmem),
        receive_queue_len: half(layout.receive_queue + layout.qlen),
        error_queue_len: half(layout.error_queue + layout.qlen),
        inode,
        netns_inode,
        cgroup_id: layout
            .cgroup
            .and_then(|at| cgroup(memory, layout, word_at(&bytes, at))),
    })
}

fn cgroup(memory: &impl Memory, layout: &SockLayout, value: u64) -> Option<u64> {
    if value & CGROUP_IS_DATA != 0 {
        return None;
    }
    let cgroup = Some(value & !CGROUP_TAGS).filter(|&cgroup| is_kernel(cgroup))?;
    let kn = memory.pointer(cgroup + layout.cgroup_kn as u64)?;
    memory.word(kn + layout.kn_id as u64).filter(|&id| id != 0)
}

fn namespace(memory: &impl Memory, layout: &SockLayout, net: u64) -> Option<u32> {
    memory
        .half(net + layout.net_inum as u64)
        .filter(|&inode| inode >= FIRST_NAMESPACE_INODE)
}

fn read_device(memory: &impl Memory, layout: &Layout, dev: u64) -> Option<Device> {
    if !is_kernel(dev) || !dev.is_multiple_of(8) {
        return None;
    }
    let name = memory.name::<16>(dev + layout.device.name as u64)?;
    let ifindex = memory.half(dev + layout.device.ifindex as u64)?;
    let netns_inode = memory
        .pointer(dev + layout.device.net as u64)
        .and_then(|net| namespace(memory, &layout.sock, net));
    (1..=i32::MAX.cast_unsigned())
        .contains(&ifindex)
        .then_some(Device {
            name,
            ifindex,
            netns_inode,
        })
}
