//! How a session parts: with its backend, which nobody else may meet as it was left, and with its client.

use std::sync::Arc;
use std::time::Duration;

use super::settings::IDLE_TIMEOUT;
use super::turn::Session;
use crate::classify::SessionEffects;
use crate::error::Report;
use crate::login::send_cancel;
use crate::metrics::Counter;
use crate::pool::{Checkout, Drawn, exchange};
use crate::relay::Link;

/// How long a client may take to read why it has to go.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// How long a backend may take to be cleansed of what its client left behind.
const CLEANSE_LIMIT: Duration = Duration::from_secs(5);

impl Session {
    pub(super) async fn say_farewell(&mut self, report: &Report) {
        use tokio::io::AsyncWriteExt;
        self.counters.add(Counter::of_error(report.sqlstate), 1);
        if self.link.as_ref().is_some_and(Link::mid_frame) {
            // Inside of a message nothing can be said.
            return;
        }
        report.encode(self.client.out.end());
        let farewell = async {
            let stream = &mut self.client.stream;
            stream.write_all(self.client.out.pending()).await?;
            stream.shutdown().await
        };
        // A client that does not listen is gone all the same.
        let _ = tokio::time::timeout(FAREWELL_LIMIT, farewell).await;
    }

    /// The client is gone, and with it what it had on its backend.
    pub(super) fn leave(mut self) {
        self.memory.drawer.give_up();
        let Some(link) = self.link.take() else { return };
        let holds = self.memory.pin.is_some() || link.is_to_be_examined();
        self.part_with(link, holds);
    }

    /// Parts with a backend: what runs is cancelled, what is open is rolled back, what was left is taken away.
    pub(super) fn part_with(&mut self, link: Link, holds: bool) {
        let leftovers = if holds {
            Leftovers::Anything
        } else {
            Leftovers::of(&link)
        };
        if self
            .memory
            .lasting
            .union(link.traces)
            .intersects(SessionEffects::LOAD)
        {
            // No command unloads a library.
            return;
        }
        let cancelling = self.cancelling.take();
        let in_flight = link.in_flight() || !link.backend.out.is_empty();
        if !in_flight && leftovers == Leftovers::Nothing && !link.in_block() && cancelling.is_none() {
            if let Some(settled) = link.backend.settled() {
                link.backend.release(settled);
            }
            return;
        }
        let backend = link.backend;
        let limits = self.app.cancel_limits.clone();
        tokio::spawn(async move {
            if let Some(over) = cancelling {
                // Its sender is dropped, whatever comes of the cancel.
                let _ = over.await;
            }
            if in_flight {
                // What it runs for nobody is ended; its connection goes with it.
                if let Err(error) = send_cancel(&backend.node().target, &backend.key, &limits).await {
                    tracing::warn!(node = %backend.node().name, %error, "a cancel request did not reach the node");
                }
                drop(backend);
            } else {
                cleanse(backend, leftovers).await;
            }
        });
    }
}

/// What a client may have left on a backend besides an open transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leftovers {
    Nothing,
    /// What it listens to.
    Channels,
    /// How long it may be idle: where nobody has it, it is.
    IdleTimeout,
    /// What code that nobody has read can leave: settings, locks, cursors. Prepared statements are Halyard's own.
    Unknown,
    /// Everything that a session can hold.
    Anything,
}

impl Leftovers {
    /// What a client without a pin may have left on its backend.
    pub(super) fn of(link: &Link) -> Self {
        if link.opaque || !link.asides.is_empty() {
            Self::Unknown
        } else if link.heard.brought || link.heard.astray || link.heard.changes {
            Self::Channels
        } else if link.backend.settings.may_idle_out() {
            Self::IdleTimeout
        } else {
            Self::Nothing
        }
    }
}

/// DISCARD ALL without its DEALLOCATE ALL and DISCARD PLANS, and without DISCARD SEQUENCES, which comes before anybody
/// else draws or asks.
const CLEANSE_UNKNOWN: &str = "CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; UNLISTEN *; \
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP";

/// Takes away what a client left on a backend, and gives it back; where that fails, it is closed.
pub(super) async fn cleanse(mut backend: Checkout, leftovers: Leftovers) {
    if backend.ledger.status() != b'I'
        && exchange::ask(&mut backend, "ROLLBACK", CLEANSE_LIMIT)
            .await
            .is_err()
    {
        return;
    }
    if take_away(&mut backend, leftovers).await.is_err() {
        return;
    }
    if let Some(settled) = backend.settled() {
        backend.release(settled);
    }
}

/// Takes away what a client left on a backend outside of any transaction.
///
/// # Errors
/// Where the node does not do it; then the backend has to be closed.
pub(super) async fn take_away(backend: &mut Checkout, leftovers: Leftovers) -> Result<(), Report> {
    let sql = match leftovers {
        Leftovers::Nothing => return Ok(()),
        Leftovers::Channels if !backend.settings.may_idle_out() => "UNLISTEN *",
        Leftovers::Channels => "UNLISTEN *; RESET idle_session_timeout",
        Leftovers::IdleTimeout => "RESET idle_session_timeout",
        Leftovers::Unknown => CLEANSE_UNKNOWN,
        Leftovers::Anything => "DISCARD ALL",
    };
    exchange::ask(backend, sql, CLEANSE_LIMIT).await?;
    match leftovers {
        Leftovers::Unknown | Leftovers::Anything => backend.settings = Arc::default(),
        Leftovers::Nothing | Leftovers::Channels | Leftovers::IdleTimeout => {
            if backend.settings.may_idle_out() {
                let others = backend.settings.with(vec![(IDLE_TIMEOUT.to_owned(), None)]);
                backend.settings = Arc::new(others);
            }
        }
    }
    if leftovers == Leftovers::Anything {
        backend.prepared.clear();
        backend.unnamed = None;
        backend.drawn = Drawn::Nothing;
    }
    Ok(())
}
