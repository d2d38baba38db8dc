//! Reading kernel memory, and where the pages of memory and their descriptors are.

/// Kernel memory, read-only. What cannot be read is an answer, never a fault.
pub trait Memory {
    /// Fills `into` with the bytes at `address`; `false` if not all of them can be read. Memory
    /// that is mapped nowhere may also read as zeros, as it does through `/proc/kcore`.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;

    /// The 64-bit word at `address`.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)
            .then(|| u64::from_ne_bytes(bytes))
    }

    /// The 32-bit word at `address`.
    fn half(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)
            .then(|| u32::from_ne_bytes(bytes))
    }

    /// The kernel pointer at `address`; `None` for null and for what cannot be one.
    fn pointer(&self, address: u64) -> Option<u64> {
        self.word(address).filter(|&value| is_kernel(value))
    }

    /// The string of at most `N` bytes at `address`, as far as it is printable; `None` if it is
    /// empty, not terminated or not printable.
    fn name<const N: usize>(&self, address: u64) -> Option<String>
    where
        Self: Sized,
    {
        let mut bytes = [0; N];
        self.read(address, &mut bytes)
            .then(|| printable(&bytes))
            .flatten()
    }
}

/// Whether `address` is in the kernel's half of the address space (with page tables of five levels
/// too) and can be dereferenced: error pointers and small negative numbers are not, nor is a
/// list's poison.
pub const fn is_kernel(address: u64) -> bool {
    address >= 0xff00_0000_0000_0000 && address < u64::MAX - 4095
}

/// The NUL-terminated, printable, non-empty ASCII string that starts `bytes`.
pub fn printable(bytes: &[u8]) -> Option<String> {
    let len = bytes.iter().position(|&byte| byte == 0)?;
    let text = bytes.get(..len)?;
    (len > 0 && text.iter().all(u8::is_ascii_graphic))
        .then(|| String::from_utf8_lossy(text).into_owned())
}

/// The word at `at`, 0 beyond the end: a struct shorter than its layout says holds nothing.
pub fn word_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u64::from_ne_bytes(*word))
}

/// The 32-bit word at `at`, 0 beyond the end.
pub fn half_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u32::from_ne_bytes(*word))
}

/// The 16-bit word at `at`, 0 beyond the end.
pub fn quarter_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |word| u16::from_ne_bytes(*word))
}

/// A range of physical memory that the kernel maps linearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamSegment {
    /// First page frame number.
    pub first_pfn: u64,
    /// Number of pages.
    pub pages: u64,
    /// Where the first page is mapped.
    pub address: u64,
}

/// All memory of the node: where its pages are mapped, and where their `struct page` are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ram {
    /// In order of addresses, not overlapping.
    pub segments: Vec<RamSegment>,
    /// Address of the `struct page` of pfn 0 (`vmemmap`).
    pub vmemmap: u64,
    /// `sizeof(struct page)`.
    pub page_struct_bytes: u64,
    /// Size of a page.
    pub page_bytes: u64,
}

impl Ram {
    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.segments.iter().map(|segment| segment.pages).sum()
    }

    /// Address of the `struct page` of `pfn`.
    pub const fn page_struct(&self, pfn: u64) -> u64 {
        self.vmemmap
            .wrapping_add(pfn.wrapping_mul(self.page_struct_bytes))
    }

    /// Where page `pfn` is mapped.
    pub fn page_address(&self, pfn: u64) -> Option<u64> {
        let segment = self
            .segments
            .iter()
            .find(|segment| pfn.wrapping_sub(segment.first_pfn) < segment.pages)?;
        Some(segment.address + (pfn - segment.first_pfn) * self.page_bytes)
    }

    /// The page frame at `address`; `None` if that is not linearly mapped memory.
    pub fn pfn(&self, address: u64) -> Option<u64> {
        let behind = self
            .segments
            .partition_point(|segment| segment.address <= address);
        let segment = self.segments.get(behind.checked_sub(1)?)?;
        let page = (address - segment.address) / self.page_bytes;
        (page < segment.pages).then_some(segment.first_pfn + page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_pointers_are_followed() {
        for address in [
            0,
            1,
            0x7fff_ffff_f000,
            0xdead_0000_0000_0100,
            u64::MAX,
            u64::MAX - 11,
        ] {
            assert!(!is_kernel(address), "{address:#x}");
        }
        for address in [
            0xff20_bffe_8000_1000,
            0xffff_8880_0000_1000,
            0xffff_ffff_8100_0000,
        ] {
            assert!(is_kernel(address), "{address:#x}");
        }
    }

    #[test]
    fn names_are_printable_and_end() {
        assert_eq!(printable(b"eth0\0junk"), Some("eth0".into()));
        for bytes in [&b"\0eth0"[..], b"eth0", b"e\x1bth\0", b"\xff\0", b""] {
            assert_eq!(printable(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn pages_and_addresses_belong_together() {
        let ram = Ram {
            segments: vec![
                RamSegment {
                    first_pfn: 1,
                    pages: 2,
                    address: 0xffff_8880_0000_1000,
                },
                RamSegment {
                    first_pfn: 16,
                    pages: 4,
                    address: 0xffff_8880_0001_0000,
                },
            ],
            vmemmap: 0xffff_ea00_0000_0000,
            page_struct_bytes: 64,
            page_bytes: 4096,
        };
        for pfn in [1, 2, 16, 19] {
            let address = ram.page_address(pfn).unwrap();
            assert_eq!(
                (ram.pfn(address), ram.pfn(address + 4095)),
                (Some(pfn), Some(pfn))
            );
        }
        for pfn in [0, 3, 15, 20] {
            assert_eq!(ram.page_address(pfn), None);
        }
        for address in [
            0,
            0xffff_8880_0000_0fff,
            0xffff_8880_0000_3000,
            0xffff_8880_0001_4000,
        ] {
            assert_eq!(ram.pfn(address), None, "{address:#x}");
        }
        assert_eq!(ram.pages(), 6);
    }
}
