//! `halyard route`: where a statement would go and why, without a server.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::classify::{
    CatalogPart, Explanation, FunctionCatalog, FunctionOverrides, Place, Settings, explain, split,
};

/// What `halyard route` can be told.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a catalogue, the functions of a new PostgreSQL 15 database are known and no others. That of a live one is made by

  halyard route --catalog-query | psql -XAtq -F $'\\t' DATABASE > catalog.tsv

A file of functions alone will do as well: select proname, pronamespace::regnamespace, provolatile from pg_proc")]
pub struct RouteArgs {
    /// The statement, or several as one message, as a client sends them
    #[arg(value_name = "SQL", required_unless_present_any = ["file", "catalog_query"], conflicts_with = "file")]
    pub sql: Option<String>,
    /// Read statements from a file, `-` being standard input, and explain each as a message of its own
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// What the database's functions do: tab-separated lines or JSON
    #[arg(long, value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Print JSON, one object for each message
    #[arg(long)]
    pub json: bool,
    /// Read '…' with backslash escapes, as a session with standard_conforming_strings = off does
    #[arg(long)]
    pub backslash_strings: bool,
    /// Print the queries whose result is a catalogue, and do nothing else
    #[arg(long, conflicts_with_all = ["sql", "file", "catalog", "json"])]
    pub catalog_query: bool,
}

/// `halyard route`: 0 if all that was asked for is explained, whatever the class.
pub(super) fn route(args: &RouteArgs, out: &mut impl Write) -> io::Result<ExitCode> {
    if args.catalog_query {
        for part in [CatalogPart::Builtins, CatalogPart::Objects] {
            writeln!(out, "{};", part.query().trim_end())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let catalog = catalog(args.catalog.as_deref())?;
    let settings = Settings {
        standard_conforming_strings: !args.backslash_strings,
        ..Settings::default()
    };
    let text = match (&args.sql, &args.file) {
        (Some(sql), _) => sql.clone().into_bytes(),
        (None, Some(file)) => read(file)?,
        (None, None) => Vec::new(),
    };
    let messages = if args.file.is_some() {
        split(&text, settings.standard_conforming_strings)
    } else {
        std::iter::once(0..text.len()).collect()
    };
    for (number, message) in messages.into_iter().enumerate() {
        let message = text[message].trim_ascii();
        let explanation = explain(message, &settings, &catalog);
        if args.json {
            writeln!(out, "{}", as_json(message, &explanation))?;
            continue;
        }
        if args.file.is_some() {
            let gap = if number > 0 { "\n" } else { "" };
            writeln!(out, "{gap}{}", String::from_utf8_lossy(message))?;
        }
        for (name, text) in explanation.lines() {
            writeln!(out, "{name:<12} {text}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn catalog(file: Option<&Path>) -> io::Result<FunctionCatalog> {
    let Some(file) = file else {
        return Ok(FunctionCatalog::builtin());
    };
    FunctionCatalog::from_dump(&read(file)?, &FunctionOverrides::default())
        .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let done = if file == Path::new("-") {
        io::stdin().read_to_end(&mut text).map(|_| ())
    } else {
        std::fs::read(file).map(|bytes| text = bytes)
    };
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    Ok(text)
}

/// The explanation for programs: what [`Explanation::lines`] says, with everything apart.
fn as_json(message: &[u8], explanation: &Explanation) -> Value {
    let class = &explanation.class;
    let place = |place: &Option<Place>| {
        place.as_ref().map(|place| {
            json!({
                "token": place.token, "offset": place.offset, "line": place.line, "column": place.column,
            })
        })
    };
    let findings = explanation.findings.iter().map(|finding| {
        let subject = finding
            .subject
            .as_ref()
            .map(|subject| json!({ "kind": subject.kind, "name": subject.name, "because": subject.because }));
        json!({
            "rule": finding.rule.as_str(),
            "reason": finding.rule.sentence(),
            "statement": finding.statement,
            "place": place(&finding.place),
            "subject": subject,
        })
    });
    let session = explanation
        .left
        .iter()
        .map(|left| json!({ "effect": left.effect, "meaning": left.sentence, "place": place(&left.place) }));
    json!({
        "sql": String::from_utf8_lossy(message),
        "class": explanation.kind.as_str(),
        "access": class.access.as_str(),
        "rule": class.rule.as_str(),
        "reason": class.rule.sentence(),
        "findings": findings.collect::<Vec<_>>(),
        "statements": explanation.statements,
        "session": session.collect::<Vec<_>>(),
        "hint": class.hint.map(|hint| hint.as_str()),
        "changes_catalog": class.ddl,
        "cacheable": class.cacheable,
        "target": match explanation.access() {
            crate::classify::Access::Read => "standby",
            crate::classify::Access::Write => "primary",
        },
    })
}
