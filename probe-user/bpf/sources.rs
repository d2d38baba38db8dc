//! What ties the committed BPF object to the sources it was built from.
//!
//! Shared by `probe-user/build.rs`, which refuses an object that is older than its sources, and
//! by `xtask`, which builds the object.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// What the object is built from, relative to the workspace.
pub(crate) const SOURCES: [&str; 6] = [
    "probe-common/Cargo.toml",
    "probe-common/src",
    "probe-ebpf/.cargo",
    "probe-ebpf/Cargo.lock",
    "probe-ebpf/Cargo.toml",
    "probe-ebpf/src",
];

/// `oomprobe.bpf.lock`: which sources and tools an object came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock {
    /// SHA-256 of the object.
    pub(crate) object_sha256: String,
    /// [`hash_sources`] of what it was built from.
    pub(crate) sources_sha256: String,
    /// `rustc --version`.
    pub(crate) rustc: String,
    /// LLVM of rustc and of the linker.
    pub(crate) llvm: String,
    /// `bpf-linker --version`.
    pub(crate) bpf_linker: String,
}

impl Lock {
    /// Reads the `key = "value"` lines that [`fmt::Display`] writes; `Err` names what is missing.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let field = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().trim_matches('"').to_owned())
                .ok_or_else(|| format!("`{name}` is missing"))
        };
        Ok(Self {
            object_sha256: field("object_sha256")?,
            sources_sha256: field("sources_sha256")?,
            rustc: field("rustc")?,
            llvm: field("llvm")?,
            bpf_linker: field("bpf_linker")?,
        })
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# Written by `cargo xtask build-ebpf` together with the object."
        )?;
        writeln!(f, "object_sha256 = \"{}\"", self.object_sha256)?;
        writeln!(f, "sources_sha256 = \"{}\"", self.sources_sha256)?;
        writeln!(f, "rustc = \"{}\"", self.rustc)?;
        writeln!(f, "llvm = \"{}\"", self.llvm)?;
        writeln!(f, "bpf_linker = \"{}\"", self.bpf_linker)
    }
}

/// SHA-256 over the paths and contents of all [`SOURCES`] under `workspace`, in path order.
pub(crate) fn hash_sources(workspace: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for (name, path) in source_files(workspace)? {
        let content = fs::read(&path).map_err(|error| named(&path, &error))?;
        // Lengths keep a file's end apart from the next file's name.
        for part in [name.as_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 as lower-case hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// All files of [`SOURCES`]: their path with `/` relative to `workspace`, and their place.
pub(crate) fn source_files(workspace: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(source.to_owned(), &workspace.join(source), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(name: String, path: &Path, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    if !path.is_dir() {
        files.push((name, path.to_owned()));
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| named(path, &error))? {
        let entry = entry?;
        let entry_name = entry.file_name().to_string_lossy().into_owned();
        // Hidden files are an editor's, not sources.
        if !entry_name.starts_with('.') {
            collect(format!("{name}/{entry_name}"), &entry.path(), files)?;
        }
    }
    Ok(())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for source in SOURCES {
            let path = dir.path().join(source);
            if path.ends_with("src") || path.ends_with(".cargo") {
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join("file"), source).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, source).unwrap();
            }
        }
        dir
    }

    #[test]
    fn hash_depends_on_names_and_contents_and_not_on_the_place() {
        let (a, b) = (workspace(), workspace());
        let hash = |dir: &tempfile::TempDir| hash_sources(dir.path()).unwrap();
        let original = hash(&a);
        assert_eq!(original, hash(&b));

        fs::write(a.path().join("probe-ebpf/src/.file.swp"), "editor").unwrap();
        assert_eq!(original, hash(&a));

        let nested = b.path().join("probe-ebpf/src/kernel");
        fs::create_dir(&nested).unwrap();
        fs::write(nested.join("task.rs"), "").unwrap();
        let with_nested = hash(&b);
        assert_ne!(original, with_nested);
        fs::rename(nested.join("task.rs"), nested.join("mm.rs")).unwrap();
        assert_ne!(with_nested, hash(&b));

        fs::write(a.path().join("probe-common/src/file"), "other").unwrap();
        assert_ne!(original, hash(&a));
    }

    #[test]
    fn a_missing_source_is_named() {
        let dir = workspace();
        fs::remove_file(dir.path().join("probe-ebpf/Cargo.lock")).unwrap();
        let error = hash_sources(dir.path()).unwrap_err().to_string();
        assert!(error.contains("probe-ebpf/Cargo.lock"), "{error}");
    }

    #[test]
    fn lock_round_trips() {
        let lock = Lock {
            object_sha256: "0a".into(),
            sources_sha256: "0b".into(),
            rustc: "rustc 1.95.0 (59807616e 2026-04-14)".into(),
            llvm: "22.1.2".into(),
            bpf_linker: "bpf-linker 0.13.0".into(),
        };
        assert_eq!(Lock::parse(&lock.to_string()), Ok(lock));
        assert_eq!(Lock::parse("").unwrap_err(), "`object_sha256` is missing");
    }
}
