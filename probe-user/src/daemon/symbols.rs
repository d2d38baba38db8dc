//! Names of kernel addresses, off the event path.
//!
//! One pass over the symbol table takes some 50 ms. So the functions that an allocation commonly
//! passes through are read once at the start; any other costs the first event that has it one
//! pass on another thread, while its cgroups are looked up.

use std::{cell::RefCell, collections::BTreeMap, path::Path};

use tokio::time::{Instant, timeout_at};

use crate::{
    event::AllocPath,
    kernel::kallsyms::{self, Function},
};

/// Addresses that are remembered one by one.
const MAX_FRAMES: usize = 4096;

/// Beginnings of names on the way from an entry into the kernel to the OOM killer, beside those
/// that tell what the memory is for.
const COMMON: &[&str] = &[
    "asm_exc_page_fault",
    "exc_page_fault",
    "do_user_addr_fault",
    "do_page_fault",
    "do_mem_abort",
    "do_translation_fault",
    "el0",
    "__handle_mm_fault",
    "do_fault",
    "do_read_fault",
    "do_pte_missing",
    "do_shared_fault",
    "__do_fault",
    "mem_cgroup_",
    "__mem_cgroup_",
    "try_charge",
    "charge_memcg",
    "obj_cgroup_",
    "out_of_memory",
    "oom_kill_",
    "__oom_kill_",
    "mark_oom_victim",
    "pagefault_out_of_memory",
    "__alloc_pages",
    "__alloc_frozen_pages",
    "alloc_pages",
    "alloc_frozen_pages",
    "folio_alloc",
    "__folio_alloc",
    "vma_alloc_",
    "faultin_page",
    "__get_user_pages",
    "populate_vma_page_range",
    "__mm_populate",
    "vm_mmap_pgoff",
    "ksys_",
    "vfs_",
    "new_sync_",
    "generic_file_",
    "generic_perform_write",
    "do_syscall_64",
    "x64_sys_call",
    "entry_SYSCALL",
    "invoke_syscall",
    "do_el0_svc",
    "read_pages",
    "kernel_clone",
    "copy_process",
    "do_exec",
    "bprm_execve",
    "__x64_sys_",
    "__arm64_sys_",
];

/// Frames of the tracer's own, innermost: not part of what happened.
const OWN: &[&str] = &[
    "bpf_prog_",
    "bpf_trampoline_",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
];

/// What is known of the kernel's symbols.
#[derive(Default)]
pub(super) struct Symbols {
    /// By start.
    functions: BTreeMap<u64, Function>,
    /// By address; `None` is in no function.
    frames: RefCell<BTreeMap<u64, Option<String>>>,
}

impl Symbols {
    /// Reads the common functions, and the address of one variable on the way.
    pub(super) fn warm(table: &Path, variable: &str) -> (Self, Option<u64>) {
        let wanted = |name: &str| {
            AllocPath::is_told_by(name)
                || is_own(name)
                || COMMON.iter().any(|start| name.starts_with(start))
        };
        // What is missing is looked up when it is needed.
        let (symbol, functions) = kallsyms::survey(table, variable, wanted).unwrap_or_default();
        let functions = functions.into_iter().map(|it| (it.start, it)).collect();
        let symbols = Self {
            functions,
            frames: RefCell::default(),
        };
        (symbols, symbol.address().ok())
    }

    /// Names of a stack. Frames that cannot be named, or not by the deadline, are left out.
    pub(super) async fn names(&self, addresses: &[u64], deadline: Instant) -> Vec<String> {
        let unknown: Vec<u64> = addresses
            .iter()
            .copied()
            .filter(|&at| !self.is_known(at))
            .collect();
        if !unknown.is_empty() {
            let wanted = unknown.clone();
            let pass = tokio::task::spawn_blocking(move || {
                kallsyms::symbolise(Path::new(kallsyms::KALLSYMS), &wanted)
            });
            if let Ok(Ok(Ok(found))) = timeout_at(deadline, pass).await {
                let mut frames = self.frames.borrow_mut();
                if frames.len() + found.len() > MAX_FRAMES {
                    frames.clear();
                }
                let found = found
                    .into_iter()
                    .map(|frame| frame.map(|frame| frame.to_string()));
                frames.extend(unknown.into_iter().zip(found));
            }
        }
        let frames = addresses.iter().filter_map(|&at| self.name(at));
        frames.skip_while(|frame| is_own(frame)).collect()
    }

    fn is_known(&self, address: u64) -> bool {
        self.frames.borrow().contains_key(&address) || self.name(address).is_some()
    }

    fn name(&self, address: u64) -> Option<String> {
        let below = self.functions.range(..=address).next_back();
        if let Some((_, function)) = below.filter(|(_, function)| address < function.end) {
            return Some(function.frame(address).to_string());
        }
        self.frames.borrow().get(&address)?.clone()
    }
}

/// Whether a frame is of the tracer itself.
pub(crate) fn is_own(function: &str) -> bool {
    OWN.iter().any(|start| function.starts_with(start))
}
