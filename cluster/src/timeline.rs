//! Whether a standby can ever follow the primary, proved by the primary's timeline history.

use crate::error::Result;
use crate::layout::{DATABASE, Service};
use crate::record::Record;
use crate::sql::Session;
use crate::status;

/// Bytes of a timeline history that are read: some tens for each promotion.
const HISTORY_MAX: u32 = 1_000_000;

/// The timeline that the primary is on, and how it came to it.
pub(crate) struct History {
    timeline: u64,
    text: String,
}

impl History {
    /// The primary's; `None` while there is no single one: then nobody can say.
    async fn of_primary(record: &Record) -> Result<Option<History>> {
        match status::primary(record).await {
            Some(primary) => History::of(record, primary).await,
            None => Ok(None),
        }
    }

    /// That of a server out of recovery.
    pub(crate) async fn of(record: &Record, primary: Service) -> Result<Option<History>> {
        let session = Session::open(&record.ports(), primary, &record.users.superuser, DATABASE).await?;
        let current = session
            .text("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int")
            .await?;
        let Some(timeline) = number(current) else {
            return Ok(None);
        };
        let text = match timeline {
            1 => None,
            later => {
                let file = format!("pg_wal/{later:08X}.history");
                session
                    .text(&format!("SELECT pg_read_file('{file}', 0, {HISTORY_MAX})"))
                    .await?
            }
        };
        Ok(Some(History {
            timeline,
            text: text.unwrap_or_default(),
        }))
    }

    #[cfg(test)]
    pub(crate) fn new(timeline: u64, text: &str) -> History {
        let text = text.to_owned();
        History { timeline, text }
    }

    /// The timeline that it is on.
    pub(crate) fn timeline(&self) -> u64 {
        self.timeline
    }

    /// Whether a server that has come to a position on a timeline has what the primary never had.
    pub(crate) fn lacks(&self, timeline: u64, position: u64) -> bool {
        !can_follow(timeline, position, self.timeline, &self.text)
    }
}

/// Whether the standby that `own` is connected to has replayed what the primary's history does not have.
///
/// `None` where nobody can say, as while there is no single primary.
pub(crate) async fn is_lost(record: &Record, own: &Session) -> Result<Option<bool>> {
    let Some(history) = History::of_primary(record).await? else {
        return Ok(None);
    };
    let replayed = number(
        own.text("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
            .await?,
    );
    let Some(replayed) = replayed else {
        return Ok(None);
    };
    // The control file lags behind what is replayed; the names of the WAL files do not.
    let own_timeline = number(
        own.text(&format!(
            "SELECT max(('x' || substr(name, 1, 8))::bit(32)::int) FROM pg_ls_waldir()
            WHERE length(name) = 24 AND substr(name, 9) = '{}'",
            wal_file(replayed)
        ))
        .await?,
    );
    Ok(own_timeline.map(|timeline| history.lacks(timeline, replayed)))
}

fn number(text: Option<String>) -> Option<u64> {
    text?.parse().ok()
}

/// A position as PostgreSQL writes it, `16/B374D848`.
pub(crate) fn position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |digits| u64::from_str_radix(digits, 16).ok();
    Some(part(high)? << 32 | part(low)?)
}

/// The name, without its timeline, of the WAL file that holds the byte before a position (`XLogFileName`), for files of
/// 16 MiB, which initdb makes unless told otherwise.
fn wal_file(position: u64) -> String {
    const FILE_SIZE: u64 = 16 << 20;
    const FILES_PER_ID: u64 = (1 << 32) / FILE_SIZE;
    let number = position.saturating_sub(1) / FILE_SIZE;
    format!("{:08X}{:08X}", number / FILES_PER_ID, number % FILES_PER_ID)
}

/// Whether a standby that has replayed up to `replayed` on `own` can go on along `timeline`, whose history file this
/// is: it is on that timeline, or on an ancestor and not past the point where that was left. This is what the standby
/// itself asks (`rescanLatestTimeLine` in xlogrecovery.c).
fn can_follow(own: u64, replayed: u64, timeline: u64, history: &str) -> bool {
    if own == timeline {
        return true;
    }
    let left_at = history.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let ancestor: u64 = fields.next()?.parse().ok()?;
        let left_at = position(fields.next()?)?;
        (ancestor == own).then_some(left_at)
    });
    left_at.is_some_and(|left_at| replayed <= left_at)
}

#[cfg(test)]
mod tests;
