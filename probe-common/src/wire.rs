//! Records the BPF programs write into the rings, and values they keep in maps.
//!
//! A record is a [`Header`], the fixed part of its [`kind`], then sections: a [`Section`] header
//! and that many bytes, padded to eight. Fixed parts hold no padding of their own and only
//! integers, so that any byte string of the right length is a valid value.

use crate::limits::{COMM_LEN, STALL_BUCKETS};

/// Version of this format; both sides are built together, so any other is an error.
pub const VERSION: u16 = 1;

/// What a record reports. Numbers are never reused.
pub mod kind {
    /// `oom_kill_process()` entered: the OOM killer has chosen. Fixed part: [`super::OomDecision`].
    pub const OOM_DECISION: u16 = 1;
    /// `out_of_memory()` returned. Fixed part: [`super::OomEnd`].
    pub const OOM_END: u16 = 2;
    /// A process was marked as OOM victim. Fixed part: [`super::MarkVictim`].
    pub const MARK_VICTIM: u16 = 3;
    /// SIGKILL sent by the kernel itself (`SEND_SIG_PRIV`). Fixed part: [`super::Kill`].
    pub const KERNEL_KILL: u16 = 4;
    /// The last thread of a watched process is exiting. Fixed part: [`super::Exit`].
    pub const EXIT: u16 = 5;
    /// The OOM reaper reports on a victim. Fixed part: [`super::Reap`].
    pub const REAP: u16 = 6;
    /// A process ended. Fixed part: [`super::Death`].
    pub const DEATH: u16 = 7;
    /// A memory cgroup hit its own limit. Fixed part: [`super::LimitHit`].
    pub const LIMIT_HIT: u16 = 10;
    /// A cgroup directory appeared or went away. Fixed part: [`super::CgroupChange`].
    pub const CGROUP: u16 = 20;
}

/// What the bytes of a section are.
pub mod section {
    /// Names of the victim's memory cgroup, leaf first, each ended by NUL.
    pub const VICTIM_PATH: u16 = 1;
    /// Names of the victim's cgroup on the v2 hierarchy, likewise; only where it is another one.
    pub const VICTIM_DFL_PATH: u16 = 2;
    /// Names of the trigger's memory cgroup, likewise.
    pub const TRIGGER_PATH: u16 = 3;
    /// Names of the cgroup whose limit was hit, likewise.
    pub const LIMIT_PATH: u16 = 4;
    /// Kernel stack of the trigger: `u64` addresses, innermost first.
    pub const STACK: u16 = 5;
    /// The kernel's message for this kill.
    pub const MESSAGE: u16 = 6;
    /// [`super::LimitLevel`]s of the charged memcg and its ancestors, leaf first.
    pub const LIMIT_LEVELS: u16 = 7;
    /// Full path from the hierarchy's root, as a tracepoint gave it.
    pub const FULL_PATH: u16 = 8;
    /// Arguments of the victim, each ended by NUL; only if the victim is the trigger's own
    /// process, as no other memory can be read.
    pub const ARGUMENTS: u16 = 9;
    /// [`super::Sent`] signals: the one that ended the process, if it was seen, and requests to stop
    /// that came before.
    pub const SIGNALS: u16 = 10;
}

/// Why something could not be recorded. Index of the per-CPU loss counters.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// The critical ring was full.
    CriticalRingFull = 0,
    /// The bulk ring was full.
    BulkRingFull = 1,
    /// A kernel read failed for a record that was sent all the same.
    ReadFailed = 2,
    /// A map was full: a victim's exit will not be seen.
    VictimMapFull = 3,
    /// A map was full: hits or stalls of a memory cgroup are not counted.
    MemcgMapFull = 4,
    /// A map was full: how long a task waited is not known.
    StallMapFull = 5,
    /// The ring of deaths was full.
    DeathRingFull = 6,
    /// No room in a map: who sent a signal is not known.
    SentMapFull = 7,
}

impl Loss {
    /// All reasons, in index order.
    pub const ALL: [Self; 8] = [
        Self::CriticalRingFull,
        Self::BulkRingFull,
        Self::ReadFailed,
        Self::VictimMapFull,
        Self::MemcgMapFull,
        Self::StallMapFull,
        Self::DeathRingFull,
        Self::SentMapFull,
    ];

    /// The reason as events name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CriticalRingFull => "critical_ring_full",
            Self::BulkRingFull => "bulk_ring_full",
            Self::ReadFailed => "kernel_read_failed",
            Self::VictimMapFull => "victim_map_full",
            Self::MemcgMapFull => "memcg_map_full",
            Self::StallMapFull => "stall_map_full",
            Self::DeathRingFull => "death_ring_full",
            Self::SentMapFull => "sent_map_full",
        }
    }
}

macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }
    };
}

record! {
    /// Starts every record.
    Header {
        /// [`VERSION`].
        version: u16,
        /// One of [`kind`].
        kind: u16,
        /// Bytes of the whole record, this header and all sections included.
        len: u32,
        /// `CLOCK_BOOTTIME` when the program ran, ns.
        time_boot_ns: u64,
        /// CPU the program ran on.
        cpu: u32,
        /// Which rung of the hook ladder wrote it: [`source`].
        source: u32,
    }
}

/// Which kind of hook wrote a record.
pub mod source {
    /// `tp_btf`: typed raw tracepoint.
    pub const TP_BTF: u32 = 1;
    /// `fentry` or `fexit`.
    pub const FENTRY: u32 = 2;
    /// kprobe or kretprobe.
    pub const KPROBE: u32 = 3;
    /// Raw tracepoint.
    pub const RAW_TP: u32 = 4;
}

record! {
    /// Starts every section.
    Section {
        /// One of [`section`].
        tag: u16,
        /// 1 if the content was cut to fit.
        truncated: u16,
        /// Bytes of content that follow, before padding to eight.
        len: u32,
    }
}

/// Bits of [`Task::has`]: which groups of fields could be read.
pub mod has {
    /// pid, tgid, comm, flags, start time.
    pub const TASK: u32 = 1;
    /// uid.
    pub const CRED: u32 = 1 << 1;
    /// oom_score_adj, threads.
    pub const SIGNAL: u32 = 1 << 2;
    /// rss split, page tables, total_vm.
    pub const MM: u32 = 1 << 3;
    /// The per-CPU part of the rss counters was added: the values are exact.
    pub const RSS_EXACT: u32 = 1 << 4;
    /// Pids in the innermost pid namespace.
    pub const NS_PID: u32 = 1 << 5;
    /// Memory cgroup id.
    pub const MEMCG: u32 = 1 << 6;
    /// v2 cgroup id.
    pub const DFL_CGROUP: u32 = 1 << 7;
}

record! {
    /// A task at the moment of the record. Fields of a group whose [`has`] bit is clear are 0.
    Task {
        /// Bits of [`has`].
        has: u32,
        /// Thread id, initial pid namespace.
        tid: u32,
        /// Process id, initial pid namespace.
        pid: u32,
        /// Process id in its innermost pid namespace; 1 is the container's init.
        ns_pid: u32,
        /// Depth of that namespace; 0 is the initial one.
        ns_level: u32,
        /// Real uid, initial user namespace.
        uid: u32,
        /// `task_struct.flags`.
        flags: u32,
        /// `signal_struct.oom_score_adj`, -1000 to 1000.
        oom_score_adj: i32,
        /// Threads of the process.
        threads: u32,
        /// Parent's process id.
        ppid: u32,
        /// Start time of the group leader, ns since boot.
        start_boot_ns: u64,
        /// Resident file pages.
        rss_file_pages: i64,
        /// Resident anonymous pages.
        rss_anon_pages: i64,
        /// Resident shmem pages.
        rss_shmem_pages: i64,
        /// Pages in swap.
        swap_pages: i64,
        /// Page tables, bytes.
        pgtables_bytes: u64,
        /// Mapped pages, resident or not.
        total_vm_pages: u64,
        /// kernfs id of the memory cgroup.
        memcg_id: u64,
        /// kernfs id of the v2 cgroup.
        dfl_cgroup_id: u64,
        /// `mm_struct` address: equal for processes that share one; never leaves the daemon.
        mm: u64,
        /// `task_struct.comm`.
        comm: [u8; COMM_LEN],
        /// The parent's; all 0 if it could not be read.
        parent_comm: [u8; COMM_LEN],
    }
}

record! {
    /// One memcg on the way from the charged one to the root.
    LimitLevel {
        /// kernfs id.
        id: u64,
        /// Usage of the `memory` counter, pages.
        usage_pages: u64,
        /// Its limit, pages; 2^51 and more is none.
        max_pages: u64,
        /// Highest usage so far, pages.
        watermark_pages: u64,
        /// Usage of the `swap` counter (v2) or `memsw` (v1), pages.
        swap_pages: u64,
        /// Its limit, pages.
        swap_max_pages: u64,
        /// `memory_events_local[MEMCG_OOM]`: times this very limit ran out of memory.
        local_oom: u64,
        /// `memory_events_local[MEMCG_MAX]`.
        local_max: u64,
        /// `memory_events_local[MEMCG_OOM_KILL]`.
        local_oom_kill: u64,
        /// Bits of [`level`].
        flags: u64,
    }
}

/// Bits of [`LimitLevel::flags`].
pub mod level {
    /// `oom_lock` is readable on this kernel.
    pub const HAS_OOM_LOCK: u64 = 1;
    /// `oom_lock` is set.
    pub const OOM_LOCK: u64 = 1 << 1;
    /// `under_oom` is readable on this kernel.
    pub const HAS_UNDER_OOM: u64 = 1 << 2;
    /// `under_oom` is above 0.
    pub const UNDER_OOM: u64 = 1 << 3;
    /// `memory.oom.group` is set.
    pub const OOM_GROUP: u64 = 1 << 4;
    /// `memory_events_local` is readable on this kernel.
    pub const HAS_LOCAL_EVENTS: u64 = 1 << 5;
    /// The swap counter is readable on this kernel.
    pub const HAS_SWAP: u64 = 1 << 6;
}

record! {
    /// `oom_kill_process(oc, message)`: the decision, with its context.
    ///
    /// Sections: `VICTIM_PATH`, `VICTIM_DFL_PATH`, `TRIGGER_PATH`, `LIMIT_LEVELS` (from
    /// `oc->memcg` up; none for a node OOM), `LIMIT_PATH`, `STACK`, `MESSAGE`, `ARGUMENTS`.
    OomDecision {
        /// `oc->chosen`.
        victim: Task,
        /// Current: whose allocation failed.
        trigger: Task,
        /// kernfs id of `oc->memcg`, 0 for a node OOM.
        limit_cgroup_id: u64,
        /// Hierarchy of that cgroup; 0 is v2.
        limit_hierarchy: u32,
        /// `oc->gfp_mask`.
        gfp_mask: u32,
        /// `oc->order`; -1 for sysrq-f.
        order: i32,
        /// `oc->constraint`.
        constraint: u32,
        /// `oc->totalpages`.
        total_pages: u64,
        /// `oc->chosen_points`.
        chosen_points: i64,
    }
}

record! {
    /// `out_of_memory(oc)` returned: the incident is over for the kernel.
    ///
    /// Sections, only if nothing killable was found: `LIMIT_LEVELS` (from `oc->memcg` up; none for
    /// a node OOM), `LIMIT_PATH`, `STACK`, `TRIGGER_PATH`.
    OomEnd {
        /// Current; only its thread id, unless nothing killable was found.
        trigger: Task,
        /// Thread id of the trigger.
        trigger_tid: u32,
        /// What it returned: 0 or 1.
        returned: u32,
        /// 0: nothing killable was found. 1: a task was chosen. 2: selection was aborted, as an
        /// earlier victim is still dying.
        chosen: u32,
        /// `oc->constraint`.
        constraint: u32,
        /// kernfs id of `oc->memcg`, 0 for a node OOM.
        limit_cgroup_id: u64,
        /// `oc->order`.
        order: i32,
        /// Zero.
        pad: u32,
    }
}

record! {
    /// `mark_oom_victim(task)`.
    ///
    /// Sections: `VICTIM_PATH`, `VICTIM_DFL_PATH`; where `OOM_DECISION` is not hooked also
    /// `TRIGGER_PATH`, `LIMIT_LEVELS` (from the trigger's memcg up), `STACK` and `ARGUMENTS`.
    MarkVictim {
        /// The marked task.
        victim: Task,
        /// Current.
        trigger: Task,
        /// 1 if the victim's memcg or an ancestor of it has `memory.oom.group` set: the kill may
        /// take others along.
        in_oom_group: u32,
        /// Tasks that use the victim's mm, threads included; 0 if unknown. More than the victim
        /// has threads: others share it and will be killed too.
        mm_users: u32,
    }
}

record! {
    /// SIGKILL with `SEND_SIG_PRIV`: the OOM killer's, or another part of the kernel's.
    ///
    /// Sections: `VICTIM_PATH`.
    Kill {
        /// Who gets it.
        target: Task,
        /// Thread id of current.
        sender_tid: u32,
        /// `TRACE_SIGNAL_*`: 0 delivered, 1 ignored, 2 already pending.
        result: u32,
    }
}

record! {
    /// `sched_process_exit` of the last thread of a watched process.
    Exit {
        /// Process id.
        pid: u32,
        /// Thread that was last.
        tid: u32,
        /// Wait status of the process.
        exit_code: i32,
        /// Zero.
        pad: u32,
        /// Start time of the group leader, ns since boot.
        start_boot_ns: u64,
    }
}

record! {
    /// `sched_process_exit` of the last thread of any process that is of interest.
    ///
    /// Sections: `VICTIM_PATH`, `VICTIM_DFL_PATH`, `SIGNALS`.
    Death {
        /// The process, without its memory; `tid` is the thread that was last.
        task: Task,
        /// Wait status of the process.
        exit_code: i32,
        /// `task_struct.seccomp.mode`: 0 none, 1 strict, 2 filter, 3 dying of it; `u32::MAX` if
        /// unknown.
        seccomp_mode: u32,
        /// `signal_struct.maxrss`, pages; `u64::MAX` if unknown.
        max_rss_pages: u64,
    }
}

/// How [`Sent::info`] came to `signal_generate`.
pub mod info {
    /// `SEND_SIG_NOINFO`: on behalf of current (`cgroup.kill`, a parent's death; on newer kernels,
    /// as 7.3, also `kill()`, which the system call tells).
    pub const NONE: u32 = 0;
    /// `SEND_SIG_PRIV`: by the kernel.
    pub const KERNEL: u32 = 1;
    /// A `kernel_siginfo`: `si_code` and what follows are from it.
    pub const GIVEN: u32 = 2;
}

/// Signals that ask a process to stop: what `docker stop` and the kubelet send unless the image
/// says otherwise (SIGTERM), and what images say (SIGINT, nginx SIGQUIT, httpd SIGWINCH, systemd
/// SIGRTMIN+3).
pub const STOP_SIGNALS: [i32; 5] = [15, 2, 3, 28, 37];

/// Key of a [`Sent`]: process id and signal.
pub const fn sent_key(pid: u32, signal: i32) -> u64 {
    (pid as u64) << 32 | signal.cast_unsigned() as u64
}

record! {
    /// A signal that was sent to a process, kept in a map by process id and signal until it ends.
    Sent {
        /// Start time of the target's group leader, ns since boot: pids are reused.
        target_start_boot_ns: u64,
        /// When, `CLOCK_BOOTTIME` ns.
        time_boot_ns: u64,
        /// `si_addr` of a fault, `si_call_addr` of a seccomp kill; else 0.
        address: u64,
        /// Number of the signal.
        signal: i32,
        /// `si_code`; 0 unless `info` is `GIVEN`.
        si_code: i32,
        /// `si_syscall` of a seccomp kill; else -1.
        syscall: i32,
        /// One of [`info`].
        info: u32,
        /// `TRACE_SIGNAL_*`: 0 delivered, 1 ignored, 4 delivered without its `kernel_siginfo`. Ignored
        /// are kept of requests to stop: the first process of a pid namespace ignores all that it has
        /// no handler for.
        result: u32,
        /// Number of the system call that current was in; -1 if it was in none, or the kernel does
        /// not tell (before 5.15).
        sender_syscall: i32,
        /// Current, without its memory.
        sender: Task,
    }
}

record! {
    /// `finish_task_reaping` or `skip_task_reaping`.
    Reap {
        /// Thread id of the victim.
        tid: u32,
        /// 1 finished, 2 skipped.
        stage: u32,
    }
}

record! {
    /// `cgroup_mkdir` or `cgroup_rmdir`. Section: `FULL_PATH`.
    CgroupChange {
        /// kernfs id.
        id: u64,
        /// Hierarchy; 0 is v2.
        hierarchy: u32,
        /// 1 created, 2 removed.
        change: u32,
    }
}

record! {
    /// Limit hits of one memory cgroup, kept in a map by its kernfs id.
    ///
    /// The counters are the kernel's own (`memory_events_local[]`), read at each hit that a hook
    /// saw: a hit that it missed is in them after the next.
    LimitTotals {
        /// `memory_events_local[MEMCG_MAX]`, as `max` in `memory.events.local`.
        max: u64,
        /// `memory_events_local[MEMCG_HIGH]`, likewise `high`.
        high: u64,
        /// `max` before the first hit that was seen.
        max_before: u64,
        /// `high` before the first hit that was seen.
        high_before: u64,
        /// First hit seen, `CLOCK_BOOTTIME` ns; 0 if none was.
        first_boot_ns: u64,
        /// Last hit seen.
        last_boot_ns: u64,
        /// Last hit a record was written for.
        record_boot_ns: u64,
        /// Process id of who hit it last.
        last_pid: u32,
        /// Thread id of who hit it last.
        last_tid: u32,
        /// Its `task_struct.comm`.
        last_comm: [u8; COMM_LEN],
    }
}

record! {
    /// A memory cgroup hit its own limit: written for the first hit that is seen and then at most
    /// once in [`crate::limits::LIMIT_RECORD_NS`].
    ///
    /// Section: `LIMIT_PATH`.
    LimitHit {
        /// kernfs id of the cgroup whose limit it is.
        memcg_id: u64,
        /// Its hierarchy; 0 is v2.
        hierarchy: u32,
        /// Zero.
        pad: u32,
        /// Usage of its `memory` counter, pages.
        usage_pages: u64,
        /// `memory.max`, pages; 2^51 and more is none.
        max_pages: u64,
        /// `memory.high`, likewise.
        high_pages: u64,
        /// Its counts, this hit included.
        totals: LimitTotals,
        /// Current. A kernel worker where the charge was made in an interrupt.
        trigger: Task,
    }
}

/// What a task waits for. Second part of [`StallKey`], index of the per-CPU totals of the node.
pub mod stall {
    /// Direct reclaim: the node is short of free pages.
    pub const DIRECT_RECLAIM: u32 = 0;
    /// Reclaim of a cgroup that is at its limit. Counted for that cgroup; for the task's own where
    /// no hook tells whose limit it is.
    pub const MEMCG_RECLAIM: u32 = 1;
    /// Over `memory.high`: sleep before the return to user mode. Reclaim there is
    /// [`MEMCG_RECLAIM`].
    pub const HIGH_THROTTLE: u32 = 2;
    /// Direct compaction: pages are moved to make a large one.
    pub const COMPACTION: u32 = 3;
    /// A page that had been reclaimed too early is read back, from swap or a file.
    pub const REFAULT_WAIT: u32 = 4;
    /// kswapd is awake: nobody waits, but the node is short of free pages. Only for the node; each
    /// round counts.
    pub const KSWAPD: u32 = 5;
    /// How many there are.
    pub const COUNT: u32 = 6;
}

record! {
    /// Whose stalls of which kind.
    StallKey {
        /// kernfs id of a memory cgroup.
        memcg_id: u64,
        /// One of [`stall`].
        kind: u32,
        /// Zero.
        pad: u32,
    }
}

record! {
    /// Stalls of one kind, of a memory cgroup or of the node.
    StallTotals {
        /// Time they took together, ns.
        total_ns: u64,
        /// The longest, ns.
        longest_ns: u64,
        /// Pages given back (reclaim only).
        reclaimed_pages: u64,
        /// Stalls by duration: element `i` counts those of 2^i µs to 2^(i+1) µs, the first also
        /// shorter ones, the last also longer ones.
        histogram: [u64; STALL_BUCKETS],
    }
}

record! {
    /// A stall that has begun, kept in a map by thread id (upper half) and [`stall`].
    Waiting {
        /// `CLOCK_BOOTTIME`, ns.
        since_boot_ns: u64,
        /// kernfs id of the memory cgroup whose limit it is; 0 if it is not known yet. For
        /// [`stall::REFAULT_WAIT`] the address that tells sections apart.
        memcg_id: u64,
    }
}

/// A number the kernel does not have, in those fields that say so.
pub const UNKNOWN: u32 = u32::MAX;

record! {
    /// An open descriptor of a socket, and what the socket holds. Sizes of buffers are "true sizes":
    /// with the memory around the data.
    HeldSocket {
        /// Address of the `sock`: the same for all descriptors of one socket.
        sock: u64,
        /// AF_UNIX: address of the `sock` that what is sent here is queued at; 0 without one.
        peer: u64,
        /// Address of the buffer that will be read next; 0 if there is none.
        oldest_skb: u64,
        /// Inode number of the socket.
        inode: u64,
        /// kernfs id of the cgroup that made it, on the v2 hierarchy; 0 if not known.
        cgroup_id: u64,
        /// When the process was started, ns since boot.
        start_boot_ns: u64,
        /// Pages of a TPACKET receive ring.
        rx_ring_pages: u64,
        /// Pages of a TPACKET send ring.
        tx_ring_pages: u64,
        /// Process id.
        pid: u32,
        /// Number of the descriptor.
        fd: u32,
        /// Inode number of the network namespace.
        netns: u32,
        /// Buffers received and not read; UDP: with those that a reader has set aside.
        receive_skbs: u32,
        /// Buffers to be sent.
        write_skbs: u32,
        /// Buffers with errors and time stamps.
        error_skbs: u32,
        /// Received and not read, bytes.
        rmem_bytes: u32,
        /// Received while the socket was locked, bytes.
        backlog_bytes: u32,
        /// Sent and not freed, bytes. AF_UNIX: it is in the queue of the peer.
        wmem_bytes: u32,
        /// TCP: not sent or not acknowledged, bytes.
        wmem_queued_bytes: u32,
        /// Most that may be received and not read, bytes.
        rcvbuf_bytes: u32,
        /// Most that may be sent and not freed, bytes.
        sndbuf_bytes: u32,
        /// Packets or messages dropped for want of room, or [`UNKNOWN`].
        drops: u32,
        /// Listening: connections that wait to be accepted.
        ack_backlog: u32,
        /// TCP: sequence number up to which it was read, or [`UNKNOWN`].
        copied_seq: u32,
        /// AF_PACKET: index of the interface, 0 for all. AF_NETLINK: port id.
        number: u32,
        /// `AF_*`.
        family: u16,
        /// `SOCK_*`.
        kind: u16,
        /// `IPPROTO_*`, `NETLINK_*`; AF_PACKET: `ETH_P_*`.
        protocol: u16,
        /// Local port.
        local_port: u16,
        /// Remote port.
        remote_port: u16,
        /// `TCP_*` (include/net/tcp_states.h).
        state: u8,
        /// TCP: how often the oldest unacknowledged segment was sent again.
        retransmits: u8,
        /// TCP: probes of a closed window that nobody answered.
        probes_out: u8,
        /// TCP: how often the timer was doubled.
        backoff: u8,
        /// Zero.
        pad: u16,
        /// Local address; IPv4 in the first four bytes.
        local: [u8; 16],
        /// Remote address.
        remote: [u8; 16],
        /// Name of the process.
        comm: [u8; COMM_LEN],
    }
}

// SAFETY: `repr(C)`, holds only integers and has no padding (bytemuck checks that).
#[cfg(feature = "user")]
unsafe impl aya::Pod for LimitTotals {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Sent {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for StallKey {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for StallTotals {}
