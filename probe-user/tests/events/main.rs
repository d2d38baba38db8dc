//! Events as others see them: schema, verdicts, terminal.

// `cfg(test)` tells clippy that helpers may unwrap here as tests do.
#[cfg(test)]
mod committed;
#[cfg(test)]
mod pressure;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod story;
#[cfg(test)]
mod terminal;
#[cfg(test)]
mod verdict;
