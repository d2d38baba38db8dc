//! Debian packages of any suite, downloaded by apt and unpacked in the cache, not installed.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow, bail};
use regex_lite::Regex;
use tempfile::TempDir;

use crate::{
    apt_sources::Mirrors,
    cache::Cache,
    cmd::{self, status},
};

/// After this an index is fetched anew, so that the newest version of a package is found.
const INDEX_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Debian's archive as this machine's apt reaches it.
#[derive(Debug)]
pub(crate) struct Debian {
    cache: Cache,
    mirrors: Mirrors,
}

/// A binary package in the index of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) suite: String,
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} from Debian {}",
            self.name, self.version, self.suite
        )
    }
}

/// Packages of Python, by patterns of their names.
const PYTHON: [&str; 3] = [
    r"python3\.\d+-minimal",
    r"libpython3\.\d+-minimal",
    r"libpython3\.\d+-stdlib",
];

/// A program of a package of this machine's release, with the shared libraries it loads, which this
/// machine must have; each file and where it belongs. A script comes with all of its package, and
/// with Python.
pub(crate) fn program_with_libraries(
    cache: &Cache,
    package: &str,
    program: &str,
) -> Result<Vec<(PathBuf, String)>> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release")?;
    let debian = Debian::of_this_machine(cache)?;
    let package = debian.newest(suite, package)?;
    let root = debian.unpacked(&package)?;
    let binary = root.join(place(program));
    let content = fs::read(&binary).with_context(|| format!("{package} has no {program}"))?;
    if content.starts_with(b"#!") {
        let mut files = debian.python(suite)?;
        files.extend(files_below(&root)?);
        return Ok(files);
    }
    let mut files = libraries(&binary)?;
    files.push((binary, place(program)));
    Ok(files)
}

/// A program of another release of Debian, with the libraries that this release has for it: those of
/// this machine may be older.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub(crate) package: Package,
    program: PathBuf,
    loader: PathBuf,
    /// Links to all of them: names of packages in the cache have a colon, which would end one.
    libraries: TempDir,
}

impl Foreign {
    /// `program` of `package`, which needs shared libraries of these packages; the first of them has
    /// the loader.
    pub(crate) fn fetch(
        cache: &Cache,
        suite: &str,
        package: &str,
        program: &str,
        libraries: &[&str],
    ) -> Result<Self> {
        let debian = Debian::of_this_machine(cache)?;
        let package = debian.newest(suite, package)?;
        let program = debian.unpacked(&package)?.join(place(program));
        fs::metadata(&program)
            .with_context(|| format!("{package} has no {}", program.display()))?;
        let (mut loader, mut directories) = (None, BTreeSet::new());
        for name in libraries {
            let root = debian.unpacked(&debian.newest(suite, name)?)?;
            for (path, below) in files_below(&root)? {
                let name = below.rsplit('/').next().unwrap_or_default();
                if name.starts_with("ld-linux") {
                    loader.get_or_insert(path.clone());
                }
                if name.contains(".so") {
                    directories.extend(path.parent().map(Path::to_owned));
                }
            }
        }
        let links = tempfile::tempdir().context("a directory for links to libraries")?;
        for directory in directories {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                // What programs know a library by: a file, or a link to one.
                if entry.file_name().to_string_lossy().contains(".so.") {
                    let link = links.path().join(entry.file_name());
                    symlink(entry.path(), &link).with_context(|| link.display().to_string())?;
                }
            }
        }
        Ok(Self {
            program,
            loader: loader.with_context(|| format!("Debian {suite} has no loader"))?,
            libraries: links,
            package,
        })
    }

    /// What to run.
    pub(crate) fn words(&self) -> [&OsStr; 4] {
        [
            self.loader.as_os_str(),
            OsStr::new("--library-path"),
            self.libraries.path().as_os_str(),
            self.program.as_os_str(),
        ]
    }
}

/// A path in the guest, from its root.
fn place(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

/// The shared libraries that a file loads.
fn libraries(binary: &Path) -> Result<Vec<(PathBuf, String)>> {
    let list = cmd::output(Command::new("ldd").arg(binary))?;
    if let Some(missing) = list.lines().find(|line| line.contains("not found")) {
        bail!("{} needs{missing}", binary.display());
    }
    Ok(list
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(|library| (PathBuf::from(library), place(library)))
        .collect())
}

/// Regular files below `root`, each with its path from there.
fn files_below(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() {
                let below = path.strip_prefix(root)?.to_string_lossy().into_owned();
                files.push((path, below));
            }
        }
    }
    Ok(files)
}

impl Debian {
    /// Fails where apt or a Debian mirror in its configuration is missing.
    pub(crate) fn of_this_machine(cache: &Cache) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg", "dpkg-deb"] {
            cmd::find_in_path(program)
                .with_context(|| format!("`{program}` is missing: this needs a Debian machine"))?;
        }
        let mirrors = Mirrors::of_machine(Path::new("/etc"))?;
        Ok(Self {
            cache: cache.clone(),
            mirrors,
        })
    }

    /// The newest version in `suite` of any package whose whole name matches `name`.
    pub(crate) fn newest(&self, suite: &str, name: &str) -> Result<Package> {
        let found = self.all(suite, name)?;
        newest(found)?
            .with_context(|| format!("Debian {suite} has no package that matches `{name}`"))
    }

    /// Every version in `suite` of every package whose whole name matches `name` (a regular
    /// expression; a plain name matches itself).
    pub(crate) fn all(&self, suite: &str, name: &str) -> Result<Vec<Package>> {
        let pattern = Regex::new(&format!("^(?:{name})$"))
            .with_context(|| format!("`{name}` is not a package name pattern"))?;
        self.index(suite, INDEX_MAX_AGE)?;
        let names = cmd::output(self.apt("apt-cache", suite).arg("pkgnames"))?;
        let names: Vec<&str> = names
            .lines()
            .filter(|name| pattern.is_match(name))
            .collect();
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let table = cmd::output(self.apt("apt-cache", suite).arg("madison").args(names))?;
        Ok(table
            .lines()
            .filter_map(|line| parse_madison(line, suite))
            .collect())
    }

    /// The content of a package, as it would lie under `/`.
    pub(crate) fn unpacked(&self, package: &Package) -> Result<PathBuf> {
        let Package {
            name,
            version,
            suite,
        } = package;
        self.cache
            .get_or_create(format!("packages/{name}_{version}"), |dir| {
                let download = tempfile::tempdir_in(self.cache.path("packages"))?;
                let fetch = || {
                    let mut apt = self.apt("apt-get", suite);
                    apt.arg("download").arg(format!("{name}={version}"));
                    cmd::run_quietly(apt.current_dir(download.path()))
                };
                status("Fetching", package);
                // An index older than the mirror names files that are gone.
                fetch()
                    .or_else(|_| {
                        self.index(suite, Duration::ZERO)?;
                        fetch()
                    })
                    .with_context(|| format!("cannot download {package}"))?;
                let deb = fs::read_dir(download.path())?
                    .filter_map(|entry| Some(entry.ok()?.path()))
                    .find(|path| path.extension().is_some_and(|ext| ext == "deb"))
                    .with_context(|| format!("apt-get left no file for {package}"))?;
                status("Unpacking", package);
                cmd::run_quietly(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir))
            })
    }

    /// Python as `/usr/bin/python3`, with its library, of which what is written in C is left out but
    /// for `ctypes`.
    fn python(&self, suite: &str) -> Result<Vec<(PathBuf, String)>> {
        let mut files = Vec::new();
        for package in PYTHON {
            let root = self.unpacked(&self.newest(suite, package)?)?;
            for (path, below) in files_below(&root)? {
                let guest = match below.split('/').collect::<Vec<_>>()[..] {
                    ["usr", "bin", _] => {
                        files.extend(libraries(&path)?);
                        "usr/bin/python3".to_owned()
                    }
                    ["usr", "lib", _, "lib-dynload", name] if name.starts_with("_ctypes.") => {
                        files.extend(libraries(&path)?);
                        below
                    }
                    ["usr", "lib", _, "lib-dynload", _] | ["usr", "share", ..] => continue,
                    _ => below,
                };
                files.push((path, guest));
            }
        }
        Ok(files)
    }

    /// Makes sure that the index of `suite` is there and not older than `max_age`; an older one
    /// serves where no newer one can be had.
    fn index(&self, suite: &str, max_age: Duration) -> Result<()> {
        let _lock = self.cache.lock(format!("apt/{suite}"))?;
        let root = self.cache.path(format!("apt/{suite}"));
        let fetched = root.join("fetched");
        let source = root.join("suite.sources");
        let wanted = self.mirrors.source_for(suite);
        // Another mirror than last time makes the index worthless.
        let usable = fetched.exists() && fs::read_to_string(&source).is_ok_and(|s| s == wanted);
        if usable && age(&fetched).is_some_and(|age| age < max_age) {
            return Ok(());
        }
        for dir in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::write(&source, wanted).with_context(|| format!("cannot write {}", source.display()))?;
        status(
            "Fetching",
            format_args!("the package index of Debian {suite}"),
        );
        let update = cmd::run_quietly(self.apt("apt-get", suite).args([
            "-o",
            "APT::Update::Error-Mode=any",
            "update",
        ]));
        match update {
            Ok(()) => Ok(fs::write(&fetched, "")?),
            Err(error) if usable => {
                status(
                    "Warning",
                    format_args!("using the older index of {suite}: {error:#}"),
                );
                Ok(())
            }
            Err(error) => Err(error.context(format!(
                "cannot fetch the package index of Debian {suite} from this machine's mirror"
            ))),
        }
    }

    /// An apt program that sees `suite` and nothing else, and keeps all state in the cache.
    fn apt(&self, program: &str, suite: &str) -> Command {
        let root = self.cache.path(format!("apt/{suite}"));
        let mut apt = Command::new(program);
        let options = [
            format!(
                "Dir::Etc::SourceList={}",
                root.join("suite.sources").display()
            ),
            "Dir::Etc::SourceParts=/dev/null".into(),
            "Dir::Etc::PreferencesParts=/dev/null".into(),
            format!("Dir::State={}", root.display()),
            format!("Dir::State::Lists={}", root.join("lists").display()),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", root.display()),
            "Dir::Cache::pkgcache=pkgcache.bin".into(),
            // The cache may lie where the sandbox user cannot write, in a home directory.
            "APT::Sandbox::User=root".into(),
        ];
        for option in options {
            apt.args(["-o", &option]);
        }
        apt.env("LC_ALL", "C.UTF-8");
        apt
    }
}

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// Makes sure that programs are in `PATH`: root on a machine with apt gets them installed,
/// anyone else is told the command. `purpose` completes "needed to …".
pub(crate) fn ensure_installed(purpose: &str, tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| cmd::find_in_path(tool.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<_> = missing.iter().map(|tool| tool.program).collect();
    let programs = programs.join(", ");
    let mut packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    let list = packages.join(" ");
    if cmd::find_in_path("apt-get").is_none() {
        bail!(
            "{programs} needed to {purpose}: install what provides it with your package manager \
             (Debian's packages are: {list})"
        );
    }
    if !is_root()? {
        bail!("{programs} needed to {purpose}: run `sudo apt-get install {list}`");
    }
    status(
        "Installing",
        format_args!("{list} (system-wide with apt-get, needed to {purpose})"),
    );
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        apt
    };
    cmd::run_quietly(&mut apt(&["update"]))?;
    cmd::run_quietly(apt(&["install", "--yes", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("install {list} by hand: needed to {purpose}"))?;
    match missing
        .iter()
        .find(|tool| cmd::find_in_path(tool.program).is_none())
    {
        None => Ok(()),
        Some(tool) => bail!(
            "package {} is installed but has no {}",
            tool.package,
            tool.program
        ),
    }
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> Result<bool> {
    let uid = cmd::output(Command::new("id").arg("-u"))?;
    Ok(uid.trim() == "0")
}

/// A line of `apt-cache madison`: `name | version | source`.
fn parse_madison(line: &str, suite: &str) -> Option<Package> {
    let mut columns = line.split('|').map(str::trim);
    let (name, version, source) = (columns.next()?, columns.next()?, columns.next()?);
    // Source packages are listed too where a source index is at hand.
    source.ends_with("Packages").then(|| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        suite: suite.to_owned(),
    })
}

/// The package of the highest version, by Debian's own ordering.
pub(crate) fn newest(packages: Vec<Package>) -> Result<Option<Package>> {
    let mut newest: Option<Package> = None;
    for package in packages {
        let newer = match &newest {
            None => true,
            Some(best) => is_greater(&package.version, &best.version)?,
        };
        if newer {
            newest = Some(package);
        }
    }
    Ok(newest)
}

fn is_greater(a: &str, b: &str) -> Result<bool> {
    let status = Command::new("dpkg")
        .args(["--compare-versions", a, "gt", b])
        .status()
        .context("cannot start `dpkg`")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => Err(anyhow!("dpkg cannot compare the versions `{a}` and `{b}`")),
    }
}

fn age(file: &Path) -> Option<Duration> {
    SystemTime::now()
        .duration_since(file.metadata().ok()?.modified().ok()?)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn madison_lines_of_binary_packages() {
        let line = "  rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://m.example trixie-backports/main amd64 Packages";
        let package = parse_madison(line, "trixie-backports").unwrap();
        assert_eq!(package.name, "rust-src");
        assert_eq!(package.version, "1.95.0+dfsg1-2~bpo13+1");
        assert_eq!(
            parse_madison("rustc | 1 | http://m.example sid/main Sources", "sid"),
            None
        );
        assert_eq!(parse_madison("", "sid"), None);
    }

    #[test]
    fn debian_ordering_decides_what_is_newest() {
        if cmd::find_in_path("dpkg").is_none() {
            return;
        }
        let package = |version: &str| Package {
            name: "p".into(),
            version: version.into(),
            suite: "s".into(),
        };
        let versions = [
            "6.9.7-1~bpo12+1",
            "6.12.9-1~bpo12+1",
            "6.12.9-1",
            "6.12.9~rc1-1",
        ];
        let best = newest(versions.map(package).to_vec()).unwrap().unwrap();
        assert_eq!(best.version, "6.12.9-1");
        assert_eq!(newest(Vec::new()).unwrap(), None);
    }
}
