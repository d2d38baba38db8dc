//! Builds, runs, tests and measures oomprobe.

mod apt_sources;
mod cache;
mod cmd;
mod debian;

fn main() {}
