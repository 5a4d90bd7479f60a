//! Which settings a text changes for its session, by name. The values are the server's to tell.

use super::lexer::{Lexer, Token, TokenKind};
use super::statement::unquoted;
use super::word::Word;

/// Longest name that a setting can have: a custom one is made of identifiers, each cut by the server at
/// `NAMEDATALEN - 1`; longer names are refused by it. Bytes.
const NAME_MAX: usize = 256;

/// Most settings that are followed by name between two looks at a session.
const NAMES_MAX: usize = 256;

/// The settings that statements of a text set or reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingChanges {
    /// Names in lower case, those that are reset among them.
    pub names: Vec<String>,
    /// Names that are given their reset value: RESET, SET … TO DEFAULT.
    pub resets: Vec<String>,
    /// Names that are given it until the transaction ends: SET LOCAL … TO DEFAULT.
    pub local_resets: Vec<String>,
    /// Whether every setting is: RESET ALL, DISCARD ALL.
    pub resets_all: bool,
    /// Whether a COPY is in the text.
    pub copies: bool,
}

impl SettingChanges {
    /// Reads a text. `None` where a name cannot be told: it is computed, escaped or too long.
    ///
    /// Of SET LOCAL only DEFAULT counts; what ends with the transaction anyway is left out.
    #[must_use]
    pub fn of(text: &[u8], standard_conforming_strings: bool) -> Option<Self> {
        let mut changes = Self::default();
        let mut reader = Reader::new(text, standard_conforming_strings);
        while let Some(verb) = reader.next() {
            match reader.word(verb) {
                Word::Set => changes.set(&mut reader)?,
                Word::Reset => changes.reset(&mut reader)?,
                Word::Discard if reader.take(b"all") => {
                    changes.resets_all = true;
                    changes.resets.push("role".to_owned());
                }
                Word::Copy => changes.copies = true,
                _ => {}
            }
            changes.calls(&mut reader, verb)?;
        }
        Some(changes)
    }

    /// Adds those of another text, each name once.
    pub fn append(&mut self, other: Self) {
        let add = |names: &mut Vec<String>, others: Vec<String>| {
            for name in others {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        };
        add(&mut self.names, other.names);
        add(&mut self.resets, other.resets);
        add(&mut self.local_resets, other.local_resets);
        self.resets_all |= other.resets_all;
        self.copies |= other.copies;
    }

    /// Whether they are more than anybody follows.
    #[must_use]
    pub fn are_too_many(&self) -> bool {
        self.names.len() > NAMES_MAX
    }

    /// Whether any setting gets its reset value.
    #[must_use]
    pub fn has_resets(&self) -> bool {
        self.resets_all || !self.resets.is_empty()
    }

    /// SET; what is behind the verb.
    fn set(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        if reader.take(b"local") {
            let mut local = Self::default();
            if local.set_one(reader).is_some() {
                self.local_resets.append(&mut local.resets);
            }
            return Some(());
        }
        if reader.take(b"session") {
            // SET SESSION SESSION CHARACTERISTICS is the same.
            reader.take(b"session");
            if reader.take(b"characteristics") {
                for name in [
                    "default_transaction_isolation",
                    "default_transaction_read_only",
                    "default_transaction_deferrable",
                ] {
                    self.names.push(name.to_owned());
                }
                return Some(());
            }
            if reader.take(b"authorization") {
                return self.set_to("session_authorization", reader);
            }
        }
        if reader.take(b"transaction") || reader.take(b"constraints") {
            return Some(());
        }
        self.set_one(reader)
    }

    /// A setting and its value, in any of the forms that SET has for it.
    fn set_one(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        if reader.take(b"time") {
            reader.take(b"zone");
            return self.set_to("timezone", reader);
        }
        for (words, name) in [
            (&b"names"[..], "client_encoding"),
            (b"schema", "search_path"),
            (b"role", "role"),
        ] {
            if reader.peek_is(words) && !reader.second_is_assignment() {
                reader.next();
                return self.set_to(name, reader);
            }
        }
        if reader.peek_is(b"xml") && !reader.second_is_assignment() {
            self.names.push("xmloption".to_owned());
            return Some(());
        }
        let name = reader.name()?;
        self.set_to(&name, reader)
    }

    fn set_to(&mut self, name: &str, reader: &mut Reader<'_>) -> Option<()> {
        if !reader.take(b"to") {
            reader.take(b"=");
        }
        // SET TIME ZONE LOCAL is the same as DEFAULT.
        if reader.take(b"default") || (name == "timezone" && reader.take(b"local")) {
            self.give_default(name.to_owned());
        }
        self.name(name.to_owned());
        Some(())
    }

    /// A setting gets its reset value. With the user the role does.
    fn give_default(&mut self, name: String) {
        let with_role = name == "session_authorization";
        self.resets.push(name);
        if with_role {
            self.resets.push("role".to_owned());
        }
    }

    /// Whoever becomes another user has no role any more.
    fn name(&mut self, name: String) {
        if name == "session_authorization" {
            self.names.push("role".to_owned());
        }
        self.names.push(name);
    }

    /// RESET; what is behind the verb.
    fn reset(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let name = if reader.take(b"all") {
            self.resets_all = true;
            return Some(());
        } else if reader.take(b"session") {
            reader.take(b"authorization");
            "session_authorization".to_owned()
        } else if reader.peek_is(b"transaction") {
            return Some(());
        } else if reader.take(b"time") {
            reader.take(b"zone");
            "timezone".to_owned()
        } else {
            reader.name()?
        };
        self.give_default(name.clone());
        self.name(name);
        Some(())
    }

    /// Goes to the end of the statement, and notes calls of `set_config` in it.
    ///
    /// An UPDATE of `pg_settings` sets what its rows say (manual, section 54.24).
    fn calls(&mut self, reader: &mut Reader<'_>, verb: Token) -> Option<()> {
        let mut token = Some(verb);
        let (mut updates, mut names_view) = (false, false);
        while let Some(current) = token {
            if current.kind == TokenKind::Semicolon {
                break;
            }
            let name = unquoted(current.bytes(reader.text));
            updates |= reader.word(current) == Word::Update;
            names_view |= name.eq_ignore_ascii_case(b"pg_settings");
            if updates && names_view {
                return None;
            }
            if name.eq_ignore_ascii_case(b"set_config") && reader.peek_kind() == Some(TokenKind::Open) {
                reader.next();
                let argument = reader.next()?;
                let written = argument.bytes(reader.text);
                let inner = written.strip_prefix(b"'")?.strip_suffix(b"'")?;
                if argument.kind != TokenKind::String || reader.peek_kind() != Some(TokenKind::Comma) {
                    return None;
                }
                self.name(plain(inner)?);
            }
            token = reader.next();
        }
        Some(())
    }
}

/// The tokens of a text without its comments.
struct Reader<'a> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    ahead: Option<Token>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a [u8], standard_conforming_strings: bool) -> Self {
        let mut lexer = Lexer::new(text, standard_conforming_strings);
        let ahead = lexer.find(|token| token.kind != TokenKind::Comment);
        Self { text, lexer, ahead }
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.ahead;
        if token.is_some() {
            self.ahead = self.lexer.find(|token| token.kind != TokenKind::Comment);
        }
        token
    }

    fn word(&self, token: Token) -> Word {
        if token.kind == TokenKind::Word {
            Word::of(token.bytes(self.text)).0
        } else {
            Word::Name
        }
    }

    fn peek_kind(&self) -> Option<TokenKind> {
        self.ahead.map(|token| token.kind)
    }

    /// Whether this unquoted word, or this operator, comes next.
    fn peek_is(&self, written: &[u8]) -> bool {
        self.ahead.is_some_and(|token| {
            matches!(token.kind, TokenKind::Word | TokenKind::Operator)
                && token.bytes(self.text).eq_ignore_ascii_case(written)
        })
    }

    fn take(&mut self, written: &[u8]) -> bool {
        let is = self.peek_is(written);
        if is {
            self.next();
        }
        is
    }

    /// Whether behind the next token comes TO or `=`, so that the next one is a setting's name.
    fn second_is_assignment(&self) -> bool {
        let mut lexer = self.lexer.clone();
        lexer
            .find(|token| token.kind != TokenKind::Comment)
            .is_some_and(|token| {
                let written = token.bytes(self.text);
                written.eq_ignore_ascii_case(b"to") || written == b"="
            })
    }

    /// A setting's name: identifiers with dots between them.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            let token = self.next()?;
            if !matches!(token.kind, TokenKind::Word | TokenKind::QuotedName) {
                return None;
            }
            name.push_str(&plain(unquoted(token.bytes(self.text)))?);
            if self.peek_kind() != Some(TokenKind::Dot) {
                return Some(name);
            }
            self.next();
            name.push('.');
        }
    }
}

/// A name in lower case, if it is written without anything that would have to be undone.
fn plain(written: &[u8]) -> Option<String> {
    let usual = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.');
    if written.is_empty() || written.len() > NAME_MAX || !written.iter().all(usual) {
        return None;
    }
    Some(String::from_utf8_lossy(written).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(Vec<String>, Vec<String>, bool)> {
        SettingChanges::of(text.as_bytes(), true).map(|it| (it.names, it.resets, it.resets_all))
    }

    fn names(text: &str) -> Vec<String> {
        read(text).unwrap().0
    }

    #[test]
    fn one_setting_set_ever_again_is_one_name() {
        let mut all = SettingChanges::default();
        for _ in 0..1000 {
            all.append(SettingChanges::of(b"SET work_mem = '1MB'; RESET jit", true).unwrap());
        }
        assert_eq!((all.names.len(), all.resets.len()), (2, 1));
        assert!(!all.are_too_many());
        for number in 0..1000 {
            all.append(SettingChanges::of(format!("SET a.b{number} = 1").as_bytes(), true).unwrap());
        }
        assert!(all.are_too_many());
    }

    #[test]
    fn every_way_to_set_has_its_name() {
        for (text, name) in [
            ("SET work_mem = '1MB'", "work_mem"),
            ("set session Work_Mem to '1MB';", "work_mem"),
            ("SET \"App\".\"tenant\" = 1", "app.tenant"),
            ("SET app.user.id TO 'x'", "app.user.id"),
            ("SET TIME ZONE 'UTC'", "timezone"),
            ("SET TIME ZONE INTERVAL '1' HOUR TO MINUTE", "timezone"),
            ("SET SESSION TIME ZONE DEFAULT", "timezone"),
            ("SET NAMES 'latin1'", "client_encoding"),
            ("SET SCHEMA 'a'", "search_path"),
            ("SET /* c */ ROLE none", "role"),
            ("SET role TO x", "role"),
            ("SET SESSION ROLE x", "role"),
            ("SET XML OPTION DOCUMENT", "xmloption"),
            ("SELECT set_config('a.b', $1, false)", "a.b"),
            (
                "select 1, pg_catalog.set_config ( 'Work_mem' , '1', false) from t",
                "work_mem",
            ),
            ("RESET work_mem", "work_mem"),
            ("RESET TIME ZONE", "timezone"),
            (
                "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET a.b = 1",
                "a.b",
            ),
        ] {
            assert_eq!(names(text), [name], "{text}");
        }
        for text in [
            "SET SESSION AUTHORIZATION x",
            "SET SESSION AUTHORIZATION DEFAULT",
            "SET SESSION SESSION AUTHORIZATION x",
            "SELECT set_config('session_authorization', 'x', false)",
            "RESET SESSION AUTHORIZATION",
        ] {
            assert_eq!(names(text), ["role", "session_authorization"], "{text}");
        }
        for text in [
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET SESSION SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ] {
            assert_eq!(names(text).len(), 3, "{text}");
        }
        assert_eq!(names("BEGIN; SET a.b = 1; SELECT 2; SET c.d = 3"), ["a.b", "c.d"]);
    }

    #[test]
    fn what_ends_with_the_transaction_is_left_out() {
        for text in [
            "SET LOCAL work_mem = 1",
            "SET TRANSACTION READ ONLY",
            "SET CONSTRAINTS ALL DEFERRED",
            "SELECT 'SET x = 1'",
            "UPDATE t SET a = 1",
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET work_mem = 1 AS 'SELECT 1'",
        ] {
            assert_eq!(names(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn set_local_to_default_is_told() {
        let local = |text: &str| {
            let changes = SettingChanges::of(text.as_bytes(), true).unwrap();
            assert!(changes.names.is_empty() && changes.resets.is_empty(), "{text}");
            changes.local_resets
        };
        assert_eq!(local("SET LOCAL work_mem TO DEFAULT"), ["work_mem"]);
        assert_eq!(local("set local time zone local"), ["timezone"]);
        assert_eq!(local("BEGIN; SET LOCAL a.b = default; SELECT 1"), ["a.b"]);
        for text in ["SET LOCAL work_mem = '1MB'", "SET LOCAL \"a\"\"b\" TO DEFAULT"] {
            assert_eq!(local(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn resets_are_told_apart() {
        assert_eq!(read("RESET ALL"), Some((vec![], vec![], true)));
        assert_eq!(
            read("DISCARD ALL;"),
            Some((vec![], vec!["role".to_owned()], true))
        );
        let both = vec!["session_authorization".to_owned(), "role".to_owned()];
        for text in ["RESET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION DEFAULT"] {
            assert_eq!(read(text).unwrap().1, both, "{text}");
        }
        assert_eq!(read("DISCARD PLANS"), Some((vec![], vec![], false)));
        let reset = Some((vec!["a.b".to_owned()], vec!["a.b".to_owned()], false));
        assert_eq!(read("RESET a.b"), reset);
        assert_eq!(read("SET a.b TO DEFAULT"), reset);
        assert_eq!(read("SET TIME ZONE LOCAL").unwrap().1, ["timezone"]);
        assert!(read("SET a.b TO 'default'").unwrap().1.is_empty());
    }

    /// A peer knew set_config only where it was the sole target, and then only with constants.
    #[test]
    fn a_name_that_is_computed_is_unknown() {
        for text in [
            "SELECT set_config($1, $2, false)",
            "SELECT set_config('a' || 'b', 'x', false)",
            "SELECT set_config(E'work\\137mem', 'x', false)",
            "SELECT set_config(name, setting, false) FROM t",
            "UPDATE pg_settings SET setting = '1' WHERE name = 'lock_timeout'",
            "WITH a AS (UPDATE pg_catalog.\"pg_settings\" SET setting = 1 RETURNING 1) SELECT 1",
            "SET \"a\"\"b\" = 1",
            "SET",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
