//! The exchanges in which a client can tell Halyard from a server, each with the reason.
//!
//! Every one of them is played, and the tests fail if it shows no difference any more: then its line has to go.

use super::generated::Kind;

/// What never can or shall be the same. `docs/sessions.md` has the same list in words.
pub(crate) const BY_DESIGN: &[(&str, &str)] = &[
    (
        "prepared/pg_prepared_statements",
        "a backend shows what Halyard prepared on it, under Halyard's names",
    ),
    (
        "settings/a custom setting that somebody has used",
        "PostgreSQL never forgets a custom setting's name: where any client used it, it is empty instead of unknown",
    ),
    (
        "temporary/pg_my_temp_schema",
        "a backend may have a temporary schema before its client makes a temporary object",
    ),
    (
        "sequences/a sequence of a cache",
        "each backend draws its own range of a sequence with a cache",
    ),
    (
        "messages/a client that does not exist is refused",
        "an error of Halyard's own login says which node refused it",
    ),
    (
        "messages/a database that does not exist is refused",
        "an error of Halyard's own login says which node refused it",
    ),
    (
        "messages/an error in a batch without its end",
        "a batch is sent on when it is whole: at its Sync or Flush",
    ),
];

const FUNCTIONS: &str = "what a function or DO block leaves in its session is cleaned away and does not pin";
const RESET: &str = "RESET goes to the server's default instead of the startup value";
const NO_UNPIN: &str = "a pin ends only with its session";
const SEQUENCES: &str = "a drawn sequence does not pin, so currval and lastval meet another backend";
const READ_ONLY: &str = "ParameterStatus of default_transaction_read_only is told by role alone";
const SQL_NAMES: &str = "SQL and the protocol do not see each other's statements";
const SHAPE: &str = "prepared again on another backend, a statement answers in its new shape without 0A000";
const TERMINATE: &str = "answers to what stands in front of Terminate are not delivered";

/// What should be the same and is not yet.
pub(crate) const NOT_YET: &[(&str, &str)] = &[
    (
        "settings/four clients with settings of their own on two backends",
        "SET pins",
    ),
    ("settings/parameter status of everything reported", READ_ONLY),
    ("settings/set session characteristics", READ_ONLY),
    ("settings/default read only and a block that writes", READ_ONLY),
    ("settings/set_config within a function", FUNCTIONS),
    ("settings/set within a do block", FUNCTIONS),
    (
        "settings/update of pg_settings",
        "the rule on the view sets, and the statement is not seen to",
    ),
    ("settings/startup options", RESET),
    ("settings/startup parameters of the reported kind", RESET),
    ("settings/reset goes back to the startup parameter", RESET),
    (
        "prepared/the unnamed statement stays until the next",
        "another client's lone Parse takes it away",
    ),
    (
        "prepared/wrong numbers of parameters",
        "errors name Halyard's statements",
    ),
    ("prepared/sql execute of a statement of the protocol", SQL_NAMES),
    ("prepared/bind of a statement of sql", SQL_NAMES),
    ("prepared/a name of sql and the protocol at once", SQL_NAMES),
    (
        "prepared/deallocate of a statement of the protocol in the extended protocol",
        SQL_NAMES,
    ),
    ("prepared/deallocate all in the extended protocol", SQL_NAMES),
    (
        "prepared/deallocate within a message of several statements",
        SQL_NAMES,
    ),
    ("prepared/deallocate within a block rolled back", SQL_NAMES),
    (
        "prepared/discard all in a message of several statements",
        "it fails, and the statements are forgotten all the same",
    ),
    ("prepared/prepare within a function", FUNCTIONS),
    ("prepared/after a column was added", SHAPE),
    ("prepared/after a column's type was changed", SHAPE),
    (
        "prepared/parse of a text whose table is gone",
        "a Parse of a known text is not asked of the server",
    ),
    ("cursors/with hold closed gives the backend back", NO_UNPIN),
    ("temporary/dropped gives the backend back", NO_UNPIN),
    ("locks/given back gives the backend back", NO_UNPIN),
    ("locks/tried in vain", "a try that got no lock pins"),
    ("temporary/through a function", FUNCTIONS),
    ("temporary/through a do block", FUNCTIONS),
    ("temporary/through a function in a block", FUNCTIONS),
    ("locks/within a function", FUNCTIONS),
    ("locks/within a do block", FUNCTIONS),
    ("notify/through functions", FUNCTIONS),
    ("notify/three listeners on two backends", "LISTEN pins"),
    (
        "copy/a query while copying in",
        "a violation of the protocol is taken for the loss of the node",
    ),
    ("messages/terminate behind a request", TERMINATE),
    ("messages/terminate behind a pipeline", TERMINATE),
    ("sequences/nextval and currval", SEQUENCES),
    ("sequences/three clients", SEQUENCES),
    ("sequences/lastval of the last sequence", SEQUENCES),
    ("sequences/a rollback takes no value back", SEQUENCES),
    ("sequences/setval", SEQUENCES),
    ("sequences/through a function", SEQUENCES),
    ("sequences/discard sequences", SEQUENCES),
    ("sequences/discard all", SEQUENCES),
];

/// Who takes steps of a kind in generated exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Everyone,
    /// Only clients that may hold a backend.
    Holders,
    Nobody,
}

/// A kind of step that generated exchanges leave out, or leave to some, for now.
pub(crate) struct KnownStep {
    pub(crate) kind: Kind,
    pub(crate) scope: Scope,
    /// What it has to meet to show the difference.
    pub(crate) with: &'static [Kind],
    pub(crate) reason: &'static str,
}

const fn step(kind: Kind, scope: Scope, with: &'static [Kind], reason: &'static str) -> KnownStep {
    KnownStep {
        kind,
        scope,
        with,
        reason,
    }
}

/// All of them.
pub(crate) const STEPS: &[KnownStep] = &[
    step(Kind::Setting, Scope::Holders, &[Kind::Block], "SET pins"),
    step(Kind::CustomSetting, Scope::Holders, &[Kind::Block], "SET pins"),
    step(Kind::Role, Scope::Holders, &[Kind::Block], "SET pins"),
    step(Kind::SqlPrepare, Scope::Holders, &[Kind::Block], "PREPARE pins"),
    step(Kind::Listen, Scope::Holders, &[Kind::Block], "LISTEN pins"),
    step(
        Kind::Unnamed,
        Scope::Nobody,
        &[],
        "another client's lone Parse takes the unnamed statement away",
    ),
    step(
        Kind::MixedNames,
        Scope::Nobody,
        &[Kind::Prepared, Kind::SqlPrepare],
        SQL_NAMES,
    ),
    step(Kind::Sequence, Scope::Nobody, &[], SEQUENCES),
    step(
        Kind::Function,
        Scope::Nobody,
        &[Kind::Temporary, Kind::Lock],
        FUNCTIONS,
    ),
];

/// Who takes steps of a kind.
pub(crate) fn scope(kind: Kind) -> Scope {
    if let Some(known) = STEPS.iter().find(|known| known.kind == kind) {
        return known.scope;
    }
    match kind {
        // These hold a backend by their nature.
        Kind::Block | Kind::Cursor | Kind::HoldCursor | Kind::Temporary | Kind::Lock => Scope::Holders,
        _ => Scope::Everyone,
    }
}

/// The reason for a known difference in the exchange `theme/name`.
pub(crate) fn reason(exchange: &str) -> Option<&'static str> {
    BY_DESIGN
        .iter()
        .chain(NOT_YET)
        .find(|(known, _)| *known == exchange)
        .map(|(_, reason)| *reason)
}
