//! Wire records: a total decoder. Any byte string gives a record or an error.

use bytemuck::{Pod, pod_read_unaligned};
use bytes::Bytes;
use probe_common::wire::{
    self, CgroupChange, Death, Exit, Header, Kill, LimitHit, LimitLevel, MarkVictim, OomDecision,
    OomEnd, Reap, Section, Sent, VERSION, kind, section,
};

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the part that should be there.
    #[error("record cut short: {have} of {need} bytes")]
    Short {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        need: usize,
    },
    /// Written by another build.
    #[error("record of format {0}, this build reads {VERSION}")]
    Version(u16),
    /// Nothing this build knows.
    #[error("record of unknown kind {0}")]
    Kind(u16),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What all records start with.
    pub header: Header,
    /// The fixed part.
    pub body: Body,
    sections: Sections,
}

/// Fixed parts by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the wire type of its name")]
pub enum Body {
    OomDecision(Box<OomDecision>),
    OomEnd(OomEnd),
    MarkVictim(Box<MarkVictim>),
    KernelKill(Box<Kill>),
    Exit(Exit),
    Death(Box<Death>),
    Reap(Reap),
    LimitHit(Box<LimitHit>),
    Cgroup(CgroupChange),
}

/// Names of a cgroup and its ancestors, leaf first, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupNames {
    names: Vec<Bytes>,
    /// Ancestors are missing: the path was too deep or too long.
    pub truncated: bool,
}

impl CgroupNames {
    /// Leaf first; empty for the root.
    pub fn leaf_first(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// Levels below the root.
    pub fn depth(&self) -> usize {
        self.names.len()
    }

    /// Absolute path of the ancestor `up` levels above the leaf. What is missing above shows as
    /// a leading `/…`.
    pub fn path(&self, up: usize) -> Vec<u8> {
        let mut path = Vec::new();
        if self.truncated {
            path.extend_from_slice("/…".as_bytes());
        }
        for name in self.names.iter().skip(up).rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }
}

/// The sections of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sections(Vec<(Section, Bytes)>);

impl Sections {
    fn get(&self, tag: u16) -> Option<(&Section, &Bytes)> {
        let (section, bytes) = self.0.iter().find(|(section, _)| section.tag == tag)?;
        Some((section, bytes))
    }
}

impl Record {
    /// Decodes one record. Bytes behind it are ignored, as ring items are padded.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut at = 0;
        let header: Header = take(bytes, &mut at)?;
        if header.version != VERSION {
            return Err(DecodeError::Version(header.version));
        }
        let length = header.len as usize;
        if bytes.len() < length {
            return Err(DecodeError::Short {
                have: bytes.len(),
                need: length,
            });
        }
        let bytes = bytes.slice(..length);
        let body = match header.kind {
            kind::OOM_DECISION => Body::OomDecision(Box::new(take(&bytes, &mut at)?)),
            kind::OOM_END => Body::OomEnd(take(&bytes, &mut at)?),
            kind::MARK_VICTIM => Body::MarkVictim(Box::new(take(&bytes, &mut at)?)),
            kind::KERNEL_KILL => Body::KernelKill(Box::new(take(&bytes, &mut at)?)),
            kind::EXIT => Body::Exit(take(&bytes, &mut at)?),
            kind::DEATH => Body::Death(Box::new(take(&bytes, &mut at)?)),
            kind::REAP => Body::Reap(take(&bytes, &mut at)?),
            kind::LIMIT_HIT => Body::LimitHit(Box::new(take(&bytes, &mut at)?)),
            kind::CGROUP => Body::Cgroup(take(&bytes, &mut at)?),
            other => return Err(DecodeError::Kind(other)),
        };
        let mut sections = Vec::new();
        while at < bytes.len() {
            let section: Section = take(&bytes, &mut at)?;
            let end = at.saturating_add(section.len as usize);
            if end > bytes.len() {
                return Err(DecodeError::Short {
                    have: bytes.len(),
                    need: end,
                });
            }
            sections.push((section, bytes.slice(at..end)));
            at = end.next_multiple_of(8);
        }
        Ok(Self {
            header,
            body,
            sections: Sections(sections),
        })
    }

    /// Cgroup names of a `*_PATH` section.
    pub fn names(&self, tag: u16) -> Option<CgroupNames> {
        let (section, bytes) = self.sections.get(tag)?;
        let names = bytes
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| bytes.slice_ref(name))
            .collect();
        Some(CgroupNames {
            names,
            truncated: section.truncated != 0,
        })
    }

    /// A full path as a tracepoint gave it.
    pub fn full_path(&self) -> Option<&[u8]> {
        self.sections
            .get(section::FULL_PATH)
            .map(|(_, bytes)| bytes.as_ref())
    }

    /// The kernel's message for a kill.
    pub fn message(&self) -> Option<&[u8]> {
        self.sections
            .get(section::MESSAGE)
            .map(|(_, bytes)| bytes.as_ref())
    }

    /// Arguments of the victim, where the programs could read them.
    pub fn arguments(&self) -> Option<&[u8]> {
        self.sections
            .get(section::ARGUMENTS)
            .map(|(_, bytes)| bytes.as_ref())
    }

    /// Counters of the charged memcg and its ancestors, leaf first.
    pub fn limit_levels(&self) -> Vec<LimitLevel> {
        self.integers(section::LIMIT_LEVELS)
    }

    /// Signals that a process was sent before it ended.
    pub fn signals(&self) -> Vec<Sent> {
        self.integers(section::SIGNALS)
    }

    /// Kernel addresses, innermost frame first.
    pub fn stack(&self) -> Vec<u64> {
        let mut stack: Vec<u64> = self.integers(section::STACK);
        stack.retain(|address| *address != 0);
        stack
    }

    fn integers<T: Pod>(&self, tag: u16) -> Vec<T> {
        let Some((_, bytes)) = self.sections.get(tag) else {
            return Vec::new();
        };
        bytes
            .chunks_exact(size_of::<T>())
            .map(pod_read_unaligned)
            .collect()
    }
}

fn take<T: Pod>(bytes: &Bytes, at: &mut usize) -> Result<T, DecodeError> {
    let need = at.saturating_add(size_of::<T>());
    let slice = bytes.get(*at..need).ok_or(DecodeError::Short {
        have: bytes.len(),
        need,
    })?;
    *at = need;
    Ok(pod_read_unaligned(slice))
}

/// `task_struct::comm` up to its NUL.
pub fn comm(task: &wire::Task) -> &[u8] {
    until_nul(&task.comm)
}

/// The same of its parent; `None` if it could not be read.
pub fn parent_comm(task: &wire::Task) -> Option<&[u8]> {
    Some(until_nul(&task.parent_comm)).filter(|comm| !comm.is_empty())
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u16, body: &[u8], sections: &[(u16, u16, &[u8])]) -> Bytes {
        let mut bytes = vec![0; size_of::<Header>()];
        bytes.extend_from_slice(body);
        for (tag, truncated, content) in sections {
            let len = u32::try_from(content.len()).unwrap();
            bytes.extend_from_slice(bytes_of(&Section {
                tag: *tag,
                truncated: *truncated,
                len,
            }));
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let header = Header {
            version: VERSION,
            kind,
            len: u32::try_from(bytes.len()).unwrap(),
            ..Header::zeroed()
        };
        bytes[..size_of::<Header>()].copy_from_slice(bytes_of(&header));
        Bytes::from(bytes)
    }

    #[test]
    fn names_make_paths() {
        let body = MarkVictim::zeroed();
        let bytes = record(
            kind::MARK_VICTIM,
            bytes_of(&body),
            &[
                (section::VICTIM_PATH, 0, b"leaf\0mid\xff\0top\0"),
                (section::TRIGGER_PATH, 1, b"deep\0"),
                (section::STACK, 0, bytemuck::cast_slice(&[7u64, 8, 0])),
            ],
        );
        let record = Record::decode(&bytes).unwrap();
        let names = record.names(section::VICTIM_PATH).unwrap();
        assert_eq!(names.path(0), b"/top/mid\xff/leaf");
        assert_eq!(names.path(2), b"/top");
        assert_eq!(names.path(3), b"/");
        let cut = record.names(section::TRIGGER_PATH).unwrap();
        assert_eq!(cut.path(0), "/…/deep".as_bytes());
        assert_eq!(record.stack(), [7, 8]);
        assert_eq!(record.names(section::LIMIT_PATH), None);
    }

    #[test]
    fn a_limit_hit_has_its_counts_and_the_path_of_the_limit() {
        let mut body = LimitHit::zeroed();
        body.memcg_id = 41;
        (body.totals.max, body.totals.max_before) = (7, 3);
        body.trigger.comm[..4].copy_from_slice(b"hog\0");
        let path = (section::LIMIT_PATH, 0, &b"pod\0kubepods\0"[..]);
        let bytes = record(kind::LIMIT_HIT, bytes_of(&body), &[path]);
        let record = Record::decode(&bytes).unwrap();
        assert_eq!(record.body, Body::LimitHit(Box::new(body)));
        let names = record.names(section::LIMIT_PATH).unwrap();
        assert_eq!(names.path(0), b"/kubepods/pod");
        assert_eq!(comm(&body.trigger), b"hog");
    }

    #[test]
    fn a_death_has_the_signals_before_it_deadly_one_first() {
        let mut body = Death::zeroed();
        (body.task.pid, body.exit_code) = (7, 9);
        let [kill, term] = [(9, 0, 40), (15, 1, 30)].map(|(signal, result, pid)| {
            let mut sent = Sent::zeroed();
            (sent.signal, sent.result, sent.sender.pid) = (signal, result, pid);
            sent
        });
        let sent = [bytes_of(&kill), bytes_of(&term)].concat();
        let sections = [
            (section::VICTIM_PATH, 0, &b"app\0pod\0"[..]),
            (section::SIGNALS, 0, &sent[..]),
        ];
        let record = Record::decode(&record(kind::DEATH, bytes_of(&body), &sections)).unwrap();
        assert_eq!(record.body, Body::Death(Box::new(body)));
        assert_eq!(record.signals(), [kill, term]);
        assert_eq!(
            record.names(section::VICTIM_PATH).unwrap().path(0),
            b"/pod/app"
        );
    }

    #[test]
    fn torn_records_are_errors() {
        let whole = record(kind::EXIT, bytes_of(&Exit::zeroed()), &[(99, 0, b"later")]);
        assert!(Record::decode(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(Record::decode(&whole.slice(..length)).is_err(), "{length}");
        }
        let mut long = whole.to_vec();
        let at = long.len() - 12;
        long[at..at + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(
            Record::decode(&Bytes::from(long)),
            Err(DecodeError::Short { .. })
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
                                       kind in 0u16..24) {
            if bytes.len() >= size_of::<Header>() {
                let header = Header {
                    version: VERSION,
                    kind,
                    len: u32::try_from(bytes.len()).unwrap(),
                    ..Header::zeroed()
                };
                bytes[..size_of::<Header>()].copy_from_slice(bytes_of(&header));
            }
            if let Ok(record) = Record::decode(&Bytes::from(bytes)) {
                let _ = (record.names(section::VICTIM_PATH), record.stack(), record.limit_levels(),
                         record.signals());
            }
        }
    }
}
