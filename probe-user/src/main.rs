//! The `oomprobe` command.
fn main() {}
