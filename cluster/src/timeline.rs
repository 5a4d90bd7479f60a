//! Whether a standby can ever follow the primary, proved by the primary's timeline history.

use crate::error::Result;
use crate::layout::DATABASE;
use crate::record::Record;
use crate::sql::Session;
use crate::status;

/// Bytes of a timeline history that are read: some tens for each promotion.
const HISTORY_MAX: u32 = 1_000_000;

/// Whether the standby that `own` is connected to has replayed what the primary's history does not have.
///
/// `false` while there is no single primary: then nobody can say.
pub(crate) async fn is_lost(record: &Record, own: &Session) -> Result<bool> {
    let Some(primary) = status::primary(record).await else {
        return Ok(false);
    };
    let number = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    let replayed = number(
        own.text("SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn")
            .await?,
    );
    let Some(replayed) = replayed else {
        return Ok(false);
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
    let session = Session::open(&record.ports(), primary, &record.users.superuser, DATABASE).await?;
    let current = session
        .text("SELECT ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int")
        .await?;
    let (Some(own_timeline), Some(timeline)) = (own_timeline, number(current)) else {
        return Ok(false);
    };
    let history = match timeline {
        1 => None,
        later => {
            let file = format!("pg_wal/{later:08X}.history");
            session
                .text(&format!("SELECT pg_read_file('{file}', 0, {HISTORY_MAX})"))
                .await?
        }
    };
    Ok(!can_follow(
        own_timeline,
        replayed,
        timeline,
        &history.unwrap_or_default(),
    ))
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
        let (high, low) = fields.next()?.split_once('/')?;
        let position = u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?;
        (ancestor == own).then_some(position)
    });
    left_at.is_some_and(|left_at| replayed <= left_at)
}

#[cfg(test)]
mod tests;
