//! Putting a record together in a scratch buffer and sending it.

use core::{
    mem::zeroed,
    ptr::{read_volatile, write, write_volatile},
};

use aya_ebpf::helpers::{
    bpf_get_smp_processor_id,
    generated::{
        bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_probe_read_user, bpf_ringbuf_output,
    },
};
use aya_ebpf::maps::RingBuf;
use probe_common::{
    layout::ABSENT,
    limits::{
        ARGUMENTS_LEN, CGROUP_NAME_LEN, CGROUP_PATH_LEN, MAX_CGROUP_DEPTH, MAX_LIMIT_LEVELS,
        MESSAGE_LEN, SCRATCH_LEN,
    },
    wire::{self, Header, LimitLevel, Loss, Section, VERSION, has, level, section},
};

use crate::{
    kernel::{Access, Cgroup, Kernfs, Memcg, Probed, Task, layout, read_str, rss_is_exact},
    maps::{SCRATCH, Slot, lost},
};

/// Where a section may start: the first half of the buffer.
const START_MASK: usize = SCRATCH_LEN / 2 - 1;

/// A record under construction.
///
/// All that varies while it grows, lengths and flags, is kept in the buffer itself and read back
/// when it is needed. What comes from a map is any number to the verifier, so however a section
/// came about, the program goes on in one and the same state: kept in registers, every way through
/// one section would be walked again for every way through the next.
#[derive(Clone, Copy)]
pub struct Record {
    buffer: *mut u8,
}

/// A section under construction.
#[derive(Clone, Copy)]
pub struct Writer {
    start: *mut Section,
}

impl Writer {
    /// Where the content goes: half of the buffer, less this header, is behind it.
    #[inline(always)]
    fn content(self) -> *mut u8 {
        // SAFETY: a section starts in the first half of the buffer.
        unsafe { self.start.add(1).cast() }
    }

    #[inline(always)]
    fn length(self) -> usize {
        // SAFETY: inside the buffer.
        unsafe { read_volatile(&raw const (*self.start).len) as usize }
    }

    #[inline(always)]
    fn set(self, length: usize, truncated: bool) {
        // SAFETY: inside the buffer.
        unsafe {
            write_volatile(&raw mut (*self.start).len, length as u32);
            write_volatile(&raw mut (*self.start).truncated, u16::from(truncated));
        }
    }

    /// Appends a copy of `value`, of which the section holds no more than `most`.
    ///
    /// # Safety
    /// `value` may be read.
    #[inline(always)]
    pub unsafe fn push<T>(self, most: usize, value: *const T) {
        const { assert!(size_of::<T>() <= SCRATCH_LEN / 8) };
        let length = self.length();
        if length >= most * size_of::<T>() {
            self.set(length, true);
            return;
        }
        // SAFETY: what may precede the value and the value itself are less than half of the buffer.
        // The helper copies, as the compiler would word by word.
        unsafe {
            let place = self.content().add(length & (SCRATCH_LEN / 4 - 1));
            bpf_probe_read_kernel(place.cast(), size_of::<T>() as u32, value.cast());
        }
        self.set(length + size_of::<T>(), false);
    }
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
                    len: (size_of::<Header>() + size_of::<T>()) as u32,
                    time_boot_ns: bpf_ktime_get_boot_ns(),
                    cpu: bpf_get_smp_processor_id(),
                    source,
                },
            );
            let body = buffer.add(size_of::<Header>()).cast::<T>();
            write(body, zeroed());
            &mut *body
        };
        Some((Self { buffer }, body))
    }

    #[inline(always)]
    fn length(self) -> usize {
        // SAFETY: the buffer starts with a header.
        unsafe { read_volatile(&raw const (*self.buffer.cast::<Header>()).len) as usize }
    }

    /// Starts a section, if there is still room for one.
    #[inline(always)]
    pub fn begin(self, tag: u16) -> Option<Writer> {
        let length = self.length();
        if length > START_MASK {
            return None;
        }
        // SAFETY: masked into the first half of the buffer.
        let start = unsafe { self.buffer.add(length & START_MASK).cast::<Section>() };
        // SAFETY: as above.
        unsafe {
            write(
                start,
                Section {
                    tag,
                    truncated: 0,
                    len: 0,
                },
            )
        };
        Some(Writer { start })
    }

    /// Makes the section part of the record.
    #[inline(always)]
    pub fn end(self, section: Writer) {
        let length = self.length() + ((size_of::<Section>() + section.length() + 7) & !7);
        // SAFETY: the buffer starts with a header.
        unsafe {
            write_volatile(&raw mut (*self.buffer.cast::<Header>()).len, length as u32);
        }
    }

    /// Names of a cgroup and its ancestors, leaf first, each with its NUL; the root has none.
    #[inline(always)]
    pub fn path<A: Access>(self, tag: u16, leaf: Option<Kernfs<A>>) {
        let Some(section) = self.begin(tag) else {
            return;
        };
        section.set(0, true);
        let mut node = leaf;
        for _ in 0..MAX_CGROUP_DEPTH {
            let Some(this) = node else { break };
            let length = section.length();
            node = this.parent();
            if node.is_none() {
                section.set(length, false);
                break;
            }
            if length > CGROUP_PATH_LEN - CGROUP_NAME_LEN {
                break;
            }
            // SAFETY: header, path and one more name are less than half of the buffer.
            let written = unsafe {
                let room = section.content().add(length & (CGROUP_PATH_LEN - 1));
                this.read_name(room, CGROUP_NAME_LEN as u32)
            };
            if written <= 0 {
                lost(Loss::ReadFailed);
                break;
            }
            section.set(length + written as usize, true);
        }
        self.end(section);
    }

    /// Page counters of `memcg` and its ancestors.
    #[inline(always)]
    pub fn limit_levels(self, memcg: Option<Memcg<Probed>>) {
        let Some(section) = self.begin(section::LIMIT_LEVELS) else {
            return;
        };
        let mut memcg = memcg;
        for index in 0..MAX_LIMIT_LEVELS {
            let Some(this) = memcg else { break };
            // SAFETY: header and all levels are less than half of the buffer.
            limit_level(this, unsafe {
                section.content().cast::<LimitLevel>().add(index)
            });
            memcg = this.parent();
            section.set((index + 1) * size_of::<LimitLevel>(), memcg.is_some());
        }
        self.end(section);
    }

    /// A NUL-ended kernel string of at most `room` bytes, NUL included.
    #[inline(always)]
    pub fn string(self, tag: u16, room: usize, source: *const u8) {
        self.filled(tag, room, |content, size| {
            // SAFETY: `content` is `size` bytes.
            let written = unsafe { read_str(content, size, source) };
            written.saturating_sub(1)
        });
    }

    /// The kernel's message for a kill.
    #[inline(always)]
    pub fn message(self, message: *const u8) {
        self.string(section::MESSAGE, MESSAGE_LEN, message);
    }

    /// A section that `fill` writes: given room for `room` bytes, it returns how many it used.
    #[inline(always)]
    pub fn filled(self, tag: u16, room: usize, fill: impl FnOnce(*mut u8, u32) -> i64) {
        let Some(section) = self.begin(tag) else {
            return;
        };
        let used = fill(section.content(), room as u32);
        if used > 0 && used <= room as i64 {
            section.set(used as usize, used >= room as i64 - 1);
            self.end(section);
        }
    }

    /// Arguments of `victim`, if current has the same memory: the daemon would wait for the
    /// victim's lock, which the kernel holds until its report is on the console.
    #[inline(always)]
    pub fn arguments<A: Access>(self, victim: Option<Task<A>>, current: Option<Task<Probed>>) {
        let Some(mm) = victim.and_then(Task::mm) else {
            return;
        };
        let own = current.and_then(Task::mm);
        if own.is_none_or(|own| own.address() != mm.address()) {
            return;
        }
        let (Some(start), Some(end)) = (mm.arg_start(), mm.arg_end()) else {
            return;
        };
        self.filled(section::ARGUMENTS, ARGUMENTS_LEN, |room, size| {
            let most = u64::from(size) - 1;
            let length = end.wrapping_sub(start).min(most) & most;
            // SAFETY: `room` is `size` bytes; the source may be anything.
            let failed =
                unsafe { bpf_probe_read_user(room.cast(), length as u32, start as *const _) };
            if failed == 0 { length as i64 } else { 0 }
        });
    }

    /// Sends the record, or counts it as lost.
    #[inline(always)]
    pub fn send(self, ring: &'static RingBuf, full: Loss) {
        self.send_waking(ring, full, 0);
    }

    /// The same; `wakeup` is 0 or one of `BPF_RB_*_WAKEUP` (include/uapi/linux/bpf.h).
    #[inline(always)]
    pub fn send_waking(self, ring: &'static RingBuf, full: Loss, wakeup: u64) {
        let length = self.length() & (SCRATCH_LEN - 1);
        // SAFETY: the buffer is longer than the mask allows; a `RingBuf` is its map definition.
        let failed = unsafe {
            bpf_ringbuf_output(
                core::ptr::from_ref(ring).cast_mut().cast(),
                self.buffer.cast(),
                length as u64,
                wakeup,
            )
        };
        if failed != 0 {
            lost(full);
        }
    }
}

/// Describes `task` in `out`, which is zeroed.
#[inline(always)]
pub fn describe<A: Access>(task: Task<A>, out: &mut wire::Task) {
    describe_ids(task, out);
    let Some(mm) = task.mm().or_else(|| task.signal()?.oom_mm()) else {
        return;
    };
    out.mm = mm.address() as u64;
    out.pgtables_bytes = mm.pgtables_bytes().unwrap_or(0);
    out.total_vm_pages = mm.total_vm().unwrap_or(0);
    out.rss_anon_pages = mm.rss(layout!(MM_ANONPAGES));
    out.rss_file_pages = mm.rss(layout!(MM_FILEPAGES));
    out.rss_shmem_pages = mm.rss(layout!(MM_SHMEMPAGES));
    out.swap_pages = mm.rss(layout!(MM_SWAPENTS));
    out.has |= has::MM;
    if rss_is_exact() {
        out.has |= has::RSS_EXACT;
    }
}

/// Describes who `task` is, without its memory.
#[inline(always)]
pub fn describe_ids<A: Access>(task: Task<A>, out: &mut wire::Task) {
    out.tid = task.pid().unwrap_or(0) as u32;
    out.pid = task.tgid().unwrap_or(0) as u32;
    out.flags = task.flags().unwrap_or(0);
    task.comm(&mut out.comm);
    out.has |= has::TASK;
    if let Some(leader) = task.group_leader() {
        out.start_boot_ns = leader.start_boottime().unwrap_or(0);
        if let Some(pid) = leader.thread_pid() {
            out.ns_level = pid.level().unwrap_or(0);
            out.ns_pid = pid.number(out.ns_level).unwrap_or(0) as u32;
            out.has |= has::NS_PID;
        }
    }
    if let Some(parent) = task.real_parent() {
        out.ppid = parent.tgid().unwrap_or(0) as u32;
        parent.comm(&mut out.parent_comm);
    }
    if let Some(uid) = task.cred().and_then(|cred| cred.uid()) {
        out.uid = uid;
        out.has |= has::CRED;
    }
    if let Some(signal) = task.signal()
        && let Some(adj) = signal.oom_score_adj()
    {
        out.oom_score_adj = i32::from(adj);
        out.threads = signal.nr_threads().unwrap_or(0) as u32;
        out.has |= has::SIGNAL;
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
        let locked = memcg
            .field::<u8>(layout!(mem_cgroup__oom_lock))
            .unwrap_or(0);
        flags |= level::OOM_LOCK * u64::from(locked != 0);
    }
    if layout!(mem_cgroup__under_oom) != ABSENT {
        flags |= level::HAS_UNDER_OOM;
        let under = memcg
            .field::<i32>(layout!(mem_cgroup__under_oom))
            .unwrap_or(0);
        flags |= level::UNDER_OOM * u64::from(under > 0);
    }
    let group = memcg
        .field::<u8>(layout!(mem_cgroup__oom_group))
        .unwrap_or(0);
    flags |= level::OOM_GROUP * u64::from(group != 0);
    // SAFETY: the caller's entry is that large and inside the buffer.
    unsafe {
        (*out).id = memcg
            .cgroup()
            .and_then(Cgroup::kn)
            .and_then(Kernfs::id)
            .unwrap_or(0);
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
