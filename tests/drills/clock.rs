//! One clock for what is seen here and what stands in a log.

use std::time::{Duration, Instant, SystemTime};

/// An instant, and what the wall clock said then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    instant: Instant,
    /// Since 1970.
    wall: Duration,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            instant: Instant::now(),
            wall: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap(),
        }
    }

    /// The instant of a log line that begins with `2026-11-22T10:15:00.123456Z`. None for one of before the clock, and
    /// for a line that begins otherwise.
    pub(crate) fn of_line(&self, line: &str) -> Option<Instant> {
        let wall = since_epoch(line.split_whitespace().next()?)?;
        Some(self.instant + wall.checked_sub(self.wall)?)
    }
}

/// Time since 1970 of an RFC 3339 time in UTC.
fn since_epoch(stamp: &str) -> Option<Duration> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':');
    let hours: u64 = time.next()?.parse().ok()?;
    let minutes: u64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    // Days since 1970 in the Gregorian calendar, whose years are counted from March here.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    let whole = u64::try_from(days).ok()? * 86_400 + hours * 3_600 + minutes * 60;
    Some(Duration::from_secs(whole) + Duration::from_secs_f64(seconds))
}
