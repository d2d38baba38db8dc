//! `cargo xtask test`: everything that a change must pass.

use anyhow::{Result, bail};

use crate::{
    cache::Cache,
    cmd::{self, status},
    ebpf, lint, tools, vm,
    workspace::Workspace,
};

/// One part of the tests, as the plan names it.
struct Step {
    name: &'static str,
    run: fn(&Cache, &Workspace) -> Result<()>,
}

/// Cheapest first, so that a slip shows early.
const STEPS: &[Step] = &[
    Step {
        name: "format",
        run: |_, workspace| lint::format(workspace),
    },
    Step {
        name: "BPF object is up to date and reproducible",
        run: |cache, _| ebpf::check(cache),
    },
    Step {
        name: "clippy",
        run: |_, workspace| lint::clippy(workspace),
    },
    Step {
        name: "clippy of the BPF programs",
        run: |cache, w| lint::clippy_bpf(w, cache),
    },
    Step {
        name: "unit and property tests",
        run: |_, workspace| unit_tests(workspace),
    },
    Step {
        name: "guests give back what their command says",
        run: |cache, _| vm::check(cache, &["5.10", "newest"]),
    },
];

/// Runs every step even if one fails, and names those that did.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    let workspace = Workspace::find()?;
    for (number, step) in (1..).zip(STEPS) {
        status(
            "Plan",
            format_args!("{number}/{} {}", STEPS.len(), step.name),
        );
    }
    let mut failed = Vec::new();
    for (number, step) in (1..).zip(STEPS) {
        status(
            "Testing",
            format_args!("{number}/{} {}", STEPS.len(), step.name),
        );
        if let Err(error) = (step.run)(cache, &workspace) {
            status("Failed", format_args!("{}: {error:#}", step.name));
            failed.push(step.name);
        }
    }
    if !failed.is_empty() {
        bail!(
            "{} of {} steps failed: {}",
            failed.len(),
            STEPS.len(),
            failed.join(", ")
        );
    }
    status("Passed", format_args!("all {} steps", STEPS.len()));
    Ok(())
}

fn unit_tests(workspace: &Workspace) -> Result<()> {
    cmd::run(
        tools::cargo()
            .current_dir(&workspace.root)
            .args(["test", "--locked"]),
    )
}
