//! What can be typed at the console.

use crate::classify::{Lexer, TokenKind};
use crate::error::{Report, SqlState};

/// A table that SHOW answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Clients,
    Config,
    Databases,
    Events,
    Fence,
    Help,
    Lists,
    Mem,
    Nodes,
    Pins,
    Pools,
    Routes,
    Servers,
    Sockets,
    State,
    Stats,
    StatsAverages,
    StatsTotals,
    Users,
    Version,
}

impl Shown {
    /// The words behind SHOW.
    pub(super) const NAMES: [(&'static str, Self); 20] = [
        ("CLIENTS", Self::Clients),
        ("CONFIG", Self::Config),
        ("DATABASES", Self::Databases),
        ("EVENTS", Self::Events),
        ("FENCE", Self::Fence),
        ("HELP", Self::Help),
        ("LISTS", Self::Lists),
        ("MEM", Self::Mem),
        ("NODES", Self::Nodes),
        ("PINS", Self::Pins),
        ("POOLS", Self::Pools),
        ("ROUTES", Self::Routes),
        ("SERVERS", Self::Servers),
        ("SOCKETS", Self::Sockets),
        ("STATE", Self::State),
        ("STATS", Self::Stats),
        ("STATS_AVERAGES", Self::StatsAverages),
        ("STATS_TOTALS", Self::StatsTotals),
        ("USERS", Self::Users),
        ("VERSION", Self::Version),
    ];
}

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// An empty one.
    Empty,
    /// What drivers say of transactions: there is nothing to do.
    Begin,
    /// COMMIT, END, ROLLBACK or ABORT; the tag.
    End(&'static str),
    /// What drivers set on connecting: there is nothing to set.
    Set,
    Show(Shown),
    /// EXPLAIN ROUTE, in the database that is named, if one is.
    ExplainRoute {
        sql: String,
    },
    Pause(Option<String>),
    Resume(Option<String>),
    Reconnect(Option<String>),
    /// SWITCHOVER, to a node where one is named.
    Switchover {
        to: Option<String>,
    },
    /// DRAIN or UNDRAIN of a node.
    Drain {
        node: String,
        drained: bool,
    },
}

impl Command {
    /// Whether it changes something, so that only administrators may run it.
    pub(super) fn is_privileged(&self) -> bool {
        match self {
            Self::Empty
            | Self::Begin
            | Self::End(_)
            | Self::Set
            | Self::Show(_)
            | Self::ExplainRoute { .. } => false,
            Self::Pause(_)
            | Self::Resume(_)
            | Self::Reconnect(_)
            | Self::Switchover { .. }
            | Self::Drain { .. } => true,
        }
    }

    /// The statements of a text. EXPLAIN ROUTE takes all that is behind it.
    ///
    /// # Errors
    /// 42601 for what is no command, and 0A000 for one of PgBouncer's that Halyard has not.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, Report> {
        let mut commands = Vec::new();
        let mut rest = text;
        loop {
            let (statement, behind) = first_statement(rest);
            if let Some(sql) = explained(rest) {
                commands.push(Self::ExplainRoute { sql: sql.to_owned() });
                return Ok(commands);
            }
            if !statement.words.is_empty() {
                commands.push(statement.meant()?);
            }
            match behind {
                Some(behind) => rest = behind,
                None => break,
            }
        }
        if commands.is_empty() {
            commands.push(Self::Empty);
        }
        Ok(commands)
    }
}

/// The words of a statement, unquoted; those without quotes in upper case beside them.
struct Words {
    words: Vec<(String, String)>,
}

/// The first statement of a text, and what is behind its semicolon.
fn first_statement(text: &str) -> (Words, Option<&str>) {
    let mut words = Vec::new();
    for token in Lexer::new(text.as_bytes(), true) {
        let written = String::from_utf8_lossy(token.bytes(text.as_bytes())).into_owned();
        match token.kind {
            TokenKind::Comment => {}
            TokenKind::Semicolon => {
                let end = token.end;
                return (Words { words }, text.get(end..));
            }
            TokenKind::QuotedName => {
                let name = written.trim_matches('"').replace("\"\"", "\"");
                words.push((name, String::new()));
            }
            TokenKind::String => words.push((written.trim_matches('\'').to_owned(), String::new())),
            _ => {
                let upper = written.to_ascii_uppercase();
                words.push((written, upper));
            }
        }
    }
    (Words { words }, None)
}

/// What stands behind EXPLAIN ROUTE, if a text begins with that.
fn explained(text: &str) -> Option<&str> {
    let mut tokens = Lexer::new(text.as_bytes(), true).filter(|token| token.kind != TokenKind::Comment);
    for word in ["explain", "route"] {
        let token = tokens.next()?;
        if !token.bytes(text.as_bytes()).eq_ignore_ascii_case(word.as_bytes()) {
            return None;
        }
        if word == "route" {
            return text.get(token.end..).map(str::trim);
        }
    }
    None
}

impl Words {
    fn meant(self) -> Result<Command, Report> {
        let keywords: Vec<&str> = self.words.iter().map(|(_, upper)| upper.as_str()).collect();
        let name = |at: usize| self.words.get(at).map(|(written, _)| written.clone());
        // A node's name may be written without quotes: node-1, ro.2.
        let written = |from: usize| -> String {
            let words = self.words[from..].iter();
            words.map(|(written, _)| written.as_str()).collect()
        };
        let command = match keywords.as_slice() {
            ["SHOW", what] => {
                let known = Shown::NAMES.iter().find(|(name, _)| name == what);
                Command::Show(known.ok_or_else(|| self.unknown())?.1)
            }
            ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Command::Begin,
            ["COMMIT" | "END", ..] => Command::End("COMMIT"),
            ["ROLLBACK" | "ABORT", ..] => Command::End("ROLLBACK"),
            ["SET", _, ..] => Command::Set,
            ["PAUSE"] => Command::Pause(None),
            ["PAUSE", _] => Command::Pause(name(1)),
            ["RESUME"] => Command::Resume(None),
            ["RESUME", _] => Command::Resume(name(1)),
            ["RECONNECT"] => Command::Reconnect(None),
            ["RECONNECT", _] => Command::Reconnect(name(1)),
            ["SWITCHOVER"] => Command::Switchover { to: None },
            ["SWITCHOVER", "TO", _, ..] => Command::Switchover { to: Some(written(2)) },
            [verb @ ("DRAIN" | "UNDRAIN"), ..] if keywords.len() >= 2 => Command::Drain {
                node: written(1),
                drained: *verb == "DRAIN",
            },
            [
                "KILL" | "DISABLE" | "ENABLE" | "SUSPEND" | "RELOAD" | "SHUTDOWN" | "WAIT_CLOSE",
                ..,
            ] => {
                return Err(Report::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    format!("{} is not supported", keywords[0]),
                )
                .with_hint("Use SHOW HELP for what is."));
            }
            _ => return Err(self.unknown()),
        };
        Ok(command)
    }

    fn unknown(&self) -> Report {
        /// Of what was typed this much is said again.
        const SHOWN: usize = 64;
        let written: Vec<&str> = self.words.iter().map(|(written, _)| written.as_str()).collect();
        let written: String = written.join(" ").chars().take(SHOWN).collect();
        Report::error(
            SqlState::SYNTAX_ERROR,
            format!("invalid command \"{written}\", use SHOW HELP"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Command> {
        Command::parse_all(text).unwrap()
    }

    #[test]
    fn commands_are_read_in_any_case_and_several_at_once() {
        assert_eq!(parsed("show pools;"), [Command::Show(Shown::Pools)]);
        assert_eq!(
            parsed(" SHOW /* all */ Stats ; show VERSION"),
            [Command::Show(Shown::Stats), Command::Show(Shown::Version)]
        );
        assert_eq!(parsed(";;"), [Command::Empty]);
        assert_eq!(parsed("PAUSE"), [Command::Pause(None)]);
        assert_eq!(
            parsed("PAUSE \"Odd db\""),
            [Command::Pause(Some("Odd db".to_owned()))]
        );
        assert_eq!(
            parsed("resume appdb;"),
            [Command::Resume(Some("appdb".to_owned()))]
        );
        assert_eq!(
            parsed("DRAIN node-1"),
            [Command::Drain {
                node: "node-1".to_owned(),
                drained: true
            }]
        );
        assert_eq!(parsed("switchover"), [Command::Switchover { to: None }]);
        assert_eq!(
            parsed("SWITCHOVER TO node-2;"),
            [Command::Switchover {
                to: Some("node-2".to_owned())
            }]
        );
        assert_eq!(parsed("SET extra_float_digits = 3"), [Command::Set]);
        assert_eq!(parsed("START TRANSACTION READ ONLY"), [Command::Begin]);
    }

    #[test]
    fn what_is_explained_is_all_that_stands_behind() {
        assert_eq!(
            parsed("explain route SELECT ';'; DELETE FROM t"),
            [Command::ExplainRoute {
                sql: "SELECT ';'; DELETE FROM t".to_owned()
            }]
        );
        assert_eq!(
            parsed("SHOW POOLS; EXPLAIN ROUTE SELECT 1").len(),
            2,
            "also behind another"
        );
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for (text, code) in [
            ("SHOW", "42601"),
            ("SHOW NOTHING", "42601"),
            ("SELECT 1", "42601"),
            ("DRAIN", "42601"),
            ("EXPLAIN SELECT 1", "42601"),
            ("PAUSE a b", "42601"),
            ("SWITCHOVER node2", "42601"),
            ("SWITCHOVER TO", "42601"),
            ("KILL appdb", "0A000"),
            ("SHUTDOWN", "0A000"),
        ] {
            let report = Command::parse_all(text).unwrap_err();
            assert_eq!(report.sqlstate.as_str(), code, "{text}");
        }
        let long = Command::parse_all(&"x ".repeat(1000)).unwrap_err();
        assert!(
            long.message.len() < 200,
            "a message is not made of what was typed"
        );
    }

    #[test]
    fn what_only_looks_is_not_privileged() {
        for text in [
            "SHOW CLIENTS",
            "EXPLAIN ROUTE DELETE FROM t",
            "BEGIN",
            "SET a = 1",
            "",
        ] {
            assert!(!parsed(text)[0].is_privileged(), "{text}");
        }
        for text in ["PAUSE", "RESUME", "RECONNECT", "DRAIN n", "UNDRAIN n"] {
            assert!(parsed(text)[0].is_privileged(), "{text}");
        }
    }
}
