//! Runs anything in a guest of any Debian kernel: fetch, boot under QEMU, relay, report.

mod btf;
mod check;
mod cli;
mod fetch;
mod init;
mod initramfs;
pub(crate) mod kernels;
mod modules;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the writing half is the guest's")
)]
mod protocol;
pub(crate) mod qemu;
mod terminal;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use cli::{VmArgs, run, vm};

use crate::cmd;
use crate::debian::{self, Tool};
use initramfs::Initramfs;
use kernels::Kernel;
use protocol::{Spec, TerminalSize};
use qemu::{Accelerator, Machine, Stream};

/// How long a guest may take to prove that KVM works.
const KVM_PROOF: Duration = Duration::from_secs(60);

/// What a guest is to run, in which machine.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// Environment on top of `PATH`, `HOME` and `TERM`.
    pub(crate) env: BTreeMap<String, String>,
    /// Working directory.
    pub(crate) cwd: String,
    /// Files of the host and where they appear in the guest.
    pub(crate) files: Vec<(PathBuf, String)>,
    pub(crate) machine: Machine,
}

impl Job {
    /// `argv` in a machine of the usual size.
    pub(crate) fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cwd: "/".to_owned(),
            files: Vec::new(),
            machine: Machine::default(),
        }
    }
}

/// What a guest's command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Everything guests share; made once per run.
#[derive(Debug)]
pub(crate) struct Vm {
    base: Initramfs,
    /// Where console logs go.
    logs: PathBuf,
    accelerator: OnceLock<Accelerator>,
}

impl Vm {
    /// Builds the guest's `/init` and root file system; installs QEMU and busybox if need be.
    ///
    /// An oomprobe already built as a static binary becomes the guest's `/bin/oomprobe`.
    pub(crate) fn prepare() -> Result<Self> {
        debian::ensure_installed(
            "boot guests",
            &[
                Tool {
                    program: qemu::QEMU,
                    package: "qemu-system-x86",
                },
                Tool {
                    program: "busybox",
                    package: "busybox-static",
                },
            ],
        )?;
        let busybox = cmd::find_in_path("busybox").context("busybox is gone")?;
        if !init::is_static(&busybox)? {
            bail!(
                "{} needs libraries a guest lacks: run `apt-get install busybox-static`",
                busybox.display()
            );
        }
        let built = init::build()?;
        let mut base = Initramfs::base(&built.vm_init, &busybox)?;
        if let Some(oomprobe) = &built.oomprobe {
            base.add_host_file("bin/oomprobe", oomprobe)?;
        }
        fs::create_dir_all(&built.logs)
            .with_context(|| format!("create {}", built.logs.display()))?;
        Ok(Self {
            base,
            logs: built.logs,
            accelerator: OnceLock::new(),
        })
    }

    /// Runs `job` under `kernel` and hands output to `sink` as it comes, in pieces of any size.
    ///
    /// A command that fails is not an error; a guest that crashes, hangs or cannot start is.
    pub(crate) fn stream(
        &self,
        kernel: &Kernel,
        job: &Job,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus> {
        self.boot(kernel, job, None, sink)
    }

    /// Runs `job` under `kernel` and hands every line of output, without its `\n`, to `on_line`.
    pub(crate) fn lines(
        &self,
        kernel: &Kernel,
        job: &Job,
        on_line: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.stream(kernel, job, &mut |stream, bytes| {
            let pending = match stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            split_lines(pending, bytes, &mut |line| on_line(stream, line));
        })?;
        for (stream, rest) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if !rest.is_empty() {
                on_line(stream, &rest);
            }
        }
        Ok(status)
    }

    /// Runs `job` under `kernel` to its end.
    pub(crate) fn output(&self, kernel: &Kernel, job: &Job) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.stream(kernel, job, &mut |stream, bytes| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        })?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Where the console of the last guest with `kernel` is logged.
    pub(crate) fn console_log(&self, kernel: &Kernel) -> PathBuf {
        self.logs
            .join(format!("{}.console.log", kernel.file_stem()))
    }

    fn boot(
        &self,
        kernel: &Kernel,
        job: &Job,
        terminal: Option<(TerminalSize, Box<dyn Read + Send>)>,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus> {
        let (size, keyboard) = terminal.unzip();
        let initramfs = self.initramfs(kernel, job, size)?;
        let log = self.console_log(kernel);
        let accelerator = self.accelerator(kernel)?;
        qemu::boot(
            accelerator,
            &kernel.vmlinuz,
            &initramfs,
            &job.machine,
            keyboard,
            &log,
            sink,
        )
    }

    fn initramfs(
        &self,
        kernel: &Kernel,
        job: &Job,
        terminal: Option<TerminalSize>,
    ) -> Result<Vec<u8>> {
        let mut archive = self.base.clone();
        if let Some(cached) = &kernel.cached {
            archive.add_host_files(
                &format!("lib/modules/{}", cached.release),
                &cached.modules(),
            )?;
        }
        for (host, guest) in &job.files {
            archive.add_host_file(guest, host)?;
        }
        let spec = Spec {
            argv: job.argv.clone(),
            env: job.env.clone(),
            cwd: job.cwd.clone(),
            terminal,
        };
        archive.add_file(protocol::SPEC_PATH, 0o644, &serde_json::to_vec(&spec)?)?;
        archive.finish()
    }

    /// The fastest way to run guests here, found out once.
    fn accelerator(&self, kernel: &Kernel) -> Result<Accelerator> {
        if let Some(known) = self.accelerator.get() {
            return Ok(*known);
        }
        let chosen = if self.kvm_works(kernel) {
            Accelerator::Kvm
        } else {
            Accelerator::emulation()?
        };
        Ok(*self.accelerator.get_or_init(|| chosen))
    }

    /// Whether a guest really runs in KVM. A device that opens is not enough: some clouds'
    /// paravirtual KVM refuses ordinary guests.
    fn kvm_works(&self, kernel: &Kernel) -> bool {
        if File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_err()
        {
            return false;
        }
        let mut job = Job::new(["true"]);
        job.machine.timeout = Some(KVM_PROOF);
        let log = self.logs.join("kvm.console.log");
        let proof = self.initramfs(kernel, &job, None).and_then(|initramfs| {
            qemu::boot(
                Accelerator::Kvm,
                &kernel.vmlinuz,
                &initramfs,
                &job.machine,
                None,
                &log,
                &mut |_, _| {},
            )
        });
        proof.is_ok_and(|status| status.success())
    }
}

/// Appends `bytes` to `pending` and takes every complete line off it.
fn split_lines(pending: &mut Vec<u8>, bytes: &[u8], on_line: &mut dyn FnMut(&[u8])) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        pending.extend_from_slice(piece);
        if let Some(line) = pending.strip_suffix(b"\n") {
            on_line(line);
            pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let (mut pending, mut lines) = (Vec::new(), Vec::new());
        for piece in [&b"a"[..], b"b\n\n", b"", b"c\nd"] {
            split_lines(&mut pending, piece, &mut |line| lines.push(line.to_vec()));
        }
        assert_eq!(lines, [&b"ab"[..], b"", b"c"]);
        assert_eq!(pending, b"d");
    }
}
