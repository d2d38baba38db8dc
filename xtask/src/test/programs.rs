//! Test programs, built once for this machine and for guests, and what they report.
//!
//! Everything but oomprobe itself is built in one profile, for one target and from one choice of
//! packages, so that no dependency is compiled twice.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow};

use super::tally::{Failure, Tally};
use crate::{cmd, user, workspace::Workspace};

/// Unit and property tests of the workspace. Those that need root or oomprobe run nothing.
pub(super) fn unit_tests(workspace: &Workspace) -> Result<Tally> {
    let mut cargo = cargo_test(workspace)?;
    cargo.env_remove("OOMPROBE_BIN").arg("--no-fail-fast");
    tally(&mut cargo, &|_| "cargo xtask test --only unit".to_owned())
}

/// The scenarios on the running kernel.
pub(super) fn host_tests(
    workspace: &Workspace,
    oomprobe: &Path,
    scenarios: &[String],
) -> Result<Tally> {
    let run = |scenario: Option<&str>| {
        let mut cargo = cargo_test(workspace)?;
        cargo.args(["--test", "host"]).env("OOMPROBE_BIN", oomprobe);
        if let Some(scenario) = scenario {
            cargo.args(["--", "--exact", scenario]);
        }
        tally(&mut cargo, &|name| {
            format!("cargo xtask test --only host --scenario {name}")
        })
    };
    if scenarios.is_empty() {
        return run(None);
    }
    // The test program takes one name at a time.
    let mut all = Tally::default();
    for scenario in scenarios {
        all.add(run(Some(scenario))?);
    }
    Ok(all)
}

/// Tests of single parts of oomprobe that need root. One after the other: they share the node's state.
pub(super) fn root_tests(workspace: &Workspace) -> Result<Tally> {
    let mut cargo = cargo_test(workspace)?;
    for program in ["census", "deaths", "memory_pressure", "queues"] {
        cargo.args(["--test", program]);
    }
    cargo.args(["--no-fail-fast", "--", "--ignored", "--test-threads=1"]);
    // What such tests start as another process.
    cargo.args(["--exact", "--skip=child", "--skip=hog", "--skip=holder"]);
    tally(&mut cargo, &|name| {
        format!("cargo test -p probe-user --tests -- --ignored --exact {name}")
    })
}

/// The pods.
pub(super) fn pod_tests(workspace: &Workspace, oomprobe: &Path) -> Result<Tally> {
    let mut cargo = cargo_test(workspace)?;
    cargo.args(["--test", "pods"]).env("OOMPROBE_BIN", oomprobe);
    tally(&mut cargo, &|_| "cargo xtask test --only pods".to_owned())
}

/// Where the programs of the test crate are once they are built.
pub(super) fn directory(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = cargo_test(workspace)?;
    // The programs of a package are built for its integration tests.
    cmd::run(cargo.args(["--no-run", "--test", "host"]))?;
    user::directory(workspace, user::Profile::Dev)
}

/// Static as oomprobe is: a guest has no libraries.
fn cargo_test(workspace: &Workspace) -> Result<Command> {
    let mut cargo = user::static_cargo(workspace, "test")?;
    cargo.args(["--workspace", "--locked"]);
    Ok(cargo)
}

/// Runs tests, shows what they print, and counts.
fn tally(command: &mut Command, rerun: &dyn Fn(&str) -> String) -> Result<Tally> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let stdout = child.stdout.take().context("stdout of the tests")?;
    let mut count = Count::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(std::io::stdout(), "{line}").context("pass on what the tests print")?;
        count.take(&line);
    }
    let status = child.wait().context("wait for the tests")?;
    let mut tally = Tally {
        passed: count.passed,
        skipped: count.skipped,
        failed: count
            .failed
            .into_iter()
            .map(|(what, why)| Failure {
                rerun: rerun(&what),
                what,
                why,
            })
            .collect(),
    };
    if !status.success() && tally.failed.is_empty() {
        let why = anyhow!("they ended with {status}: see their output above");
        tally.add(Tally::check("the tests", &rerun(""), Err(why)));
    }
    Ok(tally)
}

/// What libtest, and libtest-mimic after it, say of tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    skipped: usize,
    /// Name and output.
    failed: Vec<(String, String)>,
    /// Whether lines are output of the last of `failed`.
    in_output: bool,
}

impl Count {
    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("---- ") {
            let name = rest
                .trim_end_matches(['-', ' '])
                .trim_end_matches(" stdout");
            self.failed.push((name.to_owned(), String::new()));
            self.in_output = true;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.in_output = false;
        } else if self.in_output
            && let Some((_, output)) = self.failed.last_mut()
        {
            output.push_str(line);
            output.push('\n');
        }
        let Some((_, outcome)) = line
            .strip_prefix("test ")
            .and_then(|test| test.rsplit_once(" ... "))
        else {
            return;
        };
        if outcome == "ok" {
            self.passed += 1;
        } else if outcome.starts_with("ignored") {
            self.skipped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_the_test_programs_print() {
        let mut count = Count::default();
        let output = "running 4 tests\n\
            test a::b ... ok\n\
            test with reason  ... ignored, there is swap\n\
            test c ... ok\n\
            test d ... FAILED\n\n\
            failures:\n\n\
            ---- d stdout ----\n\
            one\n\n\
            failures:\n    d\n\n\
            test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured\n";
        output.lines().for_each(|line| count.take(line));
        assert_eq!((count.passed, count.skipped), (2, 1));
        assert_eq!(count.failed, [("d".to_owned(), "one\n\n".to_owned())]);
        count.take("---- from_mimic ----");
        assert_eq!(count.failed[1].0, "from_mimic");
    }
}
