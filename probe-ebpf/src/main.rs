//! The BPF programs of oomprobe, one file per signal.
//!
//! A signal has a body that is generic over how kernel memory is read ([`kernel::Access`]) and
//! one thin program per rung of its hook ladder. Programs return 0 and never change what the
//! kernel does. Whatever cannot be recorded is counted ([`maps::lost`]).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod candidates;
mod cgroup;
mod death;
mod kernel;
mod limit_hit;
mod maps;
mod mark_victim;
mod memcg_reclaim;
mod oom_kill_process;
mod out_of_memory;
mod outstanding;
mod process_exit;
mod reap;
mod record;
mod refault_wait;
mod signal_sent;
mod skb_track;
mod slab_track;
mod sockets;
mod stall;
mod victims;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
