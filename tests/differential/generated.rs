//! Exchanges made up by chance: steps of six clients on four backends, any of them after any other.
//!
//! No step can block: locks are only tried, and clients write rows of their own. Clients `a` and `b` may hold backends
//! (blocks, temporary tables, cursors, locks); `c` to `f` may not. A failure is made as short as it can be and printed
//! as a hand-written exchange.
//!
//! `HALYARD_DIFFERENTIAL_CASES` is the number of exchanges, `HALYARD_DIFFERENTIAL_SEED` the seed of one run to repeat.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::known::{self, Scope};
use super::language::{Exchange, Step};
use super::stage::Stage;

/// Exchanges in an ordinary run.
const CASES: u32 = 400;
/// Exchanges in which a kind of step that is known to differ has to show it.
const KNOWN_CASES: u32 = 100;
const STEPS_MAX: usize = 32;
/// The clients that may hold backends.
const HOLDERS: [char; 2] = ['a', 'b'];
/// The last client of an ordinary exchange: they are more than backends.
const LAST: char = 'f';
/// The last client where each may keep a backend.
const LAST_KEEPER: char = 'd';
/// A failure that makes clients wait takes seconds each time.
const SHRINKS_MAX: u32 = 400;
const SHRINK_LIMIT_MS: u32 = 90_000;

/// What a step is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Error,
    Prepared,
    Unnamed,
    LocalSetting,
    Setting,
    CustomSetting,
    /// A setting whose name is not in the text.
    ComputedSetting,
    Role,
    SqlPrepare,
    Listen,
    Notify,
    Block,
    Write,
    Cursor,
    HoldCursor,
    Temporary,
    Lock,
    Discard,
    MixedNames,
    Sequence,
    Function,
}

/// Steps without the name of their client. `{n}` is 1 or 2, `{s}` a setting with a value, `{g}` its name, `{c}` the
/// client's name.
const STEPS: &[(Kind, &str)] = &[
    (Kind::Read, ": SELECT a, b FROM t ORDER BY a LIMIT {n}"),
    (Kind::Read, ": SELECT count(*) FROM log; SELECT {n}"),
    (
        Kind::Read,
        "> parse - SELECT a FROM t ORDER BY a | bind - - | describe portal - | execute - {n} | execute - | sync",
    ),
    (Kind::Read, ": SHOW {g}"),
    (Kind::Read, ": SELECT current_setting('{g}')"),
    (Kind::Read, ": ;"),
    (Kind::Read, "> sync"),
    (Kind::Read, "> query SELECT 1 | query SELECT 2"),
    (Kind::Error, ": SELECT 1/0"),
    (Kind::Error, ": SELECT {n}; SELECT nothing; SELECT 3"),
    (
        Kind::Error,
        "> parse - SELECT 1/0 | bind - - | execute - | parse p{n} SELECT 'unreached' | sync",
    ),
    (Kind::Error, "> parse p{n} SELEC | sync"),
    (Kind::Error, "> bind - never | execute - | sync"),
    (Kind::Prepared, "> parse p{n} SELECT $1::int + {n} | sync"),
    (
        Kind::Prepared,
        "> parse p{n}(text) SELECT $1 || '{c}' | describe statement p{n} | sync",
    ),
    (
        Kind::Prepared,
        "> bind - p{n} 4 | describe portal - | execute - | sync",
    ),
    (
        Kind::Prepared,
        "> bind - p{n} 4 | execute - | bind - p1 5 | execute - | bind - p2 6 | execute - | sync",
    ),
    (Kind::Prepared, "> describe statement p{n} | sync"),
    (Kind::Prepared, "> close statement p{n} | sync"),
    (
        Kind::Prepared,
        "> close statement p{n} | parse p{n} SELECT '{c}', $1::int | bind - p{n} 1 | execute - | sync",
    ),
    (
        Kind::Prepared,
        "> parse p{n} SELECT current_setting('{g}') | bind - p{n} | execute - | close statement p{n} | sync",
    ),
    // Batches in one write, of which the first fails.
    (
        Kind::Prepared,
        "> bind - never | parse p{n} SELECT $1::int + {n} | sync | bind - p{n} 4 | execute - | sync",
    ),
    (
        Kind::Prepared,
        "> parse - SELECT 1/0 | bind - - | execute - | parse p{n} SELECT $1::int, '{c}' | sync | parse p1 SELECT $1::int, '{c}' | bind - p1 3 | execute - | sync",
    ),
    (
        Kind::Prepared,
        "> close statement p{n} | bind - never | sync | describe statement p{n} | sync | bind - p{n} 5 | execute - | sync",
    ),
    (
        Kind::Unnamed,
        "> bind - never | parse - SELECT $1::int + {n} | sync | bind - - 7 | execute - | sync",
    ),
    (
        Kind::Unnamed,
        "> parse p{n} SELECT 1/0 | bind - p{n} | execute - | bind - - 3 | execute - | sync | bind - - 4 | execute - | sync",
    ),
    (Kind::Unnamed, "> parse - SELECT $1::int + {n} | sync"),
    (Kind::Unnamed, "> bind - - 7 | execute - | sync"),
    (Kind::LocalSetting, ": SET LOCAL {s}"),
    (Kind::LocalSetting, ": BEGIN; SET LOCAL {s}; SHOW {g}; COMMIT"),
    (
        Kind::LocalSetting,
        ": SELECT set_config('work_mem', '{n}1MB', true)",
    ),
    (Kind::Setting, ": SET {s}"),
    (Kind::Setting, ": SET SESSION {s}; SHOW {g}"),
    (Kind::Setting, ": SET {g} TO DEFAULT"),
    (Kind::Setting, ": RESET {g}"),
    (Kind::Setting, ": RESET ALL"),
    (Kind::Setting, ": SET {s}; SELECT 1/0"),
    (Kind::Setting, ": BEGIN; SET {s}; ROLLBACK"),
    (
        Kind::Setting,
        ": BEGIN; SET {s}; SAVEPOINT x; SET work_mem = '{n}2MB'; ROLLBACK TO x; COMMIT",
    ),
    (Kind::Setting, ": SELECT set_config('work_mem', '{n}3MB', false)"),
    (
        Kind::ComputedSetting,
        "> parse - SELECT set_config($1, $2, false) | bind - - lock_timeout {n}77 | execute - | sync",
    ),
    (Kind::Setting, "> parse - SET {s} | bind - - | execute - | sync"),
    (
        Kind::Setting,
        "> parse - SET {s} | bind - - | execute - | parse - SELECT 1/0 | bind - - | execute - | sync",
    ),
    (Kind::CustomSetting, ": SET app.{c} = 'it''s {n}'"),
    (
        Kind::CustomSetting,
        ": SELECT coalesce(nullif(current_setting('app.{c}', true), ''), 'none')",
    ),
    (Kind::CustomSetting, ": RESET app.{c}"),
    (Kind::Role, ": SET ROLE reader"),
    (Kind::Role, ": SET ROLE NONE"),
    (Kind::Role, ": SELECT current_user, session_user"),
    (Kind::SqlPrepare, ": PREPARE q{n} AS SELECT '{c}', {n}"),
    (Kind::SqlPrepare, ": EXECUTE q{n}"),
    (Kind::SqlPrepare, ": DEALLOCATE q{n}"),
    (
        Kind::SqlPrepare,
        ": SELECT name FROM pg_prepared_statements WHERE from_sql ORDER BY name",
    ),
    (Kind::Listen, ": LISTEN c{n}"),
    (Kind::Listen, ": UNLISTEN c{n}"),
    (Kind::Listen, ": UNLISTEN *"),
    (Kind::Listen, ": BEGIN; LISTEN c{n}; ROLLBACK"),
    (
        Kind::Listen,
        ": SELECT c FROM pg_listening_channels() c ORDER BY c",
    ),
    (Kind::Notify, ": NOTIFY c{n}, '{c}'"),
    (Kind::Notify, ": SELECT pg_notify('c{n}', 'from {c}')"),
    (
        Kind::Notify,
        ": BEGIN; NOTIFY c1, 'one'; NOTIFY c2, 'two'; NOTIFY c1, 'one'; COMMIT",
    ),
    (Kind::Notify, ": BEGIN; NOTIFY c{n}, 'never'; ROLLBACK"),
    (Kind::Block, ": BEGIN"),
    (Kind::Block, ": COMMIT"),
    (Kind::Block, ": ROLLBACK"),
    (Kind::Block, ": SAVEPOINT s{n}"),
    (Kind::Block, ": ROLLBACK TO s{n}"),
    (Kind::Block, ": RELEASE s{n}"),
    (Kind::Block, ": COMMIT AND CHAIN"),
    (Kind::Block, ": COMMIT; BEGIN"),
    (Kind::Block, "> parse - BEGIN | bind - - | execute - | sync"),
    (Kind::Block, "> parse - COMMIT | bind - - | execute - | sync"),
    (
        Kind::Block,
        "> parse p{n} ROLLBACK | bind - p{n} | execute - | close statement p{n} | sync",
    ),
    (Kind::Write, ": INSERT INTO log (what) VALUES ('{c}')"),
    (
        Kind::Write,
        "> parse - INSERT INTO log (what) VALUES ($1) RETURNING n | bind - - {c} | execute - | sync",
    ),
    (Kind::Write, ": DELETE FROM log WHERE what = '{c}'"),
    (
        Kind::Cursor,
        ": DECLARE k{n} CURSOR FOR SELECT a FROM t ORDER BY a",
    ),
    (Kind::Cursor, ": FETCH {n} FROM k{n}"),
    (Kind::Cursor, ": CLOSE k{n}"),
    (
        Kind::Cursor,
        "> parse - SELECT a FROM t ORDER BY a | bind k{n} - | execute k{n} 1 | sync",
    ),
    (Kind::Cursor, "> execute k{n} 1 | sync"),
    (
        Kind::HoldCursor,
        ": DECLARE k{n} CURSOR WITH HOLD FOR SELECT a FROM t ORDER BY a",
    ),
    (Kind::HoldCursor, ": CLOSE ALL"),
    (Kind::Temporary, ": CREATE TEMP TABLE mine{n} (a int)"),
    (
        Kind::Temporary,
        ": CREATE TEMP TABLE mine{n} (a int) ON COMMIT DROP",
    ),
    (
        Kind::Temporary,
        ": CREATE TEMP TABLE IF NOT EXISTS mine{n} AS SELECT {n} AS a",
    ),
    (Kind::Temporary, ": INSERT INTO mine{n} VALUES (1)"),
    (Kind::Temporary, ": SELECT count(*) FROM mine{n}"),
    (Kind::Temporary, ": DROP TABLE mine{n}"),
    (Kind::Temporary, ": DISCARD TEMP"),
    (Kind::Lock, ": SELECT pg_try_advisory_lock({n})"),
    (Kind::Lock, ": SELECT pg_try_advisory_lock_shared({n})"),
    (Kind::Lock, ": SELECT pg_advisory_unlock({n})"),
    (Kind::Lock, ": SELECT pg_advisory_unlock_all()"),
    (Kind::Lock, ": SELECT pg_try_advisory_xact_lock({n})"),
    (Kind::Discard, ": DISCARD ALL"),
    (Kind::Discard, ": DISCARD PLANS"),
    (Kind::MixedNames, ": EXECUTE p{n} (1)"),
    (Kind::MixedNames, ": DEALLOCATE p{n}"),
    (Kind::MixedNames, ": DEALLOCATE ALL"),
    (Kind::MixedNames, "> bind - q{n} | execute - | sync"),
    (Kind::MixedNames, "> parse q{n} SELECT 'of the protocol' | sync"),
    (Kind::Sequence, ": SELECT nextval('s')"),
    (Kind::Sequence, ": SELECT nextval('s2')"),
    (Kind::Sequence, ": SELECT currval('s')"),
    (Kind::Sequence, ": SELECT currval('s2')"),
    (Kind::Sequence, ": SELECT lastval()"),
    (Kind::Sequence, ": SELECT setval('s', {n}0)"),
    (
        Kind::Sequence,
        ": INSERT INTO log (what) VALUES ('{c}'); SELECT currval('log_n_seq')",
    ),
    (
        Kind::Sequence,
        "> parse - SELECT lastval(), currval('log_n_seq') | bind - - | execute - | sync",
    ),
    (Kind::Sequence, ": DISCARD SEQUENCES"),
    (Kind::Function, ": SELECT set_it('work_mem', '{n}4MB')"),
    (Kind::Function, ": SELECT make_temp('mine{n}')"),
    (Kind::Function, ": SELECT unlock_it({n})"),
];

const SETTINGS: &[(&str, &[&str])] = &[
    ("work_mem", &["'5MB'", "'6MB'", "'nonsense'"]),
    ("application_name", &["'{c}'", "'it''s'", "''"]),
    ("datestyle", &["'German'", "'SQL, DMY'"]),
    ("timezone", &["'Asia/Tokyo'", "'-3'"]),
    ("search_path", &["other, public", "''", "\"$user\", public"]),
    ("intervalstyle", &["'iso_8601'"]),
    ("default_transaction_isolation", &["'repeatable read'"]),
    ("statement_timeout", &["50000", "'1min'"]),
    ("client_min_messages", &["error", "notice"]),
    ("bytea_output", &["'escape'"]),
    ("extra_float_digits", &["0", "99"]),
];

/// Where a step is in [`STEPS`], and what stands for its braces.
type Choice = (usize, u8, u8);

/// A step as a line of an exchange.
fn line(client: char, (step, number, setting): Choice) -> String {
    let (name, values) = SETTINGS[usize::from(setting) % SETTINGS.len()];
    let text = STEPS[step].1;
    // A wrong value (none is the first) would leave a block open that is opened and ended in one message.
    let value = match text.contains("BEGIN") {
        true => values[0],
        false => values[usize::from(number) % values.len()],
    };
    let text = text
        .replace("{s}", &format!("{name} = {value}"))
        .replace("{g}", name)
        .replace("{n}", if number % 2 == 0 { "1" } else { "2" })
        .replace("{c}", &client.to_string());
    format!("{client}{text}")
}

/// The steps that a client may take, given who may take which kind.
fn steps_of(holds: bool, scope: impl Fn(Kind) -> Scope) -> Vec<usize> {
    let may = |kind| match scope(kind) {
        Scope::Everyone => true,
        Scope::Holders => holds,
        Scope::Nobody => false,
    };
    (0..STEPS.len()).filter(|step| may(STEPS[*step].0)).collect()
}

fn script(clients: char, scope: impl Fn(Kind) -> Scope) -> impl Strategy<Value = Vec<String>> {
    let clients = ('a'..=clients).map(|client| {
        let steps = proptest::sample::select(steps_of(HOLDERS.contains(&client), &scope));
        (steps, 0..6_u8, 0..22_u8)
            .prop_map(move |choice| line(client, choice))
            .boxed()
    });
    proptest::collection::vec(proptest::strategy::Union::new(clients), 1..STEPS_MAX)
}

fn exchange(lines: &[String]) -> Exchange {
    Exchange {
        name: "generated".to_owned(),
        steps: lines.iter().map(|line| Step::parse(line)).collect(),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first exchange found that shows a difference, made shorter in so many tries, with its report.
fn search(
    (stage, clients): (&RefCell<Stage>, char),
    seed: u64,
    (cases, shrinks): (u32, u32),
    scope: impl Fn(Kind) -> Scope,
) -> Option<String> {
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: shrinks,
        max_shrink_time: SHRINK_LIMIT_MS,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&script(clients, scope), |lines| {
        match stage.borrow_mut().compare(&exchange(&lines)) {
            None => Ok(()),
            Some(difference) => Err(TestCaseError::fail(difference.report)),
        }
    });
    match outcome {
        Ok(()) => None,
        Err(TestError::Fail(report, lines)) => {
            let lines = lines.join("\n");
            Some(format!("== generated by seed {seed}\n{lines}\n\n{report}"))
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn exchanges_made_up_by_chance() {
    play_many(Stage::crowded("generated"), LAST, known::scope);
}

/// With clients that draw from sequences and ask what they have drawn, which keeps their backends; hence apart.
#[test]
fn exchanges_with_sequences_made_up_by_chance() {
    play_many(
        Stage::drawing("generated_sequences"),
        LAST_KEEPER,
        |kind| match kind {
            Kind::Sequence => Scope::Everyone,
            kind => known::scope(kind),
        },
    );
}

fn play_many(stage: Stage, clients: char, scope: impl Fn(Kind) -> Scope) {
    let seed = number("HALYARD_DIFFERENTIAL_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    let cases = number("HALYARD_DIFFERENTIAL_CASES").map_or(CASES, |cases| u32::try_from(cases).unwrap());
    eprintln!("HALYARD_DIFFERENTIAL_SEED={seed}");
    let stage = RefCell::new(stage);
    if let Some(report) = search((&stage, clients), seed, (cases, SHRINKS_MAX), scope) {
        panic!("{report}");
    }
}

/// What generated exchanges leave out because it differs must still differ.
#[test]
fn kinds_of_steps_that_are_known_to_differ() {
    let stage = RefCell::new(Stage::crowded("generated_known"));
    for known in known::STEPS {
        let scope = |kind| {
            if kind == known.kind {
                Scope::Everyone
            } else if kind == Kind::Read || known.with.contains(&kind) {
                known::scope(kind)
            } else {
                Scope::Nobody
            }
        };
        let report = search((&stage, LAST), 1, (KNOWN_CASES, 0), scope);
        assert!(
            report.is_some(),
            "{:?} shows no difference any more; strike it from the known ones: {}",
            known.kind,
            known.reason
        );
    }
}
