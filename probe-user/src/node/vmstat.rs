//! `/proc/vmstat`: event counters of the whole node.

use std::path::Path;

use super::text::{self, Error, TextFile};

/// `/proc/vmstat` kept open, with its content as of the last [`Self::refresh`].
#[derive(Debug)]
pub struct Vmstat {
    file: TextFile,
    content: Vec<u8>,
}

impl Vmstat {
    /// Opens `<proc>/vmstat` and reads it.
    pub fn open(proc: &Path) -> Result<Self, Error> {
        let mut vmstat = Self {
            file: TextFile::open(proc.join("vmstat"))?,
            content: Vec::with_capacity(text::BUFFER_LEN),
        };
        vmstat.refresh()?;
        Ok(vmstat)
    }

    /// Reads the counters anew.
    pub fn refresh(&mut self) -> Result<(), Error> {
        self.file
            .parse(&mut self.content, |text| text::flat_keyed(text, |_, _| {}))
    }

    /// The counter called `name`, in the unit the kernel counts it in (mostly events or pages);
    /// `None` if this kernel has none of that name.
    pub fn get(&self, name: &str) -> Option<u64> {
        text::lines(&self.content).find_map(|(_, line)| {
            let value = line.strip_prefix(name.as_bytes())?.strip_prefix(b" ")?;
            text::decimal(value)
        })
    }

    /// All counters by name.
    pub fn counters(&self) -> impl Iterator<Item = (&[u8], u64)> {
        text::lines(&self.content).filter_map(|(_, line)| {
            let (name, value) = text::cut(line, b" ")?;
            Some((name, text::decimal(value)?))
        })
    }

    /// Processes killed by the OOM killer since boot, whatever the scope (4.13).
    pub fn oom_kill(&self) -> Option<u64> {
        self.get("oom_kill")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_names_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmstat");
        std::fs::write(&path, "oom_kill_other 9\noom_kill 3\nallocstall_dma 0\n").unwrap();
        let mut vmstat = Vmstat::open(dir.path()).unwrap();
        assert_eq!(vmstat.oom_kill(), Some(3));
        assert_eq!(vmstat.get("oom"), None);
        assert_eq!(vmstat.get("allocstall_dma"), Some(0));

        std::fs::write(&path, "oom_kill 4\n").unwrap();
        vmstat.refresh().unwrap();
        assert_eq!(vmstat.oom_kill(), Some(4));
        assert_eq!(vmstat.get("allocstall_dma"), None);
    }

    #[test]
    fn reads_this_machine() {
        let vmstat = Vmstat::open(Path::new("/proc")).unwrap();
        assert!(vmstat.oom_kill().is_some());
        assert!(vmstat.get("nr_free_pages").unwrap() > 0);
    }
}
