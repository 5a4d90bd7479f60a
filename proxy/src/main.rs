//! The `halyard` binary: reads its command line and leaves the rest to the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    halyard::cli::run(halyard::cli::Cli::parse().command)
}
