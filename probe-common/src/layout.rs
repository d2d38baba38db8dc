//! Facts about the running kernel that the BPF programs need.
//!
//! The daemon resolves each from the kernel's own BTF and hands the whole over as one frozen
//! read-only global, so that the verifier sees constants and removes the code of absent features.

#![expect(
    non_snake_case,
    reason = "fields carry the kernel's own names: struct__member"
)]

/// A member, enumerator or function this kernel does not have.
///
/// Not 0: offset 0 is legal (`css_set.subsys`).
pub const ABSENT: u32 = u32::MAX;

macro_rules! kernel_layout {
    ($($(#[$doc:meta])* $field:ident),* $(,)?) => {
        /// Byte offsets, sizes, enumerator values and variant flags of the running kernel.
        ///
        /// Every field is a `u32`, so the struct has no padding and one reader serves all.
        /// Fields are named `struct__member` after the kernel's own names; enumerators keep
        /// theirs; `has_*` and `is_*` are 0 or 1. [`ABSENT`] marks what this kernel lacks.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        pub struct KernelLayout {
            $($(#[$doc])* pub $field: u32,)*
        }

        impl KernelLayout {
            /// Nothing known: every field [`ABSENT`].
            pub const UNKNOWN: Self = Self { $($field: ABSENT,)* };

            /// Names of all fields, in declaration order.
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// Byte offset of the field named `name`, which must be one of [`Self::FIELDS`].
            pub fn get(&self, name: &str) -> Option<u32> {
                match name {
                    $(stringify!($field) => Some(self.$field),)*
                    _ => None,
                }
            }

            /// Sets the field named `name`; false if there is none of that name.
            pub fn set(&mut self, name: &str, value: u32) -> bool {
                match name {
                    $(stringify!($field) => self.$field = value,)*
                    _ => return false,
                }
                true
            }
        }
    };
}

kernel_layout! {
    /// `task_struct.pid` (i32): the thread id in the initial pid namespace.
    task_struct__pid,
    /// `task_struct.tgid` (i32): the process id.
    task_struct__tgid,
    /// `task_struct.comm` (`char[16]`).
    task_struct__comm,
    /// `task_struct.flags` (u32): `PF_EXITING` and others.
    task_struct__flags,
    /// `task_struct.mm`.
    task_struct__mm,
    /// `task_struct.signal`.
    task_struct__signal,
    /// `task_struct.cgroups`: the `css_set`.
    task_struct__cgroups,
    /// `task_struct.start_boottime` (u64, ns since boot, suspend included).
    task_struct__start_boottime,
    /// `task_struct.exit_code` (i32): wait status.
    task_struct__exit_code,
    /// `task_struct.group_leader`.
    task_struct__group_leader,
    /// `task_struct.real_parent`.
    task_struct__real_parent,
    /// `task_struct.cred`.
    task_struct__cred,
    /// `task_struct.thread_pid`.
    task_struct__thread_pid,
    /// `task_struct.memcg_nr_pages_over_high` (u32): above 0, the task sleeps before it returns to
    /// user mode.
    task_struct__memcg_nr_pages_over_high,
    /// `task_struct.seccomp.mode` (i32): absent without seccomp.
    task_struct__seccomp_mode,
    /// `signal_struct.live` (atomic): threads not yet exiting.
    signal_struct__live,
    /// `signal_struct.nr_threads` (i32).
    signal_struct__nr_threads,
    /// `signal_struct.group_exit_code` (i32).
    signal_struct__group_exit_code,
    /// `signal_struct.flags` (u32): `SIGNAL_GROUP_EXIT` and others.
    signal_struct__flags,
    /// `signal_struct.maxrss` (u64, pages): highest rss, once the last thread is exiting.
    signal_struct__maxrss,
    /// `signal_struct.oom_score_adj` (i16).
    signal_struct__oom_score_adj,
    /// `signal_struct.oom_mm`: mm pinned for the OOM reaper; also the mm once `task.mm` is gone.
    signal_struct__oom_mm,
    /// `kernel_siginfo.si_code` (i32).
    kernel_siginfo__si_code,
    /// `kernel_siginfo`'s `si_addr` (user address): of faults.
    kernel_siginfo__si_addr,
    /// `kernel_siginfo`'s `si_call_addr` (user address): of SIGSYS.
    kernel_siginfo__si_call_addr,
    /// `kernel_siginfo`'s `si_syscall` (i32): of SIGSYS.
    kernel_siginfo__si_syscall,
    /// `pt_regs.orig_ax` (x86-64, u64) or `syscallno` (arm64, i32), of which the lower half counts:
    /// number of the system call, negative outside of one.
    pt_regs__syscall,
    /// `cred.uid` (u32).
    cred__uid,
    /// `pid.level` (u32): depth of the innermost pid namespace.
    pid__level,
    /// `pid.numbers`: array of `upid`.
    pid__numbers,
    /// `upid.nr` (i32).
    upid__nr,
    /// Size of `struct upid`, the stride of `pid.numbers`.
    upid__size,
    /// `mm_struct.total_vm` (u64, pages).
    mm_struct__total_vm,
    /// `mm_struct.pgtables_bytes` (atomic_long, bytes).
    mm_struct__pgtables_bytes,
    /// `mm_struct.arg_start` (u64): user address of the first argument.
    mm_struct__arg_start,
    /// `mm_struct.arg_end` (u64): behind the last.
    mm_struct__arg_end,
    /// `mm_struct.mm_users` (atomic): tasks that use it, threads included.
    mm_struct__mm_users,
    /// `mm_struct.rss_stat`: `atomic_long_t[]` or `percpu_counter[]`.
    mm_struct__rss_stat,
    /// Distance between two counters of `rss_stat`, bytes.
    rss_stat__stride,
    /// Offset of the summed value inside one counter of `rss_stat`.
    rss_stat__count,
    /// Offset of the per-CPU pointer inside one counter; absent where rss is a plain atomic.
    rss_stat__percpu,
    /// `css_set.subsys[memory_cgrp_id]`: pointer to the memory controller's css.
    css_set__memory_css,
    /// `css_set.dfl_cgrp`: the cgroup on the v2 hierarchy.
    css_set__dfl_cgrp,
    /// `cgroup_subsys_state.cgroup`.
    css__cgroup,
    /// `cgroup_subsys_state.parent`.
    css__parent,
    /// `mem_cgroup.css`, for container_of.
    mem_cgroup__css,
    /// `mem_cgroup.memory`: page counter.
    mem_cgroup__memory,
    /// `mem_cgroup.swap`, a union with `memsw`: page counter.
    mem_cgroup__swap,
    /// `mem_cgroup.oom_group` (bool).
    mem_cgroup__oom_group,
    /// `mem_cgroup.oom_lock` (bool): set on the subtree whose limit is out of memory (memcg v1 code).
    mem_cgroup__oom_lock,
    /// `mem_cgroup.under_oom` (i32): memcg v1 code only.
    mem_cgroup__under_oom,
    /// `mem_cgroup.memory_events_local[MEMCG_OOM]` (atomic_long).
    mem_cgroup__local_oom,
    /// `mem_cgroup.memory_events_local[MEMCG_MAX]` (atomic_long).
    mem_cgroup__local_max,
    /// `mem_cgroup.memory_events_local[MEMCG_HIGH]` (atomic_long).
    mem_cgroup__local_high,
    /// `mem_cgroup.memory_events_local[MEMCG_OOM_KILL]` (atomic_long).
    mem_cgroup__local_oom_kill,
    /// `page_counter.usage` (atomic_long, pages).
    page_counter__usage,
    /// `page_counter.max` (u64, pages).
    page_counter__max,
    /// `page_counter.high` (u64, pages): `memory.high`.
    page_counter__high,
    /// `page_counter.watermark` (u64, pages): highest usage seen.
    page_counter__watermark,
    /// `page_counter.failcnt` (u64).
    page_counter__failcnt,
    /// `cgroup.kn`.
    cgroup__kn,
    /// `cgroup.level` (i32).
    cgroup__level,
    /// `cgroup.root`.
    cgroup__root,
    /// `cgroup_root.hierarchy_id` (i32): 0 is the v2 hierarchy.
    cgroup_root__hierarchy_id,
    /// `kernfs_node.id` (u64): the cgroup id of that hierarchy.
    kernfs_node__id,
    /// `kernfs_node.name`.
    kernfs_node__name,
    /// `kernfs_node.parent` or `__parent`.
    kernfs_node__parent,
    /// `oom_control.memcg`: NULL for a node OOM.
    oom_control__memcg,
    /// `oom_control.gfp_mask` (u32).
    oom_control__gfp_mask,
    /// `oom_control.order` (i32): -1 for sysrq-f.
    oom_control__order,
    /// `oom_control.totalpages` (u64): what the domain may use.
    oom_control__totalpages,
    /// `oom_control.chosen`: NULL if nothing was found, -1 if selection was aborted.
    oom_control__chosen,
    /// `oom_control.chosen_points` (i64).
    oom_control__chosen_points,
    /// `oom_control.constraint` (u32): index into `enum oom_constraint`.
    oom_control__constraint,
    /// `MEMCG_MAX` of `enum memcg_memory_event`.
    MEMCG_MAX,
    /// `MEMCG_HIGH`.
    MEMCG_HIGH,
    /// `MM_FILEPAGES`.
    MM_FILEPAGES,
    /// `MM_ANONPAGES`.
    MM_ANONPAGES,
    /// `MM_SWAPENTS`.
    MM_SWAPENTS,
    /// `MM_SHMEMPAGES`.
    MM_SHMEMPAGES,
    /// `BPF_FUNC_task_pt_regs`: programs may ask for the registers of a task.
    BPF_FUNC_task_pt_regs,
    /// 1 if tracepoint `oom:mark_victim` carries a `task_struct *`, 0 if an `int pid`.
    mark_victim__has_task,
    /// 1 if tracepoint `sched:sched_process_exit` carries `bool group_dead`.
    sched_process_exit__has_group_dead,
    /// 1 if tracepoint `vmscan:mm_vmscan_memcg_reclaim_begin` carries the `mem_cgroup *`.
    memcg_reclaim_begin__has_memcg,
    // Sockets and what they hold.
    /// `file.f_inode`.
    file__f_inode,
    /// `inode.i_sb`.
    inode__i_sb,
    /// `inode.i_ino` (u64).
    inode__i_ino,
    /// `super_block.s_magic` (u64).
    super_block__s_magic,
    /// `socket_alloc.socket`: what sockfs allocates around an inode.
    socket_alloc__socket,
    /// `socket_alloc.vfs_inode`, for container_of.
    socket_alloc__vfs_inode,
    /// `socket.sk`: NULL once it is released.
    socket__sk,
    /// `sock_common.skc_family` (u16); every `sock` begins with it.
    sock_common__skc_family,
    /// `skc_state` (u8): TCP's states, which others borrow.
    sock_common__skc_state,
    /// `skc_net.net`: its network namespace.
    sock_common__skc_net,
    /// `skc_daddr` (be32).
    sock_common__skc_daddr,
    /// `skc_rcv_saddr` (be32).
    sock_common__skc_rcv_saddr,
    /// `skc_v6_daddr` (16 bytes): absent without IPv6.
    sock_common__skc_v6_daddr,
    /// `skc_v6_rcv_saddr` (16 bytes).
    sock_common__skc_v6_rcv_saddr,
    /// `skc_dport` (be16).
    sock_common__skc_dport,
    /// `skc_num` (u16): local port.
    sock_common__skc_num,
    /// `sk_type` (u16).
    sock__sk_type,
    /// `sk_protocol` (u16).
    sock__sk_protocol,
    /// `sk_receive_queue`.
    sock__sk_receive_queue,
    /// `sk_write_queue`.
    sock__sk_write_queue,
    /// `sk_error_queue`.
    sock__sk_error_queue,
    /// `sk_buff_head.next`: the oldest buffer, or the head itself.
    sk_buff_head__next,
    /// `sk_buff_head.qlen` (u32).
    sk_buff_head__qlen,
    /// `sk_backlog.rmem_alloc` (atomic): true sizes of what was received and not read.
    sock__rmem_alloc,
    /// `sk_backlog.len` (i32): true sizes of what waits for the socket's lock.
    sock__backlog_len,
    /// `sk_wmem_alloc` (refcount): true sizes of what was sent and not freed, and 1.
    sock__sk_wmem_alloc,
    /// `sk_wmem_queued` (i32): TCP's write and retransmit queues.
    sock__sk_wmem_queued,
    /// `sk_rcvbuf` (i32).
    sock__sk_rcvbuf,
    /// `sk_sndbuf` (i32).
    sock__sk_sndbuf,
    /// `sk_drops` (atomic).
    sock__sk_drops,
    /// `sk_drop_counters`: counts in place of `sk_drops`, where it is set.
    sock__sk_drop_counters,
    /// `numa_drop_counters.drops0` (atomic).
    numa_drop_counters__drops0,
    /// `numa_drop_counters.drops1` (atomic).
    numa_drop_counters__drops1,
    /// `sk_ack_backlog` (u32): connections that wait to be accepted.
    sock__sk_ack_backlog,
    /// `sk_cgrp_data`: the cgroup that made it, on the v2 hierarchy; in the lowest bits flags.
    sock__sk_cgrp_data,
    /// `net.ns`.
    net__ns,
    /// `ns_common.inum` (u32).
    ns_common__inum,
    /// `udp_sock.reader_queue`: what a reader took out of `sk_receive_queue` at once.
    udp_sock__reader_queue,
    /// `tcp_sock.copied_seq` (u32): read up to here.
    tcp_sock__copied_seq,
    /// `inet_connection_sock.icsk_retransmits` (u8): of the oldest unacknowledged segment.
    icsk__retransmits,
    /// `inet_connection_sock.icsk_probes_out` (u8): unanswered probes of a closed window.
    icsk__probes_out,
    /// `inet_connection_sock.icsk_backoff` (u8).
    icsk__backoff,
    /// `packet_sock.num` (be16): protocol.
    packet_sock__num,
    /// `packet_sock.ifindex` (i32): 0 is every interface.
    packet_sock__ifindex,
    /// `packet_sock.rx_ring`.
    packet_sock__rx_ring,
    /// `packet_sock.tx_ring`.
    packet_sock__tx_ring,
    /// `packet_ring_buffer.pg_vec_len` (u32): blocks.
    packet_ring_buffer__pg_vec_len,
    /// `packet_ring_buffer.pg_vec_pages` (u32): pages of a block.
    packet_ring_buffer__pg_vec_pages,
    /// `netlink_sock.portid` (u32).
    netlink_sock__portid,
    /// `unix_sock.peer`: where what it sends is queued.
    unix_sock__peer,
    // Objects that are followed until they are freed.
    /// `sk_buff.truesize` (u32): bytes of the buffer and all it points to.
    sk_buff__truesize,
    /// `kmem_cache.name`.
    kmem_cache__name,
    /// `kmem_cache.size` (u32): bytes that one object takes.
    kmem_cache__size,
    /// 1 if tracepoint `kmem:kmem_cache_alloc` carries the `kmem_cache *`, 0 if sizes.
    kmem_cache_alloc__has_cache,
    /// 1 if tracepoint `kmem:kmem_cache_free` carries the `kmem_cache *`, 0 if nothing.
    kmem_cache_free__has_cache,
}

/// What the programs need to know beside the layout. Set while they run, as it takes longer to
/// find out than attaching may take.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Settings {
    /// Address of the kernel's `__per_cpu_offset[]`; 0 where kallsyms does not tell.
    pub per_cpu_offset: u64,
    /// 1 once a hook of its own reports limit hits: the start of a reclaim is then none.
    pub has_limit_hit: u32,
    /// 1 once `OOM_DECISION` records are produced: a mark then leaves limit and stack to them.
    pub has_decision: u32,
    /// 1 once stalls are hooked that may lie in others or have others inside.
    pub stalls_nest: u32,
    /// Rounds the size up.
    pub unused: u32,
}

/// Which deaths are recorded.
pub mod deaths {
    /// None.
    pub const OFF: u32 = 0;
    /// Of cgroups that are not known to be dull: by signal, with a non-zero exit code, and of the
    /// first process of a pid namespace.
    pub const CONTAINERS: u32 = 1;
    /// Of every process.
    pub const ALL: u32 = 2;
}

// SAFETY: both are `repr(C)`, hold only integers and have no padding (bytemuck checks that).
#[cfg(feature = "user")]
unsafe impl aya::Pod for KernelLayout {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Settings {}
