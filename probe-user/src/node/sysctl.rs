//! Single numbers below `/proc/sys` (Documentation/admin-guide/sysctl).

use std::path::Path;

use super::text::{self, Error};

/// The number in `<proc>/sys/<name>`; `None` where there is no such setting.
pub fn number(proc: &Path, name: &str) -> Result<Option<u64>, Error> {
    let path = proc.join("sys").join(name);
    text::optional(text::parse_file(path, &mut Vec::new(), text::single_number))
}

/// How full the connection tracking table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections now (`nf_conntrack_count`), in the network namespace of the reader.
    pub count: u64,
    /// Most there may be (`nf_conntrack_max`).
    pub max: u64,
}

/// The connection tracking table; `None` if the module is not loaded.
pub fn conntrack(proc: &Path) -> Result<Option<Conntrack>, Error> {
    let read = |name: &str| number(proc, &format!("net/netfilter/nf_conntrack_{name}"));
    let (count, max) = (read("count")?, read("max")?);
    Ok(count.zip(max).map(|(count, max)| Conntrack { count, max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_not_there_is_none() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(conntrack(proc.path()).unwrap(), None);
        let dir = proc.path().join("sys/net/netfilter");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("nf_conntrack_count"), "12\n").unwrap();
        assert_eq!(conntrack(proc.path()).unwrap(), None);
        std::fs::write(dir.join("nf_conntrack_max"), "262144\n").unwrap();
        let table = Conntrack {
            count: 12,
            max: 262_144,
        };
        assert_eq!(conntrack(proc.path()).unwrap(), Some(table));
        std::fs::write(dir.join("nf_conntrack_max"), "26x").unwrap();
        assert!(conntrack(proc.path()).is_err());
    }
}
