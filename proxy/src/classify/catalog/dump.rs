//! A catalogue out of a file, for explaining statements without a server.

use serde::Deserialize;

use super::{CatalogError, CatalogRow, FunctionCatalog, FunctionOverrides};

/// An object of a JSON file: a row of the query, or a function.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum JsonRow {
    Row {
        kind: char,
        name: String,
        detail: String,
        system: JsonBool,
    },
    Function {
        name: String,
        schema: String,
        volatility: String,
    },
}

/// The query gives `t` and `f`, as all its columns are text; `json_agg` of another query may give the real thing.
#[derive(Deserialize)]
#[serde(untagged)]
enum JsonBool {
    Letter(char),
    Bool(bool),
}

impl FunctionCatalog {
    /// Builds a catalogue from a file, in one of these shapes:
    ///
    /// - lines of tab-separated columns, as `psql -XAt -F $'\t'` writes them: the four of
    ///   a [`CatalogPart`](super::CatalogPart), or `name`, `schema` and `provolatile` of functions alone;
    /// - a JSON array of objects with these columns, where `provolatile` is called `volatility`.
    ///
    /// A list of functions alone knows no view, type or operator that hides a volatile one.
    ///
    /// # Errors
    /// If the file has another shape, or a row is not one that the query returns.
    pub fn from_dump(text: &[u8], overrides: &FunctionOverrides) -> Result<Self, CatalogError> {
        if text.trim_ascii_start().starts_with(b"[") {
            return Self::from_json(text, overrides);
        }
        let mut rows = Vec::new();
        for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            let columns: Vec<&[u8]> = line.split(|&byte| byte == b'\t').collect();
            rows.push(match columns[..] {
                [&[kind], name, detail, &[system @ (b't' | b'f')]] => CatalogRow {
                    kind,
                    name,
                    detail,
                    system: system == b't',
                },
                [name, schema, volatility] => function(name, schema, volatility),
                _ => return Err(CatalogError::Columns(number + 1)),
            });
        }
        Self::from_rows(rows, overrides)
    }

    fn from_json(text: &[u8], overrides: &FunctionOverrides) -> Result<Self, CatalogError> {
        let rows: Vec<JsonRow> =
            serde_json::from_slice(text).map_err(|error| CatalogError::Json(error.to_string()))?;
        let rows = rows.iter().map(|row| match row {
            JsonRow::Row {
                kind,
                name,
                detail,
                system,
            } => CatalogRow {
                // A letter beyond ASCII is no kind that the query has.
                kind: u8::try_from(*kind).unwrap_or(b'?'),
                name: name.as_bytes(),
                detail: detail.as_bytes(),
                system: matches!(system, JsonBool::Letter('t') | JsonBool::Bool(true)),
            },
            JsonRow::Function {
                name,
                schema,
                volatility,
            } => function(name.as_bytes(), schema.as_bytes(), volatility.as_bytes()),
        });
        Self::from_rows(rows, overrides)
    }
}

fn function<'a>(name: &'a [u8], schema: &[u8], volatility: &'a [u8]) -> CatalogRow<'a> {
    CatalogRow {
        kind: b'f',
        name,
        detail: volatility,
        system: schema == b"pg_catalog",
    }
}
