//! Explanations: what [`classify`](super::classify) found on its walk, in words.
//!
//! There is one walk. [`explain`] has it observed, so that it can tell every reason and not only the first, and which
//! token leaves what in the session; the class is the walk's own.

use std::fmt;
use std::ops::Range;

use super::catalog::{Because, Function, FunctionCatalog, Mark};
use super::class::{Access, Class, RouteHint, Rule, SessionEffects, TransactionControl};
use super::lexer::{Token, TokenKind};
use super::walk::{Observer, Walk};
use super::word::Word;
use super::{Settings, classify};

#[cfg(test)]
mod tests;

/// Reasons that an explanation holds; a text of many statements may have more.
const FINDINGS_MAX: usize = 64;
/// Effects that an explanation holds, likewise.
const LEFT_MAX: usize = 64;
/// Bytes of a token that are shown.
const TOKEN_SHOWN: usize = 128;

/// Why a text has its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The class, as the session gets it.
    pub class: Class,
    /// What the text is, in one word.
    pub kind: Kind,
    /// The first words of each statement, in the text's spelling; of a text that was not read there are none.
    pub statements: Vec<String>,
    /// Every reason why the text is a write, the one that decides first; 64 at most. Empty for reads.
    pub findings: Vec<Finding>,
    /// What it leaves in its session, or needs from it, each with the token that does; 64 at most.
    pub left: Vec<Left>,
}

/// What a text is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It holds no statement.
    Empty,
    /// It is proved to read.
    Read,
    /// It begins or ends a transaction block, or handles a savepoint.
    TransactionControl,
    /// It changes a setting.
    Setting,
    /// It acts on its session and on nothing else: LISTEN, PREPARE, FETCH, DISCARD and their like.
    Session,
    /// It may change what the catalogue holds.
    Definition,
    /// It writes, or is not proved to read.
    Write,
}

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule that was met.
    pub rule: Rule,
    /// Which statement of the text, counted from 1; 0 where the text was not read.
    pub statement: usize,
    /// The token, unless the whole text is to blame.
    pub place: Option<Place>,
    /// What the token names, and why that keeps the statement from standbys.
    pub subject: Option<Subject>,
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of its first byte.
    pub offset: usize,
    /// Line, counted from 1.
    pub line: usize,
    /// Byte within the line, counted from 1.
    pub column: usize,
    /// The token itself, cut to 128 bytes.
    pub token: String,
}

/// What a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `function`, `relation`, `operator`, `setting` or `database`.
    pub kind: &'static str,
    /// Its name, as it was written.
    pub name: String,
    /// What is known of it, as a clause: `is volatile`, `calls nextval`.
    pub because: String,
}

/// Something that a text leaves in its session, or needs from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its name, as [`SessionEffects::names`] spells it.
    pub effect: &'static str,
    /// What it means.
    pub sentence: &'static str,
    /// The token, if it is one token that does it.
    pub place: Option<Place>,
}

impl Kind {
    /// The kind as it is printed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Read => "read",
            Self::TransactionControl => "transaction control",
            Self::Setting => "setting",
            Self::Session => "session",
            Self::Definition => "definition",
            Self::Write => "write",
        }
    }

    fn of(class: &Class) -> Self {
        const SESSION: &[SessionEffects] = &[
            SessionEffects::LISTEN,
            SessionEffects::UNLISTEN,
            SessionEffects::PREPARE,
            SessionEffects::DEALLOCATE,
            SessionEffects::CURSOR,
            SessionEffects::LOAD,
            SessionEffects::DISCARD_ALL,
            SessionEffects::DISCARD_PLANS,
            SessionEffects::DISCARD_SEQUENCES,
            SessionEffects::DISCARD_TEMPORARY,
        ];
        match class.transaction {
            _ if class.statements == 0 && class.rule == Rule::Empty => Self::Empty,
            TransactionControl::None => match class.rule {
                _ if class.access == Access::Read => Self::Read,
                _ if class.ddl => Self::Definition,
                Rule::ChangesSetting => Self::Setting,
                Rule::OtherStatement if SESSION.iter().any(|effect| class.session.intersects(*effect)) => {
                    Self::Session
                }
                _ => Self::Write,
            },
            _ => Self::TransactionControl,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            line,
            column,
            token,
        } = self;
        write!(f, "\"{token}\" at byte {offset} (line {line}, column {column})")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.kind, self.name, self.because)
    }
}

impl Explanation {
    /// The reason that decides; `None` for reads.
    #[must_use]
    pub fn decides(&self) -> Option<&Finding> {
        self.findings.first()
    }

    /// Which nodes may run it, its own hint obeyed. Where it really goes hangs on the session, the policy and the
    /// nodes as well.
    #[must_use]
    pub fn access(&self) -> Access {
        self.class.hinted_access()
    }

    /// The explanation as lines for people: a name and what is to be said. Names come more than once where there is
    /// more than one to tell.
    #[must_use]
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let class = &self.class;
        let mut lines = vec![
            ("class", self.kind.to_string()),
            ("access", class.access.as_str().to_owned()),
            ("rule", class.rule.to_string()),
            ("reason", class.rule.sentence().to_owned()),
        ];
        if let Some(finding) = self.decides() {
            lines.extend(finding.place.iter().map(|place| ("token", place.to_string())));
            lines.extend(
                finding
                    .subject
                    .iter()
                    .map(|subject| ("because", subject.to_string())),
            );
        }
        for finding in self.findings.iter().skip(1) {
            let place = finding.place.as_ref().map(|place| format!(": {place}"));
            lines.push(("also", format!("{}{}", finding.rule, place.unwrap_or_default())));
        }
        lines.push(("statements", self.numbered_statements()));
        if class.transaction != TransactionControl::None {
            lines.push(("transaction", transaction(class.transaction)));
        }
        for left in &self.left {
            let place = left.place.as_ref().map(|place| format!(" {place}"));
            let text = format!("{}: {}{}", left.effect, left.sentence, place.unwrap_or_default());
            lines.push(("session", text));
        }
        if let Some(hint) = class.hint {
            lines.push(("hint", hint.as_str().to_owned()));
        }
        let target = match self.access() {
            Access::Read => "a standby, if policy and consistency allow",
            Access::Write => "the primary",
        };
        lines.push(("target", target.to_owned()));
        lines
    }

    fn numbered_statements(&self) -> String {
        match self.statements.as_slice() {
            [] => self.class.statements.to_string(),
            [one] => format!("1: {one}"),
            all => {
                let number = self.decides().map_or(0, |finding| finding.statement);
                let decides = number
                    .checked_sub(1)
                    .and_then(|place| all.get(place))
                    .map(|words| format!("; number {number} decides: {words}"));
                format!("{}{}", self.class.statements, decides.unwrap_or_default())
            }
        }
    }
}

/// A message's part in transaction control, as SQL has it.
fn transaction(control: TransactionControl) -> String {
    match control {
        TransactionControl::None => String::new(),
        TransactionControl::Begin(modes) => format!("BEGIN {modes}").trim_end().to_owned(),
        TransactionControl::Commit(false) => "COMMIT".to_owned(),
        TransactionControl::Commit(true) => "COMMIT AND CHAIN".to_owned(),
        TransactionControl::Rollback(false) => "ROLLBACK".to_owned(),
        TransactionControl::Rollback(true) => "ROLLBACK AND CHAIN".to_owned(),
        TransactionControl::Savepoint => "SAVEPOINT".to_owned(),
        TransactionControl::Release => "RELEASE SAVEPOINT".to_owned(),
        TransactionControl::RollbackTo => "ROLLBACK TO SAVEPOINT".to_owned(),
        TransactionControl::PrepareTransaction => "PREPARE TRANSACTION".to_owned(),
        TransactionControl::CommitPrepared => "COMMIT PREPARED".to_owned(),
        TransactionControl::RollbackPrepared => "ROLLBACK PREPARED".to_owned(),
        TransactionControl::SetTransaction(modes) => format!("SET TRANSACTION {modes}").trim_end().to_owned(),
    }
}

/// Explains the class of a message's text: what stands in Query or Parse before the terminating zero byte.
///
/// Like [`classify`], whose answer is in [`Explanation::class`], it is pure: nothing is run, and no node is asked.
#[must_use]
pub fn explain(text: &[u8], settings: &Settings, catalog: &FunctionCatalog) -> Explanation {
    if settings.refuses(text).is_some() {
        return unread(classify(text, settings, catalog));
    }
    let observer = Notes::default();
    let walk = Walk::observed(text, settings.standard_conforming_strings, catalog, observer);
    let (class, notes) = walk.run();
    let findings = notes.findings.iter().map(|&(rule, statement, token)| Finding {
        rule,
        statement,
        place: token.map(|token| place(token, text)),
        subject: subject(rule, token.map(|token| token.bytes(text)), catalog),
    });
    let left = notes.left.iter().flat_map(|&(effects, token)| {
        effects.each().map(move |(effect, sentence)| Left {
            effect,
            sentence,
            place: token.map(|token| place(token, text)),
        })
    });
    Explanation {
        class,
        kind: Kind::of(&class),
        statements: notes
            .begins
            .iter()
            .map(|&begin| first_words(text, begin, settings))
            .collect(),
        findings: findings.collect(),
        left: left.collect(),
    }
}

/// The statements of a text, each from behind the semicolon of the one before up to its own semicolon, comments
/// included. This is how psql takes a file apart. A text with an unterminated string or parenthesis ends in one piece.
#[must_use]
pub fn split(text: &[u8], standard_conforming_strings: bool) -> Vec<Range<usize>> {
    let catalog = FunctionCatalog::empty();
    let walk = Walk::observed(text, standard_conforming_strings, &catalog, Ends::default());
    let (_, Ends(ends)) = walk.run();
    let mut begin = 0;
    let ranges = ends.into_iter().map(|end| {
        // Empty statements are none.
        let blank = |byte: &&u8| **byte == b';' || byte.is_ascii_whitespace();
        let range = begin + text[begin..end].iter().take_while(blank).count()..end;
        begin = (end + 1).min(text.len());
        range
    });
    ranges.collect()
}

/// The explanation of a text that was not read.
fn unread(class: Class) -> Explanation {
    let finding = Finding {
        rule: class.rule,
        statement: 0,
        place: None,
        subject: None,
    };
    let left = class.session.each().map(|(effect, sentence)| Left {
        effect,
        sentence,
        place: None,
    });
    Explanation {
        class,
        kind: Kind::of(&class),
        statements: Vec::new(),
        findings: vec![finding],
        left: left.collect(),
    }
}

/// What a walk finds, taken down.
#[derive(Default)]
struct Notes {
    begins: Vec<usize>,
    findings: Vec<(Rule, usize, Option<Token>)>,
    left: Vec<(SessionEffects, Option<Token>)>,
}

impl Observer for Notes {
    fn begins(&mut self, token: Token) {
        self.begins.push(token.start);
    }

    fn refuses(&mut self, rule: Rule, token: Option<Token>) {
        let finding = (rule, self.begins.len(), token);
        if self.findings.len() < FINDINGS_MAX && !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    fn leaves(&mut self, effect: SessionEffects, token: Option<Token>) {
        let token = token.filter(|token| token.kind != TokenKind::Semicolon);
        if self.left.len() < LEFT_MAX && !self.left.contains(&(effect, token)) {
            self.left.push((effect, token));
        }
    }
}

/// Where statements end.
#[derive(Default)]
struct Ends(Vec<usize>);

impl Observer for Ends {
    fn ends(&mut self, at: usize) {
        self.0.push(at);
    }
}

fn place(token: Token, text: &[u8]) -> Place {
    let before = &text[..token.start];
    let line_start = before
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |at| at + 1);
    let shown = &token.bytes(text)[..TOKEN_SHOWN.min(token.end - token.start)];
    Place {
        offset: token.start,
        line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
        column: 1 + token.start - line_start,
        token: String::from_utf8_lossy(shown).into_owned(),
    }
}

/// The first two words of a statement, or what there is of them.
fn first_words(text: &[u8], begin: usize, settings: &Settings) -> String {
    let rest = &text[begin..];
    let mut words = super::Lexer::new(rest, settings.standard_conforming_strings)
        .filter(|token| token.kind != TokenKind::Comment)
        .take_while(|token| token.kind == TokenKind::Word)
        .take(2)
        .map(|token| {
            String::from_utf8_lossy(&rest[token.start..token.end.min(token.start + TOKEN_SHOWN)]).into_owned()
        });
    let Some(first) = words.next() else {
        return "(".to_owned();
    };
    // A query is known by its first word; what others do stands in the second as well: CREATE TABLE.
    match (Word::of(first.as_bytes()).0.begins_query(), words.next()) {
        (false, Some(second)) => format!("{first} {second}"),
        _ => first,
    }
}

/// What the token of a finding names, in the catalogue's words.
fn subject(rule: Rule, written: Option<&[u8]>, catalog: &FunctionCatalog) -> Option<Subject> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if rule == Rule::VolatileImplicit {
        return catalog.implicit().map(|implicit| Subject {
            kind: "database",
            name: format!("has {}, which", lossy(&implicit.name)),
            because: format!("calls {}", lossy(&implicit.function)),
        });
    }
    let written = written?;
    let known = catalog.look_up(written);
    let because = || match catalog.because(written) {
        Some(Because::Calls(function)) => format!("calls {}", lossy(function)),
        Some(Because::Reads(relation)) => format!("reads {}", lossy(relation)),
        Some(Because::Attribute) => "is a volatile function that may be written like a column".to_owned(),
        Some(Because::Sequence) => "is a sequence".to_owned(),
        Some(Because::Unlogged) => "is unlogged: standbys have no rows of it".to_owned(),
        Some(Because::Foreign) => "is a foreign table: what its wrapper does is not known".to_owned(),
        Some(Because::NodeOwn) => "shows what is the node's own".to_owned(),
        None if known.mark == Mark::Primary => "shows what its node has counted".to_owned(),
        None => "hides a volatile function".to_owned(),
    };
    let (kind, because) = match rule {
        Rule::VolatileFunction if known.function == Function::Volatile && known.opaque => {
            ("function", "is volatile, and not PostgreSQL's own".to_owned())
        }
        Rule::VolatileFunction => ("function", "is volatile".to_owned()),
        Rule::UnknownFunction => ("function", "is not in the catalogue".to_owned()),
        Rule::PrimaryFunction => ("function", "answers for its node or session".to_owned()),
        Rule::RunsText => ("function", "runs SQL that it is given as text".to_owned()),
        Rule::VolatileRelation | Rule::PrimaryRelation => ("relation", because()),
        Rule::VolatileOperator => ("operator", because()),
        Rule::TemporaryObject => ("relation", "is in the session's temporary schema".to_owned()),
        Rule::PrimarySetting => ("setting", "tells whether the session may write".to_owned()),
        _ => return None,
    };
    Some(Subject {
        kind,
        name: lossy(written),
        because,
    })
}

impl RouteHint {
    /// The hint as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Auto => "auto",
        }
    }
}
