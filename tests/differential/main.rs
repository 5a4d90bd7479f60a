//! An application must not be able to tell Halyard from a server of its own.
//!
//! The same exchanges are played on a server and, through Halyard in transaction pooling with fewer backends than
//! clients, on its twin; every message that comes back is compared. They are written in [`language`], one file for a
//! theme in `exchanges/`; more of them are [`generated`]. What differs, and why, is in [`known`].
//!
//! `HALYARD_EXCHANGE=theme/name` plays one exchange alone and shows all of it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, unused_imports, reason = "the integration tests use the rest")]
#[path = "../support/mod.rs"]
mod support;

mod generated;
mod known;
mod language;
mod player;
mod server;
mod stage;
mod transcript;

use std::fmt::Write as _;

use stage::Stage;

/// Plays all exchanges of a theme, in transaction pooling or in session pooling.
#[track_caller]
fn theme(name: &str, text: &str, in_sessions: bool) {
    let only = std::env::var("HALYARD_EXCHANGE").ok();
    let mut stage = if in_sessions {
        Stage::in_sessions(name)
    } else {
        Stage::new(name)
    };
    let (mut failures, mut failed, mut played) = (String::new(), 0, 0);
    for exchange in language::exchanges(text) {
        let full = format!("{name}/{}", exchange.name);
        if only.as_ref().is_some_and(|only| *only != full) {
            continue;
        }
        played += 1;
        let difference = stage.compare(&exchange);
        if let (Some(difference), Some(_)) = (&difference, &only) {
            eprintln!("{}", difference.report);
        }
        if known::SOMETIMES.iter().any(|(known, _)| full.starts_with(known)) {
            continue;
        }
        let wrong = match (difference, known::known(&full)) {
            (None, None) => continue,
            (Some(found), Some(known)) if found.is_as_known(known.steps, in_sessions) => continue,
            (Some(found), Some(known)) => format!(
                "it differs in its steps {:?}{}, and is known to differ in {:?} alone\n{}",
                found.steps,
                if found.besides { " and besides" } else { "" },
                known.steps,
                found.report
            ),
            (Some(found), None) => found.report,
            (None, Some(_)) if in_sessions => continue,
            (None, Some(known)) => {
                format!(
                    "it shows no difference any more; strike it from the known ones: {}\n",
                    known.reason
                )
            }
        };
        failed += 1;
        let _ = write!(failures, "\n== {full}\n{wrong}");
    }
    assert!(
        failed == 0,
        "{failed} of {played} exchanges of {name}\n{failures}"
    );
}

macro_rules! themes {
    ($in_sessions:literal: $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                let text = include_str!(concat!("exchanges/", stringify!($name), ".txt"));
                $crate::theme(stringify!($name), text, $in_sessions);
            }
        )*
    };
}

themes!(
    false: copy,
    cursors,
    hidden,
    locks,
    messages,
    notify,
    prepared,
    sequences,
    settings,
    temporary,
    transactions,
);

/// In session pooling, what a session leaves on its backend.
mod in_sessions {
    themes!(true: cursors, locks, notify, prepared, settings, temporary, transactions);
}
