//! Modules of the kernel.

use std::path::Path;
use std::process::Command;

/// Whether a module is loaded, which it is from now on if there is one.
pub fn load(name: &str) -> bool {
    let modprobe = || Command::new("modprobe").args(["-q", name]).status();
    Path::new("/sys/module").join(name).exists() || modprobe().is_ok_and(|end| end.success())
}
