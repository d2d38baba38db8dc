//! Socket buffers from allocation to free.
//!
//! match-proto (net/core/skbuff.c): `__build_skb_around(struct sk_buff *skb, void *data, unsigned
//! int frag_size)`, `struct sk_buff *skb_clone(struct sk_buff *skb, gfp_t gfp_mask)`, `struct
//! sk_buff *__alloc_skb(unsigned int size, gfp_t gfp_mask, int flags, int node)`, `struct sk_buff
//! *slab_build_skb(void *data)`, `void skb_release_head_state(struct sk_buff *skb)`, `void
//! __consume_stateless_skb(struct sk_buff *skb)`, `void napi_skb_free_stolen_head(struct sk_buff
//! *skb)`, `struct sk_buff *skb_morph(struct sk_buff *dst, struct sk_buff *src)`; tracepoints
//! `consume_skb(struct sk_buff *skb, …)`, `kfree_skb(struct sk_buff *skb, …)`
//! (include/trace/events/skb.h).
//!
//! Every buffer passes one of the first four, whatever allocator or cache it came from, and one of
//! the next three on its way out. `skb_morph()` frees what a buffer holds and fills it anew.

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, fexit, kprobe, kretprobe, raw_tracepoint},
    programs::{FEntryContext, FExitContext, ProbeContext, RawTracePointContext, RetProbeContext},
};
use probe_common::layout::ABSENT;

use crate::{
    kernel::{Access, Probed, layout},
    outstanding::{argument, born, gone},
};

#[fexit(function = "__build_skb_around")]
fn skb_around_fx(ctx: FExitContext) -> i32 {
    made(&ctx, Site::Around, argument(&ctx, 0));
    0
}

#[fexit(function = "skb_clone")]
fn skb_clone_fx(ctx: FExitContext) -> i32 {
    made(&ctx, Site::Clone, argument(&ctx, 2));
    0
}

#[fexit(function = "__alloc_skb")]
fn skb_alloc_fx(ctx: FExitContext) -> i32 {
    made(&ctx, Site::Alloc, argument(&ctx, 4));
    0
}

#[fexit(function = "slab_build_skb")]
fn skb_slab_fx(ctx: FExitContext) -> i32 {
    made(&ctx, Site::Slab, argument(&ctx, 1));
    0
}

#[fexit(function = "skb_morph")]
fn skb_morph_fx(ctx: FExitContext) -> i32 {
    made(&ctx, Site::Morph, argument(&ctx, 0));
    0
}

#[fentry(function = "skb_release_head_state")]
fn skb_head_fe(ctx: FEntryContext) -> i32 {
    gone(argument(&ctx, 0));
    0
}

#[fentry(function = "__consume_stateless_skb")]
fn skb_nostate_fe(ctx: FEntryContext) -> i32 {
    gone(argument(&ctx, 0));
    0
}

#[fentry(function = "napi_skb_free_stolen_head")]
fn skb_stolen_fe(ctx: FEntryContext) -> i32 {
    gone(argument(&ctx, 0));
    0
}

/// At the entry its size is not set yet, and at the return the buffer is not known any more.
#[kprobe(function = "__build_skb_around")]
fn skb_around_kp(ctx: ProbeContext) -> u32 {
    born(&ctx, Site::Around as u64, ctx.arg(0).unwrap_or(0), || 0);
    0
}

#[kretprobe(function = "skb_clone")]
fn skb_clone_kr(ctx: RetProbeContext) -> u32 {
    made(&ctx, Site::Clone, ctx.ret());
    0
}

#[kretprobe(function = "__alloc_skb")]
fn skb_alloc_kr(ctx: RetProbeContext) -> u32 {
    made(&ctx, Site::Alloc, ctx.ret());
    0
}

#[kretprobe(function = "slab_build_skb")]
fn skb_slab_kr(ctx: RetProbeContext) -> u32 {
    made(&ctx, Site::Slab, ctx.ret());
    0
}

#[kretprobe(function = "skb_morph")]
fn skb_morph_kr(ctx: RetProbeContext) -> u32 {
    made(&ctx, Site::Morph, ctx.ret());
    0
}

#[kprobe(function = "skb_release_head_state")]
fn skb_head_kp(ctx: ProbeContext) -> u32 {
    gone(ctx.arg(0).unwrap_or(0));
    0
}

#[kprobe(function = "__consume_stateless_skb")]
fn skb_nostate_kp(ctx: ProbeContext) -> u32 {
    gone(ctx.arg(0).unwrap_or(0));
    0
}

#[kprobe(function = "napi_skb_free_stolen_head")]
fn skb_stolen_kp(ctx: ProbeContext) -> u32 {
    gone(ctx.arg(0).unwrap_or(0));
    0
}

#[raw_tracepoint(tracepoint = "consume_skb")]
fn skb_consume_rt(ctx: RawTracePointContext) -> i32 {
    gone(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn skb_kfree_rt(ctx: RawTracePointContext) -> i32 {
    gone(ctx.arg(0));
    0
}

/// Functions that a buffer comes from.
#[derive(Clone, Copy)]
enum Site {
    Around = 1,
    Clone = 2,
    Alloc = 3,
    Slab = 4,
    Morph = 5,
}

#[inline(always)]
fn made<C: EbpfContext>(ctx: &C, site: Site, skb: u64) {
    born(ctx, site as u64, skb, || {
        let truesize = layout!(sk_buff__truesize);
        if truesize == ABSENT {
            return 0;
        }
        // SAFETY: any address may be probed.
        unsafe { Probed::load(skb.wrapping_add(u64::from(truesize)) as *const u8) }
    });
}
