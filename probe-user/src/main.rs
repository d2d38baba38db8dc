//! The `oomprobe` command.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use oomprobe::cli::resolve;

#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// CRI socket of the container runtime
    #[arg(long, global = true)]
    cri_socket: Option<PathBuf>,
    /// Where the host's root is mounted
    #[arg(long, global = true, default_value = "/")]
    host_root: PathBuf,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Name the container and pod of a cgroup
    Resolve(resolve::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let Command::Resolve(args) = cli.command;
    let options = resolve::Options {
        cri_socket: cli.cri_socket,
        host_root: cli.host_root,
    };
    resolve::run(args, options).await
}
