//! The kernels of the matrix, fetched from Debian into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::fetch;
use crate::cache::Cache;
use crate::cmd::status;
use crate::debian::{self, Debian, Package};

/// After this the suite is asked for a newer package of the series.
const RECHECK_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// Name of the file that describes a kernel's directory.
const STATE_FILE: &str = "kernel.json";

/// `tests/kernels.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Matrix {
    modules: Vec<String>,
    #[serde(rename = "kernel")]
    pub(crate) series: Vec<Series>,
}

/// One line of kernel releases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Series {
    pub(crate) label: String,
    suites: Vec<String>,
    /// Regular expression for the name of the package with the image.
    package: String,
}

/// A kernel that is ready to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Label in the matrix, or the path given instead of one.
    pub(crate) label: String,
    pub(crate) vmlinuz: PathBuf,
    /// What the cache knows; `None` for an image given by path.
    pub(crate) cached: Option<Cached>,
}

/// A kernel's directory in the cache: `vmlinuz`, `btf` (raw `.BTF`), `modules/`, `config` where
/// the archive has it, and this as `kernel.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cached {
    /// Package the image came from.
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) suite: String,
    /// What `uname -r` says.
    pub(crate) release: String,
    /// Module patterns the directory was made with.
    wanted_modules: Vec<String>,
    /// Parts the archive no longer has, in words.
    pub(crate) missing: Vec<String>,
    #[serde(skip)]
    pub(crate) dir: PathBuf,
}

impl Matrix {
    /// The matrix of this repository.
    pub(crate) fn load() -> Result<Self> {
        Self::parse(include_str!("../../../tests/kernels.toml")).context("tests/kernels.toml")
    }

    fn parse(text: &str) -> Result<Self> {
        let matrix: Self = toml::from_str(text)?;
        for (index, series) in matrix.series.iter().enumerate() {
            if matrix.series[..index]
                .iter()
                .any(|other| other.label == series.label)
            {
                bail!("label {} is given twice", series.label);
            }
            if series.suites.is_empty() {
                bail!("kernel {} has no suite", series.label);
            }
        }
        Ok(matrix)
    }

    /// The kernel `name` stands for: a label, `newest`, or the path of a vmlinuz.
    pub(crate) fn kernel(&self, cache: &Cache, name: &str) -> Result<Kernel> {
        if name == "newest" {
            return self.newest(cache);
        }
        if let Some(series) = self.series.iter().find(|series| series.label == name) {
            return self.ready(cache, series);
        }
        if Path::new(name).is_file() {
            return Ok(Kernel {
                label: name.to_owned(),
                vmlinuz: std::path::absolute(name)?,
                cached: None,
            });
        }
        let labels: Vec<_> = self
            .series
            .iter()
            .map(|series| series.label.as_str())
            .collect();
        bail!(
            "no kernel {name:?}: give a label ({}), `newest` or a vmlinuz",
            labels.join(", ")
        )
    }

    /// The last series that can be had.
    fn newest(&self, cache: &Cache) -> Result<Kernel> {
        let mut errors = Vec::new();
        for series in self.series.iter().rev() {
            match self.ready(cache, series) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => {
                    status("Warning", format_args!("{error:#}"));
                    errors.push(error);
                }
            }
        }
        let first = errors.into_iter().next();
        Err(first.unwrap_or_else(|| anyhow!("tests/kernels.toml names no kernel")))
    }

    /// The kernel of `series` from the cache, renewed where the suite has a newer one.
    fn ready(&self, cache: &Cache, series: &Series) -> Result<Kernel> {
        let _lock = cache.lock(format!("kernels/{}", series.label))?;
        let dir = series.dir(cache);
        let current = Cached::read(&dir).filter(|c| c.wanted_modules == self.modules);
        let cached = match current {
            Some(current) if current.is_fresh() => current,
            current => match self.renew(cache, series, current.as_ref()) {
                Ok(renewed) => renewed,
                Err(error) => match current {
                    Some(current) => {
                        let release = &current.release;
                        status(
                            "Warning",
                            format_args!("using the cached {release}: {error:#}"),
                        );
                        current
                    }
                    None => {
                        return Err(error.context(format!(
                            "cannot get kernel {}, package `{}` of Debian {}",
                            series.label,
                            series.package,
                            series.suites.join(", ")
                        )));
                    }
                },
            },
        };
        Ok(Kernel {
            label: series.label.clone(),
            vmlinuz: cached.dir.join("vmlinuz"),
            cached: Some(cached),
        })
    }

    /// Finds the newest package and fetches it unless it is `current`.
    fn renew(&self, cache: &Cache, series: &Series, current: Option<&Cached>) -> Result<Cached> {
        let debian = Debian::of_this_machine(cache)?;
        let package = series.newest_package(&debian)?;
        let dir = series.dir(cache);
        if let Some(current) = current.filter(|current| current.is_from(&package)) {
            current.write(&dir)?; // also the time of the last check
            return Ok(current.clone());
        }
        let new = tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(cache.path("kernels"))
            .context("create a directory for the kernel in the cache")?;
        let content = new.path().join("content");
        let fetched = fetch::fetch(&debian, &package, &self.modules, &content)?;
        let cached = Cached {
            package: package.name,
            version: package.version,
            suite: package.suite,
            release: fetched.release,
            wanted_modules: self.modules.clone(),
            missing: fetched.missing,
            dir: dir.clone(),
        };
        cached.write(&content)?;
        // The old directory goes with `new`. A guest about to start from it may fail, loudly.
        if dir.exists() {
            fs::rename(&dir, new.path().join("old")).context("set the old kernel aside")?;
        }
        fs::rename(&content, &dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(cached)
    }
}

impl Series {
    fn dir(&self, cache: &Cache) -> PathBuf {
        cache.path(format!("kernels/{}", self.label))
    }

    /// What the cache holds of this series, whether or not it is current.
    pub(crate) fn cached(&self, cache: &Cache) -> Option<Cached> {
        Cached::read(&self.dir(cache))
    }

    /// The package that would be fetched.
    pub(crate) fn available(&self, cache: &Cache) -> Result<Package> {
        self.newest_package(&Debian::of_this_machine(cache)?)
    }

    /// The newest package any of the suites has. A suite that cannot be read is overlooked if
    /// another one can.
    fn newest_package(&self, debian: &Debian) -> Result<Package> {
        let mut found = Vec::new();
        let mut refusal = None;
        for suite in &self.suites {
            match debian.all(suite, &self.package) {
                Ok(packages) => found.extend(packages),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        match (debian::newest(found)?, refusal) {
            (Some(package), _) => Ok(package),
            (None, Some(error)) => Err(error),
            (None, None) => bail!("the archive has no such package"),
        }
    }
}

impl Kernel {
    /// A file name that stands for this kernel.
    pub(super) fn file_stem(&self) -> String {
        self.label.replace('/', "_")
    }
}

impl Cached {
    fn read(dir: &Path) -> Option<Self> {
        let text = fs::read(dir.join(STATE_FILE)).ok()?;
        // A state of another format is as good as none.
        let cached: Self = serde_json::from_slice(&text).ok()?;
        Some(Self {
            dir: dir.to_owned(),
            ..cached
        })
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let file = dir.join(STATE_FILE);
        fs::write(&file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("write {}", file.display()))
    }

    /// Whether `package` is where this kernel came from.
    pub(crate) fn is_from(&self, package: &Package) -> bool {
        (&self.package, &self.version) == (&package.name, &package.version)
    }

    /// Whether the suite was asked lately.
    fn is_fresh(&self) -> bool {
        fs::metadata(self.dir.join(STATE_FILE))
            .and_then(|meta| meta.modified())
            .is_ok_and(|checked| {
                SystemTime::now()
                    .duration_since(checked)
                    .is_ok_and(|age| age < RECHECK_AFTER)
            })
    }

    /// Raw `.BTF` of the kernel.
    pub(crate) fn btf(&self) -> PathBuf {
        self.dir.join("btf")
    }

    /// Directory for `/lib/modules/<release>`; absent if the archive has no modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_is_sound_and_its_patterns_pick_one_flavour() {
        let matrix = Matrix::load().unwrap();
        let pattern = |label: &str| {
            let series = matrix
                .series
                .iter()
                .find(|series| series.label == label)
                .unwrap();
            regex_lite::Regex::new(&format!("^(?:{})$", series.package)).unwrap()
        };
        for series in &matrix.series {
            pattern(&series.label);
        }
        for (label, name, wanted) in [
            ("5.10", "linux-image-5.10.0-32-cloud-amd64", true),
            ("5.10", "linux-image-5.10.0-32-cloud-amd64-unsigned", true),
            ("5.10", "linux-image-5.10.0-32-cloud-amd64-dbg", false),
            ("5.10", "linux-image-5.10.0-32-rt-amd64", false),
            ("6.1", "linux-image-6.12.117+deb12-cloud-amd64", false),
            ("6.12", "linux-image-6.12.117+deb12-cloud-amd64", true),
            ("6.18", "linux-image-6.18.15+deb13-cloud-amd64", true),
            ("6.19", "linux-image-6.19.14+deb13-cloud-amd64", false),
            ("6.19", "linux-binary-6.19.14+deb13-cloud-amd64", true),
            (
                "7.2",
                "linux-binary-unsigned-7.2.12+deb13-cloud-amd64",
                true,
            ),
            ("7.2", "linux-binary-7.2.12+deb13-cloud-arm64", false),
            ("7.3", "linux-binary-unsigned-7.3-cloud-amd64", true),
            ("7.3", "linux-binary-unsigned-7.3.4+deb13-cloud-amd64", true),
            (
                "7.3",
                "linux-binary-unsigned-7.30.1+deb13-cloud-amd64",
                false,
            ),
        ] {
            assert_eq!(pattern(label).is_match(name), wanted, "{label} {name}");
        }
    }

    #[test]
    fn a_matrix_that_contradicts_itself_is_refused() {
        let entry = |label: &str, suites: &str| {
            format!("[[kernel]]\nlabel = '{label}'\nsuites = [{suites}]\npackage = 'p'\n")
        };
        let parse = |entries: String| Matrix::parse(&format!("modules = []\n{entries}"));
        assert!(parse(entry("1", "'s'") + &entry("2", "'s'")).is_ok());
        for (bad, word) in [
            (entry("1", "'s'") + &entry("1", "'s'"), "twice"),
            (entry("1", ""), "suite"),
            (entry("1", "'s'") + "version = '1'\n", "version"),
        ] {
            let error = format!("{:#}", parse(bad).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_state_of_a_cached_kernel_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Cached::read(dir.path()), None);
        let cached = Cached {
            package: "linux-image-1-cloud-amd64".to_owned(),
            version: "1.2-3".to_owned(),
            suite: "s".to_owned(),
            release: "1-cloud-amd64".to_owned(),
            wanted_modules: vec!["zram".to_owned()],
            missing: Vec::new(),
            dir: dir.path().to_owned(),
        };
        cached.write(dir.path()).unwrap();
        assert_eq!(Cached::read(dir.path()), Some(cached.clone()));
        assert!(cached.is_fresh());
        fs::write(dir.path().join(STATE_FILE), "{}").unwrap();
        assert_eq!(Cached::read(dir.path()), None);
    }
}
