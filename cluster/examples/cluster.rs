//! `halyard cluster …` without the proxy around it: for work on this crate alone, with `--no-proxy`.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cluster")]
struct Cli {
    #[command(flatten)]
    command: halyard_cluster::ClusterCommand,
}

fn main() -> ExitCode {
    halyard_cluster::run(Cli::parse().command)
}
