//! The `oomprobe` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    oomprobe::cli::main(std::env::args_os())
}
