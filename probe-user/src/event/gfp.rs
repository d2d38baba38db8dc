//! Allocation flags as text.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Flags of an allocation (`gfp_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gfp {
    /// The mask as the kernel holds it.
    pub mask: u32,
    /// Its names, as the kernel prints them. Null if the mask has a bit whose meaning depends on
    /// the kernel's version or configuration.
    pub flags: Option<String>,
}

/// Bits that have the same meaning in every kernel from 5.10 on and in every configuration. Left
/// out: 0x200 (`__GFP_ATOMIC` until 6.2, unused after) and all from 0x800000 up, where options
/// such as lockdep and KASAN shift them.
const BITS: &[(u32, &str)] = &[
    (0x01, "__GFP_DMA"),
    (0x02, "__GFP_HIGHMEM"),
    (0x04, "__GFP_DMA32"),
    (0x08, "__GFP_MOVABLE"),
    (0x10, "__GFP_RECLAIMABLE"),
    (0x20, "__GFP_HIGH"),
    (0x40, "__GFP_IO"),
    (0x80, "__GFP_FS"),
    (0x100, "__GFP_ZERO"),
    (0x400, "__GFP_DIRECT_RECLAIM"),
    (0x800, "__GFP_KSWAPD_RECLAIM"),
    (0x1000, "__GFP_WRITE"),
    (0x2000, "__GFP_NOWARN"),
    (0x4000, "__GFP_RETRY_MAYFAIL"),
    (0x8000, "__GFP_NOFAIL"),
    (0x1_0000, "__GFP_NORETRY"),
    (0x2_0000, "__GFP_MEMALLOC"),
    (0x4_0000, "__GFP_COMP"),
    (0x8_0000, "__GFP_NOMEMALLOC"),
    (0x10_0000, "__GFP_HARDWALL"),
    (0x20_0000, "__GFP_THISNODE"),
    (0x40_0000, "__GFP_ACCOUNT"),
];

/// Combinations with a name of their own, widest first as in `__def_gfpflag_names`
/// (include/trace/events/mmflags.h). The remaining bits are named one by one.
const COMBINATIONS: &[(u32, &str)] = &[
    (0x10_0cca, "GFP_HIGHUSER_MOVABLE"),
    (0x10_0cc2, "GFP_HIGHUSER"),
    (0x10_0cc0, "GFP_USER"),
    (0x40_0cc0, "GFP_KERNEL_ACCOUNT"),
    (0xcc0, "GFP_KERNEL"),
    (0xc40, "GFP_NOFS"),
    (0xc00, "GFP_NOIO"),
];

impl Gfp {
    /// From the mask of `oom_control.gfp_mask`.
    pub fn from_mask(mask: u32) -> Self {
        Self {
            mask,
            flags: names(mask),
        }
    }
}

fn names(mask: u32) -> Option<String> {
    let combination = COMBINATIONS.iter().find(|(bits, _)| mask & bits == *bits);
    let mut rest = mask;
    let mut names = Vec::new();
    for (bits, name) in combination.into_iter().chain(BITS) {
        if rest & bits != 0 {
            names.push(*name);
            rest &= !bits;
        }
    }
    (rest == 0 && !names.is_empty()).then(|| names.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_kernel_prints_them() {
        for (mask, text) in [
            (0xcc0, Some("GFP_KERNEL")),
            (0xdc0, Some("GFP_KERNEL|__GFP_ZERO")),
            (0x10_0cca, Some("GFP_HIGHUSER_MOVABLE")),
            (0x14_0cca, Some("GFP_HIGHUSER_MOVABLE|__GFP_COMP")),
            (0x10_1cca, Some("GFP_HIGHUSER_MOVABLE|__GFP_WRITE")),
            (0x40_0dc0, Some("GFP_KERNEL_ACCOUNT|__GFP_ZERO")),
            (0x800, Some("__GFP_KSWAPD_RECLAIM")),
            (0, None),
            (0x200, None),
            (0xcc0 | 0x200, None),
            (0xcc0 | 0x0100_0000, None),
        ] {
            assert_eq!(Gfp::from_mask(mask).flags.as_deref(), text, "{mask:#x}");
        }
    }
}
