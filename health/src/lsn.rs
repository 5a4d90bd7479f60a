//! Positions, timelines and identities, as PostgreSQL prints and orders them.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

#[cfg(test)]
mod tests;

/// A position in the write-ahead log (`pg_lsn`): bytes since the beginning of the log.
///
/// Displayed and parsed as PostgreSQL 15 does, `16/B374D848`: two hexadecimal halves without leading zeros.
/// Positions of different timelines may not be compared without knowing where the timelines part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// The number of a timeline. A promotion opens the next one; a higher number is a later history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimelineId(pub u32);

/// The number that `initdb` gave a database system. All nodes of one cluster share it; a node with another
/// one holds other data, whatever its address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

/// How a server lays out its log: needed to recognise a position that lies just behind a page header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalLayout {
    /// `wal_block_size` in bytes, 8192 unless PostgreSQL was built otherwise.
    pub block_size: u64,
    /// `bytes_per_wal_segment`, 16 MiB unless `initdb --wal-segsize` said otherwise.
    pub segment_size: u64,
}

/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD` of `access/xlog_internal.h`: the header of every page, and of
/// the first page of a segment.
const SHORT_PAGE_HEADER: u64 = 24;
const LONG_PAGE_HEADER: u64 = 40;

impl Lsn {
    /// The bytes from `earlier` to `self`, or 0 when `self` is not ahead.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The end of the last record before this insert position.
    ///
    /// `pg_current_wal_insert_lsn()` says where the *next* record will begin. When the last record filled its
    /// page, that is behind the next page's header, while a standby that has replayed everything reports the
    /// page boundary (`XLogBytePosToRecPtr` against `XLogBytePosToEndRecPtr` in `xlog.c`). Without this step
    /// such a standby would look 24 or 40 bytes behind an idle primary for ever.
    #[must_use]
    pub fn end_of_record(self, layout: WalLayout) -> Self {
        if layout.block_size == 0 || layout.segment_size == 0 {
            return self;
        }
        let in_page = self.0 % layout.block_size;
        let page = self.0 - in_page;
        let header = if page.is_multiple_of(layout.segment_size) {
            LONG_PAGE_HEADER
        } else {
            SHORT_PAGE_HEADER
        };
        if in_page == header { Self(page) } else { self }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is not a position, a timeline or a system identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A position needs a slash between its two halves.
    #[error("invalid input for type pg_lsn: no slash")]
    NoSlash,
    /// Each half of a position has one to eight hexadecimal digits.
    #[error("invalid input for type pg_lsn: each half has one to eight hexadecimal digits")]
    Half,
    /// Not a decimal number of the type's range.
    #[error("not a decimal number in range: {0}")]
    Number(#[from] ParseIntError),
}

impl FromStr for Lsn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseError::NoSlash)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// Digits only: `from_str_radix` alone would take a sign, which PostgreSQL refuses.
fn half(digits: &str) -> Result<u64, ParseError> {
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ParseError::Half);
    }
    u64::from_str_radix(digits, 16).map_err(|_| ParseError::Half)
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse()?))
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemIdentifier {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.parse()?))
    }
}
