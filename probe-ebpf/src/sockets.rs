//! Iterator over the open files of all tasks: every socket somebody has open, in every network
//! namespace, and what its queues hold.
//!
//! match-proto: `struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task;
//! u32 fd; struct file *file; }` (kernel/bpf/task_iter.c). The kernel passes over threads that
//! share their files with the leader. One [`HeldSocket`] per descriptor is written to the
//! iterator's file; who shares a socket is for the reader to find out, by its address.

use core::{ffi::c_void, mem::zeroed, ptr::write};

use aya_ebpf::helpers::generated::bpf_seq_write;
use probe_common::{
    limits::SCRATCH_LEN,
    wire::{HeldSocket, UNKNOWN},
};

use crate::{
    candidates::IterMeta,
    kernel::{File, Probed, Sock, Task, Typed},
    maps::{SCRATCH, Slot},
};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_NETLINK: u16 = 16;
const AF_PACKET: u16 = 17;

const SOCK_STREAM: u16 = 1;
const SOCK_DGRAM: u16 = 2;
const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;

/// `struct bpf_iter__task_file`.
#[repr(C)]
struct IterTaskFile {
    meta: *const IterMeta,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn sockets(ctx: *mut c_void) -> i32 {
    // SAFETY: the verifier knows this context.
    let (seq, task, fd, file) = unsafe {
        let ctx = ctx.cast::<IterTaskFile>();
        ((*(*ctx).meta).seq, (*ctx).task, (*ctx).fd, (*ctx).file)
    };
    let Some(task) = Task::<Typed>::new(task) else {
        return 0;
    };
    let Some(file) = File::<Probed>::new(file) else {
        return 0;
    };
    let Some(socket) = file.socket() else {
        return 0;
    };
    let Some(sock) = socket.sk() else {
        return 0;
    };
    let Some(out) = SCRATCH.get_ptr_mut(Slot::Iterator as u32) else {
        return 0;
    };
    // SAFETY: the buffer is larger than a record, aligned, and this CPU's own while the program
    // runs; all-zero is a valid record (integers only).
    let out = unsafe {
        let out = out.cast::<HeldSocket>();
        write(out, zeroed());
        &mut *out
    };
    out.sock = sock.address() as u64;
    out.inode = file.inode_number().unwrap_or(0);
    out.fd = fd;
    out.pid = task.tgid().unwrap_or(0) as u32;
    if let Some(leader) = task.group_leader() {
        out.start_boot_ns = leader.start_boottime().unwrap_or(0);
        leader.comm(&mut out.comm);
    }
    describe(sock, out);
    // SAFETY: the buffer is of that size.
    unsafe {
        bpf_seq_write(
            seq,
            core::ptr::from_mut(out).cast(),
            size_of::<HeldSocket>() as u32,
        );
    }
    0
}

/// Fills in what is common to all families, then what is not.
#[inline(always)]
fn describe(sock: Sock<Probed>, out: &mut HeldSocket) {
    out.family = sock.family().unwrap_or(0);
    out.kind = sock.sk_type().unwrap_or(0);
    out.protocol = sock.protocol().unwrap_or(0);
    out.state = sock.state().unwrap_or(0);
    out.netns = sock.netns().unwrap_or(0);
    out.cgroup_id = sock.cgroup_id().unwrap_or(0);
    let received = sock.receive_queue();
    out.receive_skbs = received.qlen();
    out.oldest_skb = received.oldest();
    out.write_skbs = sock.write_queue().qlen();
    out.error_skbs = sock.error_queue().qlen();
    out.rmem_bytes = sock.rmem_alloc().unwrap_or(0);
    out.backlog_bytes = sock.backlog_len().unwrap_or(0);
    out.wmem_bytes = sock.wmem_alloc().unwrap_or(1).saturating_sub(1);
    out.wmem_queued_bytes = sock.wmem_queued().unwrap_or(0);
    out.rcvbuf_bytes = sock.rcvbuf().unwrap_or(0);
    out.sndbuf_bytes = sock.sndbuf().unwrap_or(0);
    out.drops = sock.drops().unwrap_or(UNKNOWN);
    out.ack_backlog = sock.ack_backlog().unwrap_or(0);
    out.copied_seq = UNKNOWN;
    match out.family {
        AF_INET | AF_INET6 => inet(sock, out),
        AF_UNIX => out.peer = sock.unix_peer().unwrap_or(0),
        AF_PACKET => {
            out.protocol = u16::from_be(sock.packet_protocol().unwrap_or(0));
            out.number = sock.packet_ifindex().unwrap_or(0);
            out.rx_ring_pages = sock.rx_ring_pages();
            out.tx_ring_pages = sock.tx_ring_pages();
        }
        AF_NETLINK => out.number = sock.netlink_portid().unwrap_or(0),
        _ => {}
    }
}

#[inline(always)]
fn inet(sock: Sock<Probed>, out: &mut HeldSocket) {
    sock.addresses(out.family == AF_INET6, &mut out.local, &mut out.remote);
    out.local_port = sock.local_port().unwrap_or(0);
    out.remote_port = u16::from_be(sock.remote_port().unwrap_or(0));
    if out.protocol == IPPROTO_UDP && out.kind == SOCK_DGRAM {
        let read_next = sock.reader_queue();
        let waiting = read_next.qlen();
        if waiting > 0 {
            out.receive_skbs = out.receive_skbs.wrapping_add(waiting);
            out.oldest_skb = read_next.oldest();
        }
    }
    if out.protocol == IPPROTO_TCP && out.kind == SOCK_STREAM {
        out.copied_seq = sock.copied_seq().unwrap_or(UNKNOWN);
        out.retransmits = sock.retransmits().unwrap_or(0);
        out.probes_out = sock.probes_out().unwrap_or(0);
        out.backoff = sock.backoff().unwrap_or(0);
    }
}

const _: () = assert!(size_of::<HeldSocket>() < SCRATCH_LEN);
