//! What names this node and how many CPUs it has.

use std::path::Path;

use super::text::{self, Error, ParseError, TextFile};

/// `<proc>/sys/kernel/random/boot_id`: a UUID that changes with each boot.
pub fn boot_id(proc: &Path) -> Result<String, Error> {
    string(&proc.join("sys/kernel/random/boot_id"))
}

/// The name of the node: `from_env` (the variable `NODE_NAME`, which a pod sets from
/// `spec.nodeName`) unless it is empty, else `<proc>/sys/kernel/hostname`.
pub fn node_name(from_env: Option<&str>, proc: &Path) -> Result<String, Error> {
    match from_env {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => string(&proc.join("sys/kernel/hostname")),
    }
}

/// Highest possible CPU number plus one, from `<sys>/devices/system/cpu/possible`: how many
/// entries a per-CPU value of the kernel has.
pub fn possible_cpus(sys: &Path) -> Result<usize, Error> {
    let path = sys.join("devices/system/cpu/possible");
    text::parse_file(path, &mut Vec::new(), parse_cpu_list)
}

/// The end of a CPU list such as `0-3,8`.
fn parse_cpu_list(content: &[u8]) -> Result<usize, ParseError> {
    content
        .rsplit(|&byte| byte == b',' || byte == b'-')
        .next()
        .and_then(text::decimal)
        .and_then(|last| usize::try_from(last).ok()?.checked_add(1))
        .ok_or(ParseError {
            line: 1,
            expected: "a CPU list",
        })
}

fn string(path: &Path) -> Result<String, Error> {
    let mut buf = Vec::new();
    TextFile::open(path)?.read(&mut buf)?;
    Ok(String::from_utf8_lossy(buf.trim_ascii()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_goes_before_hostname() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/kernel");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("hostname"), "node-7\n").unwrap();
        let name = |env| node_name(env, root.path()).unwrap();
        assert_eq!(name(None), "node-7");
        assert_eq!(name(Some("")), "node-7");
        assert_eq!(name(Some("ip-10-0-0-1")), "ip-10-0-0-1");
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list(b"0\n"), Ok(1));
        assert_eq!(parse_cpu_list(b"0-3\n"), Ok(4));
        assert_eq!(parse_cpu_list(b"0-3,8-9,12\n"), Ok(13));
        assert!(parse_cpu_list(b"\n").is_err());
    }

    #[test]
    fn reads_this_machine() {
        assert_eq!(boot_id(Path::new("/proc")).unwrap().len(), 36);
        assert!(possible_cpus(Path::new("/sys")).unwrap() >= 1);
    }
}
