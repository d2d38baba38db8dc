//! Where downloads and built tools are kept between runs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// A directory of entries, each of which is either complete or absent.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$OOMPROBE_CACHE`, else `$XDG_CACHE_HOME/oomprobe`, else `~/.cache/oomprobe`.
    pub(crate) fn open() -> Result<Self> {
        let root = root_from(|name| std::env::var_os(name).filter(|v| !v.is_empty()))
            .context("no cache directory: set OOMPROBE_CACHE or HOME")?;
        Self::at(std::path::absolute(root)?)
    }

    fn at(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot create the cache {}", root.display()))?;
        Ok(Self { root })
    }

    /// The place of an entry, whether or not it exists.
    pub(crate) fn path(&self, entry: impl AsRef<Path>) -> PathBuf {
        self.root.join(entry)
    }

    /// The directory `entry`; if absent, `fill` makes its content in an empty directory that
    /// then takes its place in one step, so that an interrupted run leaves no half entry.
    /// Processes that want the same entry wait for each other.
    pub(crate) fn get_or_create(
        &self,
        entry: impl AsRef<Path>,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.path(&entry);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(&entry)?;
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(&self.root);
        let partial = tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(parent)
            .with_context(|| format!("cannot create a directory in {}", parent.display()))?;
        // A temporary directory is private; what the cache holds may be shared.
        let content = partial.path().join("content");
        fs::create_dir(&content)?;
        fill(&content)?;
        fs::rename(&content, &path)
            .with_context(|| format!("cannot move the new content to {}", path.display()))?;
        Ok(path)
    }

    /// Holds off other processes that lock the same entry until the result is dropped.
    pub(crate) fn lock(&self, entry: impl AsRef<Path>) -> Result<CacheLock> {
        let mut name = self.path(entry).into_os_string();
        name.push(".lock");
        let path = PathBuf::from(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        if file.try_lock().is_err() {
            crate::cmd::status(
                "Waiting",
                format_args!("for another xtask: {}", path.display()),
            );
            file.lock()
                .with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(CacheLock { _file: file })
    }
}

/// A held lock; the kernel releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct CacheLock {
    _file: File,
}

fn root_from(var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    var("OOMPROBE_CACHE")
        .map(PathBuf::from)
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("oomprobe")))
        .or_else(|| var("HOME").map(|dir| PathBuf::from(dir).join(".cache/oomprobe")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_variable_wins_then_xdg_then_home() {
        let vars = |set: &'static [(&str, &str)]| {
            root_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        assert_eq!(
            vars(&[
                ("OOMPROBE_CACHE", "/a"),
                ("XDG_CACHE_HOME", "/b"),
                ("HOME", "/c")
            ]),
            Some("/a".into())
        );
        assert_eq!(
            vars(&[("XDG_CACHE_HOME", "/b"), ("HOME", "/c")]),
            Some("/b/oomprobe".into())
        );
        assert_eq!(vars(&[("HOME", "/c")]), Some("/c/.cache/oomprobe".into()));
        assert_eq!(vars(&[]), None);
    }

    #[test]
    fn an_entry_is_made_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache")).unwrap();

        let failed = cache.get_or_create("a/b", |dir| {
            fs::write(dir.join("half"), "")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!cache.path("a/b").exists());

        let path = cache
            .get_or_create("a/b", |dir| Ok(fs::write(dir.join("f"), "1")?))
            .unwrap();
        let again = cache
            .get_or_create("a/b", |_| anyhow::bail!("made twice"))
            .unwrap();
        assert_eq!(path, again);
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "1");

        let left: Vec<_> = fs::read_dir(cache.path("a"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(".partial"))
            .collect();
        assert_eq!(left, Vec::<String>::new());
    }
}
