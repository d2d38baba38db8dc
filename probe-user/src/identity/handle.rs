//! Opening a cgroup by its id.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Type of a kernfs file handle: a 64-bit id (`FILEID_KERNFS`, include/linux/exportfs.h).
const FILEID_KERNFS: libc::c_int = 0xfe;

/// `struct file_handle` with the eight bytes a kernfs handle has.
#[repr(C)]
struct KernfsHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// Path by which this process reaches the cgroup `id` of the hierarchy `mount` belongs to.
///
/// Fails with `ESTALE` if there is no such cgroup and with `EPERM` without `CAP_DAC_READ_SEARCH`.
pub(super) fn path_of(mount: impl AsFd, id: u64) -> io::Result<PathBuf> {
    let mut handle = KernfsHandle {
        bytes: 8,
        kind: FILEID_KERNFS,
        id: id.to_ne_bytes(),
    };
    // SAFETY: the handle is a `struct file_handle` with `bytes` bytes of content, lives through the
    // call, and the mount descriptor is open for as long as it is borrowed.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this descriptor and nothing else owns it.
    let opened = unsafe { OwnedFd::from_raw_fd(fd) };
    let link = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    // The directory can go away between the two calls.
    if link.as_os_str().as_bytes().ends_with(b" (deleted)") {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    Ok(link)
}
