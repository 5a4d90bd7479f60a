//! What a run is asked for.

use std::path::PathBuf;
use std::time::Duration;

const USAGE: &str = "usage: chaos [--seed N] [--minutes N] [--profile seed|fast] [--skip N] [--history FILE]
             [--report FILE] [--resolve-commits true|false]
  --seed N       which faults come when [default: 289, what `make test` runs]
  --minutes N    rounds of faults begin for so long; the last one is ended [default: 0.5]
  --profile P    the engine's timing [default: seed]
  --skip N       leave out the first rounds of the schedule [default: 0]
  --resolve-commits B  failover.resolve_commits [default: false]
  --history FILE keep the lists' history as Jepsen writes it, a line for each operation
  --report FILE  put the summary between this file's marks, where there was no violation";

/// A run.
#[derive(Debug)]
pub(crate) struct Options {
    /// Of the schedule, and of what clients do.
    pub(crate) seed: u64,
    /// How long rounds begin.
    pub(crate) lasts: Duration,
    /// The engine's timing.
    pub(crate) profile: String,
    /// Rounds of the schedule that are left out.
    pub(crate) skip: usize,
    /// Whether the proxy finds out what became of commits whose answers were lost.
    pub(crate) resolve_commits: bool,
    /// Gets the history of the lists.
    pub(crate) history: Option<PathBuf>,
    /// The document that gets the summary.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// How it is used.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            seed: 289,
            lasts: Duration::from_secs(30),
            profile: "seed".to_owned(),
            skip: 0,
            resolve_commits: false,
            history: None,
            report: None,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            let wrong = || format!("{value:?} is no value of {name}\n{USAGE}");
            match name.as_str() {
                "--seed" => options.seed = value.parse().map_err(|_| wrong())?,
                "--minutes" => {
                    let minutes = value.parse::<f64>().map_err(|_| wrong())?;
                    options.lasts = Duration::try_from_secs_f64(minutes * 60.0).map_err(|_| wrong())?;
                }
                "--skip" => options.skip = value.parse().map_err(|_| wrong())?,
                "--resolve-commits" => options.resolve_commits = value.parse().map_err(|_| wrong())?,
                "--profile" => options.profile = value,
                "--history" => options.history = Some(value.into()),
                "--report" => {
                    // Half an hour later is too late to hear that it is not there.
                    std::fs::read_to_string(&value).map_err(|error| format!("{value}: {error}"))?;
                    options.report = Some(value.into());
                }
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}
