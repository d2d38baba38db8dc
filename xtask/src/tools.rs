//! The BPF toolchain: the machine's own stable rustc, the sources of its `core`, and a
//! `bpf-linker` that uses the very LLVM of that rustc.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cache::Cache,
    cmd::{self, status},
    debian::{Debian, Package},
};

const BPF_LINKER_VERSION: &str = "0.13.0";

/// Suites that may carry the `rust-src` of a current stable release, newest releases first.
const RUST_SRC_SUITES: [&str; 4] = ["trixie-backports", "sid", "forky", "trixie"];

/// How the cache names an unpacked `rust-src`.
const RUST_SRC_PACKAGE_PREFIX: &str = "rust-src_";

/// What is needed to build the BPF object, all of it present.
#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) rustc: Rustc,
    pub(crate) bpf_linker: PathBuf,
    /// `bpf-linker --version`.
    pub(crate) bpf_linker_version: String,
}

impl Toolchain {
    /// Finds what is there and installs the rest, or says how to do so by hand.
    pub(crate) fn ready(cache: &Cache) -> Result<Self> {
        let rustc = Rustc::query()?;
        ensure_rust_src(cache, &rustc)?;
        let bpf_linker = ensure_bpf_linker(cache, &rustc)?;
        let bpf_linker_version = cmd::output(Command::new(&bpf_linker).arg("--version"))?;
        Ok(Self {
            rustc,
            bpf_linker,
            bpf_linker_version: bpf_linker_version.trim().to_owned(),
        })
    }

    /// Drops DWARF from an object and keeps its BTF.
    pub(crate) fn strip_debug(&self, from: &Path, to: &Path) -> Result<()> {
        let lib = self.rustc.sysroot.join("lib");
        let own = lib
            .join("rustlib")
            .join(&self.rustc.host)
            .join("bin/rust-objcopy");
        let objcopy = if own.exists() {
            own
        } else {
            let versioned = format!("llvm-objcopy-{}", self.rustc.llvm_major());
            cmd::find_in_path(&versioned)
                .or_else(|| cmd::find_in_path("llvm-objcopy"))
                .with_context(|| {
                    format!(
                        "this rustc has no rust-objcopy ({}) and PATH no {versioned}: \
                         use a toolchain of rustup or install LLVM's tools",
                        own.display()
                    )
                })?
        };
        // rust-objcopy does not know where its libLLVM is.
        let mut command = Command::new(objcopy);
        cmd::output(
            command
                .env("LD_LIBRARY_PATH", lib)
                .arg("--strip-debug")
                .args([from, to]),
        )?;
        Ok(())
    }
}

/// The rustc that cargo uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rustc {
    /// The first line of `rustc -vV`.
    pub(crate) version: String,
    /// `1.95.0`
    pub(crate) release: String,
    pub(crate) commit: String,
    pub(crate) host: String,
    /// `22.1.2`
    pub(crate) llvm: String,
    pub(crate) sysroot: PathBuf,
}

impl Rustc {
    pub(crate) fn query() -> Result<Self> {
        let rustc = || Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let sysroot = cmd::output(rustc().args(["--print", "sysroot"]))?;
        let verbose = cmd::output(rustc().arg("-vV"))?;
        Self::parse(&verbose, PathBuf::from(sysroot.trim_end_matches('\n')))
    }

    fn parse(verbose: &str, sysroot: PathBuf) -> Result<Self> {
        let field = |name: &str| {
            verbose
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_owned)
                .with_context(|| format!("`rustc -vV` does not say its `{name}`"))
        };
        Ok(Self {
            version: verbose.lines().next().unwrap_or_default().to_owned(),
            release: field("release")?,
            commit: field("commit-hash")?,
            host: field("host")?,
            llvm: field("LLVM version")?,
            sysroot,
        })
    }

    fn llvm_major(&self) -> &str {
        self.llvm.split('.').next().unwrap_or(&self.llvm)
    }

    /// Where cargo looks for the sources of `core`.
    fn src(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    fn has_src(&self) -> bool {
        self.src().join("library/Cargo.lock").exists()
    }
}

/// `-Z build-std` needs the sources of exactly this rustc's `core`.
fn ensure_rust_src(cache: &Cache, rustc: &Rustc) -> Result<()> {
    let src = rustc.src();
    // A link that an earlier run made outlives an update of the toolchain, or its own target.
    if let Ok(target) = fs::read_link(&src)
        && (!rustc.has_src() || is_outdated_link(&target, rustc))
    {
        fs::remove_file(&src).with_context(|| format!("cannot remove {}", src.display()))?;
    }
    if rustc.has_src() {
        return Ok(());
    }
    let by_rustup = add_rust_src_with_rustup(rustc);
    let by_rustup = match by_rustup {
        Ok(()) if rustc.has_src() => return Ok(()),
        Ok(()) => anyhow::anyhow!("rustup left nothing at {}", src.display()),
        Err(error) => error,
    };
    link_debian_rust_src(cache, rustc).with_context(|| {
        format!(
            "no rust-src for rustc {}: run `rustup component add rust-src`, or unpack the \
             library sources of that release so that {} exists\n\
             (rustup: {by_rustup:#})",
            rustc.release,
            src.join("library/Cargo.lock").display()
        )
    })
}

fn add_rust_src_with_rustup(rustc: &Rustc) -> Result<()> {
    let rustup = cmd::find_in_path("rustup").context("rustup is not there")?;
    let toolchain = rustc
        .sysroot
        .file_name()
        .filter(|_| {
            rustc
                .sysroot
                .parent()
                .is_some_and(|dir| dir.ends_with("toolchains"))
        })
        .context("this rustc is not rustup's")?;
    status(
        "Installing",
        "rust-src with rustup (build-std compiles core for BPF)",
    );
    let mut add = Command::new(rustup);
    add.args(["component", "add", "rust-src", "--toolchain"])
        .arg(toolchain);
    add.env("RUSTUP_MAX_RETRIES", "0")
        .env("RUST_BACKTRACE", "0");
    cmd::output(&mut add).map(drop)
}

fn link_debian_rust_src(cache: &Cache, rustc: &Rustc) -> Result<()> {
    status(
        "Looking",
        format_args!("for rust-src {} in Debian's suites", rustc.release),
    );
    let debian = Debian::of_this_machine(cache)?;
    let package = find_debian_rust_src(&debian, &rustc.release)?;
    let unpacked = debian
        .unpacked(&package)?
        .join("usr/src")
        .join(debian_src_dir(rustc));
    let src = rustc.src();
    status(
        "Linking",
        format_args!("{} to {}", src.display(), unpacked.display()),
    );
    src.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| symlink(&unpacked, &src))
        .with_context(|| {
            format!(
                "cannot write to the toolchain: as its owner, run `mkdir -p {}; ln -s {} {}`",
                src.parent().unwrap_or(&src).display(),
                unpacked.display(),
                src.display()
            )
        })
}

fn find_debian_rust_src(debian: &Debian, release: &str) -> Result<Package> {
    let mut problems = Vec::new();
    for suite in RUST_SRC_SUITES {
        match debian.all(suite, "rust-src") {
            Ok(packages) => {
                let found = packages
                    .into_iter()
                    .find(|p| is_upstream(&p.version, release));
                if let Some(package) = found {
                    return Ok(package);
                }
            }
            Err(error) => problems.push(format!("\n{error:#}")),
        }
    }
    bail!(
        "no rust-src {release} in Debian's {}{}",
        RUST_SRC_SUITES.join(", "),
        problems.concat()
    )
}

/// Whether a Debian version such as `1.95.0+dfsg1-2~bpo13+1` is of that upstream release.
fn is_upstream(version: &str, release: &str) -> bool {
    version
        .strip_prefix(release)
        .is_some_and(|rest| rest.starts_with(['+', '-', '~']))
}

/// Whether the link leads to an unpacked package of another release.
fn is_outdated_link(target: &Path, rustc: &Rustc) -> bool {
    let of_package = target.components().any(|part| {
        part.as_os_str()
            .to_string_lossy()
            .starts_with(RUST_SRC_PACKAGE_PREFIX)
    });
    of_package && !target.ends_with(debian_src_dir(rustc))
}

fn debian_src_dir(rustc: &Rustc) -> String {
    format!("rustc-{}", rustc.release)
}

/// bpf-linker reads the bitcode that rustc wrote, so its LLVM must not be older; linked to the
/// libLLVM of rustc itself it is the same, and no LLVM packages are needed.
fn ensure_bpf_linker(cache: &Cache, rustc: &Rustc) -> Result<PathBuf> {
    let Some(libllvm) = LibLlvm::of(rustc)? else {
        return bpf_linker_in_path(rustc);
    };
    let commit = rustc.commit.get(..9).unwrap_or(&rustc.commit);
    let key = format!("rustc-{}-{commit}", rustc.release);
    let llvm_prefix = cache.get_or_create(format!("tools/llvm-of-{key}"), |dir| {
        let lib = dir.join("lib");
        fs::create_dir(&lib)?;
        // The linker's name for it, and the name that the finished program will look for.
        for name in ["libLLVM.so", &libllvm.soname] {
            symlink(&libllvm.path, lib.join(name))?;
        }
        Ok(())
    })?;
    let root = cache.get_or_create(
        format!("tools/bpf-linker-{BPF_LINKER_VERSION}-{key}"),
        |dir| install_bpf_linker(rustc, &llvm_prefix, dir),
    )?;
    Ok(root.join("bin/bpf-linker"))
}

fn install_bpf_linker(rustc: &Rustc, llvm_prefix: &Path, root: &Path) -> Result<()> {
    status(
        "Building",
        format_args!(
            "bpf-linker {BPF_LINKER_VERSION} with the LLVM of rustc (once, a minute or so)"
        ),
    );
    let target = tempfile::tempdir()?;
    let mut install = cargo();
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", rustc.llvm_major()),
        ])
        .arg("--root")
        .arg(root)
        .arg("--target-dir")
        .arg(target.path())
        .env("LLVM_PREFIX", llvm_prefix);
    cmd::run_quietly(&mut install).with_context(|| {
        format!(
            "bpf-linker {BPF_LINKER_VERSION} does not build: it needs crates.io, a C compiler as \
             linker, and support for LLVM {} (see its README)",
            rustc.llvm_major()
        )
    })
}

fn bpf_linker_in_path(rustc: &Rustc) -> Result<PathBuf> {
    let advice = format!(
        "rustc {} has its LLVM linked in statically, so xtask cannot build a bpf-linker with it: \
         use a toolchain of rustup, or put bpf-linker {BPF_LINKER_VERSION} with LLVM {} or newer \
         in PATH",
        rustc.release, rustc.llvm
    );
    let linker = cmd::find_in_path("bpf-linker").context(advice.clone())?;
    let version = cmd::output(Command::new(&linker).arg("--version"))?;
    if version.trim().strip_prefix("bpf-linker ") != Some(BPF_LINKER_VERSION) {
        bail!("{advice} ({} is {})", linker.display(), version.trim());
    }
    Ok(linker)
}

/// The shared LLVM library that a rustc is linked to.
#[derive(Debug, PartialEq, Eq)]
struct LibLlvm {
    soname: String,
    path: PathBuf,
}

impl LibLlvm {
    fn of(rustc: &Rustc) -> Result<Option<Self>> {
        let ldd = cmd::output(Command::new("ldd").arg(rustc.sysroot.join("bin/rustc")))?;
        Ok(Self::parse(&ldd))
    }

    /// Finds `libLLVM… => path (address)`.
    fn parse(ldd: &str) -> Option<Self> {
        ldd.lines().find_map(|line| {
            let (soname, rest) = line.trim().split_once(" => ")?;
            let (path, _address) = rest.rsplit_once(" (")?;
            soname.starts_with("libLLVM").then(|| Self {
                soname: soname.to_owned(),
                path: path.into(),
            })
        })
    }
}

/// The cargo that started xtask.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_says_what_it_is() {
        let verbose = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\n\
                       commit-hash: 59807616e1fa\ncommit-date: 2026-04-14\n\
                       host: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        let rustc = Rustc::parse(verbose, "/s".into()).unwrap();
        assert_eq!(rustc.version, "rustc 1.95.0 (59807616e 2026-04-14)");
        assert_eq!(rustc.release, "1.95.0");
        assert_eq!(rustc.llvm_major(), "22");
        assert!(Rustc::parse("rustc 1.95.0\n", "/s".into()).is_err());
    }

    #[test]
    fn debian_versions_of_an_upstream_release() {
        assert!(is_upstream("1.95.0+dfsg1-2~bpo13+1", "1.95.0"));
        assert!(is_upstream("1.95.0-1", "1.95.0"));
        assert!(!is_upstream("1.95.1+dfsg1-1", "1.95.0"));
        assert!(!is_upstream("1.95.01-1", "1.95.0"));
    }

    #[test]
    fn libllvm_among_the_libraries_of_rustc() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f)\n\
                   \tlibLLVM.so.22.1-rust => /opt/my rust/libLLVM.so.22.1-rust (0x00007f)\n";
        let expected = LibLlvm {
            soname: "libLLVM.so.22.1-rust".into(),
            path: "/opt/my rust/libLLVM.so.22.1-rust".into(),
        };
        assert_eq!(LibLlvm::parse(ldd), Some(expected));
        assert_eq!(LibLlvm::parse("\tlibLLVM.so.22 => not found\n"), None);
        assert_eq!(
            LibLlvm::parse("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"),
            None
        );
    }
}
