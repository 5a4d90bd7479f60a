//! The counters of the data plane: one atomic each, and one set of them for each worker.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::SqlState;
use crate::routing::Decision;
use crate::session::PinReason;

/// Makes the enum, the list of all its variants and the series that each stands for from one table.
macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal $({ $label:ident = $value:literal })?;)*) => {
        /// One series that the data plane counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant),* }

        impl Counter {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Counter] = &[$(Counter::$variant),*];

            /// The metric's name.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name),* }
            }

            /// What tells this series from others of the same name.
            pub(super) fn labels(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Counter::$variant => &[$((stringify!($label), $value))?]),* }
            }
        }
    };
}

counters! {
    /// A client connected.
    ClientConnections = "halyard_client_connections_total";
    /// A client was turned away at a limit, before it could log in.
    ClientsRefused = "halyard_client_connections_refused_total";
    /// A client logged in.
    LoginsAccepted = "halyard_client_logins_total" { outcome = "accepted" };
    /// A client did not: wrong secret, no rule for it, or too slow.
    LoginsRejected = "halyard_client_logins_total" { outcome = "rejected" };
    /// A statement was sent to the primary.
    StatementsPrimary = "halyard_statements_total" { target = "primary" };
    /// A statement was sent to a standby.
    StatementsStandby = "halyard_statements_total" { target = "standby" };
    /// A transaction ended on the primary; a statement outside a block is one.
    TransactionsPrimary = "halyard_transactions_total" { target = "primary" };
    /// A transaction ended on a standby.
    TransactionsStandby = "halyard_transactions_total" { target = "standby" };
    /// A read went to the primary because no standby qualified.
    ReadsOnPrimaryNoStandby = "halyard_reads_on_primary_total" { reason = "no_standby" };
    /// A read went to the primary because no standby had replayed what the session has written.
    ReadsOnPrimaryBehind = "halyard_reads_on_primary_total" { reason = "behind" };
    /// A read went to the primary because a transaction block is open there.
    ReadsOnPrimaryTransaction = "halyard_reads_on_primary_total" { reason = "transaction" };
    /// A read went to the primary because the session is pinned there.
    ReadsOnPrimaryPinned = "halyard_reads_on_primary_total" { reason = "pinned" };
    /// A read went to the primary because the port, a hint or a setting asked for it.
    ReadsOnPrimaryAsked = "halyard_reads_on_primary_total" { reason = "asked" };
    /// A statement known to write was sent to a standby. Must stay 0.
    WritesSentToStandby = "halyard_writes_sent_to_standby_total";
    /// A standby refused a statement (25006), and it was run again on the primary.
    Reruns25006 = "halyard_reruns_25006_total";
    /// A client got a connection to a node.
    Checkouts = "halyard_checkouts_total";
    /// A client had to wait for one.
    CheckoutWaits = "halyard_checkout_waits_total";
    /// A client waited too long for one, or could not even wait.
    CheckoutsRefused = "halyard_checkouts_refused_total";
    /// A connection to a node became ready.
    NodeConnectionsOpened = "halyard_node_connections_total" { outcome = "opened" };
    /// A connection to a node could not be made.
    NodeConnectionsFailed = "halyard_node_connections_total" { outcome = "failed" };
    /// A cancel request was passed on to the node that serves its key.
    CancelsSent = "halyard_cancel_requests_total" { outcome = "sent" };
    /// A cancel request had an unknown key, or one of a session that runs nothing.
    CancelsIgnored = "halyard_cancel_requests_total" { outcome = "ignored" };
    /// A statement was held because there was no primary.
    HeldNoPrimary = "halyard_held_total" { reason = "no_primary" };
    /// A statement was held until the primary, which had ended a connection, was looked at.
    HeldInDoubt = "halyard_held_total" { reason = "in_doubt" };
    /// A read was held because no standby qualified, and the primary was not to have it.
    HeldNoStandby = "halyard_held_total" { reason = "no_standby" };
    /// A statement was held because an operator has paused transactions, or a switchover has.
    HeldPaused = "halyard_held_total" { reason = "paused" };
    /// A LISTEN was held until its channel was heard.
    HeldToListen = "halyard_held_total" { reason = "listen" };
    /// A held statement was given up: `failover.hold` was over.
    HeldTooLong = "halyard_held_refused_total" { reason = "time" };
    /// A statement was not held: too many clients were.
    HeldTooManyClients = "halyard_held_refused_total" { reason = "clients" };
    /// A statement was not held: too many bytes were.
    HeldTooManyBytes = "halyard_held_refused_total" { reason = "bytes" };
    /// A lost backend mattered to nobody: nothing was in flight.
    LossUnnoticed = "halyard_backend_losses_total" { outcome = "unnoticed" };
    /// What a lost backend had in flight was sent to another node.
    LossRerun = "halyard_backend_losses_total" { outcome = "rerun" };
    /// The transaction on a lost backend is rolled back for certain: 40001.
    LossRolledBack = "halyard_backend_losses_total" { outcome = "rolled_back" };
    /// Nobody knows whether what a lost backend had in flight took effect: 08007.
    LossUnknown = "halyard_backend_losses_total" { outcome = "unknown" };
    /// The outcome of the COMMIT that a lost backend had in flight was looked up.
    LossResolved = "halyard_backend_losses_total" { outcome = "resolved" };
    /// A read on a lost backend had been answered in part, or was lost too often: 57P01, 57P02.
    LossCutShort = "halyard_backend_losses_total" { outcome = "cut_short" };
    /// What a session kept on a lost backend is gone: 57P01.
    LossOfState = "halyard_backend_losses_total" { outcome = "state_lost" };
    /// A backend was lost inside of a message, so that its client had to be disconnected.
    LossDisconnected = "halyard_backend_losses_total" { outcome = "disconnected" };
    /// A COMMIT whose answer was lost turned out to have succeeded.
    CommitsResolvedCommitted = "halyard_commits_resolved_total" { outcome = "committed" };
    /// A COMMIT whose answer was lost turned out to have been rolled back.
    CommitsResolvedRolledBack = "halyard_commits_resolved_total" { outcome = "rolled_back" };
    /// Nobody could tell what became of a COMMIT whose answer was lost.
    CommitsResolvedUnknown = "halyard_commits_resolved_total" { outcome = "unknown" };
    /// A prepared statement was known to the node's connection.
    PreparedHits = "halyard_prepared_statement_lookups_total" { result = "hit" };
    /// A prepared statement was not.
    PreparedMisses = "halyard_prepared_statement_lookups_total" { result = "miss" };
    /// A session began to keep its backend: it has a setting that cannot follow.
    PinSetting = "halyard_pins_total" { reason = "setting" };
    /// A session began to keep its backend: it prepared a statement by SQL.
    PinSqlPrepare = "halyard_pins_total" { reason = "sql_prepare" };
    /// A session began to keep its backend: it has a cursor WITH HOLD.
    PinHoldCursor = "halyard_pins_total" { reason = "hold_cursor" };
    /// A session began to keep its backend: it has a temporary object.
    PinTemporaryObject = "halyard_pins_total" { reason = "temporary_object" };
    /// A session began to keep its backend: it holds a session-level advisory lock.
    PinAdvisoryLock = "halyard_pins_total" { reason = "advisory_lock" };
    /// A session began to keep its backend: it asked for a sequence's last value.
    PinSequenceValue = "halyard_pins_total" { reason = "sequence_value" };
    /// A session began to keep its backend: it loaded a library.
    PinLoad = "halyard_pins_total" { reason = "load" };
    /// A session began to keep its backend: it sent a text that is too long to be read.
    PinUnread = "halyard_pins_total" { reason = "unread" };
    /// A Parse was sent that the client did not send then.
    ParseInjected = "halyard_parse_injected_total";
    /// A notification was written to a client that listens.
    NotificationsDelivered = "halyard_notifications_total" { outcome = "delivered" };
    /// A notification was dropped for a client that did not take those before it.
    NotificationsDropped = "halyard_notifications_total" { outcome = "dropped" };
    /// A connection that listens was lost, or had to follow the primary; its clients were warned.
    NotificationListenersLost = "halyard_notification_listeners_lost_total";
    /// An error of class 08, connection exception.
    ErrorsSent08 = "halyard_errors_sent_total" { sqlstate_class = "08" };
    /// An error of class 0A, feature not supported.
    ErrorsSent0A = "halyard_errors_sent_total" { sqlstate_class = "0A" };
    /// An error of class 25, invalid transaction state.
    ErrorsSent25 = "halyard_errors_sent_total" { sqlstate_class = "25" };
    /// An error of class 26, invalid statement name.
    ErrorsSent26 = "halyard_errors_sent_total" { sqlstate_class = "26" };
    /// An error of class 28, invalid authorization.
    ErrorsSent28 = "halyard_errors_sent_total" { sqlstate_class = "28" };
    /// An error of class 40, transaction rollback.
    ErrorsSent40 = "halyard_errors_sent_total" { sqlstate_class = "40" };
    /// An error of class 53, insufficient resources.
    ErrorsSent53 = "halyard_errors_sent_total" { sqlstate_class = "53" };
    /// An error of class 57, operator intervention.
    ErrorsSent57 = "halyard_errors_sent_total" { sqlstate_class = "57" };
    /// An error of class XX, a bug of Halyard's own.
    ErrorsSentXX = "halyard_errors_sent_total" { sqlstate_class = "XX" };
    /// An error of any other class.
    ErrorsSentOther = "halyard_errors_sent_total" { sqlstate_class = "other" };
}

/// What each name tells.
pub(super) const FAMILIES: &[(&str, &str)] = &[
    ("halyard_client_connections_total", "Client connections accepted."),
    (
        "halyard_client_connections_refused_total",
        "Client connections turned away at a limit before login.",
    ),
    ("halyard_client_logins_total", "Client logins, by outcome."),
    (
        "halyard_statements_total",
        "Statements sent to a node, by the role it was asked in.",
    ),
    (
        "halyard_transactions_total",
        "Transactions ended, by the role of the node they ran on.",
    ),
    (
        "halyard_reads_on_primary_total",
        "Statements proved to read that went to the primary, by reason.",
    ),
    (
        "halyard_writes_sent_to_standby_total",
        "Statements known to write that were sent to a standby; must stay 0.",
    ),
    (
        "halyard_reruns_25006_total",
        "Statements that a standby refused as writes and the primary ran instead.",
    ),
    (
        "halyard_checkouts_total",
        "Connections to nodes handed to clients.",
    ),
    (
        "halyard_checkout_waits_total",
        "Clients that had to wait for a connection to a node.",
    ),
    (
        "halyard_checkouts_refused_total",
        "Clients that waited too long for a connection to a node, or found the queue full.",
    ),
    (
        "halyard_node_connections_total",
        "Connections made to nodes, by outcome.",
    ),
    (
        "halyard_cancel_requests_total",
        "Cancel requests of clients, by outcome.",
    ),
    (
        "halyard_backend_losses_total",
        "Connections to nodes lost while they were lent to a client, by what the client got.",
    ),
    ("halyard_held_total", "Statements held, by reason."),
    (
        "halyard_held_refused_total",
        "Statements that were held too long, or could not be held at a limit, by limit.",
    ),
    (
        "halyard_commits_resolved_total",
        "COMMITs whose answer was lost and whose outcome was looked up, by outcome.",
    ),
    (
        "halyard_prepared_statement_lookups_total",
        "Prepared statements looked up on a connection to a node, by result.",
    ),
    (
        "halyard_pins_total",
        "Sessions that began to keep their connection to a node under transaction pooling, by reason.",
    ),
    (
        "halyard_parse_injected_total",
        "Parse messages sent to prepare a statement again on another connection.",
    ),
    (
        "halyard_notifications_total",
        "Notifications for clients that listen, by outcome.",
    ),
    (
        "halyard_notification_listeners_lost_total",
        "Connections that listened for clients and were lost, or left behind by the primary.",
    ),
    (
        "halyard_errors_sent_total",
        "Errors of Halyard's own sent to clients, by class of SQLSTATE.",
    ),
];

impl Counter {
    /// The counter for a session that begins to keep its backend; none where its pool has it keep one anyway.
    pub fn of_pin(reason: PinReason) -> Option<Self> {
        Some(match reason {
            PinReason::Setting => Counter::PinSetting,
            PinReason::SqlPrepare => Counter::PinSqlPrepare,
            PinReason::HoldCursor => Counter::PinHoldCursor,
            PinReason::TemporaryObject => Counter::PinTemporaryObject,
            PinReason::AdvisoryLock => Counter::PinAdvisoryLock,
            PinReason::SequenceValue => Counter::PinSequenceValue,
            PinReason::Load => Counter::PinLoad,
            PinReason::Unread => Counter::PinUnread,
            PinReason::SessionPooling => return None,
        })
    }

    /// The counter for an error of Halyard's own that is sent to a client.
    pub fn of_error(sqlstate: SqlState) -> Self {
        match &sqlstate.0[..2] {
            b"08" => Counter::ErrorsSent08,
            b"0A" => Counter::ErrorsSent0A,
            b"25" => Counter::ErrorsSent25,
            b"26" => Counter::ErrorsSent26,
            b"28" => Counter::ErrorsSent28,
            b"40" => Counter::ErrorsSent40,
            b"53" => Counter::ErrorsSent53,
            b"57" => Counter::ErrorsSent57,
            b"XX" => Counter::ErrorsSentXX,
            _ => Counter::ErrorsSentOther,
        }
    }
}

/// The counters of one worker. Two workers never write to the same cache line: processors fetch lines in pairs of 64
/// bytes, hence 128.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    cells: [AtomicU64; Counter::ALL.len()],
    decisions: [AtomicU64; Decision::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            cells: [const { AtomicU64::new(0) }; Counter::ALL.len()],
            decisions: [const { AtomicU64::new(0) }; Decision::COUNT],
        }
    }
}

impl Counters {
    /// Counts `amount` more of `counter`.
    #[inline]
    pub fn add(&self, counter: Counter, amount: u64) {
        self.cells[counter as usize].fetch_add(amount, Ordering::Relaxed);
    }

    /// Counts a routing decision.
    #[inline]
    pub fn add_decision(&self, decision: Decision) {
        self.decisions[decision.number()].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was decided so.
    pub fn decided(&self, decision: Decision) -> u64 {
        self.decisions[decision.number()].load(Ordering::Relaxed)
    }

    /// What was counted so far.
    pub fn value(&self, counter: Counter) -> u64 {
        self.cells[counter as usize].load(Ordering::Relaxed)
    }
}
