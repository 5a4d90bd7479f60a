//! The exchanges in which a client can tell Halyard from a server, each with the reason.
//!
//! Every one of them is played, and the tests fail if it shows no difference any more: then its line has to go.

use super::generated::Kind;

/// An exchange that is known to differ.
pub(crate) struct Known {
    /// Its theme and name.
    pub(crate) exchange: &'static str,
    /// The steps whose answers differ, counted from 1; in session pooling it may be fewer. Any other difference is none
    /// that is known.
    pub(crate) steps: &'static [usize],
    pub(crate) reason: &'static str,
}

/// What never can or shall be the same. `docs/sessions.md` has the same list in words.
pub(crate) const BY_DESIGN: &[Known] = &[
    Known {
        exchange: "prepared/pg_prepared_statements",
        steps: &[2, 3],
        reason: "a backend shows what Halyard prepared on it, under Halyard's names",
    },
    Known {
        exchange: "settings/a custom setting that somebody has used",
        steps: &[5],
        reason: "PostgreSQL never forgets a custom setting's name: where any client used it, it is empty instead of unknown",
    },
    Known {
        exchange: "temporary/pg_my_temp_schema",
        steps: &[1],
        reason: "a backend may have a temporary schema before its client makes a temporary object",
    },
    Known {
        exchange: "messages/a client that does not exist is refused",
        steps: &[1],
        reason: "an error of Halyard's own login says which node refused it",
    },
    Known {
        exchange: "messages/a database that does not exist is refused",
        steps: &[1],
        reason: "an error of Halyard's own login says which node refused it",
    },
    Known {
        exchange: "messages/an error in a batch without its end",
        steps: &[1, 2],
        reason: "a batch is sent on when it is whole: at its Sync or Flush",
    },
    Known {
        exchange: "prepared/parse of a text whose table is gone",
        steps: &[3, 4],
        reason: "a Parse of a text that is prepared already is not asked of the server: the Bind or Describe behind it tells",
    },
    Known {
        exchange: "prepared/an outdated statement whose result is described",
        steps: &[4, 5],
        reason: "prepared again where the client is told of the new columns anyway",
    },
    Known {
        exchange: "settings/what stands behind a reset in one message",
        steps: &[3],
        reason: "a backend's reset value is the server's: the client's startup value is given back behind the message (ADR 21)",
    },
];

/// What should be the same and is not yet.
pub(crate) const NOT_YET: &[Known] = &[];

/// What differs only now and then, when one thing happens before another: beginnings of exchanges' names.
pub(crate) const SOMETIMES: &[(&str, &str)] = &[
    (
        "notify/through functions",
        "what a function listens to is heard from a moment behind its answer on",
    ),
    (
        "transactions/the first question for what was drawn",
        "the first question for what was drawn teaches Halyard that clients ask: it is answered where the backend was free",
    ),
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
pub(crate) const STEPS: &[KnownStep] = &[step(
    Kind::SqlPrepare,
    Scope::Holders,
    &[Kind::Block],
    "PREPARE pins",
)];

/// Who takes steps of a kind.
pub(crate) fn scope(kind: Kind) -> Scope {
    if let Some(known) = STEPS.iter().find(|known| known.kind == kind) {
        return known.scope;
    }
    match kind {
        // These hold a backend by their nature, or may (a Bind of a statement of SQL); of a function nobody knows.
        Kind::Block
        | Kind::Cursor
        | Kind::HoldCursor
        | Kind::Temporary
        | Kind::Lock
        | Kind::MixedNames
        | Kind::ComputedSetting
        | Kind::Function => Scope::Holders,
        // Where somebody asks what was drawn, whoever draws keeps a backend as far as there are enough of them.
        Kind::Sequence => Scope::Nobody,
        _ => Scope::Everyone,
    }
}

/// What is known of the exchange `theme/name`.
pub(crate) fn known(exchange: &str) -> Option<&'static Known> {
    BY_DESIGN
        .iter()
        .chain(NOT_YET)
        .find(|known| known.exchange == exchange)
}
