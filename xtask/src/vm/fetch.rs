//! Makes a kernel's directory in the cache from Debian's packages: only what guests need stays.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{btf, modules};
use crate::cmd::status;
use crate::debian::{self, Debian, Package, Tool};

/// What was found beside the files.
pub(super) struct Fetched {
    /// What `uname -r` will say.
    pub(super) release: String,
    /// Parts the archive no longer has, in words.
    pub(super) missing: Vec<String>,
}

/// Fills the new directory `to` with `vmlinuz`, `btf`, `modules/` and `config` of `package`.
pub(super) fn fetch(
    debian: &Debian,
    package: &Package,
    wanted_modules: &[String],
    to: &Path,
) -> Result<Fetched> {
    debian::ensure_installed(
        "unpack kernels",
        &[
            Tool {
                program: "xz",
                package: "xz-utils",
            },
            Tool {
                program: "zstd",
                package: "zstd",
            },
            Tool {
                program: "lz4",
                package: "lz4",
            },
        ],
    )?;
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let mut trees = vec![Unpacked::get(debian, package)?];
    let (release, image) = find_image(&trees[0].0)
        .with_context(|| format!("{package} has no kernel image where one is looked for"))?;
    let vmlinuz = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
    fs::write(to.join("vmlinuz"), &vmlinuz).context("keep vmlinuz")?;
    let btf = btf::extract(&vmlinuz).with_context(|| format!("take the BTF out of {package}"))?;
    fs::write(to.join("btf"), btf).context("keep btf")?;

    // Up to 6.18 one package holds everything. The archive drops the split-off packages of a
    // superseded series before its image, so they may be gone.
    let mut missing = Vec::new();
    for (part, other, find) in [
        (
            "modules",
            "linux-modules",
            find_modules as fn(&Path, &str) -> Option<PathBuf>,
        ),
        ("config", "linux-base", find_config),
    ] {
        if find_in(&trees, &release, find).is_none() {
            let name = format!(
                "{other}-{}",
                release.replace('.', r"\.").replace('+', r"\+")
            );
            match debian.newest(&package.suite, &name) {
                Ok(package) => trees.push(Unpacked::get(debian, &package)?),
                Err(error) => {
                    status(
                        "Warning",
                        format_args!("{release} without {part}: {error:#}"),
                    );
                    missing.push(part.to_owned());
                    continue;
                }
            }
        }
        let found = find_in(&trees, &release, find)
            .with_context(|| format!("no {part} of {release} in its packages"))?;
        if part == "modules" {
            modules::collect(&found, wanted_modules, &to.join(part))?;
        } else {
            fs::copy(&found, to.join(part)).with_context(|| format!("keep {part}"))?;
        }
    }
    Ok(Fetched { release, missing })
}

/// Release and file of the image: `boot/vmlinuz-<release>`, from 7.2 on
/// `usr/lib/modules/<release>/vmlinuz`, with `.unsigned` behind it in an unsigned package.
fn find_image(root: &Path) -> Option<(String, PathBuf)> {
    let in_boot = names_in(&root.join("boot")).into_iter().find_map(|name| {
        let release = name.strip_prefix("vmlinuz-")?.to_owned();
        Some((release, root.join("boot").join(&name)))
    });
    in_boot.or_else(|| {
        let tree = root.join("usr/lib/modules");
        names_in(&tree).into_iter().find_map(|release| {
            let image = ["vmlinuz", "vmlinuz.unsigned"]
                .map(|name| tree.join(&release).join(name))
                .into_iter()
                .find(|image| image.is_file())?;
            Some((release, image))
        })
    })
}

fn find_modules(root: &Path, release: &str) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .map(|dir| root.join(dir).join(release))
        .into_iter()
        .find(|tree| tree.join("kernel").is_dir())
}

fn find_config(root: &Path, release: &str) -> Option<PathBuf> {
    [
        format!("boot/config-{release}"),
        format!("usr/lib/modules/{release}/config"),
    ]
    .map(|file| root.join(file))
    .into_iter()
    .find(|file| file.is_file())
}

fn find_in(
    trees: &[Unpacked],
    release: &str,
    find: fn(&Path, &str) -> Option<PathBuf>,
) -> Option<PathBuf> {
    trees.iter().find_map(|tree| find(&tree.0, release))
}

fn names_in(dir: &Path) -> Vec<String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// An unpacked package, removed when no longer needed: a kernel's is 100 MB and more.
struct Unpacked(PathBuf);

impl Unpacked {
    fn get(debian: &Debian, package: &Package) -> Result<Self> {
        debian.unpacked(package).map(Self)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            status(
                "Warning",
                format_args!("{} stays: {error}", self.0.display()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[test]
    fn image_config_and_modules_are_found_in_every_layout_debian_has_had() {
        for (files, release, image, config, modules) in [
            (
                &[
                    "boot/vmlinuz-6.1-c",
                    "boot/config-6.1-c",
                    "lib/modules/6.1-c/kernel/a.ko",
                ][..],
                "6.1-c",
                "boot/vmlinuz-6.1-c",
                Some("boot/config-6.1-c"),
                Some("lib/modules/6.1-c"),
            ),
            (
                &["boot/vmlinuz-6.19-c"],
                "6.19-c",
                "boot/vmlinuz-6.19-c",
                None,
                None,
            ),
            (
                &[
                    "usr/lib/modules/7.3-c/vmlinuz.unsigned",
                    "usr/lib/modules/7.3-c/config",
                ],
                "7.3-c",
                "usr/lib/modules/7.3-c/vmlinuz.unsigned",
                Some("usr/lib/modules/7.3-c/config"),
                None,
            ),
        ] {
            let root = tree(files);
            let at = |path: &str| root.path().join(path);
            assert_eq!(
                find_image(root.path()),
                Some((release.to_owned(), at(image)))
            );
            assert_eq!(find_config(root.path(), release), config.map(at));
            assert_eq!(find_modules(root.path(), release), modules.map(at));
        }
        assert_eq!(find_image(tree(&["usr/share/doc/x"]).path()), None);
    }
}
