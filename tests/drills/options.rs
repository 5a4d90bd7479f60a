//! What a run is asked for.

use std::fmt;
use std::path::PathBuf;

const USAGE: &str =
    "usage: drills [--count N] [--profile seed|fast|defaults] [--tls] [--only KIND,...] [--idle N] [--report FILE]
  --count N       drills of each kind [default: 1]
  --profile P     the engine's timing [default: fast]
  --tls           TLS between pgbench and Halyard and between Halyard and the nodes; a switchover is ordered on the console
  --only KINDS    of switchover, primary, replica, split-brain, cut-off [default: all]
  --idle N        idle clients with prepared statements and settings [default: 200]
  --report FILE   put the table between this file's marks for the profile";

/// What is done to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `halyard cluster switchover`, or SWITCHOVER on the console.
    Switchover,
    /// SIGKILL to everything on the primary's node.
    Primary,
    /// SIGKILL to everything on a read-only replica.
    Replica,
    /// The primary frozen, and thawed when there is another.
    SplitBrain,
    /// The primary lost to the engine, and not to Halyard: its keeper is not heard, its server runs.
    CutOff,
}

impl Kind {
    const ALL: [Kind; 5] = [
        Kind::Switchover,
        Kind::Primary,
        Kind::Replica,
        Kind::SplitBrain,
        Kind::CutOff,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Switchover => "switchover",
            Kind::Primary => "primary",
            Kind::Replica => "replica",
            Kind::SplitBrain => "split-brain",
            Kind::CutOff => "cut-off",
        })
    }
}

/// A run.
pub(crate) struct Options {
    /// Drills of each kind.
    pub(crate) count: usize,
    /// The engine's timing.
    pub(crate) profile: String,
    /// Whether connections are encrypted.
    pub(crate) tls: bool,
    /// In this order.
    pub(crate) kinds: Vec<Kind>,
    /// Idle clients.
    pub(crate) idle: usize,
    /// The document that gets the table.
    pub(crate) report: Option<PathBuf>,
}

impl Options {
    /// # Errors
    /// How it is used.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            count: 1,
            profile: "fast".to_owned(),
            tls: false,
            kinds: Kind::ALL.to_vec(),
            idle: 200,
            report: None,
        };
        let number = |text: String| {
            text.parse()
                .map_err(|_| format!("{text:?} is no number\n{USAGE}"))
        };
        while let Some(name) = arguments.next() {
            if name == "--tls" {
                options.tls = true;
                continue;
            }
            let value = arguments.next().ok_or(USAGE)?;
            match name.as_str() {
                "--count" => options.count = number(value)?,
                "--idle" => options.idle = number(value)?,
                "--profile" => options.profile = value,
                "--report" => options.report = Some(value.into()),
                "--only" => options.kinds = kinds(&value)?,
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }
}

fn kinds(list: &str) -> Result<Vec<Kind>, String> {
    let kind = |name: &str| {
        let known = Kind::ALL.into_iter().find(|kind| kind.to_string() == name);
        known.ok_or_else(|| format!("{name:?} is no kind of drill\n{USAGE}"))
    };
    list.split(',').map(kind).collect()
}
