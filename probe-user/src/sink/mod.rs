//! Where events go.

pub mod json;
pub mod terminal;

use std::io;

use crate::event::Event;

/// Writes events somewhere.
pub trait Sink {
    /// Writes one event; when this returns, the reader can have it.
    fn write(&mut self, event: &Event) -> Result<(), Error>;
}

/// Why an event could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody reads any more, as after `oomprobe trace | head -1`: a reason to end, not a failure.
    #[error("the reader closed the output")]
    Closed,
    /// The output failed.
    #[error("cannot write the event to the output")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}
