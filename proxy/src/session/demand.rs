//! What the next request in a client's buffer asks for: how far it goes, and what kind of node can answer it.

use std::sync::Arc;

use super::class::{Control, StatementClass};
use super::settings::names_a_moment;
use super::statements::{ClientStatements, Epoch, Statement, StatementRegistry};
use crate::catalog::{Catalog, ClassCaches};
use crate::classify::{Access, Rule, Settings as Reading, changes_reading};
use crate::wire::{FrameError, HEADER_SIZE, Header, bind_names, frontend, parse_parts};
use crate::worker::Local;

/// A request that may be sent as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Bytes of it in the buffer.
    pub bytes: usize,
    /// Bytes of its last frame that are not in the buffer yet and will be passed on as they come.
    pub rest: usize,
    /// The strictest of its statements.
    pub class: StatementClass,
    /// Whether it ends with Sync, or is a message that needs none: nothing that follows can change what it is.
    pub closed: bool,
}

/// What a look at the buffer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// Nothing whole yet. `frame` is the size of the frame that has to fit into the buffer, if that is known.
    Wait {
        /// Bytes that have to fit into the buffer, counted from the first unparsed one.
        frame: usize,
    },
    /// A request.
    Demand(Demand),
    /// CopyData frames, the last of which may not be whole, to be passed on as they lie.
    Copy {
        /// Bytes of them, whether in the buffer yet or not.
        bytes: usize,
    },
    /// Frames that a server takes and ignores.
    Ignored {
        /// Bytes of them, whether in the buffer yet or not.
        bytes: usize,
    },
    /// The client says goodbye.
    Terminate,
    /// The client broke the protocol.
    Broken(FrameError),
}

/// In what mood the server reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Commands, with nothing owed.
    Idle,
    /// Commands, and what is owed may turn out to be a COPY.
    Busy,
    /// COPY data.
    CopyIn,
}

/// What a look needs to know.
pub struct Scanner<'a> {
    /// The client's statements.
    pub statements: &'a ClientStatements,
    /// Statements met in this request, in order, for whoever sends them on.
    pub parsed: &'a mut Vec<Arc<Statement>>,
    /// All statements.
    pub registry: &'a StatementRegistry,
    /// What functions do.
    pub catalog: &'a Catalog,
    /// The database's epoch.
    pub epoch: Epoch,
    /// How texts are read.
    pub reading: &'a Reading,
    /// Whether something in flight in the same batch may change that: the texts of the batch are not read.
    pub turning: bool,
    /// Whether a portal that is bound and not run yet may change what they stand for.
    pub moves: bool,
    /// Longest text that is read, and longest batch that is waited for; bytes.
    pub size_max: usize,
}

/// Frames of these types are passed on piece by piece when they are longer than this; bytes.
const STREAMED_ABOVE: usize = crate::wire::BUFFER_SIZE;
/// How the names of statements begin that Halyard has prepared on its backends.
pub(super) const OWN_NAMES: &[u8] = b"halyard_";
/// Longest pair of names in a Bind that is streamed; bytes.
const BIND_NAMES_MAX: usize = 1024;

impl Scanner<'_> {
    /// Looks at `bytes`, whose first byte begins a frame.
    pub fn scan(&mut self, bytes: &[u8], mood: Mood, local: &mut Local) -> Scan {
        self.parsed.clear();
        let mut class = StatementClass::NOTHING;
        let mut unnamed_is_new = false;
        let mut executions = 0_u32;
        let mut at = 0;
        loop {
            let header = match Header::parse_frontend(&bytes[at..]) {
                Ok(Some(header)) => header,
                Ok(None) => return wait(at, None),
                // What came before the broken frame is answered first.
                Err(_) if at > 0 => return whole(at, class, false),
                Err(error) => return Scan::Broken(error),
            };
            let total = header.total();
            let present = bytes.len() - at;
            if at > 0 && !continues_batch(header.kind) {
                return whole(at, class, false);
            }
            if mood == Mood::CopyIn {
                return in_copy(bytes, header);
            }
            let begun = &bytes[(at + HEADER_SIZE).min(bytes.len())..bytes.len().min(at + total)];
            if names_own(header.kind, begun) {
                return match at {
                    0 => Scan::Broken(FrameError::ReservedName),
                    _ => whole(at, class, false),
                };
            }
            if present < total {
                return self.partial(bytes, at, header, class, mood);
            }
            let body = &bytes[at + HEADER_SIZE..at + total];
            at += total;
            match header.kind {
                frontend::TERMINATE => return Scan::Terminate,
                frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL if mood == Mood::Idle => {
                    return Scan::Ignored { bytes: total };
                }
                frontend::COPY_DATA => return Scan::Copy { bytes: total },
                frontend::COPY_DONE | frontend::COPY_FAIL => return whole(at, class, false),
                frontend::QUERY => {
                    let text = body.strip_suffix(&[0]).unwrap_or(body);
                    let class = self.class_of_text(text, local);
                    return whole(at, class, true);
                }
                frontend::FUNCTION_CALL => return whole(at, StatementClass::FUNCTION_CALL, true),
                frontend::SYNC => {
                    if class.rule == Rule::OpensTransaction && executions > 1 {
                        class = self.class_of_block(&bytes[..at]).unwrap_or(class);
                    }
                    return whole(at, class, true);
                }
                frontend::FLUSH => return whole(at, class, false),
                frontend::PARSE => {
                    unnamed_is_new |= body.first() == Some(&0);
                    class = class.and(self.class_of_parse(body, class, local));
                }
                frontend::BIND => class = class.and(self.class_of_bind(body, unnamed_is_new)),
                frontend::EXECUTE => executions += 1,
                _ => {}
            }
            if at > self.size_max {
                return whole(at, class, false);
            }
        }
    }

    /// A frame that has begun and not ended: waited for, or passed on piece by piece.
    fn partial(
        &mut self,
        bytes: &[u8],
        at: usize,
        header: Header,
        class: StatementClass,
        mood: Mood,
    ) -> Scan {
        let total = header.total();
        let body = &bytes[at + HEADER_SIZE.min(bytes.len() - at)..];
        let streams = match header.kind {
            frontend::BIND if total > STREAMED_ABOVE => {
                if bind_names(body).is_none() && body.len() <= BIND_NAMES_MAX {
                    // Of a long one nothing but the names is waited for.
                    return wait(at, Some(HEADER_SIZE + BIND_NAMES_MAX + 1));
                }
                if bind_names(body).is_none() && at == 0 {
                    // Nobody can tell what it binds.
                    let (kind, length) = (header.kind, header.length);
                    return Scan::Broken(FrameError::Length { kind, length });
                }
                true
            }
            frontend::QUERY | frontend::PARSE | frontend::FUNCTION_CALL => total > self.size_max,
            frontend::COPY_DATA if mood == Mood::Idle => return Scan::Ignored { bytes: total },
            frontend::COPY_DATA => return Scan::Copy { bytes: total },
            _ => false,
        };
        let begun = if header.kind == frontend::PARSE {
            HEADER_SIZE + OWN_NAMES.len()
        } else {
            HEADER_SIZE
        };
        if !streams || bytes.len() - at < begun {
            return wait(at, Some(if streams { begun } else { total }));
        }
        if at > 0 {
            return Scan::Demand(Demand {
                bytes: at,
                rest: 0,
                class,
                closed: false,
            });
        }
        let (class, closed) = match header.kind {
            frontend::BIND => (self.class_of_bind(body, false), false),
            frontend::PARSE => (StatementClass::UNREAD, false),
            _ => (StatementClass::UNREAD, true),
        };
        Scan::Demand(Demand {
            bytes: bytes.len(),
            rest: total - bytes.len(),
            class,
            closed,
        })
    }

    fn class_of_text(&self, text: &[u8], local: &mut Local) -> StatementClass {
        if text.len() > self.size_max || self.turning {
            return StatementClass::UNREAD;
        }
        self.catalog.class_of(text, self.reading, &mut local.classes)
    }

    /// `before`: the class of what stands before it in the same batch.
    fn class_of_parse(&mut self, body: &[u8], before: StatementClass, local: &mut Local) -> StatementClass {
        let Some(parts) = parse_parts(body) else {
            return StatementClass::UNREAD;
        };
        let (text, types) = (&body[parts.text], &body[parts.types]);
        let mut earlier = self.parsed.iter();
        let turns = before.changes_names()
            && earlier.any(|statement| {
                changes_reading(statement.text()) && self.class_of_statement(statement).changes_names()
            });
        let mut meaning = self.statements.meaning(self.epoch);
        let ends_moment = before.control != Control::None && self.statements.has_moment();
        if before.changes_names() || ends_moment || self.moves {
            meaning = meaning.afresh();
        } else if before.is_opaque() {
            meaning = meaning.afresh_for_constants();
        }
        let mut statement = local.statements.statement(self.registry, meaning, text, types);
        let class = if turns || self.turning {
            StatementClass::UNREAD
        } else {
            self.class_of_statement(&statement)
        };
        if class.executes() {
            // It answers with the columns of what its own client has prepared under that name.
            statement = self.registry.statement(meaning.afresh(), text, types);
        }
        self.parsed.push(statement);
        class
    }

    /// `unnamed_is_new`: whether the unnamed statement was parsed before it in the same request, and counts already.
    fn class_of_bind(&self, body: &[u8], unnamed_is_new: bool) -> StatementClass {
        let Some(names) = bind_names(body) else {
            return StatementClass::UNREAD;
        };
        let statement = match &body[names.statement] {
            b"" if unnamed_is_new => None,
            b"" => self.statements.unnamed.as_ref(),
            name => self.statements.named(name),
        };
        // A name that is not known was given by a Parse of the same request, which counts already, or does
        // not exist, which any node can tell.
        statement.map_or(StatementClass::NOTHING, |statement| {
            self.class_of_statement(statement)
        })
    }

    /// The class of a batch that begins with BEGIN. Where a SET TRANSACTION READ ONLY behind it is run in the same batch, it is
    /// that of BEGIN READ ONLY and of what else there is, as the two have it in one text. `None` where none is run.
    fn class_of_block(&self, bytes: &[u8]) -> Option<StatementClass> {
        const OPENS_READ_ONLY: StatementClass = StatementClass {
            rule: Rule::OpensReadOnlyTransaction,
            control: Control::Begins,
            ..StatementClass::NOTHING
        };
        let mut statements = self.parsed.iter();
        let mut block = StatementClass::NOTHING;
        // What was parsed last, and what is bound.
        let mut parsed: (&[u8], StatementClass) = (b"", StatementClass::NOTHING);
        let mut bound = StatementClass::NOTHING;
        let (mut opens, mut reads_only) = (false, false);
        let mut at = 0;
        while let Ok(Some(header)) = Header::parse(&bytes[at..]) {
            let body = &bytes[at + HEADER_SIZE..at + header.total()];
            at += header.total();
            match header.kind {
                frontend::PARSE => {
                    let name = &body[parse_parts(body)?.name];
                    parsed = (name, self.class_of_statement(statements.next()?));
                    if !is_of_block(parsed.1) {
                        block = block.and(parsed.1);
                    }
                }
                frontend::BIND => {
                    let name = &body[bind_names(body)?.statement];
                    bound = if name == parsed.0 && parsed.1.rule != Rule::Empty {
                        parsed.1
                    } else {
                        self.class_of_bind(body, false)
                    };
                    if !is_of_block(bound) {
                        block = block.and(bound);
                    }
                }
                frontend::EXECUTE if bound.rule == Rule::OpensTransaction => opens = true,
                frontend::EXECUTE => reads_only |= opens && bound.rule == Rule::SetsReadOnlyTransaction,
                _ => {}
            }
        }
        reads_only.then(|| OPENS_READ_ONLY.and(block))
    }

    fn class_of_statement(&self, statement: &Statement) -> StatementClass {
        // What is remembered with a statement holds for sessions that read texts the usual way.
        if !self.reading.standard_conforming_strings {
            return self.catalog.class_afresh(statement.text(), self.reading);
        }
        statement.class(self.catalog.generation(), |text| {
            self.catalog.class_afresh(text, self.reading)
        })
    }
}

/// Whether a message of which this has come names a statement of Halyard's own: what a client puts there, or takes away,
/// others would run or miss.
fn names_own(kind: u8, body: &[u8]) -> bool {
    match kind {
        frontend::PARSE => body.starts_with(OWN_NAMES),
        frontend::BIND => {
            let portal = body.iter().position(|&byte| byte == 0);
            portal.is_some_and(|end| body[end + 1..].starts_with(OWN_NAMES))
        }
        frontend::DESCRIBE | frontend::CLOSE => {
            matches!(body.split_first(), Some((b'S', name)) if name.starts_with(OWN_NAMES))
        }
        _ => false,
    }
}

/// Whether a statement does nothing but open a block, or say that it reads only.
fn is_of_block(class: StatementClass) -> bool {
    match class.rule {
        _ if class.hinted => false,
        Rule::OpensTransaction => class.control == Control::Begins,
        Rule::SetsReadOnlyTransaction => class.control == Control::None && class.effects.is_empty(),
        _ => false,
    }
}

/// A request of so many bytes, all of which have come.
fn whole(bytes: usize, class: StatementClass, closed: bool) -> Scan {
    Scan::Demand(Demand {
        bytes,
        rest: 0,
        class,
        closed,
    })
}

/// Waits for the rest of a frame that begins `at` bytes in.
fn wait(at: usize, frame: Option<usize>) -> Scan {
    Scan::Wait {
        frame: at + frame.unwrap_or(HEADER_SIZE),
    }
}

/// Whether a frame belongs to the same extended-protocol batch as the frames before it.
fn continues_batch(kind: u8) -> bool {
    matches!(
        kind,
        frontend::PARSE
            | frontend::BIND
            | frontend::DESCRIBE
            | frontend::EXECUTE
            | frontend::CLOSE
            | frontend::SYNC
            | frontend::FLUSH
    )
}

/// In COPY mode: as many CopyData frames as have begun, or one of whatever else it is.
fn in_copy(bytes: &[u8], first: Header) -> Scan {
    if first.kind == frontend::TERMINATE && bytes.len() >= first.total() {
        return Scan::Terminate;
    }
    if first.kind != frontend::COPY_DATA {
        let present = bytes.len().min(first.total());
        if present < first.total() && first.total() <= STREAMED_ABOVE {
            return Scan::Wait { frame: first.total() };
        }
        return Scan::Demand(Demand {
            bytes: present,
            rest: first.total() - present,
            class: StatementClass::NOTHING,
            closed: false,
        });
    }
    let mut end = first.total();
    while let Some(rest) = bytes.get(end..) {
        match Header::parse_frontend(rest) {
            Ok(Some(header)) if header.kind == frontend::COPY_DATA => end += header.total(),
            _ => break,
        }
    }
    Scan::Copy { bytes: end }
}

/// A standby refused the request at the start of `bytes` as a write: its texts are taken for writes from now on.
pub(super) fn learn_write(
    bytes: &[u8],
    statements: &ClientStatements,
    catalog: &Catalog,
    epoch: Epoch,
    reading: &Reading,
    registry: &StatementRegistry,
    local: &mut Local,
) {
    let learned = StatementClass {
        access: Access::Write,
        rule: Rule::LearnedWrite,
        ..StatementClass::NOTHING
    };
    let learn = |statement: &Statement, classes: &mut ClassCaches| {
        let class = catalog.class_afresh(statement.text(), reading);
        let class = StatementClass {
            access: learned.access,
            rule: learned.rule,
            repeatable: false,
            ..class
        };
        statement.learn(catalog.generation(), class);
        if names_a_moment(statement.text()) {
            // The next that is prepared of it is another.
            catalog.learn_write(statement.text(), reading, classes);
        }
    };
    let mut unnamed_is_new = false;
    let mut at = 0;
    while let Ok(Some(header)) = Header::parse(&bytes[at..]) {
        let Some(frame) = bytes.get(at..at + header.total()) else {
            return;
        };
        at += header.total();
        let body = &frame[HEADER_SIZE..];
        match header.kind {
            frontend::QUERY => {
                let text = body.strip_suffix(&[0]).unwrap_or(body);
                return catalog.learn_write(text, reading, &mut local.classes);
            }
            frontend::PARSE => {
                if let Some(parts) = parse_parts(body) {
                    unnamed_is_new |= parts.name.is_empty();
                    let statement = local.statements.statement(
                        registry,
                        statements.meaning(epoch),
                        &body[parts.text],
                        &body[parts.types],
                    );
                    learn(&statement, &mut local.classes);
                }
            }
            frontend::BIND => {
                let Some(names) = bind_names(body) else { return };
                let statement = match &body[names.statement] {
                    b"" if unnamed_is_new => None,
                    b"" => statements.unnamed.as_ref(),
                    name => statements.named(name),
                };
                if let Some(statement) = statement {
                    learn(statement, &mut local.classes);
                }
            }
            frontend::SYNC => return,
            _ => {}
        }
    }
}
