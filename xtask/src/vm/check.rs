//! Proves that a guest gives back what its command says: bytes, exit code and kernel.

use std::fs;
use std::io::Write as _;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::kernels::{Kernel, Matrix};
use super::{Job, Output, Vm};
use crate::cache::Cache;
use crate::cmd::status;

/// Output of the test command in bytes: many times every buffer on the way.
const BLOB_BYTES: usize = 1 << 20;

/// Facts on stderr, the blob on stdout, an exit code of its own.
const COMMAND: &str = "uname -r >&2; sha256sum < /sys/kernel/btf/vmlinux >&2; \
    cat /sys/fs/cgroup/cgroup.subtree_control >&2; cat /blob; exit 7";

/// Boots each of `kernels` and compares.
pub(crate) fn check(cache: &Cache, kernels: &[&str]) -> Result<()> {
    let matrix = Matrix::load()?;
    let vm = Vm::prepare()?;
    let blob = noise();
    let mut file = tempfile::NamedTempFile::new().context("create a temporary file")?;
    file.write_all(&blob).context("write a temporary file")?;
    let mut job = Job::new(["sh", "-c", COMMAND]);
    job.files.push((file.path().to_owned(), "blob".to_owned()));

    for name in kernels {
        let kernel = matrix.kernel(cache, name)?;
        status("Booting", &kernel.label);
        let output = vm.output(&kernel, &job)?;
        compare(&kernel, &output, &blob).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!(
                "guest with kernel {}, which said on stderr:\n{said}",
                kernel.label
            )
        })?;
    }
    Ok(())
}

fn compare(kernel: &Kernel, output: &Output, blob: &[u8]) -> Result<()> {
    ensure!(
        output.status.code() == Some(7),
        "exit code 7 became {}",
        output.status
    );
    ensure!(
        output.stdout == blob,
        "{} bytes of output came back changed",
        blob.len()
    );
    let cached = kernel
        .cached
        .as_ref()
        .context("not a kernel of the matrix")?;
    let btf = fs::read(cached.btf()).context("read the cached BTF")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let facts: Vec<&str> = stderr.lines().collect();
    let [release, btf_sha256, controllers] = facts[..] else {
        bail!("stderr has {} lines", facts.len());
    };
    ensure!(
        release == cached.release,
        "the cache takes it for {}",
        cached.release
    );
    ensure!(
        btf_sha256 == format!("{:x}  -", Sha256::digest(&btf)),
        "the cached BTF is another"
    );
    for controller in ["memory", "pids", "cpu", "io", "cpuset"] {
        let mut enabled = controllers.split_whitespace();
        ensure!(
            enabled.any(|name| name == controller),
            "{controller} is not enabled"
        );
    }
    Ok(())
}

/// Bytes without a pattern, the same each time.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(BLOB_BYTES)
    .collect()
}
