//! A transaction block that turns out to belong to another kind of node.
//!
//! Before anything has run in it, a block is as good elsewhere:
//! BEGIN says nothing of READ ONLY, so it is opened on the primary; SET TRANSACTION READ ONLY says it behind. Nothing
//! has been read or written by then, and no snapshot taken: the block is begun on a standby with the same modes, the
//! statement runs there, and the one on the primary is rolled back. The other way round goes a block of a session whose
//! transactions are READ ONLY unless they say otherwise, and one that begins with LISTEN or UNLISTEN.
//!
//! A READ ONLY block can also do what is the primary's alone when it has read on a standby: notify, lock by an advisory
//! lock, ask for a sequence's last value. It moves then too, if each of its statements has its own snapshot
//! (READ COMMITTED) and nothing but reads has run. See `docs/adr/0013-a-block-moves-before-it-runs.md`.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::class::StatementClass;
use super::inbox::{Doing, Presence};
use super::obtain::{Aim, Waited};
use super::part::{Leftovers, cleanse};
use super::turn::{Session, Turn};
use crate::classify::{Access, Rule};
use crate::config::ListenerRole;
use crate::error::{Report, SqlState};
use crate::pool::{Checkout, Draws, exchange};
use crate::relay::{Link, Lost};
use crate::routing::{Route, RouteReason};
use crate::worker;

/// How long the node that a block is on may take to tell its modes.
const MODES_LIMIT: Duration = Duration::from_secs(5);
/// What it is asked. SHOW takes no snapshot, so the modes can still be set behind it.
const MODES: &str = "SHOW transaction_isolation; SHOW transaction_deferrable";

/// Where a block can go on.
enum Place {
    /// Over this backend; whether it is the primary's.
    There(Checkout, bool),
    /// Where it is.
    Here,
    /// Nowhere for now, or the turn is over.
    Over(Turn),
}

impl Session {
    /// Moves the block to the kind of node that the request in hand asks for. Where that cannot be it stays, if it can
    /// run where it is.
    pub(super) async fn move_block(&mut self) -> Turn {
        let (Some(demand), Some(link)) = (self.demand, &mut self.link) else {
            return Turn::Again;
        };
        // It is tried once: where it does not come about, the request runs here.
        let was_empty = std::mem::take(&mut link.block_is_empty);
        link.stays = true;
        // One on its way could hit a question of Halyard's own, or whoever has the backend next.
        self.finish_cancel().await;
        let Some(link) = &mut self.link else {
            return Turn::Again;
        };
        if link.backend.ledger.status() != b'T' || self.role(false) != ListenerRole::Auto {
            return Turn::Again;
        }
        let mut known = None;
        if !was_empty {
            known = match self.can_go_on_elsewhere().await {
                Ok(Some(modes)) => Some(modes),
                Ok(None) => return self.stay(demand.class).await,
                Err(turn) => return turn,
            };
        }
        let place = if demand.class.rule == Rule::SetsReadOnlyTransaction {
            self.standby_for_block().await
        } else {
            let draws = match demand.class.asks_for_sequence_values() {
                true => Draws::Asks,
                false => Draws::Maybe,
            };
            self.primary_for_block(draws, demand.bytes).await
        };
        self.look_at_table();
        let (backend, as_primary) = match place {
            Place::There(backend, as_primary) => (backend, as_primary),
            Place::Here => return self.stay(demand.class).await,
            Place::Over(turn) => return turn,
        };
        let modes = match known {
            Some(modes) => Ok(modes),
            None => self.modes_of_block().await,
        };
        let modes = match modes {
            // A block that stays as it is does so on the primary too.
            Ok(modes) if as_primary && demand.class.rule != Rule::SetsReadWriteTransaction => {
                format!("{modes}, READ ONLY")
            }
            Ok(modes) => modes,
            Err(turn) => {
                backend.give_back_untouched();
                return turn;
            }
        };
        if !as_primary && modes.contains("SERIALIZABLE") {
            // A standby cannot run it.
            backend.give_back_untouched();
            return self.stay(demand.class).await;
        }
        let aim = aim(as_primary);
        let old = self.link.take();
        if let Some(link) = &old {
            // Nothing older is read from now on than what was read there.
            self.note_turn(link);
        }
        if !self.link(backend, as_primary, aim, true) {
            // A pause has begun in this moment, which holds nothing that is open.
            self.link = old;
            if !as_primary {
                return self.stay(demand.class).await;
            }
            // It would be refused here: it is tried again, and waits for the end of that.
            if let Some(link) = &mut self.link {
                (link.block_is_empty, link.stays) = (was_empty, false);
            }
            return Turn::Again;
        }
        if let Some(link) = &mut self.link {
            link.begins_with = Some(modes);
        }
        if let Some(link) = old {
            let leftovers = Leftovers::of(&link);
            tokio::spawn(cleanse(link.backend, leftovers));
        }
        Turn::Again
    }

    /// The block stays where it is, and the request runs there; but no lock is taken where it would keep nobody out.
    async fn stay(&mut self, class: StatementClass) -> Turn {
        self.show_place();
        let as_primary = self.link.as_ref().is_some_and(|link| link.as_primary);
        if class.locks() && !as_primary {
            return self.refuse_in_place(locks_elsewhere()).await;
        }
        Turn::Again
    }

    /// A backend of a standby that shows what the session has to see, if there is one within `routing.read_wait`. The
    /// primary can run the block as well, and is not waited for with its backend in hand.
    async fn standby_for_block(&mut self) -> Place {
        if self.memory.settings.serializable() || self.memory.settings.names_temporary_schema() {
            return Place::Here;
        }
        let aim = aim(false);
        let limit = self.app.config.routing.read_wait;
        let mut published = self.app.routing.subscribe();
        let began = Instant::now();
        while began.elapsed() < limit {
            published.borrow_and_update();
            let sight = self.sight();
            let choice = worker::with(|local| {
                let table = self.app.routing.load();
                table.route(aim.access, aim.role, &sight, &self.app.nodes, local)
            });
            let Route::Standby(node) = choice.route else {
                return Place::Here;
            };
            let pool = self.group.pool(node).clone();
            let free = worker::with(|local| pool.try_check_out(self.wish(aim), local));
            let got = match free {
                Some(backend) => Waited::Got(backend, false),
                None => {
                    let left = limit.saturating_sub(began.elapsed());
                    let waiting = self.wait_in_line(&pool, false, aim, began, &mut published);
                    match timeout(left, waiting).await {
                        Ok(waited) => waited,
                        Err(_) => return Place::Here,
                    }
                }
            };
            match got {
                Waited::Got(backend, _) if self.is_vouched_for(&backend, false, &sight) => {
                    return Place::There(backend, false);
                }
                Waited::Got(backend, _) => {
                    backend.give_back_untouched();
                    return Place::Here;
                }
                Waited::Again => {}
                Waited::Fail(_) => return Place::Here,
                Waited::Over(turn) => return Place::Over(turn),
            }
        }
        Place::Here
    }

    /// A backend of the primary, which alone can run the block; held for as long as a statement is.
    async fn primary_for_block(&mut self, draws: Draws, bytes: usize) -> Place {
        let aim = Aim { draws, ..aim(true) };
        match self.wait_for_statement(aim, bytes).await {
            Waited::Got(backend, as_primary) => Place::There(backend, as_primary),
            Waited::Fail(report) => Place::Over(self.give_up_link(report)),
            Waited::Over(turn) => Place::Over(turn),
            Waited::Again => Place::Here,
        }
    }

    /// The modes of a block in which something has run, if it is as good on another node: nothing but reads, each with a
    /// snapshot of its own, and nothing left of them.
    async fn can_go_on_elsewhere(&mut self) -> Result<Option<String>, Turn> {
        let may_go = |link: &Link| link.only_plain_reads && !link.backend.ledger.batch_open();
        if !self.link.as_ref().is_some_and(may_go) {
            return Ok(None);
        }
        let modes = self.modes_of_block().await?;
        // READ UNCOMMITTED is READ COMMITTED (manual, section 13.2).
        let each_its_own = modes.starts_with("ISOLATION LEVEL READ ");
        Ok(each_its_own.then_some(modes))
    }

    /// The modes of the open block, as BEGIN takes them; or how the turn ends if its node does not tell them.
    async fn modes_of_block(&mut self) -> Result<String, Turn> {
        let Some(link) = &mut self.link else {
            return Err(Turn::Again);
        };
        match exchange::rows(&mut link.backend, MODES, MODES_LIMIT).await {
            Ok(rows) => {
                let value = |at: usize| {
                    let value: Option<&Vec<u8>> = rows.get(at)?.first()?.as_ref();
                    value.map(|value| String::from_utf8_lossy(value).to_ascii_uppercase())
                };
                let isolation = value(0).unwrap_or_else(|| "READ COMMITTED".to_owned());
                let not = if value(1).as_deref() == Some("ON") {
                    ""
                } else {
                    "NOT "
                };
                Ok(format!("ISOLATION LEVEL {isolation}, {not}DEFERRABLE"))
            }
            Err(report) => Err(self.on_loss(&Lost {
                said: Some(report),
                error: None,
            })),
        }
    }

    /// Shows again what the session has after it has waited for something else.
    fn show_place(&self) {
        let Some(link) = &self.link else { return };
        self.registered.inbox.set_presence(Presence {
            doing: Doing::Active,
            backend: Some((link.backend.node().id, link.as_primary)),
        });
        self.registered
            .inbox
            .set_backend(link.backend.key.pid, link.backend.born);
    }
}

/// Why a READ ONLY block that cannot leave its standby is given up before it takes a lock there.
fn locks_elsewhere() -> Report {
    Report::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        "a READ ONLY transaction on a standby cannot take advisory locks or transaction IDs",
    )
    .with_detail("They are the primary's, and a transaction that has done more there than to read, each statement by a snapshot of its own, stays where it is.")
    .with_hint("Take the lock first in the transaction, or begin it with the hint /* halyard.route: primary */.")
}

/// What the block needs where it goes.
fn aim(as_primary: bool) -> Aim {
    Aim {
        access: if as_primary { Access::Write } else { Access::Read },
        role: ListenerRole::Auto,
        reason: RouteReason::Class,
        draws: if as_primary { Draws::Maybe } else { Draws::Nothing },
    }
}
