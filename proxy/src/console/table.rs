//! What a command answers: rows under typed columns, and how they go over the wire.

use crate::wire::{backend, tagged};

/// The type of a column, by the numbers of pg_type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
}

impl Kind {
    fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Int8 => 20,
        }
    }

    fn size(self) -> i16 {
        match self {
            Self::Text => -1,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }
}

/// A name and a type.
pub(super) type Column = (&'static str, Kind);

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Null,
    Text(String),
    Int(i64),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Int(i64::from(value))
    }
}

macro_rules! numbers {
    ($($from:ty),*) => { $(impl From<$from> for Cell {
        fn from(number: $from) -> Self {
            Self::Int(i64::try_from(number).unwrap_or(i64::MAX))
        }
    })* };
}
numbers!(i32, i64, u8, u16, u32, u64, usize);

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The cells of a row, of any types that have one.
macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$($crate::console::table::Cell::from($value)),*] };
}
pub(super) use row;

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Vec<Cell>>,
}

/// In which form a column's values are wanted: the format codes of a Bind.
#[derive(Clone, Debug, Default)]
pub(super) struct Formats(pub(super) Vec<i16>);

impl Formats {
    /// Whether a column is wanted in binary: none said is text for all, one said is for all (manual, "Bind").
    fn binary(&self, column: usize) -> bool {
        let code = match self.0.as_slice() {
            [] => 0,
            [one] => *one,
            many => many.get(column).copied().unwrap_or_default(),
        };
        code == 1
    }
}

fn count(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes()
}

fn length(number: usize) -> [u8; 4] {
    i32::try_from(number).unwrap_or(i32::MAX).to_be_bytes()
}

impl Table {
    pub(super) fn new(columns: &'static [Column]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are columns.
    pub(super) fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    pub(super) fn describe(columns: &[Column], formats: &Formats, out: &mut Vec<u8>) {
        tagged(out, backend::ROW_DESCRIPTION, |out| {
            out.extend_from_slice(&count(columns.len()));
            for (at, (name, kind)) in columns.iter().enumerate() {
                out.extend_from_slice(name.as_bytes());
                // The name's end, and of which table and column it is: none.
                out.extend_from_slice(&[0; 7]);
                out.extend_from_slice(&kind.oid().to_be_bytes());
                out.extend_from_slice(&kind.size().to_be_bytes());
                out.extend_from_slice(&(-1_i32).to_be_bytes());
                out.extend_from_slice(&i16::from(formats.binary(at)).to_be_bytes());
            }
        });
    }

    pub(super) fn encode_rows(&self, formats: &Formats, out: &mut Vec<u8>) {
        for row in &self.rows {
            tagged(out, backend::DATA_ROW, |out| {
                out.extend_from_slice(&count(row.len()));
                for (at, (cell, (_, kind))) in row.iter().zip(self.columns).enumerate() {
                    encode_cell(cell, *kind, formats.binary(at), out);
                }
            });
        }
    }
}

fn encode_cell(cell: &Cell, kind: Kind, binary: bool, out: &mut Vec<u8>) {
    let bytes = match (cell, kind) {
        (Cell::Null, _) => {
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            return;
        }
        (Cell::Text(text), _) => text.as_bytes().to_vec(),
        (Cell::Int(number), Kind::Int4) if binary => {
            i32::try_from(*number).unwrap_or(i32::MAX).to_be_bytes().to_vec()
        }
        (Cell::Int(number), Kind::Int8) if binary => number.to_be_bytes().to_vec(),
        (Cell::Int(number), _) => number.to_string().into_bytes(),
    };
    out.extend_from_slice(&length(bytes.len()));
    out.extend_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_as_text_or_in_binary() {
        let mut table = Table::new(&[("a", Kind::Text), ("b", Kind::Int4), ("c", Kind::Int8)]);
        table.push(row!["x", 258, Option::<i64>::None]);
        let mut out = Vec::new();
        table.encode_rows(&Formats::default(), &mut out);
        assert_eq!(out, b"D\0\0\0\x16\0\x03\0\0\0\x01x\0\0\0\x03258\xff\xff\xff\xff");
        out.clear();
        table.encode_rows(&Formats(vec![1]), &mut out);
        assert_eq!(
            out,
            b"D\0\0\0\x17\0\x03\0\0\0\x01x\0\0\0\x04\0\0\x01\x02\xff\xff\xff\xff"
        );
        out.clear();
        Table::describe(table.columns, &Formats(vec![0, 1, 0]), &mut out);
        assert_eq!(out.len(), 5 + 2 + 3 * (2 + 18));
        assert_eq!(out[7..9], *b"a\0");
    }
}
