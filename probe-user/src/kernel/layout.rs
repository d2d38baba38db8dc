//! Fills [`KernelLayout`] from the running kernel's types.
//!
//! One table says, for every field of the layout, where kernels keep it and what it must look
//! like there. A candidate counts only if its type fits as well: a member that kept its name but
//! became something else is absent, with that as the reason, rather than misread.

use probe_common::layout::{ABSENT, KernelLayout};
use serde::Serialize;
use thiserror::Error;

use super::btf::{Btf, Kind, Missing, Type};

/// What the type of a member must look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// An integer, `bool` or enum of this many bytes.
    Int(u32),
    /// `atomic_t` (4) or `atomic_long_t` (8): a struct around one counter.
    Atomic(u32),
    /// Pointer to the struct (or scalar) of this name.
    Ptr(&'static str),
    /// The struct of this name itself.
    Struct(&'static str),
    /// Array of at least one element of this shape.
    Array(&'static Shape),
    /// Array of structs of this name, of any length: some end their struct and have none.
    Tail(&'static str),
}

/// How a value is found.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// Byte offset of `.1` in struct `.0`.
    Offset(&'static str, &'static str, Shape),
    /// Byte offset of the element of array `.1` in struct `.0` that enumerator `.2` selects.
    Element(&'static str, &'static str, &'static str, Shape),
    /// Distance between the elements of array `.1` in struct `.0`.
    Stride(&'static str, &'static str),
    /// Byte offset of member `.2` within one element of array `.1` in struct `.0`.
    InElement(&'static str, &'static str, &'static str, Shape),
    /// Size of struct `.0`.
    Size(&'static str),
    /// Value of an enumerator.
    Enumerator(&'static str),
    /// 1 if argument `.1` of tracepoint `.0` looks like `.2`, 0 if like `.3` (`None`: there is no
    /// such argument).
    Argument(&'static str, usize, Shape, Option<Shape>),
}

/// Whether the programs can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Without it no victim can be named or measured.
    Required,
    /// Its value is null or its program is not loaded.
    Optional,
}

struct Row {
    field: &'static str,
    need: Need,
    /// Best first, each with the reason it exists beside the others (empty for the usual place).
    candidates: &'static [(Source, &'static str)],
}

macro_rules! table {
    ($($need:ident $field:ident: $usual:expr $(, $other:expr => $because:expr)*;)*) => {
        &[$(Row {
            field: stringify!($field),
            need: Need::$need,
            candidates: &[($usual, ""), $(($other, $because)),*],
        }),*]
    };
}

use Shape::{Array, Atomic, Int, Ptr, Struct, Tail};
use Source::{Argument, Element, Enumerator, InElement, Offset, Size, Stride};

/// Name of `void`, which has none.
const VOID: &str = "";

/// Why `kernfs_node.parent` has two names.
const PLAIN_PARENT: &str = "plain pointer before 6.15 put it under RCU and renamed it";
/// Why `mm_struct.rss_stat` has two forms.
const PLAIN_RSS: &str = "plain atomics before 6.2 made them per-CPU counters";
/// Why the system call has two names.
const ARM64_REGISTERS: &str = "arm64 has a member of its own";

/// Why the creator of a socket has two forms.
const TAGGED_CGROUP: &str = "an integer that may be a class id instead before 5.15";

const TABLE: &[Row] = table! {
    Required task_struct__pid: Offset("task_struct", "pid", Int(4));
    Required task_struct__tgid: Offset("task_struct", "tgid", Int(4));
    Required task_struct__comm: Offset("task_struct", "comm", Array(&Int(1)));
    Required task_struct__flags: Offset("task_struct", "flags", Int(4));
    Required task_struct__mm: Offset("task_struct", "mm", Ptr("mm_struct"));
    Required task_struct__signal: Offset("task_struct", "signal", Ptr("signal_struct"));
    Optional task_struct__cgroups: Offset("task_struct", "cgroups", Ptr("css_set"));
    Required task_struct__start_boottime: Offset("task_struct", "start_boottime", Int(8));
    Optional task_struct__exit_code: Offset("task_struct", "exit_code", Int(4));
    Required task_struct__group_leader: Offset("task_struct", "group_leader", Ptr("task_struct"));
    Optional task_struct__real_parent: Offset("task_struct", "real_parent", Ptr("task_struct"));
    Optional task_struct__cred: Offset("task_struct", "cred", Ptr("cred"));
    Optional task_struct__thread_pid: Offset("task_struct", "thread_pid", Ptr("pid"));
    Optional task_struct__memcg_nr_pages_over_high:
        Offset("task_struct", "memcg_nr_pages_over_high", Int(4));
    Optional task_struct__seccomp_mode: Offset("task_struct", "seccomp.mode", Int(4));
    Required signal_struct__live: Offset("signal_struct", "live", Atomic(4));
    Optional signal_struct__nr_threads: Offset("signal_struct", "nr_threads", Int(4));
    Optional signal_struct__group_exit_code: Offset("signal_struct", "group_exit_code", Int(4));
    Optional signal_struct__flags: Offset("signal_struct", "flags", Int(4));
    Optional signal_struct__maxrss: Offset("signal_struct", "maxrss", Int(8));
    Required signal_struct__oom_score_adj: Offset("signal_struct", "oom_score_adj", Int(2));
    Required signal_struct__oom_mm: Offset("signal_struct", "oom_mm", Ptr("mm_struct"));
    Optional kernel_siginfo__si_code: Offset("kernel_siginfo", "si_code", Int(4));
    Optional kernel_siginfo__si_addr:
        Offset("kernel_siginfo", "_sifields._sigfault._addr", Ptr(VOID));
    Optional kernel_siginfo__si_call_addr:
        Offset("kernel_siginfo", "_sifields._sigsys._call_addr", Ptr(VOID));
    Optional kernel_siginfo__si_syscall:
        Offset("kernel_siginfo", "_sifields._sigsys._syscall", Int(4));
    Optional pt_regs__syscall:
        Offset("pt_regs", "orig_ax", Int(8)),
        Offset("pt_regs", "syscallno", Int(4)) => ARM64_REGISTERS;
    Optional cred__uid: Offset("cred", "uid.val", Int(4));
    Optional pid__level: Offset("pid", "level", Int(4));
    Optional pid__numbers: Offset("pid", "numbers", Tail("upid"));
    Optional upid__nr: Offset("upid", "nr", Int(4));
    Optional upid__size: Size("upid");
    Optional mm_struct__total_vm: Offset("mm_struct", "total_vm", Int(8));
    Optional mm_struct__pgtables_bytes: Offset("mm_struct", "pgtables_bytes", Atomic(8));
    Optional mm_struct__arg_start: Offset("mm_struct", "arg_start", Int(8));
    Optional mm_struct__arg_end: Offset("mm_struct", "arg_end", Int(8));
    Optional mm_struct__mm_users: Offset("mm_struct", "mm_users", Atomic(4));
    Required mm_struct__rss_stat:
        Offset("mm_struct", "rss_stat", Array(&Struct("percpu_counter"))),
        Offset("mm_struct", "rss_stat.count", Array(&Atomic(8))) => PLAIN_RSS;
    Required rss_stat__stride:
        Stride("mm_struct", "rss_stat"),
        Stride("mm_struct", "rss_stat.count") => PLAIN_RSS;
    Required rss_stat__count:
        InElement("mm_struct", "rss_stat", "count", Int(8)),
        InElement("mm_struct", "rss_stat.count", "counter", Int(8)) => PLAIN_RSS;
    Optional rss_stat__percpu: InElement("mm_struct", "rss_stat", "counters", Ptr("int"));
    Optional css_set__memory_css:
        Element("css_set", "subsys", "memory_cgrp_id", Ptr("cgroup_subsys_state"));
    Optional css_set__dfl_cgrp: Offset("css_set", "dfl_cgrp", Ptr("cgroup"));
    Optional css__cgroup: Offset("cgroup_subsys_state", "cgroup", Ptr("cgroup"));
    Optional css__parent: Offset("cgroup_subsys_state", "parent", Ptr("cgroup_subsys_state"));
    Optional mem_cgroup__css: Offset("mem_cgroup", "css", Struct("cgroup_subsys_state"));
    Optional mem_cgroup__memory: Offset("mem_cgroup", "memory", Struct("page_counter"));
    Optional mem_cgroup__swap: Offset("mem_cgroup", "swap", Struct("page_counter"));
    Optional mem_cgroup__oom_group: Offset("mem_cgroup", "oom_group", Int(1));
    Optional mem_cgroup__oom_lock: Offset("mem_cgroup", "oom_lock", Int(1));
    Optional mem_cgroup__under_oom: Offset("mem_cgroup", "under_oom", Int(4));
    Optional mem_cgroup__local_oom:
        Element("mem_cgroup", "memory_events_local", "MEMCG_OOM", Atomic(8));
    Optional mem_cgroup__local_max:
        Element("mem_cgroup", "memory_events_local", "MEMCG_MAX", Atomic(8));
    Optional mem_cgroup__local_high:
        Element("mem_cgroup", "memory_events_local", "MEMCG_HIGH", Atomic(8));
    Optional mem_cgroup__local_oom_kill:
        Element("mem_cgroup", "memory_events_local", "MEMCG_OOM_KILL", Atomic(8));
    Optional page_counter__usage: Offset("page_counter", "usage", Atomic(8));
    Optional page_counter__max: Offset("page_counter", "max", Int(8));
    Optional page_counter__high: Offset("page_counter", "high", Int(8));
    Optional page_counter__watermark: Offset("page_counter", "watermark", Int(8));
    Optional page_counter__failcnt: Offset("page_counter", "failcnt", Int(8));
    Optional cgroup__kn: Offset("cgroup", "kn", Ptr("kernfs_node"));
    Optional cgroup__level: Offset("cgroup", "level", Int(4));
    Optional cgroup__root: Offset("cgroup", "root", Ptr("cgroup_root"));
    Optional cgroup_root__hierarchy_id: Offset("cgroup_root", "hierarchy_id", Int(4));
    Optional kernfs_node__id: Offset("kernfs_node", "id", Int(8));
    Optional kernfs_node__name: Offset("kernfs_node", "name", Ptr("char"));
    Optional kernfs_node__parent:
        Offset("kernfs_node", "__parent", Ptr("kernfs_node")),
        Offset("kernfs_node", "parent", Ptr("kernfs_node")) => PLAIN_PARENT;
    Optional oom_control__memcg: Offset("oom_control", "memcg", Ptr("mem_cgroup"));
    Optional oom_control__gfp_mask: Offset("oom_control", "gfp_mask", Int(4));
    Optional oom_control__order: Offset("oom_control", "order", Int(4));
    Optional oom_control__totalpages: Offset("oom_control", "totalpages", Int(8));
    Optional oom_control__chosen: Offset("oom_control", "chosen", Ptr("task_struct"));
    Optional oom_control__chosen_points: Offset("oom_control", "chosen_points", Int(8));
    Optional oom_control__constraint: Offset("oom_control", "constraint", Int(4));
    Optional MEMCG_MAX: Enumerator("MEMCG_MAX");
    Optional MEMCG_HIGH: Enumerator("MEMCG_HIGH");
    Required MM_FILEPAGES: Enumerator("MM_FILEPAGES");
    Required MM_ANONPAGES: Enumerator("MM_ANONPAGES");
    Required MM_SWAPENTS: Enumerator("MM_SWAPENTS");
    Required MM_SHMEMPAGES: Enumerator("MM_SHMEMPAGES");
    Optional BPF_FUNC_task_pt_regs: Enumerator("BPF_FUNC_task_pt_regs");
    Optional mark_victim__has_task: Argument("mark_victim", 0, Ptr("task_struct"), Some(Int(4)));
    Optional sched_process_exit__has_group_dead: Argument("sched_process_exit", 1, Int(1), None);
    Optional memcg_reclaim_begin__has_memcg:
        Argument("mm_vmscan_memcg_reclaim_begin", 2, Ptr("mem_cgroup"), None);
    Optional file__f_inode: Offset("file", "f_inode", Ptr("inode"));
    Optional inode__i_sb: Offset("inode", "i_sb", Ptr("super_block"));
    Optional inode__i_ino: Offset("inode", "i_ino", Int(8));
    Optional super_block__s_magic: Offset("super_block", "s_magic", Int(8));
    Optional socket_alloc__socket: Offset("socket_alloc", "socket", Struct("socket"));
    Optional socket_alloc__vfs_inode: Offset("socket_alloc", "vfs_inode", Struct("inode"));
    Optional socket__sk: Offset("socket", "sk", Ptr("sock"));
    Optional sock_common__skc_family: Offset("sock_common", "skc_family", Int(2));
    Optional sock_common__skc_state: Offset("sock_common", "skc_state", Int(1));
    Optional sock_common__skc_net: Offset("sock_common", "skc_net.net", Ptr("net"));
    Optional sock_common__skc_daddr: Offset("sock_common", "skc_daddr", Int(4));
    Optional sock_common__skc_rcv_saddr: Offset("sock_common", "skc_rcv_saddr", Int(4));
    Optional sock_common__skc_v6_daddr: Offset("sock_common", "skc_v6_daddr", Struct("in6_addr"));
    Optional sock_common__skc_v6_rcv_saddr:
        Offset("sock_common", "skc_v6_rcv_saddr", Struct("in6_addr"));
    Optional sock_common__skc_dport: Offset("sock_common", "skc_dport", Int(2));
    Optional sock_common__skc_num: Offset("sock_common", "skc_num", Int(2));
    Optional sock__sk_type: Offset("sock", "sk_type", Int(2));
    Optional sock__sk_protocol: Offset("sock", "sk_protocol", Int(2));
    Optional sock__sk_receive_queue: Offset("sock", "sk_receive_queue", Struct("sk_buff_head"));
    Optional sock__sk_write_queue: Offset("sock", "sk_write_queue", Struct("sk_buff_head"));
    Optional sock__sk_error_queue: Offset("sock", "sk_error_queue", Struct("sk_buff_head"));
    Optional sk_buff_head__next: Offset("sk_buff_head", "next", Ptr("sk_buff"));
    Optional sk_buff_head__qlen: Offset("sk_buff_head", "qlen", Int(4));
    Optional sock__rmem_alloc: Offset("sock", "sk_backlog.rmem_alloc", Atomic(4));
    Optional sock__backlog_len: Offset("sock", "sk_backlog.len", Int(4));
    Optional sock__sk_wmem_alloc: Offset("sock", "sk_wmem_alloc.refs", Atomic(4));
    Optional sock__sk_wmem_queued: Offset("sock", "sk_wmem_queued", Int(4));
    Optional sock__sk_rcvbuf: Offset("sock", "sk_rcvbuf", Int(4));
    Optional sock__sk_sndbuf: Offset("sock", "sk_sndbuf", Int(4));
    Optional sock__sk_drops: Offset("sock", "sk_drops", Atomic(4));
    Optional sock__sk_drop_counters: Offset("sock", "sk_drop_counters", Ptr("numa_drop_counters"));
    Optional numa_drop_counters__drops0: Offset("numa_drop_counters", "drops0", Atomic(4));
    Optional numa_drop_counters__drops1: Offset("numa_drop_counters", "drops1", Atomic(4));
    Optional sock__sk_ack_backlog: Offset("sock", "sk_ack_backlog", Int(4));
    Optional sock__sk_cgrp_data:
        Offset("sock", "sk_cgrp_data.cgroup", Ptr("cgroup")),
        Offset("sock", "sk_cgrp_data.val", Int(8)) => TAGGED_CGROUP;
    Optional net__ns: Offset("net", "ns", Struct("ns_common"));
    Optional ns_common__inum: Offset("ns_common", "inum", Int(4));
    Optional udp_sock__reader_queue: Offset("udp_sock", "reader_queue", Struct("sk_buff_head"));
    Optional tcp_sock__copied_seq: Offset("tcp_sock", "copied_seq", Int(4));
    Optional icsk__retransmits: Offset("inet_connection_sock", "icsk_retransmits", Int(1));
    Optional icsk__probes_out: Offset("inet_connection_sock", "icsk_probes_out", Int(1));
    Optional icsk__backoff: Offset("inet_connection_sock", "icsk_backoff", Int(1));
    Optional packet_sock__num: Offset("packet_sock", "num", Int(2));
    Optional packet_sock__ifindex: Offset("packet_sock", "ifindex", Int(4));
    Optional packet_sock__rx_ring: Offset("packet_sock", "rx_ring", Struct("packet_ring_buffer"));
    Optional packet_sock__tx_ring: Offset("packet_sock", "tx_ring", Struct("packet_ring_buffer"));
    Optional packet_ring_buffer__pg_vec_len: Offset("packet_ring_buffer", "pg_vec_len", Int(4));
    Optional packet_ring_buffer__pg_vec_pages:
        Offset("packet_ring_buffer", "pg_vec_pages", Int(4));
    Optional netlink_sock__portid: Offset("netlink_sock", "portid", Int(4));
    Optional unix_sock__peer: Offset("unix_sock", "peer", Ptr("sock"));
    Optional sk_buff__truesize: Offset("sk_buff", "truesize", Int(4));
    Optional kmem_cache__name: Offset("kmem_cache", "name", Ptr("char"));
    Optional kmem_cache__size: Offset("kmem_cache", "size", Int(4));
    Optional kmem_cache_alloc__has_cache:
        Argument("kmem_cache_alloc", 2, Ptr("kmem_cache"), Some(Int(8)));
    Optional kmem_cache_free__has_cache:
        Argument("kmem_cache_free", 2, Ptr("kmem_cache"), None);
};

/// How one field of the layout was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldReport {
    /// Name in [`KernelLayout`].
    pub field: &'static str,
    /// Offset, size, enumerator value or flag; absent fields have none.
    pub value: Option<u32>,
    /// Where it was found, in the kernel's words.
    pub source: Option<String>,
    /// Why it was found there and not at the usual place.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub because: &'static str,
    /// Why it is absent: what each candidate lacked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// Whether no program can run without it.
    pub required: bool,
}

/// How every field of the layout was resolved, in the order of [`KernelLayout::FIELDS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayoutReport {
    /// One entry per field.
    pub fields: Vec<FieldReport>,
}

/// The kernel lacks something no program can do without.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "this kernel's type information lacks {}; please report it with the output of \
     `oomprobe doctor`",
    .0.join(", ")
)]
pub struct RequiredMissing(
    /// Field and reason, each as `field (reason)`.
    pub Vec<String>,
);

impl LayoutReport {
    /// The layout to hand to the programs.
    pub fn layout(&self) -> Result<KernelLayout, RequiredMissing> {
        let missing: Vec<String> = self
            .fields
            .iter()
            .filter(|field| field.required && field.value.is_none())
            .map(|field| {
                format!(
                    "{} ({})",
                    field.field,
                    field.absent.as_deref().unwrap_or("")
                )
            })
            .collect();
        if !missing.is_empty() {
            return Err(RequiredMissing(missing));
        }
        let mut layout = KernelLayout::UNKNOWN;
        for field in &self.fields {
            layout.set(field.field, field.value.unwrap_or(ABSENT));
        }
        Ok(layout)
    }

    /// Fields this kernel lacks.
    pub fn absent(&self) -> impl Iterator<Item = &FieldReport> {
        self.fields.iter().filter(|field| field.value.is_none())
    }
}

/// Looks every field of [`KernelLayout`] up in `btf`.
pub fn resolve(btf: &Btf) -> LayoutReport {
    LayoutReport {
        fields: TABLE.iter().map(|row| row.resolve(btf)).collect(),
    }
}

impl Row {
    fn resolve(&self, btf: &Btf) -> FieldReport {
        let mut report = FieldReport {
            field: self.field,
            value: None,
            source: None,
            because: "",
            absent: None,
            required: self.need == Need::Required,
        };
        let mut reasons = Vec::new();
        for (source, because) in self.candidates {
            match source.value(btf) {
                Ok(value) => {
                    report.value = Some(value);
                    report.source = Some(source.to_string());
                    report.because = because;
                    return report;
                }
                Err(missing) => reasons.push(missing.to_string()),
            }
        }
        report.absent = Some(reasons.join("; "));
        report
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Offset(ty, path, _) => write!(f, "{ty}.{path}"),
            Element(ty, array, index, _) => write!(f, "{ty}.{array}[{index}]"),
            Stride(ty, array) => write!(f, "sizeof {ty}.{array}[0]"),
            InElement(ty, array, member, _) => write!(f, "{ty}.{array}[0].{member}"),
            Size(ty) => write!(f, "sizeof {ty}"),
            Enumerator(name) => f.write_str(name),
            Argument(tracepoint, index, ..) => write!(f, "tracepoint {tracepoint} arg{index}"),
        }
    }
}

impl Source {
    fn value(&self, btf: &Btf) -> Result<u32, Missing> {
        match *self {
            Offset(ty, path, shape) => {
                let field = btf.field(ty, path)?;
                self.require(field.ty, shape)?;
                Ok(field.offset)
            }
            Element(ty, array, index, shape) => {
                let (field, element, stride) = self.array(btf, ty, array)?;
                self.require(element, shape)?;
                let index = u32::try_from(btf.enumerator(index)?)
                    .ok()
                    .filter(|&index| field.ty.array_len().is_some_and(|len| index < len))
                    .ok_or_else(|| self.not("within the array"))?;
                stride
                    .checked_mul(index)
                    .and_then(|distance| distance.checked_add(field.offset))
                    .ok_or_else(|| self.not("within the address space"))
            }
            Stride(ty, array) => Ok(self.array(btf, ty, array)?.2),
            InElement(ty, array, member, shape) => {
                let (_, element, _) = self.array(btf, ty, array)?;
                let field = element.field(member)?;
                self.require(field.ty, shape)?;
                Ok(field.offset)
            }
            Size(ty) => btf.size(ty),
            Enumerator(name) => {
                u32::try_from(btf.enumerator(name)?).map_err(|_| self.not("an index"))
            }
            Argument(tracepoint, index, shape, other) => {
                let parameters = btf.parameters(&typedef_of(tracepoint))?;
                // Parameter 0 is the pointer registered with the tracepoint, not an argument.
                match (parameters.get(index + 1), other) {
                    (Some(ty), _) if shape.fits(*ty) => Ok(1),
                    (Some(ty), Some(other)) if other.fits(*ty) => Ok(0),
                    (None, None) => Ok(0),
                    _ => Err(self.not("in any known form")),
                }
            }
        }
    }

    /// Array `path` of `ty`, the type of its elements and their distance.
    fn array<'a>(
        &self,
        btf: &'a Btf,
        ty: &str,
        path: &str,
    ) -> Result<(super::btf::Field<'a>, Type<'a>, u32), Missing> {
        let field = btf.field(ty, path)?;
        let element = (field.ty.kind() == Kind::Array)
            .then(|| field.ty.target().and_then(Type::peeled))
            .flatten()
            .ok_or(Missing::Kind {
                what: format!("{ty}.{path}"),
                wanted: "an array",
            })?;
        let stride = element.size().ok_or_else(|| self.not("of known size"))?;
        Ok((field, element, stride))
    }

    fn require(&self, ty: Type<'_>, shape: Shape) -> Result<(), Missing> {
        if shape.fits(ty) {
            Ok(())
        } else {
            Err(self.not(shape.describe()))
        }
    }

    fn not(&self, wanted: &'static str) -> Missing {
        Missing::Kind {
            what: self.to_string(),
            wanted,
        }
    }
}

impl Shape {
    pub(super) fn fits(self, ty: Type<'_>) -> bool {
        let Some(ty) = ty.peeled() else { return false };
        let named = |ty: Type<'_>, name: &str| ty.name() == name.as_bytes();
        match self {
            Self::Int(size) => {
                matches!(ty.kind(), Kind::Int | Kind::Enum | Kind::Enum64)
                    && ty.size() == Some(size)
            }
            Self::Atomic(size) => ty
                .field("counter")
                .is_ok_and(|field| field.offset == 0 && Self::Int(size).fits(field.ty)),
            Self::Ptr(name) => {
                ty.kind() == Kind::Ptr
                    && ty
                        .target()
                        .and_then(Type::peeled)
                        .is_some_and(|to| named(to, name))
            }
            Self::Struct(name) => ty.kind() == Kind::Struct && named(ty, name),
            Self::Array(element) => {
                ty.array_len().is_some_and(|len| len > 0)
                    && ty.target().is_some_and(|ty| element.fits(ty))
            }
            Self::Tail(name) => {
                ty.kind() == Kind::Array
                    && ty.target().is_some_and(|ty| Self::Struct(name).fits(ty))
            }
        }
    }

    const fn describe(self) -> &'static str {
        match self {
            Self::Int(1) => "a 1-byte integer",
            Self::Int(2) => "a 2-byte integer",
            Self::Int(4) => "a 4-byte integer",
            Self::Int(_) => "an 8-byte integer",
            Self::Atomic(4) => "an atomic_t",
            Self::Atomic(_) => "an atomic_long_t",
            Self::Ptr(_) => "a pointer to the expected type",
            Self::Struct(_) => "the expected struct",
            Self::Array(_) | Self::Tail(_) => "an array of the expected type",
        }
    }
}

/// Name of the typedef that carries the arguments of a tracepoint.
fn typedef_of(tracepoint: &str) -> String {
    format!("btf_trace_{tracepoint}")
}

/// What the table refers to, which a subset of BTF must keep to resolve the same layout.
#[cfg(test)]
pub(super) struct References {
    /// Structs, unions and typedefs.
    pub(super) types: Vec<String>,
    /// Enumerators.
    pub(super) enumerators: Vec<&'static str>,
}

#[cfg(test)]
pub(super) fn references() -> References {
    let mut references = References {
        types: Vec::new(),
        enumerators: Vec::new(),
    };
    for (source, _) in TABLE.iter().flat_map(|row| row.candidates) {
        match *source {
            Offset(ty, ..) | Stride(ty, _) | InElement(ty, ..) | Size(ty) => {
                references.types.push(ty.into());
            }
            Element(ty, _, index, _) => {
                references.types.push(ty.into());
                references.enumerators.push(index);
            }
            Enumerator(name) => references.enumerators.push(name),
            Argument(tracepoint, ..) => references.types.push(typedef_of(tracepoint)),
        }
    }
    references
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_covers_every_field_once_and_in_order() {
        let rows: Vec<_> = TABLE.iter().map(|row| row.field).collect();
        assert_eq!(rows, KernelLayout::FIELDS);
    }

    #[test]
    fn what_changed_its_type_is_not_taken() {
        let btf = crate::kernel::golden::btf("6.1");
        let value = |source: Source| source.value(&btf).map_err(|missing| missing.to_string());
        let refused = |what: &str| Err(format!("task_struct.{what}"));

        assert!(value(Offset("task_struct", "pid", Int(4))).is_ok());
        let wider = value(Offset("task_struct", "pid", Int(8)));
        assert_eq!(wider, refused("pid is not an 8-byte integer"));
        let other = value(Offset("task_struct", "mm", Ptr("signal_struct")));
        assert_eq!(other, refused("mm is not a pointer to the expected type"));
        let plain = value(Offset("task_struct", "flags", Atomic(4)));
        assert_eq!(plain, refused("flags is not an atomic_t"));
        let element = value(Element("css_set", "subsys", "memory_cgrp_id", Int(8)));
        let expected = "css_set.subsys[memory_cgrp_id] is not an 8-byte integer";
        assert_eq!(element, Err(expected.to_owned()));
        let beyond = value(Element("pid", "numbers", "memory_cgrp_id", Struct("upid")));
        let expected = "pid.numbers[memory_cgrp_id] is not within the array";
        assert_eq!(beyond, Err(expected.to_owned()));
    }

    #[test]
    fn every_alternative_says_why_it_exists() {
        for row in TABLE {
            for (position, (source, why)) in row.candidates.iter().enumerate() {
                assert_eq!(why.is_empty(), position == 0, "{}: {source}", row.field);
            }
        }
    }
}
