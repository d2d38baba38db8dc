//! Scenarios in guests: for each kernel one with all that leave the machine alone, then a small
//! one for each that does not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use super::programs;
use super::tally::{Failure, Tally};
use crate::cache::Cache;
use crate::cmd::{self, status};
use crate::debian;
use crate::vm::kernels::{Kernel, Matrix};
use crate::vm::qemu::{Machine, Stream};
use crate::vm::{Job, Vm};
use crate::workspace::Workspace;

/// Kernels that every change is tested on: old, stable, current, and the newest there is.
const DEFAULT_KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];

/// For a guest to run all scenarios, emulated on a busy machine. Only a hang reaches it.
const TIMEOUT: Duration = Duration::from_secs(45 * 60);

/// A guest whose memory is to run out has little of it.
const SMALL_MIB: u32 = 512;

/// Console lines shown with a failed scenario.
const CONSOLE_LINES: usize = 15;

/// A line of `oomprobe-scenarios list`.
#[derive(Debug, Deserialize)]
struct Scenario {
    #[serde(rename = "scenario")]
    name: String,
    needs: BTreeSet<String>,
    guest_exclusive: bool,
    slow: bool,
}

impl Scenario {
    /// How many processors its guest must have, if that is more than usual.
    fn processors(&self) -> Option<u32> {
        self.needs.iter().find_map(|need| {
            let count = need.strip_prefix("Processors(")?.strip_suffix(')')?;
            count.parse().ok()
        })
    }
}

/// A line of `oomprobe-scenarios run`.
#[derive(Debug, Deserialize)]
struct Report {
    #[serde(rename = "scenario")]
    name: String,
    outcome: Outcome,
    reason: Option<String>,
    seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// One guest: what runs in it, in which machine.
#[derive(Debug)]
struct Boot<'a> {
    scenarios: Vec<&'a Scenario>,
    machine: Machine,
}

/// Runs the scenarios, or only `wanted` ones, in guests of `kernels`, `jobs` of them at a time.
pub(super) fn run(
    cache: &Cache,
    workspace: &Workspace,
    oomprobe: &Path,
    kernels: &[String],
    wanted: &[String],
    jobs: usize,
) -> Result<Tally> {
    let directory = programs::directory(workspace)?;
    // The slow ones would make all kernels take hours: they run where they or a kernel are named.
    let is_set = |kernel: &String| ["default", "all"].contains(&kernel.as_str());
    let with_slow = !wanted.is_empty() || !kernels.iter().all(is_set);
    let mut scenarios = list(&directory, wanted)?;
    scenarios.retain(|scenario| !scenario.slow || with_slow);
    let vm = Vm::prepare()?;
    let matrix = Matrix::load()?;
    let packaged = packaged(cache, &scenarios);
    let files: Vec<PathBuf> = [oomprobe.to_owned()]
        .into_iter()
        .chain(PROGRAMS.map(|program| directory.join(program)))
        .collect();
    // All are fetched first: what cannot be had shows before an hour of guests.
    let guests = names(&matrix, kernels)
        .iter()
        .map(|name| {
            Ok(Guests {
                vm: &vm,
                kernel: matrix.kernel(cache, name)?,
                files: files.clone(),
                packaged: packaged.clone(),
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(side_by_side(&guests, &boots(&scenarios), jobs))
}

/// Runs `boots` on each kernel, one after the other, `jobs` kernels at a time.
fn side_by_side(guests: &[Guests<'_>], boots: &[Boot<'_>], jobs: usize) -> Tally {
    let next = Mutex::new(guests.iter());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.clamp(1, guests.len().max(1)))
            .map(|_| {
                scope.spawn(|| {
                    let mut tally = Tally::default();
                    while let Some(guests) = take() {
                        for boot in boots {
                            tally.add(guests.run(boot));
                        }
                    }
                    tally
                })
            })
            .collect();
        for worker in workers {
            tally.add(worker.join().unwrap_or_else(|_| {
                let rerun = "cargo xtask test --only guests";
                Tally::check("guests", rerun, Err(anyhow!("a worker panicked")))
            }));
        }
    });
    tally
}

/// Programs of the test crate that run in a guest.
const PROGRAMS: [&str; 2] = ["oomprobe-scenarios", "oomprobe-hog"];

/// Programs that scenarios need, by their path in the guest, and their Debian packages.
const PACKAGED: [(&str, &str); 3] = [
    ("/usr/bin/earlyoom", "earlyoom"),
    ("/usr/sbin/nohang", "nohang"),
    ("/lib/systemd/systemd-oomd", "systemd-oomd"),
];

/// Files for the programs of [`PACKAGED`] that `scenarios` need. What cannot be had is left out, and
/// the scenario then says that it is missing.
fn packaged(cache: &Cache, scenarios: &[Scenario]) -> Vec<(PathBuf, String)> {
    let needed = |program: &str| {
        let need = format!("Program({program:?})");
        scenarios
            .iter()
            .any(|scenario| scenario.needs.contains(&need))
    };
    let mut files = BTreeSet::new();
    for (program, package) in PACKAGED {
        if !needed(program) {
            continue;
        }
        match debian::program_with_libraries(cache, package, program) {
            Ok(found) => files.extend(found),
            Err(error) => status("Warning", format_args!("without {package}: {error:#}")),
        }
    }
    files.into_iter().collect()
}

/// What `default` and `all` stand for.
fn names(matrix: &Matrix, kernels: &[String]) -> Vec<String> {
    kernels
        .iter()
        .flat_map(|kernel| match kernel.as_str() {
            "default" => DEFAULT_KERNELS.map(str::to_owned).to_vec(),
            "all" => matrix
                .series
                .iter()
                .map(|series| series.label.clone())
                .collect(),
            one => vec![one.to_owned()],
        })
        .collect()
}

fn list(directory: &Path, wanted: &[String]) -> Result<Vec<Scenario>> {
    let json = cmd::output(Command::new(directory.join("oomprobe-scenarios")).arg("list"))?;
    let all = json
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Scenario>, _>>()
        .context("what `oomprobe-scenarios list` prints")?;
    if let Some(unknown) = wanted
        .iter()
        .find(|name| all.iter().all(|scenario| scenario.name != **name))
    {
        bail!("no scenario is called {unknown}");
    }
    Ok(all
        .into_iter()
        .filter(|scenario| wanted.is_empty() || wanted.contains(&scenario.name))
        .collect())
}

fn boots(scenarios: &[Scenario]) -> Vec<Boot<'_>> {
    let (alone, together): (Vec<_>, Vec<_>) = scenarios
        .iter()
        .partition(|scenario| scenario.guest_exclusive);
    let mut boots = Vec::new();
    if !together.is_empty() {
        boots.push(Boot {
            scenarios: together,
            machine: Machine {
                timeout: Some(TIMEOUT),
                ..Machine::default()
            },
        });
    }
    boots.extend(alone.into_iter().map(|scenario| Boot {
        scenarios: vec![scenario],
        machine: Machine {
            memory_mib: SMALL_MIB,
            cpus: scenario.processors().unwrap_or(Machine::default().cpus),
            numa_nodes: if scenario.needs.contains("SecondNode") {
                2
            } else {
                1
            },
            timeout: Some(TIMEOUT),
            ..Machine::default()
        },
    }));
    boots
}

/// Guests of one kernel.
struct Guests<'a> {
    vm: &'a Vm,
    kernel: Kernel,
    /// Programs of this machine for `/bin`.
    files: Vec<PathBuf>,
    /// Programs of Debian's, with their libraries, and where each file belongs.
    packaged: Vec<(PathBuf, String)>,
}

impl Guests<'_> {
    /// Runs one guest to its end, telling each result as it comes.
    fn run(&self, boot: &Boot<'_>) -> Tally {
        let label = &self.kernel.label;
        status(
            "Booting",
            format_args!(
                "{label}, {} MiB, {} processors, {} NUMA node(s): {} scenario(s)",
                boot.machine.memory_mib,
                boot.machine.cpus,
                boot.machine.numa_nodes,
                boot.scenarios.len()
            ),
        );
        let mut results = Results::default();
        let job = self.job(boot);
        let ended = job.and_then(|job| {
            self.vm.lines(&self.kernel, &job, &mut |stream, line| {
                if let Some(report) = results.take(stream, line) {
                    tell(label, report);
                }
            })
        });
        let trouble = match ended {
            Err(error) => Some(format!("{error:#}")),
            Ok(status) if status.success() || results.any_failed() => None,
            Ok(status) => Some(format!("oomprobe-scenarios: {status}")),
        };
        let mut tally = Tally::default();
        for (number, report) in results.reports.iter().enumerate() {
            match report.outcome {
                Outcome::Passed => tally.passed += 1,
                Outcome::Skipped => tally.skipped += 1,
                Outcome::Failed => {
                    let stderr = results.stderr(number, label, &report.name);
                    tally.failed.push(self.failure(boot, report, &stderr));
                }
            }
        }
        // A scenario without a report was under way, or due, when the guest went down.
        let unreported = boot
            .scenarios
            .iter()
            .find(|scenario| !results.has(&scenario.name));
        if let Some(trouble) = trouble.or_else(|| unreported.map(|_| "no result".to_owned())) {
            let name = unreported.map_or("shared_tracer_ends_cleanly", |s| s.name.as_str());
            let stderr = results.stderr(results.reports.len(), label, name);
            let why = format!("{trouble}\n{stderr}");
            tally.add(Tally::check(
                &format!("{name} on kernel {label}"),
                &self.again(unreported.map(|scenario| scenario.name.as_str())),
                Err(anyhow!(why)),
            ));
        }
        tally
    }

    fn job(&self, boot: &Boot<'_>) -> Result<Job> {
        let mut argv = vec!["oomprobe-scenarios", "run", "--guest"];
        let names: Vec<&str> = boot.scenarios.iter().map(|s| s.name.as_str()).collect();
        let only = names.join(",");
        argv.extend(["--oomprobe", "/bin/oomprobe", "--only", &only]);
        let mut job = Job::new(argv);
        job.machine = boot.machine.clone();
        for file in &self.files {
            let name = file.file_name().context("a program without a name")?;
            let guest = format!("bin/{}", name.to_string_lossy());
            job.files.push((file.clone(), guest));
        }
        job.files.extend(self.packaged.iter().cloned());
        Ok(job)
    }

    fn failure(&self, boot: &Boot<'_>, report: &Report, stderr: &str) -> Failure {
        let console = self.vm.console_log(&self.kernel);
        let text = std::fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n  | ");
        let known = boot
            .scenarios
            .iter()
            .find(|scenario| scenario.name == report.name);
        Failure {
            what: format!("{} on kernel {}", report.name, self.kernel.label),
            why: format!(
                "{}\n{stderr}the end of the console, {}:\n  | {tail}",
                report.reason.as_deref().unwrap_or("no reason given"),
                console.display(),
            ),
            rerun: self.again(known.map(|scenario| scenario.name.as_str())),
        }
    }

    /// The command that repeats one scenario, or all.
    fn again(&self, scenario: Option<&str>) -> String {
        let label = &self.kernel.label;
        let filter = scenario.map_or(String::new(), |name| format!(" --scenario {name}"));
        format!("cargo xtask test --only guests --kernels {label}{filter}")
    }
}

fn tell(label: &str, report: &Report) {
    let verb = match report.outcome {
        Outcome::Passed => "Passed",
        Outcome::Failed => "Failed",
        Outcome::Skipped => "Skipped",
    };
    let reason = report.reason.as_deref().unwrap_or_default();
    let first_line = reason.lines().next().unwrap_or_default();
    let short: String = first_line.chars().take(160).collect();
    status(
        verb,
        format_args!("{label} {} ({:.1} s) {short}", report.name, report.seconds),
    );
}

/// What a guest has said so far.
#[derive(Debug, Default)]
struct Results {
    reports: Vec<Report>,
    /// Lines, each with the number of reports there were before it: scenarios run one by one.
    stderr: Vec<(usize, String)>,
}

impl Results {
    /// Takes a line of output; the report if it is one.
    fn take(&mut self, stream: Stream, line: &[u8]) -> Option<&Report> {
        match stream {
            Stream::Stdout => {
                // The last line is a sentence with the totals.
                self.reports.push(serde_json::from_slice(line).ok()?);
                self.reports.last()
            }
            Stream::Stderr => {
                let line = String::from_utf8_lossy(line).into_owned();
                self.stderr.push((self.reports.len(), line));
                None
            }
        }
    }

    fn has(&self, scenario: &str) -> bool {
        self.reports.iter().any(|report| report.name == scenario)
    }

    fn any_failed(&self) -> bool {
        self.reports
            .iter()
            .any(|report| report.outcome == Outcome::Failed)
    }

    /// What was said on stderr while the scenario of the report with this number ran. Each line names
    /// it, so that a part of a log is of use.
    fn stderr(&self, number: usize, label: &str, scenario: &str) -> String {
        let own = self.stderr.iter().filter(|(before, _)| *before == number);
        own.fold(String::new(), |text, (_, line)| {
            format!("{text}  {label} {scenario} | {line}\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(name: &str, needs: &[&str], guest_exclusive: bool) -> Scenario {
        Scenario {
            name: name.to_owned(),
            needs: needs.iter().map(|&need| need.to_owned()).collect(),
            guest_exclusive,
            slow: false,
        }
    }

    #[test]
    fn those_that_disturb_have_a_guest_of_their_own() {
        let all = [
            scenario("a", &[], false),
            scenario("node", &["Guest"], true),
            scenario("b", &[], false),
            scenario("numa", &["SecondNode"], true),
            scenario("many", &["Processors(4)"], true),
        ];
        let boots = boots(&all);
        let names: Vec<Vec<&str>> = boots
            .iter()
            .map(|boot| boot.scenarios.iter().map(|s| s.name.as_str()).collect())
            .collect();
        let expected = [vec!["a", "b"], vec!["node"], vec!["numa"], vec!["many"]];
        assert_eq!(names, expected);
        let machines = boots.iter().map(|boot| &boot.machine);
        let sizes: Vec<(u32, u32)> = machines.map(|one| (one.numa_nodes, one.cpus)).collect();
        let usual = Machine::default().cpus;
        assert_eq!(sizes, [(1, usual), (1, usual), (2, usual), (1, 4)]);
    }

    #[test]
    fn reports_are_told_from_totals_and_from_stderr() {
        let mut results = Results::default();
        let line = br#"{"scenario":"a","outcome":"failed","reason":"x","seconds":1.5}"#;
        assert!(results.take(Stream::Stderr, line).is_none());
        assert!(!results.any_failed());
        assert!(results.take(Stream::Stdout, line).is_some());
        assert!(
            results
                .take(Stream::Stdout, b"0 passed, 1 failed, 0 skipped")
                .is_none()
        );
        assert!(results.any_failed() && results.has("a") && !results.has("b"));
        assert!(results.take(Stream::Stderr, b"of the next").is_none());
        assert_eq!(results.stderr(1, "6.1", "b"), "  6.1 b | of the next\n");
        assert!(!results.stderr(0, "6.1", "a").contains("next"));
    }
}
