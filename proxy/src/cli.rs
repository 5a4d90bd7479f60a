//! The command line: what `halyard` can be told, and the commands that need no running cluster of their own.

mod look;
mod route;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Gravity};
use crate::logging;
pub use look::{HealthcheckArgs, StatusArgs};
pub use route::RouteArgs;

/// A PostgreSQL wire-protocol routing proxy with the HA cluster around it.
#[derive(Debug, Parser)]
#[command(name = "halyard", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the proxy
    Serve(ConfigArgs),
    /// Set up, test, break and repair a local cluster
    Cluster(halyard_cluster::ClusterCommand),
    /// Check a configuration: prints everything that is wrong with it at once
    Check(ConfigArgs),
    /// Show what a running proxy sees: nodes, pools and clients
    Status(StatusArgs),
    /// Explain where a statement would go and why, without asking a server
    Route(RouteArgs),
    /// Exit with 0 if a running proxy is ready for clients, else with 1
    Healthcheck(HealthcheckArgs),
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "HALYARD_CONFIG",
        default_value = "/etc/halyard/halyard.toml"
    )]
    pub config: PathBuf,
}

/// Runs a command to its end. What it finds goes to standard output, what went wrong to standard error.
pub fn run(command: Command) -> ExitCode {
    let out = io::stdout();
    match command {
        Command::Serve(args) => serve(args, crate::app::serve),
        Command::Cluster(command) => halyard_cluster::run(command),
        Command::Check(args) => exit_code(check(&args, &mut out.lock())),
        Command::Status(args) => exit_code(look::status(&args, &mut out.lock())),
        Command::Route(args) => exit_code(route::route(&args, &mut out.lock())),
        Command::Healthcheck(args) => exit_code(look::healthcheck(&args, &mut out.lock())),
    }
}

fn exit_code(done: io::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        // Whoever read along has seen enough, as with `halyard status | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("halyard: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `halyard check`: 0 if the configuration can be used, else 1.
fn check(args: &ConfigArgs, out: &mut impl Write) -> io::Result<ExitCode> {
    let file = &args.config;
    let (findings, code) = match config::load(file) {
        Ok(checked) => (checked.warnings, ExitCode::SUCCESS),
        Err(errors) => (errors.findings, ExitCode::FAILURE),
    };
    for finding in &findings {
        writeln!(out, "{}", finding.in_file(file))?;
    }
    let count = |gravity| {
        findings
            .iter()
            .filter(|finding| finding.gravity == gravity)
            .count()
    };
    let (errors, warnings) = (count(Gravity::Error), count(Gravity::Warning));
    let verdict = if errors == 0 {
        "can be used"
    } else {
        "cannot be used"
    };
    writeln!(
        out,
        "{} {verdict}; errors: {errors}, warnings: {warnings}",
        file.display()
    )?;
    Ok(code)
}

/// `halyard serve`: loads the configuration, begins to log, logs its warnings and hands it to `serve`, which returns
/// when the proxy has ended.
pub fn serve<E: std::fmt::Display>(
    args: ConfigArgs,
    serve: impl FnOnce(Config, PathBuf) -> Result<(), E>,
) -> ExitCode {
    let checked = match config::load(&args.config) {
        Ok(checked) => checked,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = logging::install(&checked.config.general) {
        eprintln!("halyard: {error}");
        return ExitCode::FAILURE;
    }
    for warning in &checked.warnings {
        tracing::warn!("{}", warning.in_file(&args.config));
    }
    match serve(checked.config, args.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests;
