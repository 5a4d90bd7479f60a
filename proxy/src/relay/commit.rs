//! What is asked of a transaction in the same flight as its COMMIT, so that its outcome can be found out should the answer
//! be lost. `docs/adr/0014-resolve-commits.md` has what follows from it, and why.
//!
//! The question goes in front of the COMMIT as a Query of its own, and at the end of a batch that is a transaction by itself
//! in front of its Sync, with a Flush. A server sends its answer on before it reads on, so where the transaction may have
//! taken effect the answer has been sent.

use halyard_health::{Lsn, TimelineId};

use super::Relay;
use super::ledger::{Fate, Ledger, Owed};
use super::statements::NO_CHANGE;
use crate::classify::{Access, Lexer, Rule, TokenKind};
use crate::error::{Report, SqlState};
use crate::session::{Control, Demand};
use crate::wire::{
    self, ErrorFields, HEADER_SIZE, Header, backend, bind_names, data_row, frontend, parse_parts, target_name,
};

/// Its number, and the timeline and the position at which that was asked for: behind everything that the transaction has
/// written, and not behind its commit record, which is not written yet.
const QUESTION: &[u8] =
    b"SELECT pg_catalog.pg_current_xact_id_if_assigned(), pg_catalog.pg_walfile_name(l), l \
     FROM pg_catalog.pg_current_wal_insert_lsn() l";

/// The first version of PostgreSQL with these functions. Another would answer with an error, which ends the transaction.
const VERSION_MIN: u32 = 13;

/// A transaction whose COMMIT was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committing {
    /// Its number (`xid8`).
    pub xid: u64,
    /// The timeline that it writes to.
    pub timeline: TimelineId,
    /// Its records so far end here or before, and its commit record behind.
    pub position: Lsn,
}

/// What is known of the transaction whose end was sent last, if nothing was sent behind that.
#[derive(Clone, Debug, Default)]
pub enum Commit {
    /// Nothing: it was not asked for.
    #[default]
    Unasked,
    /// It will be asked for when the Sync of its batch is sent.
    Due,
    /// It was asked for.
    Asked,
    /// This.
    Known(Committing),
    /// The question itself has failed, and the transaction with it, for this reason.
    Failed(Box<Report>),
}

impl Commit {
    /// Whether nothing depends on how the answer goes on.
    #[inline]
    pub(super) fn is_unasked(&self) -> bool {
        matches!(self, Self::Unasked)
    }
}

impl Relay<'_> {
    /// Takes note of how the request ends its block, and asks for the transaction that it commits, if it does nothing else.
    pub(super) fn ask_for_transaction(&mut self, demand: &Demand) {
        if self.client.input.unparsed()[..demand.bytes] == wire::FLUSH {
            // What was asked before it is what counts.
            return;
        }
        self.link.ending = self.ending(demand);
        if !self.limits.resolve_commits {
            return;
        }
        self.link.commit = Commit::Unasked;
        let link = &*self.link;
        let ledger = &link.backend.ledger;
        // In a pipeline the BEGIN may not be answered yet.
        let in_block = ledger.status() == b'T' || !ledger.is_empty();
        let undisturbed = !ledger.batch_open() && !ledger.copy_in() && ledger.status() != b'E';
        if !link.as_primary || !undisturbed || !self.knows_transactions() {
            return;
        }
        let class = demand.class;
        if link.ending == Some(Ending::Commit) {
            if link.wrote && in_block {
                self.ask_in_query();
            }
        } else if class.control == Control::None
            && class.access == Access::Write
            && class.rule == Rule::DataChangingKeyword
            && !in_block
            && demand.rest == 0
            && runs_one_statement(&self.client.input.unparsed()[..demand.bytes])
        {
            self.link.commit = Commit::Due;
        }
    }

    fn ask_in_query(&mut self) {
        let backend = &mut *self.link.backend;
        wire::query(backend.out.end(), QUESTION);
        backend.ledger.owe(Owed::Query, Fate::Learn);
        // A Query ends the unnamed statement (manual, section 55.2.3).
        backend.unnamed = None;
        self.link.commit = Commit::Asked;
    }

    /// Asks in front of a Sync, if that is due there. `before` goes out first. Returns whether it did.
    pub(super) fn ask_before_sync(&mut self, before: &[u8]) -> bool {
        if !matches!(self.link.commit, Commit::Due) {
            return false;
        }
        if self.link.backend.ledger.skips_until_sync() {
            self.link.commit = Commit::Unasked;
            return false;
        }
        self.append(before);
        let backend = &mut *self.link.backend;
        let out = backend.out.end();
        wire::parse_renamed(out, b"", QUESTION, &[0; 2]);
        // No formats of parameters, no parameters, no formats of results.
        wire::bind_renamed(out, b"", b"", &[0; 6], 0);
        wire::tagged(out, frontend::EXECUTE, |out| out.extend_from_slice(&[0; 5]));
        out.extend_from_slice(&wire::FLUSH);
        for owed in [Owed::Parse, Owed::Bind, Owed::Execute] {
            backend.ledger.owe(owed, Fate::Learn);
        }
        self.memory.note(NO_CHANGE);
        backend.unnamed = None;
        self.link.commit = Commit::Asked;
        true
    }

    fn knows_transactions(&self) -> bool {
        let mut parameters = self.link.backend.parameters.iter();
        let version = parameters.find(|(name, _)| name == "server_version");
        let major = version.and_then(|(_, version)| {
            let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<u32>().ok()
        });
        major.is_some_and(|major| major >= VERSION_MIN)
    }

    /// How a request ends its block, if it does nothing else, in either protocol. The class is looked at first: of most
    /// requests it tells that they do not.
    fn ending(&self, demand: &Demand) -> Option<Ending> {
        let class = demand.class;
        let ends = class.rule == Rule::EndsTransaction
            && matches!(class.control, Control::RollsBack | Control::MayCommit);
        let ledger = &self.link.backend.ledger;
        if !ends || ledger.batch_open() || ledger.copy_in() {
            return None;
        }
        self.ends_alone(&self.client.input.unparsed()[..demand.bytes])
    }

    fn ends_alone(&self, bytes: &[u8]) -> Option<Ending> {
        let mut rest = bytes;
        let mut prepared = None;
        let mut bound = None;
        let mut executed = false;
        while let Ok(Some(header)) = Header::parse(rest) {
            let (frame, behind) = rest.split_at_checked(header.total())?;
            let body = &frame[HEADER_SIZE..];
            rest = behind;
            match header.kind {
                frontend::QUERY if rest.is_empty() => {
                    return Ending::of(body.strip_suffix(&[0]).unwrap_or(body));
                }
                frontend::PARSE => {
                    let parts = parse_parts(body)?;
                    let ending = Ending::of(&body[parts.text])?;
                    if prepared.replace((&body[parts.name], ending)).is_some() {
                        return None;
                    }
                }
                frontend::BIND => {
                    let name = &body[bind_names(body)?.statement];
                    bound = match prepared {
                        Some((known, ending)) if known == name => Some(ending),
                        _ => Ending::of(self.bound(body)??.text()),
                    };
                    bound?;
                }
                frontend::DESCRIBE if matches!(target_name(body), Some((b'P', _))) => {}
                frontend::EXECUTE if !executed => executed = true,
                frontend::SYNC if executed && rest.is_empty() => return bound,
                _ => return None,
            }
        }
        None
    }

    /// Takes in a part of the answer.
    pub(super) fn learn_of_transaction(&mut self, kind: u8, body: &[u8], fields: Option<&ErrorFields<'_>>) {
        // That of the COMMIT sent last is the last one.
        let last = questions(&self.link.backend.ledger) == 1;
        if !last || !matches!(self.link.commit, Commit::Asked) {
            return;
        }
        match (kind, fields) {
            (backend::DATA_ROW, _) => {
                if let Some(committing) = read(body) {
                    self.link.commit = Commit::Known(committing);
                }
            }
            // The client knows that its block has failed: what it has asked for in it was refused.
            (_, Some(fields)) if fields.sqlstate != SqlState::IN_FAILED_SQL_TRANSACTION => {
                let message = String::from_utf8_lossy(fields.message).into_owned();
                let report = Report::error(fields.sqlstate, message).with_detail(
                    "It was met in front of COMMIT, by the question that failover.resolve_commits asks.",
                );
                self.link.commit = Commit::Failed(Box::new(report));
            }
            _ => {}
        }
    }

    /// A command was completed. What the client is told instead of `ROLLBACK` where its COMMIT met a transaction that had
    /// failed by Halyard's own question: many look at nothing but whether there is an error.
    pub(super) fn end_commit(&mut self, tag: &[u8]) -> Option<Vec<u8>> {
        match &self.link.commit {
            Commit::Unasked | Commit::Due | Commit::Asked => None,
            Commit::Known(_) => {
                // The client is told; there is nothing left to be looked up.
                self.link.commit = Commit::Unasked;
                None
            }
            Commit::Failed(report) => {
                let mut frame = Vec::new();
                report.encode(&mut frame);
                let rolled_back = tag.starts_with(b"ROLLBACK\0");
                self.link.commit = Commit::Unasked;
                rolled_back.then_some(frame)
            }
        }
    }
}

/// Whether an answer is to the question.
pub(super) fn is_question(fate: Option<(Owed, Fate)>) -> bool {
    matches!(fate, Some((Owed::Query | Owed::Execute, Fate::Learn)))
}

/// How many times the answer to the question is owed.
fn questions(ledger: &Ledger) -> usize {
    ledger.owed(Owed::Query, Fate::Learn) + ledger.owed(Owed::Execute, Fate::Learn)
}

/// Whether a request is a whole batch that runs one statement, once or many times, so that its class is that of each
/// Execute: behind a COPY FROM STDIN nothing may be asked.
fn runs_one_statement(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut parsed = None;
    let mut bound = None;
    let mut executed = false;
    while let Ok(Some(header)) = Header::parse(rest) {
        let Some((frame, behind)) = rest.split_at_checked(header.total()) else {
            return false;
        };
        let body = &frame[HEADER_SIZE..];
        rest = behind;
        let fits = match header.kind {
            frontend::PARSE => parse_parts(body)
                .is_some_and(|parts| parsed.replace(&body[parts.name]).is_none() && bound.is_none()),
            frontend::BIND => bind_names(body).is_some_and(|names| {
                let name = &body[names.statement];
                parsed.is_none_or(|parsed| parsed == name)
                    && bound.replace(name).is_none_or(|before| before == name)
            }),
            frontend::DESCRIBE | frontend::CLOSE => true,
            frontend::EXECUTE => {
                executed = true;
                bound.is_some()
            }
            frontend::SYNC => return executed && rest.is_empty(),
            _ => false,
        };
        if !fits {
            return false;
        }
    }
    false
}

/// The row that answers [`QUESTION`]. `None` also where the transaction has no number: it has written nothing yet.
fn read(body: &[u8]) -> Option<Committing> {
    let columns = data_row(body)?;
    let text = |at: usize| std::str::from_utf8(columns.get(at)?.as_deref()?).ok();
    Some(Committing {
        xid: text(0)?.parse().ok()?,
        // The first eight digits of a WAL file's name (XLogFileName).
        timeline: TimelineId(u32::from_str_radix(text(1)?.get(..8)?, 16).ok()?),
        position: text(2)?.parse().ok()?,
    })
}

/// How a request that does nothing else ends its transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT.
    Rollback,
}

impl Ending {
    /// How a text ends its block. `None` if it does not, or begins another in its place (AND CHAIN), which is lost
    /// with its node like any; if it goes back to a savepoint, or is of a prepared transaction.
    fn of(text: &[u8]) -> Option<Self> {
        let mut words = Lexer::new(text, true)
            .filter(|token| !matches!(token.kind, TokenKind::Comment | TokenKind::Semicolon))
            .map(|token| token.bytes(text));
        let is = |word: &[u8], known: &str| word.eq_ignore_ascii_case(known.as_bytes());
        let ending = match words.next()? {
            word if is(word, "commit") || is(word, "end") => Self::Commit,
            word if is(word, "rollback") || is(word, "abort") => Self::Rollback,
            _ => return None,
        };
        let whole = match words.next() {
            None => true,
            Some(word) => (is(word, "work") || is(word, "transaction")) && words.next().is_none(),
        };
        whole.then_some(ending)
    }

    /// As a server tells it.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Commit => "COMMIT",
            Self::Rollback => "ROLLBACK",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_block_is_told_from_what_only_begins_like_it() {
        for text in [
            "COMMIT",
            "commit ; ",
            "End Work",
            "/* app */ COMMIT TRANSACTION;;",
            "end -- now",
        ] {
            assert_eq!(Ending::of(text.as_bytes()), Some(Ending::Commit), "{text}");
        }
        for text in ["ROLLBACK", "Abort work;", "rollback /* it */ transaction"] {
            assert_eq!(Ending::of(text.as_bytes()), Some(Ending::Rollback), "{text}");
        }
        for text in [
            "",
            "COMMIT AND CHAIN",
            "COMMIT WORK AND CHAIN",
            "COMMIT PREPARED 'a'",
            "COMMIT; BEGIN",
            "END; SELECT 1",
            "PREPARE TRANSACTION 'a'",
            "\"commit\"",
            "ROLLBACK AND CHAIN",
            "ROLLBACK TO a",
            "ROLLBACK TRANSACTION TO SAVEPOINT a",
            "ROLLBACK PREPARED 'a'",
        ] {
            assert_eq!(Ending::of(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_batch_is_asked_for_only_when_its_class_is_that_of_each_execute() {
        let frame = |kind: u8, body: &[u8]| {
            let mut frame = Vec::new();
            wire::tagged(&mut frame, kind, |out| out.extend_from_slice(body));
            frame
        };
        let parse = |name: &str| frame(frontend::PARSE, format!("{name}\0INSERT\0\0\0").as_bytes());
        let bind = |name: &str| frame(frontend::BIND, format!("\0{name}\0\0\0\0\0\0\0").as_bytes());
        let describe = frame(frontend::DESCRIBE, b"P\0");
        let execute = frame(frontend::EXECUTE, &[0; 5]);
        let (sync, flush) = (wire::SYNC.to_vec(), wire::FLUSH.to_vec());
        for (frames, expected) in [
            (vec![&parse(""), &bind(""), &describe, &execute, &sync], true),
            (vec![&bind("a"), &execute, &bind("a"), &execute, &sync], true),
            (vec![&parse("a"), &bind("a"), &execute, &sync], true),
            (vec![&parse("a"), &bind("b"), &execute, &sync], false),
            (vec![&bind("a"), &execute, &bind("b"), &execute, &sync], false),
            (vec![&bind("a"), &execute, &parse("b"), &sync], false),
            (vec![&parse("a"), &parse("b"), &bind("b"), &execute, &sync], false),
            (vec![&parse("a"), &sync], false),
            (vec![&execute, &sync], false),
            (vec![&bind("a"), &execute], false),
            (vec![&bind("a"), &execute, &flush, &sync], false),
            (vec![&bind("a"), &execute, &sync, &sync], false),
        ] {
            let bytes: Vec<u8> = frames.into_iter().flatten().copied().collect();
            assert_eq!(
                runs_one_statement(&bytes),
                expected,
                "{:?}",
                String::from_utf8_lossy(&bytes)
            );
        }
    }

    #[test]
    fn the_answer_is_a_number_a_timeline_and_a_position() {
        let row = |columns: [Option<&str>; 3]| {
            let mut body = 3_u16.to_be_bytes().to_vec();
            for column in columns {
                match column {
                    Some(text) => {
                        body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                        body.extend(text.as_bytes());
                    }
                    None => body.extend((-1_i32).to_be_bytes()),
                }
            }
            body
        };
        let file = Some("0000000B0000000000000003");
        assert_eq!(
            read(&row([Some("4294967301"), file, Some("1/3A000060")])),
            Some(Committing {
                xid: 4_294_967_301,
                timeline: TimelineId(11),
                position: Lsn(0x1_3A00_0060),
            })
        );
        assert_eq!(
            read(&row([None, file, Some("1/3A000060")])),
            None,
            "nothing is written"
        );
        assert_eq!(read(&row([Some("7"), Some("short"), Some("1/3A000060")])), None);
        assert_eq!(read(&row([Some("7"), file, Some("here")])), None);
        assert_eq!(read(b"\0\x03"), None);
    }
}
