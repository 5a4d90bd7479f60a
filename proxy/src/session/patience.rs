//! How long a client lets its statements wait: what its `statement_timeout` says, its own or the one that a session of its
//! role and database has from the start.
//!
//! A server counts from the moment at which it gets a statement. While that is held, or waits in line, Halyard counts; from
//! then on the server does, from the beginning.

use std::time::Duration;

use tokio::time::timeout;

use super::obtain::{Aim, Waited};
use super::turn::Session;
use crate::error::{Report, SqlState};

/// PostgreSQL's units of time (manual, section 20.1.1), in milliseconds. A number without one has that of the setting.
const UNITS: [(&str, f64); 7] = [
    ("", 1.0),
    ("us", 0.001),
    ("ms", 1.0),
    ("s", 1e3),
    ("min", 60e3),
    ("h", 3_600e3),
    ("d", 86_400e3),
];

/// What a session has said of its `statement_timeout`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Patience {
    /// Nothing: it has the default of its role, its database or the server.
    #[default]
    Unsaid,
    /// That there is no limit, or one that only the server can read.
    Endless,
    /// A limit.
    Limited(Duration),
}

impl Patience {
    /// What a value says.
    pub(super) fn of(value: &str) -> Self {
        milliseconds(value).map_or(Self::Endless, Self::Limited)
    }
}

/// A value of a setting in milliseconds, as `statement_timeout` and `idle_session_timeout` are. `None` where it is off (0), and where only the server can read it: octal, hexadecimal
/// and numbers with an exponent.
pub(crate) fn milliseconds(value: &str) -> Option<Duration> {
    let value = value.trim();
    let end = value
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(end);
    let octal = number.len() > 1 && number.starts_with('0') && !number.contains('.');
    let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
    let limit = (number.parse::<f64>().ok()? * milliseconds).round();
    (!octal && limit >= 1.0).then(|| Duration::try_from_secs_f64(limit / 1e3).ok())?
}

impl Session {
    /// As [`Session::wait_for_backend`], for a statement of the client's: no longer than it lets one take.
    pub(super) async fn wait_for_statement(&mut self, aim: Aim, bytes: usize) -> Waited {
        let Some(limit) = self.statement_timeout() else {
            return self.wait_for_backend(aim, bytes).await;
        };
        match timeout(limit, self.wait_for_backend(aim, bytes)).await {
            Ok(waited) => waited,
            Err(_) => Waited::Fail(timed_out()),
        }
    }

    /// How long a statement of the client's is held.
    pub(super) fn hold_limit(&self) -> Duration {
        self.own_limit().unwrap_or(self.app.config.failover.hold)
    }

    /// The client's own limit, where that is the first to be over.
    pub(super) fn own_limit(&self) -> Option<Duration> {
        let own = self.statement_timeout()?;
        (own < self.app.config.failover.hold).then_some(own)
    }

    /// How long a statement may take, where that is limited.
    fn statement_timeout(&self) -> Option<Duration> {
        match self.memory.settings.patience() {
            Patience::Unsaid => self.group.statement_timeout(),
            Patience::Endless => None,
            Patience::Limited(limit) => Some(limit),
        }
    }
}

/// What PostgreSQL says, and that nothing has run.
pub(super) fn timed_out() -> Report {
    Report::error(
        SqlState::QUERY_CANCELED,
        "canceling statement due to statement timeout",
    )
    .with_detail("It waited for a node, and was not run.")
}

#[cfg(test)]
mod tests;
