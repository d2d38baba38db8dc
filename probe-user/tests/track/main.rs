//! Objects from allocation to free on the running kernel.

// `cfg(test)` tells clippy that helpers may unwrap here as tests do.
#[cfg(test)]
mod outstanding;
