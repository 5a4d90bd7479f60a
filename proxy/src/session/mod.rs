//! A client's session: one turn after another.
//!
//! ```text
//!  next request ─▶ class ─▶ route ─▶ check out ─▶ relay ─▶ settle ─┐
//!       ▲                     └─ wait, hold ─┘                      │
//!       └───────────────────────────────────────────────────────────┘
//! ```
//! What the client relies on lives in [`Memory`](crate::relay::Memory); a backend is linked only while it is
//! needed. Whatever goes wrong on the way is answered by [`offline`], as a server in that state would.

mod aftermath;
mod block;
mod class;
mod demand;
mod ends;
mod examine;
mod greet;
mod inbox;
mod listen;
mod loss;
mod next;
mod obtain;
mod offline;
mod own;
mod part;
mod patience;
mod prepared;
mod replication;
mod resolve;
mod settings;
mod sight;
mod statements;
mod tally;
mod turn;

pub(crate) use class::{CHANGING, NAMED, OPAQUE};
pub use class::{Control, PinReason, StatementClass};
pub use demand::{Demand, Mood, Scan, Scanner};
pub use greet::{greet, introduction};
pub use inbox::{ClientInfo, Doing, Inbox, Message, Messages, Presence, Registered, Registry};

pub use own::OwnSettings;
pub(crate) use patience::milliseconds;
pub use prepared::PreparedSet;
pub use settings::Settings;
pub use statements::{
    ClientStatements, CurrentEpoch, Epoch, Forgotten, Shape, Statement, StatementCache, StatementRegistry,
};
pub use tally::{Tallied, Tally, Totals, TotalsByDatabase, coarse_now};
pub use turn::Session;
