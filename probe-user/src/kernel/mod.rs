pub mod ladder;
pub mod loader;
