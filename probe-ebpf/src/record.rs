//! Putting a record together in a scratch buffer and sending it.

use core::{
    mem::{offset_of, zeroed},
    ptr::{read_volatile, write},
};

use aya_ebpf::helpers::{
    bpf_get_smp_processor_id,
    generated::{bpf_ktime_get_boot_ns, bpf_ringbuf_output},
};
use aya_ebpf::maps::RingBuf;
use probe_common::{
    layout::ABSENT,
    limits::{
        CGROUP_NAME_LEN, CGROUP_PATH_LEN, MAX_CGROUP_DEPTH, MAX_LIMIT_LEVELS, MESSAGE_LEN,
        SCRATCH_LEN,
    },
    wire::{self, Header, LimitLevel, Loss, Section, VERSION, has, level, section},
};

use crate::{
    kernel::{Access, Cgroup, Kernfs, Memcg, Mm, Probed, Task, layout, read_str},
    maps::{SCRATCH, Slot, lost},
};

/// Where a section may start: the first half of the buffer.
const START_MASK: usize = SCRATCH_LEN / 2 - 1;

/// A record under construction.
pub struct Record {
    buffer: *mut u8,
    length: usize,
}

/// The value, with the compiler kept from knowing anything about it: the verifier then sees the
/// mask that proves a write in bounds.
#[inline(always)]
fn opaque(value: usize) -> usize {
    // SAFETY: a local.
    unsafe { read_volatile(&raw const value) }
}

impl Record {
    /// Starts a record whose fixed part is a zeroed `T`.
    #[inline(always)]
    pub fn new<T>(slot: Slot, kind: u16, source: u32) -> Option<(Self, &'static mut T)> {
        let buffer = SCRATCH.get_ptr_mut(slot as u32)?.cast::<u8>();
        // SAFETY: the buffer is far larger than header and fixed part, 8-byte aligned, and this
        // CPU's own while the program runs; all-zero is a valid `T` (integers only).
        let body = unsafe {
            write(
                buffer.cast::<Header>(),
                Header {
                    version: VERSION,
                    kind,
                    len: 0,
                    time_boot_ns: bpf_ktime_get_boot_ns(),
                    cpu: bpf_get_smp_processor_id(),
                    source,
                },
            );
            let body = buffer.add(size_of::<Header>()).cast::<T>();
            write(body, zeroed());
            &mut *body
        };
        Some((Self { buffer, length: size_of::<Header>() + size_of::<T>() }, body))
    }

    /// Where the next section starts, if it still may.
    #[inline(always)]
    fn next(&self) -> Option<*mut u8> {
        if self.length > START_MASK {
            return None;
        }
        // SAFETY: masked into the first half of the buffer.
        Some(unsafe { self.buffer.add(opaque(self.length) & START_MASK) })
    }

    /// Ends a section of `length` bytes that was written after [`Self::next`].
    #[inline(always)]
    fn end_section(&mut self, start: *mut u8, tag: u16, length: usize, truncated: bool) {
        // SAFETY: `start` leaves half of the buffer.
        unsafe {
            write(
                start.cast::<Section>(),
                Section { tag, truncated: u16::from(truncated), len: length as u32 },
            );
        }
        self.length += (size_of::<Section>() + length + 7) & !7;
    }

    /// Names of a cgroup and its ancestors, leaf first, each with its NUL; the root has none.
    #[inline(always)]
    pub fn path<A: Access>(&mut self, tag: u16, leaf: Option<Kernfs<A>>) {
        let Some(start) = self.next() else { return };
        let (mut node, mut length, mut truncated) = (leaf, 0usize, true);
        for _ in 0..MAX_CGROUP_DEPTH {
            let Some(this) = node else {
                truncated = false;
                break;
            };
            if length > CGROUP_PATH_LEN - CGROUP_NAME_LEN {
                break;
            }
            node = this.parent();
            if node.is_none() {
                truncated = false;
                break;
            }
            // SAFETY: header, path and one more name are less than half of the buffer.
            let room = unsafe {
                start.add(size_of::<Section>() + (opaque(length) & (CGROUP_PATH_LEN - 1)))
            };
            // SAFETY: as above.
            match unsafe { this.read_name(room, CGROUP_NAME_LEN as u32) } {
                Some(written) => length += written,
                None => {
                    lost(Loss::ReadFailed);
                    break;
                }
            }
        }
        self.end_section(start, tag, length, truncated);
    }

    /// Page counters of `memcg` and its ancestors.
    #[inline(always)]
    pub fn limit_levels(&mut self, memcg: Option<Memcg<Probed>>) {
        let Some(start) = self.next() else { return };
        let (mut memcg, mut count) = (memcg, 0usize);
        for index in 0..MAX_LIMIT_LEVELS {
            let Some(this) = memcg else { break };
            // SAFETY: header and all levels are less than half of the buffer.
            let entry = unsafe {
                start.add(size_of::<Section>() + index * size_of::<LimitLevel>()).cast()
            };
            limit_level(this, entry);
            count = index + 1;
            memcg = this.parent();
        }
        let length = count * size_of::<LimitLevel>();
        self.end_section(start, section::LIMIT_LEVELS, length, memcg.is_some());
    }

    /// A NUL-ended kernel string of at most `room` bytes, NUL included.
    #[inline(always)]
    pub fn string(&mut self, tag: u16, room: usize, source: *const u8) {
        let Some(start) = self.next() else { return };
        // SAFETY: `room` is a constant smaller than half of the buffer.
        let written =
            unsafe { read_str(start.add(size_of::<Section>()), room as u32, source) };
        if let Some(written) = written {
            self.end_section(start, tag, written - 1, written == room);
        }
    }

    /// The kernel's message for a kill.
    #[inline(always)]
    pub fn message(&mut self, message: *const u8) {
        self.string(section::MESSAGE, MESSAGE_LEN, message);
    }

    /// A section that `fill` writes: given room for `room` bytes, it returns how many it used.
    #[inline(always)]
    pub fn filled(&mut self, tag: u16, room: usize, fill: impl FnOnce(*mut u8, u32) -> i64) {
        let Some(start) = self.next() else { return };
        // SAFETY: `room` is a constant smaller than half of the buffer.
        let used = fill(unsafe { start.add(size_of::<Section>()) }, room as u32);
        if used > 0 && used <= room as i64 {
            self.end_section(start, tag, used as usize, used == room as i64);
        }
    }

    /// Sends the record, or counts it as lost.
    #[inline(always)]
    pub fn send(self, ring: &'static RingBuf, full: Loss) {
        let length = opaque(self.length) & (SCRATCH_LEN - 1);
        // SAFETY: the buffer is longer than the mask allows; a `RingBuf` is its map definition.
        let failed = unsafe {
            write(self.buffer.add(offset_of!(Header, len)).cast::<u32>(), length as u32);
            bpf_ringbuf_output(
                core::ptr::from_ref(ring).cast_mut().cast(),
                self.buffer.cast(),
                length as u64,
                0,
            )
        };
        if failed != 0 {
            lost(full);
        }
    }
}

/// Describes `task` in `out`, which is zeroed.
///
/// Each value is stored as soon as it is read: an `Option` of a number kept over a helper call
/// would have an uninitialised half.
#[inline(always)]
pub fn describe<A: Access>(task: Task<A>, out: &mut wire::Task) {
    describe_ids(task, out);
    let Some(mm) = task.mm().or_else(|| task.signal()?.oom_mm()) else { return };
    out.mm = mm.address() as u64;
    out.pgtables_bytes = mm.pgtables_bytes().unwrap_or(0);
    out.total_vm_pages = mm.total_vm().unwrap_or(0);
    let mut all = has::MM | has::RSS_EXACT;
    all &= rss(mm, layout!(MM_ANONPAGES), &mut out.rss_anon_pages);
    all &= rss(mm, layout!(MM_FILEPAGES), &mut out.rss_file_pages);
    all &= rss(mm, layout!(MM_SHMEMPAGES), &mut out.rss_shmem_pages);
    all &= rss(mm, layout!(MM_SWAPENTS), &mut out.swap_pages);
    out.has |= all;
}

/// Stores one rss counter; the bits of [`has`] that are still true.
#[inline(always)]
fn rss<A: Access>(mm: Mm<A>, item: u32, out: &mut i64) -> u32 {
    match mm.rss(item) {
        Some((pages, exact)) => {
            *out = pages;
            if exact { has::MM | has::RSS_EXACT } else { has::MM }
        }
        None => 0,
    }
}

/// Describes who `task` is, without its memory.
#[inline(always)]
pub fn describe_ids<A: Access>(task: Task<A>, out: &mut wire::Task) {
    out.tid = task.pid().unwrap_or(0) as u32;
    out.pid = task.tgid().unwrap_or(0) as u32;
    out.flags = task.flags().unwrap_or(0);
    if task.comm(&mut out.comm) && out.pid != 0 {
        out.has |= has::TASK;
    }
    if let Some(leader) = task.group_leader() {
        out.start_boot_ns = leader.start_boottime().unwrap_or(0);
        if let Some(pid) = leader.thread_pid() {
            out.ns_level = pid.level().unwrap_or(0);
            out.ns_pid = pid.number(out.ns_level).unwrap_or(0) as u32;
            if out.ns_pid != 0 {
                out.has |= has::NS_PID;
            }
        }
    }
    if let Some(parent) = task.real_parent() {
        out.ppid = parent.tgid().unwrap_or(0) as u32;
    }
    if let Some(uid) = task.cred().and_then(|cred| cred.uid()) {
        out.uid = uid;
        out.has |= has::CRED;
    }
    if let Some(signal) = task.signal() {
        if let Some(adj) = signal.oom_score_adj() {
            out.oom_score_adj = i32::from(adj);
            out.threads = signal.nr_threads().unwrap_or(0) as u32;
            out.has |= has::SIGNAL;
        }
    }
    if let Some(id) = memory_kernfs(task).and_then(Kernfs::id) {
        out.memcg_id = id;
        out.has |= has::MEMCG;
    }
    if let Some(id) = task.dfl_cgroup().and_then(Cgroup::kn).and_then(Kernfs::id) {
        out.dfl_cgroup_id = id;
        out.has |= has::DFL_CGROUP;
    }
}

/// The directory of the task's memory cgroup.
#[inline(always)]
pub fn memory_kernfs<A: Access>(task: Task<A>) -> Option<Kernfs<A>> {
    task.memory_css()?.cgroup()?.kn()
}

/// The directory of the task's v2 cgroup, if its memory cgroup is on another hierarchy.
#[inline(always)]
pub fn other_dfl_kernfs<A: Access>(task: Task<A>) -> Option<Kernfs<A>> {
    if task.memory_css()?.cgroup()?.hierarchy_id()? == 0 {
        return None;
    }
    task.dfl_cgroup()?.kn()
}

/// Describes one memcg in `out`, which is inside the buffer but not zeroed.
#[inline(always)]
fn limit_level(memcg: Memcg<Probed>, out: *mut LimitLevel) {
    let (memory, swap) = (layout!(mem_cgroup__memory), layout!(mem_cgroup__swap));
    let (usage, max) = (layout!(page_counter__usage), layout!(page_counter__max));
    let watermark = layout!(page_counter__watermark);
    let local_oom = layout!(mem_cgroup__local_oom);
    let local_max = layout!(mem_cgroup__local_max);
    let local_oom_kill = layout!(mem_cgroup__local_oom_kill);
    let mut flags = 0u64;
    if local_oom != ABSENT {
        flags |= level::HAS_LOCAL_EVENTS;
    }
    if swap != ABSENT {
        flags |= level::HAS_SWAP;
    }
    if layout!(mem_cgroup__oom_lock) != ABSENT {
        flags |= level::HAS_OOM_LOCK;
        if memcg.field::<u8>(layout!(mem_cgroup__oom_lock)).unwrap_or(0) != 0 {
            flags |= level::OOM_LOCK;
        }
    }
    if layout!(mem_cgroup__under_oom) != ABSENT {
        flags |= level::HAS_UNDER_OOM;
        if memcg.field::<i32>(layout!(mem_cgroup__under_oom)).unwrap_or(0) > 0 {
            flags |= level::UNDER_OOM;
        }
    }
    if memcg.field::<u8>(layout!(mem_cgroup__oom_group)).unwrap_or(0) != 0 {
        flags |= level::OOM_GROUP;
    }
    // SAFETY: the caller's entry is that large and inside the buffer.
    unsafe {
        (*out).id = memcg.cgroup().and_then(Cgroup::kn).and_then(Kernfs::id).unwrap_or(0);
        (*out).usage_pages = memcg.page_counter(memory, usage).unwrap_or(0);
        (*out).max_pages = memcg.page_counter(memory, max).unwrap_or(u64::MAX);
        (*out).watermark_pages = memcg.page_counter(memory, watermark).unwrap_or(0);
        (*out).swap_pages = memcg.page_counter(swap, usage).unwrap_or(0);
        (*out).swap_max_pages = memcg.page_counter(swap, max).unwrap_or(u64::MAX);
        (*out).local_oom = memcg.field(local_oom).unwrap_or(0);
        (*out).local_max = memcg.field(local_max).unwrap_or(0);
        (*out).local_oom_kill = memcg.field(local_oom_kill).unwrap_or(0);
        (*out).flags = flags;
    }
}
