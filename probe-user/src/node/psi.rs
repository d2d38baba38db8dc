//! Pressure stall information (Documentation/accounting/psi.rst): `/proc/pressure/*` and the
//! `*.pressure` files of cgroup v2.

use std::path::{Path, PathBuf};

use super::text::{self, Error, ParseError, TextFile};

/// One line of a pressure file. Averages are shares of wall time in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Average over the last 10 s, percent.
    pub avg10_percent: f64,
    /// Average over the last 60 s, percent.
    pub avg60_percent: f64,
    /// Average over the last 300 s, percent.
    pub avg300_percent: f64,
    /// Stalled since boot or since the cgroup was made, microseconds.
    pub total_us: u64,
}

/// Pressure on one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task was stalled.
    pub some: Stall,
    /// All tasks that could run were stalled at once; `None` for the CPU of older kernels (5.13).
    pub full: Option<Stall>,
}

/// Why there are no values, or the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// The kernel keeps account.
    Values(Pressure),
    /// Built in but switched off: `psi=0` or not `psi=1` on the command line, or
    /// `cgroup.pressure` is 0 for this cgroup.
    Disabled,
    /// No such file: built without `CONFIG_PSI`, or a kernel that hides the files when the
    /// command line switches PSI off without saying `psi=0`.
    Unsupported,
}

impl Pressure {
    /// Parses the content of a pressure file.
    pub fn parse(content: &[u8]) -> Result<Self, ParseError> {
        let (mut some, mut full) = (None, None);
        for (line, content) in text::lines(content) {
            let slot = match content.split(|&byte| byte == b' ').next() {
                Some(b"some") => &mut some,
                Some(b"full") => &mut full,
                _ => {
                    return Err(ParseError {
                        line,
                        expected: "\"some\" or \"full\"",
                    });
                }
            };
            *slot = Some(Stall::parse(content).ok_or(ParseError {
                line,
                expected: "avg10=, avg60=, avg300= and total=",
            })?);
        }
        let some = some.ok_or(ParseError {
            line: 1,
            expected: "a \"some\" line",
        })?;
        Ok(Self { some, full })
    }
}

impl Stall {
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let field = |name| {
            line.split(' ')
                .find_map(|word| word.split_once('=').filter(|(key, _)| *key == name))
                .map(|(_, value)| value)
        };
        let average = |name| field(name)?.parse::<f64>().ok().filter(|v| v.is_finite());
        Some(Self {
            avg10_percent: average("avg10")?,
            avg60_percent: average("avg60")?,
            avg300_percent: average("avg300")?,
            total_us: field("total")?.parse().ok()?,
        })
    }
}

/// A pressure file kept open.
#[derive(Debug)]
pub struct PressureFile(TextFile);

impl PressureFile {
    /// Opens `/proc/pressure/<resource>` or `<cgroup>/<resource>.pressure`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        TextFile::open(path).map(Self)
    }

    /// Reads the present values; `None` if PSI is off.
    pub fn read(&self, buf: &mut Vec<u8>) -> Result<Option<Pressure>, Error> {
        match self.0.parse(buf, Pressure::parse) {
            Ok(pressure) => Ok(Some(pressure)),
            Err(Error::Disabled { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Pressure of the node on `resource` (`memory`, `io`, `cpu`, `irq`).
pub fn node(proc: &Path, resource: &str, buf: &mut Vec<u8>) -> Result<Reading, Error> {
    let reading = read(proc.join("pressure").join(resource), buf)?;
    if reading != Reading::Unsupported {
        return Ok(reading);
    }
    // Kernels that leave the directory out when PSI is off still show why.
    TextFile::open(proc.join("cmdline"))?.read(buf)?;
    let off = buf
        .split(u8::is_ascii_whitespace)
        .rfind(|word| word.starts_with(b"psi="))
        .is_some_and(|word| matches!(word, b"psi=0" | b"psi=n" | b"psi=off"));
    Ok(if off {
        Reading::Disabled
    } else {
        Reading::Unsupported
    })
}

/// Pressure of the v2 cgroup at `dir` on `resource` (`memory`, `io`, `cpu`).
///
/// Where PSI is off for the whole node, 6.1 and later leave the file out: [`Reading::Unsupported`]
/// here, and [`node`] tells which it is.
pub fn cgroup(dir: &Path, resource: &str, buf: &mut Vec<u8>) -> Result<Reading, Error> {
    let reading = read(dir.join(format!("{resource}.pressure")), buf)?;
    if reading != Reading::Unsupported {
        return Ok(reading);
    }
    // The switch (6.1) stays visible when it hides the pressure files.
    let switch = text::parse_file(dir.join("cgroup.pressure"), buf, text::single_number);
    Ok(match text::optional(switch)? {
        Some(0) => Reading::Disabled,
        _ => Reading::Unsupported,
    })
}

fn read(path: PathBuf, buf: &mut Vec<u8>) -> Result<Reading, Error> {
    match text::parse_file(path, buf, Pressure::parse) {
        Ok(pressure) => Ok(Reading::Values(pressure)),
        Err(Error::Disabled { .. }) => Ok(Reading::Disabled),
        Err(Error::Gone { .. }) => Ok(Reading::Unsupported),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: &str = "some avg10=48.69 avg60=27.35 avg300=10.56 total=45116340\n\
                          full avg10=0.14 avg60=0.00 avg300=0.01 total=12\n";

    #[test]
    fn both_lines() {
        let pressure = Pressure::parse(MEMORY.as_bytes()).unwrap();
        assert_eq!(pressure.some.total_us, 45_116_340);
        assert!((pressure.some.avg10_percent - 48.69).abs() < 1e-9);
        assert_eq!(pressure.full.unwrap().total_us, 12);
    }

    #[test]
    fn cpu_of_old_kernels_has_no_full() {
        let pressure =
            Pressure::parse(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").unwrap();
        assert_eq!(pressure.full, None);
    }

    #[test]
    fn broken_content_is_named() {
        for (content, line) in [
            ("", 1),
            ("some avg10=0.00 avg60=0.00 avg300=0.00\n", 1),
            ("some avg10=0 avg60=0 avg300=0 total=1\nmost x=1\n", 2),
            ("some avg10=NaN avg60=0 avg300=0 total=1\n", 1),
        ] {
            assert_eq!(Pressure::parse(content.as_bytes()).unwrap_err().line, line);
        }
    }

    #[test]
    fn disabled_is_not_unsupported() {
        let dir = tempfile::tempdir().unwrap();
        let buf = &mut Vec::new();
        let cmdline = dir.path().join("cmdline");
        std::fs::write(&cmdline, "quiet psi=1 psi=0\n").unwrap();
        assert_eq!(node(dir.path(), "memory", buf).unwrap(), Reading::Disabled);
        std::fs::write(&cmdline, "quiet\n").unwrap();
        let unsupported = Reading::Unsupported;
        assert_eq!(node(dir.path(), "memory", buf).unwrap(), unsupported);

        assert_eq!(cgroup(dir.path(), "memory", buf).unwrap(), unsupported);
        std::fs::write(dir.path().join("cgroup.pressure"), "0\n").unwrap();
        let disabled = Reading::Disabled;
        assert_eq!(cgroup(dir.path(), "memory", buf).unwrap(), disabled);
        std::fs::write(dir.path().join("memory.pressure"), MEMORY).unwrap();
        let reading = cgroup(dir.path(), "memory", buf).unwrap();
        assert!(matches!(reading, Reading::Values(_)));
    }

    #[test]
    fn reads_this_machine() {
        let reading = node(Path::new("/proc"), "memory", &mut Vec::new()).unwrap();
        if Path::new("/proc/pressure/memory").exists() {
            assert_ne!(reading, Reading::Unsupported);
        } else {
            assert!(!matches!(reading, Reading::Values(_)));
        }
    }
}
