//! The `options` startup parameter: command-line arguments for a session (src/backend/utils/init/postinit.c,
//! pg_split_opts and process_postgres_switches). Only settings are taken: `-c name=value` and `--name=value`.

use crate::error::{Report, SqlState};

/// Reads `options` into settings.
pub(super) fn parse(options: &str) -> Result<Vec<(String, String)>, Report> {
    let mut arguments = split(options).into_iter();
    let mut settings = Vec::new();
    while let Some(argument) = arguments.next() {
        let setting = if argument == "-c" {
            let value = arguments.next().ok_or_else(|| refused(&argument))?;
            assignment(&value).ok_or_else(|| requires_value(&format!("-c {value}")))?
        } else if let Some(long) = argument.strip_prefix("--").filter(|long| !long.is_empty()) {
            assignment(long).ok_or_else(|| requires_value(&argument))?
        } else if let Some(short) = argument.strip_prefix("-c") {
            assignment(short).ok_or_else(|| requires_value(&argument))?
        } else {
            return Err(refused(&argument));
        };
        settings.push(setting);
    }
    Ok(settings)
}

/// Cuts at white space; a backslash takes whatever follows it literally.
fn split(options: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut characters = options.chars().peekable();
    loop {
        while characters.next_if(|&next| is_space(next)).is_some() {}
        if characters.peek().is_none() {
            return arguments;
        }
        let mut argument = String::new();
        while let Some(next) = characters.next_if(|&next| !is_space(next)) {
            if next == '\\' {
                argument.extend(characters.next());
            } else {
                argument.push(next);
            }
        }
        arguments.push(argument);
    }
}

/// C's isspace().
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// `name=value`, where a dash in the name stands for an underscore (ParseLongOption).
fn assignment(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    (!name.is_empty()).then(|| (name.replace('-', "_"), value.to_owned()))
}

/// syntax_error
const SYNTAX_ERROR: SqlState = SqlState(*b"42601");

fn requires_value(argument: &str) -> Report {
    Report::fatal(SYNTAX_ERROR, format!("{argument} requires a value"))
}

fn refused(argument: &str) -> Report {
    Report::fatal(
        SYNTAX_ERROR,
        format!("invalid command-line argument for server process: {argument}"),
    )
    .with_hint("Only -c name=value and --name=value are accepted in options.")
}
