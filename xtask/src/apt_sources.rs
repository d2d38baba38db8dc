//! Reads the machine's own apt sources to learn which Debian mirror it uses.
//!
//! Both formats of sources.list(5): one-line `.list` files and deb822 `.sources` files.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// One source of binary packages.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    /// Paths of key rings, fingerprints or a key block, as apt takes it.
    signed_by: Option<String>,
}

/// Where packages of one archive come from and how they are verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// The Debian mirrors of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    main: Mirror,
    security: Mirror,
}

impl Mirrors {
    /// Finds the mirrors in `etc` (`/etc` but in tests).
    pub(crate) fn of_machine(etc: &Path) -> Result<Self> {
        let os_release = fs::read_to_string(etc.join("os-release")).unwrap_or_default();
        if os_release_value(&os_release, "ID") != Some("debian") {
            bail!(
                "this is not Debian ({}), so apt knows no Debian mirror to take packages from",
                os_release_value(&os_release, "PRETTY_NAME").unwrap_or("no os-release")
            );
        }
        let codename = os_release_value(&os_release, "VERSION_CODENAME");
        let mut sources = Vec::new();
        for file in source_files(&etc.join("apt"))? {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if file.extension().is_some_and(|ext| ext == "sources") {
                sources.extend(parse_deb822(&text));
            } else {
                sources.extend(text.lines().filter_map(parse_one_line));
            }
        }
        Self::among(&sources, codename)
            .with_context(|| format!("no Debian mirror in the sources of {}/apt", etc.display()))
    }

    fn among(sources: &[Source], codename: Option<&str>) -> Option<Self> {
        const ALIASES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];
        let releases: Vec<&str> = ALIASES.into_iter().chain(codename).collect();
        let mirror_of = |endings: &[&str]| {
            let source = sources.iter().find(|source| {
                source.suites.iter().any(|suite| {
                    releases.iter().any(|release| {
                        suite
                            .strip_prefix(release)
                            .is_some_and(|rest| endings.contains(&rest))
                    })
                })
            })?;
            Some(Mirror {
                uri: source.uris.first()?.clone(),
                signed_by: source.signed_by.clone(),
            })
        };
        let main = mirror_of(&[""])?;
        // Mirrors carry the security archive beside the main one.
        let security = mirror_of(&["-security", "/updates"]).unwrap_or_else(|| Mirror {
            uri: format!("{}-security", main.uri.trim_end_matches('/')),
            signed_by: main.signed_by.clone(),
        });
        Some(Self { main, security })
    }

    /// A deb822 source for one suite, of its package index only.
    pub(crate) fn source_for(&self, suite: &str) -> String {
        let mirror = if suite.ends_with("-security") {
            &self.security
        } else {
            &self.main
        };
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {suite}\nComponents: main\nTargets: Packages\n",
            mirror.uri
        );
        if let Some(signed_by) = &mirror.signed_by {
            text.push_str("Signed-By: ");
            text.push_str(signed_by);
            text.push('\n');
        }
        text
    }
}

/// A value of os-release(5).
fn os_release_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name == key).then(|| value.trim().trim_matches(['"', '\'']))
    })
}

/// `sources.list`, then the files of `sources.list.d` in name order.
fn source_files(apt: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut files = Vec::new();
    let dir = apt.join("sources.list.d");
    if dir.is_dir() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|ext| ext == "list" || ext == "sources")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    let main = apt.join("sources.list");
    if main.is_file() {
        files.insert(0, main);
    }
    Ok(files)
}

/// `deb [options] uri suite component…`
fn parse_one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(|keys| keys.replace(',', " "));
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        signed_by,
    })
}

/// Stanzas of `Field: value` lines, continued by indented lines.
fn parse_deb822(text: &str) -> Vec<Source> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .filter_map(parse_stanza)
        .collect()
}

fn parse_stanza(lines: &[&str]) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            let (_, value) = fields.last_mut()?;
            value.push('\n');
            value.push_str(line);
        } else {
            let (name, value) = line.split_once(':')?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let field = |name: &str| {
        fields
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value)
    };
    let words = |name: &str| -> Vec<String> {
        field(name)
            .map(|v| v.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let disabled = field("enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return None;
    }
    Some(Source {
        uris: words("uris"),
        suites: words("suites"),
        signed_by: field("signed-by").cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir_all(etc.path().join("apt/sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        etc
    }

    const BOOKWORM: &str =
        "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn deb822_among_foreign_sources() {
        let etc = machine(&[
            ("os-release", BOOKWORM),
            (
                "apt/sources.list.d/debian.sources",
                "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
                 Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
                 Types: deb\nURIs: http://sec.example/sec\nSuites: bookworm-security\n\
                 Components: main\n",
            ),
            (
                "apt/sources.list.d/a.list",
                "deb https://other.example/apt tool-bookworm main\n",
            ),
            (
                "apt/sources.list.d/c.list.save",
                "deb http://stale.example bookworm main\n",
            ),
        ]);
        let mirrors = Mirrors::of_machine(etc.path()).unwrap();
        assert_eq!(
            mirrors.source_for("trixie-backports"),
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie-backports\n\
             Components: main\nTargets: Packages\nSigned-By: /k.gpg\n"
        );
        assert_eq!(
            mirrors.source_for("bookworm-security"),
            "Types: deb\nURIs: http://sec.example/sec\nSuites: bookworm-security\n\
             Components: main\nTargets: Packages\n"
        );
    }

    #[test]
    fn one_line_format_with_options_and_without_security() {
        let etc = machine(&[
            ("os-release", BOOKWORM),
            (
                "apt/sources.list",
                "# deb http://old.example bookworm main\n\
                 deb-src http://src.example/debian bookworm main\n\
                 deb [arch=amd64 signed-by=/a.gpg,/b.gpg] http://m.example/debian/ stable main # x\n",
            ),
        ]);
        let mirrors = Mirrors::of_machine(etc.path()).unwrap();
        let signed = Some("/a.gpg /b.gpg".to_owned());
        assert_eq!(
            mirrors.main,
            Mirror {
                uri: "http://m.example/debian/".into(),
                signed_by: signed.clone()
            }
        );
        assert_eq!(
            mirrors.security,
            Mirror {
                uri: "http://m.example/debian-security".into(),
                signed_by: signed
            }
        );
    }

    #[test]
    fn embedded_keys_stay_whole_and_disabled_sources_are_skipped() {
        let etc = machine(&[
            ("os-release", BOOKWORM),
            (
                "apt/sources.list.d/debian.sources",
                "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\n\n\
                 Types: deb\nURIs: http://on.example\nSuites: bookworm\nSigned-By:\n \
                 -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
            ),
        ]);
        let mirrors = Mirrors::of_machine(etc.path()).unwrap();
        assert!(
            mirrors
                .source_for("sid")
                .ends_with("Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n")
        );
    }

    #[test]
    fn other_distributions_are_named() {
        let etc = machine(&[("os-release", "ID=fedora\nPRETTY_NAME=\"Fedora Linux 43\"\n")]);
        let error = Mirrors::of_machine(etc.path()).unwrap_err().to_string();
        assert!(error.contains("Fedora Linux 43"), "{error}");
    }

    #[test]
    fn a_debian_without_its_own_mirror_is_an_error() {
        let etc = machine(&[
            ("os-release", BOOKWORM),
            (
                "apt/sources.list",
                "deb https://other.example/apt tool-bookworm main\n",
            ),
        ]);
        assert!(Mirrors::of_machine(etc.path()).is_err());
    }
}
