//! Reading kernel structures: the only file that knows offsets and pointers.
//!
//! Getters are named as the kernel's members. Each returns `None` for a member this kernel lacks or
//! a null pointer, and 0 if the read fails. How memory is read is a type parameter: programs that the
//! verifier gives typed pointers to use [`Typed`], all others [`Probed`].

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::{NonNull, read_volatile},
};

use aya_ebpf::{
    bindings::task_struct,
    helpers::{
        bpf_get_current_task,
        generated::{
            bpf_get_current_task_btf, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
            bpf_task_pt_regs,
        },
    },
};
use probe_common::{
    layout::{ABSENT, KernelLayout},
    limits::{COMM_LEN, MAX_RSS_CPUS},
};

use crate::maps::{CPUS, SETTINGS};

/// One field of [`crate::maps::LAYOUT`]: volatile, so that the compiler leaves it to the verifier, which knows
/// the frozen value.
macro_rules! layout {
    ($field:ident) => {{
        // SAFETY: a field of a static; the frozen map behind it is as large as the struct.
        let offset: u32 =
            unsafe { core::ptr::read_volatile(&raw const crate::maps::LAYOUT.$field) };
        offset
    }};
}
pub(crate) use layout;

const _: () = assert!(size_of::<KernelLayout>().is_multiple_of(4));

/// `task_struct.flags` (include/linux/sched.h): threads of the kernel, and those that work for
/// `io_uring`.
const PF_KTHREAD: u32 = 0x0020_0000;
const PF_IO_WORKER: u32 = 0x10;

/// How kernel memory is read.
pub trait Access: Copy {
    /// The value at `address`, zero if it cannot be read. Without a branch: every branch that does
    /// not matter doubles what the verifier has to walk.
    ///
    /// # Safety
    /// `T` is an integer or pointer type, for which zero is a value; for [`Typed`] the verifier
    /// must know the pointer.
    unsafe fn load<T: Copy>(address: *const u8) -> T;
}

/// Plain loads through pointers whose type the verifier tracks: it checks the offset against its
/// own BTF and a fault reads 0.
#[derive(Clone, Copy)]
pub struct Typed;

/// `bpf_probe_read_kernel`: any address.
#[derive(Clone, Copy)]
pub struct Probed;

impl Access for Typed {
    #[inline(always)]
    unsafe fn load<T: Copy>(address: *const u8) -> T {
        // SAFETY: the verifier accepts the load or refuses the program.
        unsafe { read_volatile(address.cast::<T>()) }
    }
}

impl Access for Probed {
    #[inline(always)]
    unsafe fn load<T: Copy>(address: *const u8) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the destination is `size_of::<T>()` bytes of stack, which the helper fills with
        // zeroes if it fails; the source may be anything.
        unsafe {
            bpf_probe_read_kernel(
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                address.cast(),
            );
            value.assume_init()
        }
    }
}

macro_rules! pointer {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy)]
            pub struct $name<A>(NonNull<u8>, PhantomData<A>);

            impl<A: Access> $name<A> {
                /// Wraps a pointer; `None` if it is null.
                ///
                /// An `Option` of it is the pointer itself, so that a value kept over a helper
                /// call is always initialised, as the verifier demands. And the test for null
                /// comes before any load: the compiler takes a load as proof that a pointer is
                /// not null and would drop a later test.
                #[inline(always)]
                #[allow(dead_code, reason = "some are parts of others, and never null")]
                pub fn new(pointer: *const u8) -> Option<Self> {
                    Some(Self(NonNull::new(pointer.cast_mut())?, PhantomData))
                }

                /// The member at `offset`.
                #[inline(always)]
                #[allow(dead_code, reason = "not every structure has plain members")]
                fn get<T: Copy>(self, offset: u32) -> Option<T> {
                    if offset == ABSENT {
                        return None;
                    }
                    // SAFETY: not null; the offset is the kernel's own.
                    Some(unsafe { A::load(self.address().add(offset as usize)) })
                }

                /// Its address.
                #[inline(always)]
                #[allow(dead_code, reason = "not every structure is passed on")]
                pub fn address(self) -> *const u8 {
                    self.0.as_ptr()
                }
            }
        )*
    };
}

pointer! {
    /// `struct task_struct`.
    Task,
    /// `struct signal_struct`.
    Signal,
    /// `struct kernel_siginfo`.
    Siginfo,
    /// `struct mm_struct`.
    Mm,
    /// `struct cred`.
    Cred,
    /// `struct pid`.
    Pid,
    /// `struct css_set`.
    CssSet,
    /// `struct cgroup_subsys_state`.
    Css,
    /// `struct cgroup`.
    Cgroup,
    /// `struct cgroup_root`.
    CgroupRoot,
    /// `struct kernfs_node`.
    Kernfs,
    /// `struct oom_control`.
    OomControl,
    /// `struct mem_cgroup`. Reached from its embedded css by arithmetic, which typed pointers do
    /// not allow: always [`Probed`].
    Memcg,
}

mod sock;
pub use sock::{File, Sock};

impl Task<Probed> {
    /// The task this program runs in.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        // SAFETY: the helper has no preconditions.
        Self::new(unsafe { bpf_get_current_task() } as *const u8)
    }
    /// Number of the system call that current is in; `None` where it is in none.
    #[inline(always)]
    pub fn current_syscall() -> Option<i32> {
        let syscall = layout!(pt_regs__syscall);
        // Verifiers that do not know the helpers find no call of them.
        if layout!(BPF_FUNC_task_pt_regs) == ABSENT || syscall == ABSENT {
            return None;
        }
        // What looks like registers of a kernel thread never came from user mode.
        if Self::current()?.flags()? & (PF_KTHREAD | PF_IO_WORKER) != 0 {
            return None;
        }
        // SAFETY: the helpers take current as it comes; any address may be probed.
        let number: i32 = unsafe {
            let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8;
            Probed::load(registers.wrapping_add(syscall as usize))
        };
        (number >= 0).then_some(number)
    }
}

impl<A: Access> Task<A> {
    #[inline(always)]
    pub fn from_arg(pointer: *const task_struct) -> Option<Self> {
        Self::new(pointer.cast())
    }
    /// The same task, read another way.
    #[inline(always)]
    pub fn probed(self) -> Option<Task<Probed>> {
        Task::new(self.address())
    }
    #[inline(always)]
    pub fn pid(self) -> Option<i32> {
        self.get(layout!(task_struct__pid))
    }
    #[inline(always)]
    pub fn tgid(self) -> Option<i32> {
        self.get(layout!(task_struct__tgid))
    }
    #[inline(always)]
    pub fn flags(self) -> Option<u32> {
        self.get(layout!(task_struct__flags))
    }
    #[inline(always)]
    pub fn start_boottime(self) -> Option<u64> {
        self.get(layout!(task_struct__start_boottime))
    }
    #[inline(always)]
    pub fn exit_code(self) -> Option<i32> {
        self.get(layout!(task_struct__exit_code))
    }
    /// Copies the name to `out`. Always probed: a typed load may not be wider than a word.
    #[inline(always)]
    pub fn comm(self, out: &mut [u8; COMM_LEN]) {
        let comm = layout!(task_struct__comm);
        if comm == ABSENT {
            return;
        }
        // SAFETY: the destination is that large; the source may be anything.
        unsafe {
            let source = self.address().add(comm as usize);
            bpf_probe_read_kernel(out.as_mut_ptr().cast(), COMM_LEN as u32, source.cast());
        }
    }
    #[inline(always)]
    pub fn mm(self) -> Option<Mm<A>> {
        Mm::new(self.get(layout!(task_struct__mm))?)
    }
    #[inline(always)]
    pub fn signal(self) -> Option<Signal<A>> {
        Signal::new(self.get(layout!(task_struct__signal))?)
    }
    #[inline(always)]
    pub fn cred(self) -> Option<Cred<A>> {
        Cred::new(self.get(layout!(task_struct__cred))?)
    }
    #[inline(always)]
    pub fn group_leader(self) -> Option<Self> {
        Self::new(self.get(layout!(task_struct__group_leader))?)
    }
    #[inline(always)]
    pub fn real_parent(self) -> Option<Self> {
        Self::new(self.get(layout!(task_struct__real_parent))?)
    }
    /// Always probed: which of its numbers counts is variable, and arithmetic with a variable is
    /// not allowed on typed pointers (5.10 says so at load).
    #[inline(always)]
    pub fn thread_pid(self) -> Option<Pid<Probed>> {
        let offset = layout!(task_struct__thread_pid);
        if offset == ABSENT {
            return None;
        }
        // SAFETY: any address may be probed.
        Pid::new(unsafe { Probed::load(self.address().add(offset as usize)) })
    }
    /// Depth of its pid namespace; 0 is the node's.
    #[inline(always)]
    pub fn pid_level(self) -> Option<u32> {
        Pid::<A>::new(self.get(layout!(task_struct__thread_pid))?)?.get(layout!(pid__level))
    }
    #[inline(always)]
    fn cgroups(self) -> Option<CssSet<A>> {
        CssSet::new(self.get(layout!(task_struct__cgroups))?)
    }
    #[inline(always)]
    pub fn memcg_nr_pages_over_high(self) -> Option<u32> {
        self.get(layout!(task_struct__memcg_nr_pages_over_high))
    }
    #[inline(always)]
    pub fn seccomp_mode(self) -> Option<u32> {
        self.get(layout!(task_struct__seccomp_mode))
    }
    /// The memory controller's css of this task.
    #[inline(always)]
    pub fn memory_css(self) -> Option<Css<A>> {
        Css::new(self.cgroups()?.get(layout!(css_set__memory_css))?)
    }
    /// The cgroup on the v2 hierarchy.
    #[inline(always)]
    pub fn dfl_cgroup(self) -> Option<Cgroup<A>> {
        Cgroup::new(self.cgroups()?.get(layout!(css_set__dfl_cgrp))?)
    }
}

impl<A: Access> Signal<A> {
    #[inline(always)]
    pub fn live(self) -> Option<i32> {
        self.get(layout!(signal_struct__live))
    }
    #[inline(always)]
    pub fn nr_threads(self) -> Option<i32> {
        self.get(layout!(signal_struct__nr_threads))
    }
    #[inline(always)]
    pub fn group_exit_code(self) -> Option<i32> {
        self.get(layout!(signal_struct__group_exit_code))
    }
    #[inline(always)]
    pub fn flags(self) -> Option<u32> {
        self.get(layout!(signal_struct__flags))
    }
    #[inline(always)]
    pub fn maxrss(self) -> Option<u64> {
        self.get(layout!(signal_struct__maxrss))
    }
    #[inline(always)]
    pub fn oom_score_adj(self) -> Option<i16> {
        self.get(layout!(signal_struct__oom_score_adj))
    }
    #[inline(always)]
    pub fn oom_mm(self) -> Option<Mm<A>> {
        Mm::new(self.get(layout!(signal_struct__oom_mm))?)
    }
}

impl<A: Access> Siginfo<A> {
    #[inline(always)]
    pub fn si_code(self) -> Option<i32> {
        self.get(layout!(kernel_siginfo__si_code))
    }
    #[inline(always)]
    pub fn si_addr(self) -> Option<u64> {
        self.get(layout!(kernel_siginfo__si_addr))
    }
    #[inline(always)]
    pub fn si_call_addr(self) -> Option<u64> {
        self.get(layout!(kernel_siginfo__si_call_addr))
    }
    #[inline(always)]
    pub fn si_syscall(self) -> Option<i32> {
        self.get(layout!(kernel_siginfo__si_syscall))
    }
}

impl<A: Access> Cred<A> {
    #[inline(always)]
    pub fn uid(self) -> Option<u32> {
        self.get(layout!(cred__uid))
    }
}

impl Pid<Probed> {
    #[inline(always)]
    pub fn level(self) -> Option<u32> {
        self.get(layout!(pid__level))
    }
    /// The number in the namespace at `level`.
    #[inline(always)]
    pub fn number(self, level: u32) -> Option<i32> {
        let (numbers, stride, nr) = (
            layout!(pid__numbers),
            layout!(upid__size),
            layout!(upid__nr),
        );
        if numbers == ABSENT || stride == ABSENT || nr == ABSENT {
            return None;
        }
        let offset = u64::from(numbers) + u64::from(nr) + u64::from(level) * u64::from(stride);
        // SAFETY: any address may be probed.
        Some(unsafe { Probed::load((self.address() as u64).wrapping_add(offset) as *const u8) })
    }
}

impl<A: Access> Mm<A> {
    #[inline(always)]
    pub fn total_vm(self) -> Option<u64> {
        self.get(layout!(mm_struct__total_vm))
    }
    #[inline(always)]
    pub fn pgtables_bytes(self) -> Option<u64> {
        self.get(layout!(mm_struct__pgtables_bytes))
    }
    #[inline(always)]
    pub fn arg_start(self) -> Option<u64> {
        self.get(layout!(mm_struct__arg_start))
    }
    #[inline(always)]
    pub fn arg_end(self) -> Option<u64> {
        self.get(layout!(mm_struct__arg_end))
    }
    #[inline(always)]
    pub fn mm_users(self) -> Option<i32> {
        self.get(layout!(mm_struct__mm_users))
    }
    /// One rss counter, pages; 0 where this kernel's counters are unknown.
    ///
    /// Always probed: 5.10 and 6.1 refuse typed loads of `atomic_long_t` array elements.
    #[inline(always)]
    pub fn rss(self, item: u32) -> i64 {
        let (base, stride, count) = (
            layout!(mm_struct__rss_stat),
            layout!(rss_stat__stride),
            layout!(rss_stat__count),
        );
        if base == ABSENT || stride == ABSENT || count == ABSENT || item == ABSENT {
            return 0;
        }
        let counter =
            (self.address() as u64) + u64::from(base) + u64::from(item) * u64::from(stride);
        // SAFETY: any address may be probed.
        let sum: i64 = unsafe { Probed::load((counter + u64::from(count)) as *const u8) };
        let percpu = layout!(rss_stat__percpu);
        if percpu == ABSENT {
            return sum;
        }
        // SAFETY: as above.
        let deltas: u64 = unsafe { Probed::load((counter + u64::from(percpu)) as *const u8) };
        sum + percpu_sum(deltas)
    }
}

/// Where the kernel's per-CPU areas are; 0 if that is unknown or they are too many to add up.
#[inline(always)]
fn per_cpu_table() -> u64 {
    match SETTINGS.get(0) {
        Some(settings) if cpus() != 0 => settings.per_cpu_offset,
        _ => 0,
    }
}

#[inline(always)]
fn cpus() -> u32 {
    // SAFETY: a static; the frozen map behind it is as large.
    unsafe { read_volatile(&raw const CPUS) }
}

/// Whether [`Mm::rss`] gives all of it.
#[inline(always)]
pub fn rss_is_exact() -> bool {
    layout!(rss_stat__percpu) == ABSENT || per_cpu_table() != 0
}

/// Sum of a per-CPU `s32` over all CPUs, 0 where the kernel does not tell where they are.
///
/// A `percpu_counter` keeps up to `batch` per CPU out of its `count` (lib/percpu_counter.c).
#[inline(always)]
fn percpu_sum(variable: u64) -> i64 {
    let table = per_cpu_table();
    let mut sum = 0i64;
    if table == 0 {
        return sum;
    }
    let mut cpu = 0u32;
    while cpu < cpus() && cpu < MAX_RSS_CPUS {
        // SAFETY: any address may be probed.
        let delta: i32 = unsafe {
            let offset: u64 = Probed::load((table + u64::from(cpu) * 8) as *const u8);
            Probed::load(variable.wrapping_add(offset) as *const u8)
        };
        sum += i64::from(delta);
        cpu += 1;
    }
    sum
}

impl<A: Access> Css<A> {
    #[inline(always)]
    pub fn cgroup(self) -> Option<Cgroup<A>> {
        Cgroup::new(self.get(layout!(css__cgroup))?)
    }
    /// The memcg this css is part of.
    #[inline(always)]
    pub fn memcg(self) -> Option<Memcg<Probed>> {
        let css = layout!(mem_cgroup__css);
        if css == ABSENT {
            return None;
        }
        Memcg::new((self.address() as u64).wrapping_sub(u64::from(css)) as *const u8)
    }
}

impl<A: Access> Cgroup<A> {
    #[inline(always)]
    pub fn kn(self) -> Option<Kernfs<A>> {
        Kernfs::new(self.get(layout!(cgroup__kn))?)
    }
    #[inline(always)]
    pub fn hierarchy_id(self) -> Option<i32> {
        CgroupRoot::<A>::new(self.get(layout!(cgroup__root))?)?
            .get(layout!(cgroup_root__hierarchy_id))
    }
}

impl<A: Access> Kernfs<A> {
    #[inline(always)]
    pub fn id(self) -> Option<u64> {
        self.get(layout!(kernfs_node__id))
    }
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        Self::new(self.get(layout!(kernfs_node__parent))?)
    }
    /// Copies the name with its NUL to `destination`; the bytes written, or an error below 1.
    ///
    /// # Safety
    /// `destination` has room for `room` bytes that the verifier knows of.
    #[inline(always)]
    pub unsafe fn read_name(self, destination: *mut u8, room: u32) -> i64 {
        let Some(name) = self.get::<*const u8>(layout!(kernfs_node__name)) else {
            return 0;
        };
        // SAFETY: the caller vouches for the destination; the source may be anything.
        unsafe { read_str(destination, room, name) }
    }
}

impl Memcg<Probed> {
    /// The embedded css.
    #[inline(always)]
    pub fn css(self) -> Option<Css<Probed>> {
        let css = layout!(mem_cgroup__css);
        if css == ABSENT {
            return None;
        }
        Css::new((self.address() as u64).wrapping_add(u64::from(css)) as *const u8)
    }
    #[inline(always)]
    pub fn cgroup(self) -> Option<Cgroup<Probed>> {
        self.css()?.cgroup()
    }
    #[inline(always)]
    pub fn parent(self) -> Option<Self> {
        Css::<Probed>::new(self.css()?.get(layout!(css__parent))?)?.memcg()
    }
    /// kernfs id of its directory.
    #[inline(always)]
    pub fn id(self) -> Option<u64> {
        self.cgroup()?.kn()?.id()
    }
    /// Pages charged.
    #[inline(always)]
    pub fn usage(self) -> Option<u64> {
        self.page_counter(layout!(mem_cgroup__memory), layout!(page_counter__usage))
    }
    /// `memory.max`, pages.
    #[inline(always)]
    pub fn max(self) -> Option<u64> {
        self.page_counter(layout!(mem_cgroup__memory), layout!(page_counter__max))
    }
    /// `memory.high`, pages.
    #[inline(always)]
    pub fn high(self) -> Option<u64> {
        self.page_counter(layout!(mem_cgroup__memory), layout!(page_counter__high))
    }
    /// `memory_events_local[MEMCG_MAX]`.
    #[inline(always)]
    pub fn local_max(self) -> Option<u64> {
        self.get(layout!(mem_cgroup__local_max))
    }
    /// `memory_events_local[MEMCG_HIGH]`.
    #[inline(always)]
    pub fn local_high(self) -> Option<u64> {
        self.get(layout!(mem_cgroup__local_high))
    }
    /// `member` of the page counter `counter`, both from the layout.
    #[inline(always)]
    pub fn page_counter(self, counter: u32, member: u32) -> Option<u64> {
        if counter == ABSENT || member == ABSENT {
            return None;
        }
        self.get(counter + member)
    }
    /// A counter or flag at `offset`, from the layout.
    #[inline(always)]
    pub fn field<T: Copy>(self, offset: u32) -> Option<T> {
        self.get(offset)
    }
}

impl<A: Access> OomControl<A> {
    #[inline(always)]
    pub fn memcg(self) -> Option<Memcg<Probed>> {
        Memcg::new(self.get(layout!(oom_control__memcg))?)
    }
    #[inline(always)]
    pub fn gfp_mask(self) -> Option<u32> {
        self.get(layout!(oom_control__gfp_mask))
    }
    #[inline(always)]
    pub fn order(self) -> Option<i32> {
        self.get(layout!(oom_control__order))
    }
    #[inline(always)]
    pub fn totalpages(self) -> Option<u64> {
        self.get(layout!(oom_control__totalpages))
    }
    /// The raw pointer: may be -1, so it is never followed unless it is a task's.
    #[inline(always)]
    pub fn chosen(self) -> Option<*const u8> {
        self.get(layout!(oom_control__chosen))
    }
    #[inline(always)]
    pub fn chosen_points(self) -> Option<i64> {
        self.get(layout!(oom_control__chosen_points))
    }
    #[inline(always)]
    pub fn constraint(self) -> Option<u32> {
        self.get(layout!(oom_control__constraint))
    }
}

/// Copies a NUL-ended kernel string; the bytes written, NUL included, or an error below 1.
///
/// # Safety
/// `destination` has room for `room` bytes that the verifier knows of.
#[inline(always)]
pub unsafe fn read_str(destination: *mut u8, room: u32, source: *const u8) -> i64 {
    // SAFETY: the caller vouches for the destination; the source may be anything.
    unsafe { bpf_probe_read_kernel_str(destination.cast(), room, source.cast()) as i64 }
}
