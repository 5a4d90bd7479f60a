//! The walk over a text's tokens that finds what in it does not only read.
//!
//! There is no parser. A statement that a server would accept is read under rules that can err to one side only: what
//! might be a call is looked up as a call unless the grammar allows nothing else at that place, and what is not
//! understood is a write. Text that a server would refuse may be classed either way, since it does nothing anywhere.

use super::catalog::FunctionCatalog;
use super::class::{Access, Class, RouteHint, Rule, SessionEffects, Span, TrailingHint};
use super::lexer::{Lexer, Token, TokenKind};
use super::word::{Paren, Word};

/// Hears what a walk finds, for explanations. `()` hears nothing and costs nothing.
pub(super) trait Observer {
    /// A statement begins with the walk's current token.
    fn begins(&mut self, _token: Token) {}
    /// A statement ends before this offset.
    fn ends(&mut self, _at: usize) {}
    /// A reason why the message is a write: every one, of which the first decides.
    fn refuses(&mut self, _rule: Rule, _token: Option<Token>) {}
    /// Something that the message leaves in its session, found at a token if it is one token that does it.
    fn leaves(&mut self, _effect: SessionEffects, _token: Option<Token>) {}
}

impl Observer for () {}

/// Nesting that is followed; deeper text is a write. One bit each in the sets of [`Walk`].
const DEPTH_MAX: u32 = 63;

/// A token behind the walk, as far as later tokens depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: TokenKind,
    pub(super) word: Word,
}

impl Seen {
    /// Before the first token of a statement. Like a semicolon, nothing before it matters.
    const NOTHING: Self = Self {
        kind: TokenKind::Semicolon,
        word: Word::Name,
    };

    /// Whether an operand of an expression may end with this token.
    pub(super) fn ends_operand(self) -> bool {
        match self.kind {
            TokenKind::Word => self.word.ends_operand(),
            TokenKind::QuotedName
            | TokenKind::String
            | TokenKind::Number
            | TokenKind::Parameter
            | TokenKind::Close
            | TokenKind::CloseBracket => true,
            _ => false,
        }
    }
}

/// A set with a member for each open parenthesis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Levels(u64);

impl Levels {
    fn open(&mut self, member: bool) {
        self.0 = (self.0 << 1) | u64::from(member);
    }

    fn close(&mut self) -> bool {
        let member = self.innermost();
        self.0 >>= 1;
        member
    }

    pub(super) fn innermost(self) -> bool {
        self.0 & 1 == 1
    }

    fn set_innermost(&mut self, member: bool) {
        self.0 = (self.0 & !1) | u64::from(member);
    }
}

/// What the walk knows of the statement that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    pub(super) previous: Seen,
    pub(super) before_previous: Seen,
    /// What stood before the name, qualified or not, that the walk is in or has left last.
    pub(super) before_name: Seen,
    depth: u32,
    /// Levels that are inside the list of a WITH clause, where a name before a parenthesis names its columns.
    pub(super) with_lists: Levels,
    /// Levels whose closing parenthesis is followed by an expression: DISTINCT ON (…), OPERATOR (…).
    before_expression: Levels,
    /// Levels that are the arguments of `set_config`.
    set_config: Levels,
    /// The parenthesis that comes next opens the arguments of `set_config`.
    pub(super) set_config_next: bool,
    /// GROUP has been seen, so that CUBE and ROLLUP are its own.
    pub(super) grouped: bool,
    /// A query, where INTO creates a table.
    pub(super) is_query: bool,
    /// CREATE FUNCTION or PROCEDURE, whose body may be BEGIN ATOMIC … END.
    pub(super) is_routine: bool,
    /// CREATE TABLE.
    pub(super) is_table: bool,
    /// How many BEGIN ATOMIC and CASE are open in such a body: semicolons in it end nothing.
    atomic: u32,
    /// Holds INSERT, UPDATE, DELETE or MERGE.
    changes_data: bool,
    /// Names a relation that runs code unseen when it is written.
    pub(super) acts: bool,
    /// Creates a temporary object.
    pub(super) creates_temporary: bool,
    on_commit_drop: bool,
}

impl Scope {
    const NEW: Self = Self {
        previous: Seen::NOTHING,
        before_previous: Seen::NOTHING,
        before_name: Seen::NOTHING,
        depth: 0,
        with_lists: Levels(0),
        before_expression: Levels(0),
        set_config: Levels(0),
        set_config_next: false,
        grouped: false,
        is_query: false,
        is_routine: false,
        is_table: false,
        atomic: 0,
        changes_data: false,
        acts: false,
        creates_temporary: false,
        on_commit_drop: false,
    };
}

/// One walk over one message.
pub(super) struct Walk<'a, O = ()> {
    pub(super) text: &'a [u8],
    pub(super) tokens: Lexer<'a>,
    pub(super) catalog: &'a FunctionCatalog,
    /// The current token and the next. They stay where they are put and change parts: copying a token that was
    /// stored a moment ago stalls the processor for longer than all else that is done with it.
    window: [Option<Token>; 2],
    /// Which of the two is the current one: 0 or 1.
    current: u8,
    pub(super) class: Class,
    pub(super) scope: Scope,
    /// The word of a BEGIN that says nothing of READ ONLY or READ WRITE, while no statement but SET TRANSACTION has
    /// followed it.
    pub(super) opens: Option<Token>,
    trailing: TrailingHint,
    observer: O,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        text: &'a [u8],
        standard_conforming_strings: bool,
        catalog: &'a FunctionCatalog,
    ) -> Self {
        Self::observed(text, standard_conforming_strings, catalog, ())
    }
}

impl<'a, O: Observer> Walk<'a, O> {
    pub(super) fn observed(
        text: &'a [u8],
        standard_conforming_strings: bool,
        catalog: &'a FunctionCatalog,
        observer: O,
    ) -> Self {
        let mut walk = Self {
            text,
            tokens: Lexer::new(text, standard_conforming_strings),
            catalog,
            window: [None; 2],
            current: 0,
            class: Class::empty(),
            scope: Scope::NEW,
            opens: None,
            trailing: TrailingHint::default(),
            observer,
        };
        walk.window = [walk.first_token(), walk.read_token()];
        walk
    }

    /// Walks to the end.
    pub(super) fn run(mut self) -> (Class, O) {
        while let Some(token) = self.current() {
            if token.kind == TokenKind::Semicolon {
                self.advance(Word::Name);
                continue;
            }
            self.begin_statement(token);
            self.statement();
            self.end_statement();
        }
        self.open_block();
        self.class.hint = self.class.hint.or_else(|| self.trailing.found(self.text));
        (self.class, self.observer)
    }

    /// A BEGIN that did not say READ ONLY was not followed by SET TRANSACTION READ ONLY either.
    pub(super) fn open_block(&mut self) {
        if let Some(begin) = self.opens.take() {
            self.refuse_at(Rule::OpensTransaction, Some(begin));
        }
    }

    fn begin_statement(&mut self, token: Token) {
        self.observer.begins(token);
        self.class.statements = self.class.statements.saturating_add(1);
        self.scope = Scope::NEW;
    }

    fn end_statement(&mut self) {
        if self.scope.creates_temporary {
            self.effect(SessionEffects::NAMING);
            if !self.scope.on_commit_drop {
                self.effect(SessionEffects::TEMPORARY);
            }
        }
        let writes = self.class.access == Access::Write && (!self.scope.is_query || self.scope.changes_data);
        // What a definition in the same message has hung on a name is in no catalogue yet.
        let defined = self.class.ddl && (self.class.statements > 1 || self.catalog.definitions_act());
        if writes && (self.scope.acts || defined) {
            self.effect(SessionEffects::OPAQUE);
        }
        let end = self.current().map_or(self.text.len(), |token| token.start);
        self.observer.ends(end);
    }

    // Tokens

    /// The first token that is not a comment; a hint among the comments before it is taken down.
    fn first_token(&mut self) -> Option<Token> {
        let text = self.text;
        self.tokens.by_ref().find(|token| {
            if token.kind == TokenKind::Comment && self.class.hint.is_none() {
                self.class.hint = RouteHint::of_comment(token.bytes(text));
            }
            token.kind != TokenKind::Comment
        })
    }

    #[inline]
    fn read_token(&mut self) -> Option<Token> {
        loop {
            let token = self.tokens.next()?;
            if token.kind != TokenKind::Comment {
                return Some(token);
            }
            self.trailing.pass(self.text, token);
        }
    }

    /// Steps over the current token, which is `word`.
    #[inline(never)]
    pub(super) fn advance(&mut self, word: Word) {
        if let Some(kind) = self.kind() {
            self.scope.before_previous = self.scope.previous;
            self.scope.previous = Seen { kind, word };
        }
        self.window[self.place(0)] = self.read_token();
        self.current ^= 1;
    }

    /// Where the token `ahead` of the current one is in the window.
    #[inline]
    fn place(&self, ahead: u8) -> usize {
        usize::from((self.current ^ ahead) & 1)
    }

    /// The current token; `None` at the end of the text.
    #[inline]
    pub(super) fn current(&self) -> Option<Token> {
        self.window[self.place(0)]
    }

    #[inline]
    fn next(&self) -> Option<Token> {
        self.window[self.place(1)]
    }

    /// The keyword that the current token is.
    pub(super) fn word(&self) -> Word {
        self.word_of(self.current())
    }

    /// The keyword that the token after the current one is.
    pub(super) fn next_word(&self) -> Word {
        self.word_of(self.next())
    }

    fn word_of(&self, token: Option<Token>) -> Word {
        match token {
            Some(token) if token.kind == TokenKind::Word => Word::of(token.bytes(self.text)).0,
            _ => Word::Name,
        }
    }

    pub(super) fn kind(&self) -> Option<TokenKind> {
        self.window[self.place(0)].as_ref().map(|token| token.kind)
    }

    pub(super) fn next_kind(&self) -> Option<TokenKind> {
        self.window[self.place(1)].as_ref().map(|token| token.kind)
    }

    /// Steps over the current token if it is `word`.
    pub(super) fn take(&mut self, word: Word) -> bool {
        let found = self.word() == word;
        if found {
            self.advance(word);
        }
        found
    }

    /// Whether the statement has no further token.
    pub(super) fn at_end(&self) -> bool {
        match self.kind() {
            None => true,
            Some(kind) => kind == TokenKind::Semicolon && self.scope.depth == 0 && self.scope.atomic == 0,
        }
    }

    /// Makes what follows the beginning of a query, as after EXPLAIN.
    pub(super) fn forget_previous(&mut self) {
        self.scope.previous = Seen::NOTHING;
    }

    // Findings

    /// The message is a write, by `token`, unless it already was one.
    pub(super) fn refuse_at(&mut self, rule: Rule, token: Option<Token>) {
        self.observer.refuses(rule, token);
        if self.class.access == Access::Read {
            self.class.access = Access::Write;
            self.class.rule = rule;
            self.class.at = token.and_then(|token| Span::new(token.start, token.end));
        }
    }

    /// The message is a write by the current token.
    pub(super) fn refuse(&mut self, rule: Rule) {
        // At the end of the text the last token is the one to show.
        let end = Token {
            kind: TokenKind::Unexpected,
            start: self.text.len().saturating_sub(1),
            end: self.text.len(),
        };
        self.refuse_at(rule, self.current().or(Some(end)));
    }

    /// The statement is a read by this rule so far.
    pub(super) fn accept(&mut self, rule: Rule) {
        if self.class.rule == Rule::Empty {
            self.class.rule = rule;
        }
    }

    pub(super) fn effect(&mut self, effect: SessionEffects) {
        self.class.session = self.class.session.union(effect);
        self.observer.leaves(effect, self.current());
    }

    // The general scan

    /// Walks over the rest of the statement.
    pub(super) fn scan(&mut self) {
        while !self.at_end() {
            self.step();
        }
        if self.scope.depth > 0 {
            self.refuse(Rule::Unbalanced);
        }
    }

    /// Walks over a parenthesis and all that it holds, or over one token.
    pub(super) fn scan_group(&mut self) {
        let outside = self.scope.depth;
        loop {
            self.step();
            if self.scope.depth <= outside || self.current().is_none() {
                return;
            }
        }
    }

    /// Looks at the current token and steps over it.
    #[inline]
    pub(super) fn step(&mut self) {
        let Some(token) = self.current() else { return };
        let mut word = Word::Name;
        match token.kind {
            TokenKind::Word => word = self.see_word(token),
            TokenKind::QuotedName => {
                if self.scope.previous.kind != TokenKind::Dot {
                    self.scope.before_name = self.scope.previous;
                }
                self.see_name(token, Paren::Call, Word::Name);
            }
            // A dot after anything but a name takes a part out of a value.
            TokenKind::Dot
                if !matches!(self.scope.previous.kind, TokenKind::Word | TokenKind::QuotedName) =>
            {
                self.scope.before_name = Seen::NOTHING;
            }
            TokenKind::Open => self.open(),
            TokenKind::Close => {
                self.close();
                return;
            }
            TokenKind::Operator if self.catalog.is_volatile_operator(token.bytes(self.text)) => {
                if self.catalog.look_up(token.bytes(self.text)).opaque {
                    self.effect(SessionEffects::OPAQUE);
                }
                self.refuse(Rule::VolatileOperator);
            }
            TokenKind::EscapedName => self.see_escaped_name(),
            TokenKind::Unexpected => {
                self.effect(SessionEffects::UNKNOWN);
                self.refuse(Rule::UnexpectedCharacter);
            }
            TokenKind::Unterminated => {
                self.effect(SessionEffects::UNKNOWN);
                self.refuse(Rule::Unterminated);
            }
            TokenKind::Semicolon if self.scope.depth > 0 && self.scope.atomic == 0 => {
                self.refuse(Rule::Unbalanced);
            }
            _ => {}
        }
        self.advance(word);
    }

    /// A name that is not decoded may be that of anything: a function that sets or locks, a relation that runs code, a
    /// setting that decides what names stand for.
    pub(super) fn see_escaped_name(&mut self) {
        self.effect(SessionEffects::OPAQUE);
        self.effect(SessionEffects::NAMING);
        self.refuse(Rule::EscapedName);
    }

    fn open(&mut self) {
        if self.scope.depth >= DEPTH_MAX {
            self.refuse(Rule::NestedTooDeep);
        }
        let (previous, before) = (self.scope.previous, self.scope.before_previous);
        if self.scope.with_lists.innermost() {
            // The body of a named query, or its column list. Anything else is the main query in parentheses.
            let names_columns =
                matches!(before.word, Word::With | Word::Recursive) || before.kind == TokenKind::Comma;
            if !(matches!(previous.word, Word::As | Word::Materialized) || names_columns) {
                self.scope.with_lists.set_innermost(false);
            }
        }
        let distinct_on = previous.word == Word::On && before.word == Word::Distinct;
        self.scope
            .before_expression
            .open(distinct_on || previous.word == Word::Operator);
        self.scope.with_lists.open(false);
        self.scope
            .set_config
            .open(std::mem::take(&mut self.scope.set_config_next));
        self.scope.depth += 1;
    }

    fn close(&mut self) {
        if self.scope.depth == 0 {
            self.refuse(Rule::Unbalanced);
            self.advance(Word::Name);
            return;
        }
        self.scope.depth -= 1;
        self.scope.with_lists.close();
        if self.scope.set_config.close() && !self.says_true_last() {
            self.effect(SessionEffects::SETTING);
        }
        let before_expression = self.scope.before_expression.close();
        self.advance(Word::Name);
        if before_expression {
            self.scope.previous = Seen {
                kind: TokenKind::Operator,
                word: Word::Name,
            };
        }
    }

    /// Whether the argument list that ends here ends with `, true`.
    fn says_true_last(&self) -> bool {
        self.scope.previous.word == Word::True && self.scope.before_previous.kind == TokenKind::Comma
    }

    /// A word: a keyword that matters, a call, or a name. Answers with the keyword it counts as.
    #[inline]
    fn see_word(&mut self, token: Token) -> Word {
        // After a dot every word is a name.
        if self.scope.previous.kind == TokenKind::Dot {
            self.see_name(token, Paren::Call, Word::Name);
            return Word::Name;
        }
        self.scope.before_name = self.scope.previous;
        let (word, paren) = Word::of(token.bytes(self.text));
        match word {
            Word::Name => {}
            Word::Update if self.scope.previous.word == Word::For => self.refuse(Rule::LockingClause),
            Word::Insert | Word::Update | Word::Delete | Word::Merge => {
                self.scope.changes_data = true;
                self.refuse(Rule::DataChangingKeyword);
            }
            Word::Into => self.see_into(),
            Word::For => {
                if matches!(
                    self.next_word(),
                    Word::Update | Word::Share | Word::No | Word::Key
                ) {
                    self.refuse(Rule::LockingClause);
                }
            }
            Word::With if matches!(self.scope.previous.kind, TokenKind::Open | TokenKind::Semicolon) => {
                self.scope.with_lists.set_innermost(true);
            }
            Word::Select | Word::Values | Word::Table => self.scope.with_lists.set_innermost(false),
            Word::Group => self.scope.grouped = true,
            // CREATE TABLE … AS EXECUTE.
            Word::As if self.scope.is_table && self.next_word() == Word::Execute => {
                self.effect(SessionEffects::EXECUTE);
            }
            Word::Drop
                if self.scope.previous.word == Word::Commit
                    && self.scope.before_previous.word == Word::On =>
            {
                self.scope.on_commit_drop = true;
            }
            Word::Begin if self.scope.is_routine && self.next_word() == Word::Atomic => {
                self.scope.atomic += 1;
            }
            Word::Case if self.scope.atomic > 0 => self.scope.atomic += 1,
            Word::End if self.scope.atomic > 0 => self.scope.atomic -= 1,
            _ => {}
        }
        if paren != Paren::Reserved {
            self.see_name(token, paren, word);
        }
        word
    }

    fn see_into(&mut self) {
        self.refuse(Rule::IntoClause);
        if !self.scope.is_query || matches!(self.scope.previous.word, Word::Insert | Word::Merge) {
            return;
        }
        let temporary = matches!(
            self.next_word(),
            Word::Temp | Word::Temporary | Word::Local | Word::Global
        );
        self.scope.creates_temporary |= temporary;
        self.class.ddl |= !temporary;
    }
}
