//! NDJSON: one event, one line.

use std::io::Write;

use super::{Error, Sink};
use crate::event::Event;

/// Writes each event as one line and flushes it.
#[derive(Debug)]
pub struct Json<W> {
    out: W,
    line: Vec<u8>,
}

impl<W: Write> Json<W> {
    /// Writes to `out`.
    pub const fn new(out: W) -> Self {
        Self {
            out,
            line: Vec::new(),
        }
    }
}

impl<W: Write> Sink for Json<W> {
    fn write(&mut self, event: &Event) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, event).map_err(|error| Error::Io(error.into()))?;
        self.line.push(b'\n');
        // One write: a line is never interleaved with another writer's.
        self.out.write_all(&self.line)?;
        self.out.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::event::{Body, Heartbeat, Host, Loss, Time};

    fn event(body: Body) -> Event {
        let host = Host {
            name: Some("n1".into()),
            boot_id: None,
        };
        Event::new(
            Time::from_unix_ns(1_763_690_534_000_000_009),
            7,
            0,
            host,
            body,
        )
    }

    #[test]
    fn one_event_is_one_line() {
        let mut sink = Json::new(Vec::new());
        sink.write(&event(Body::Heartbeat(Heartbeat::default())))
            .unwrap();
        let reason = "a\nb\x1b\u{2028}".to_owned();
        sink.write(&event(Body::Loss(Loss {
            reason,
            ..Loss::default()
        })))
        .unwrap();
        let text = String::from_utf8(sink.out).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let first = r#"{"schema":"oomprobe/1","time":"2025-11-21T02:02:14.000000009Z","time_boot_ns":7,"seq":0,"host":{"name":"n1","boot_id":null},"severity":"INFO","kind":"heartbeat","#;
        assert!(text.starts_with(first), "{text}");
        for line in text.lines() {
            let back: Event = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&back).unwrap(), line);
        }
    }

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        let event = event(Body::Heartbeat(Heartbeat::default()));
        let write = |kind| Json::new(Fails(kind)).write(&event).unwrap_err();
        assert!(matches!(write(io::ErrorKind::BrokenPipe), Error::Closed));
        assert!(matches!(write(io::ErrorKind::StorageFull), Error::Io(_)));
    }
}
