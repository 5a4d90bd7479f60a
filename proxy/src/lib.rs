//! Halyard: a proxy that speaks PostgreSQL's wire protocol and routes it.
//!
//! Applications connect to one port. Writes go to whichever node is proved to be the primary, reads are balanced over
//! the standbys, and a failover is a wait instead of an error wherever that is possible without running anything twice.
//!
//! # The way of a request
//! ```text
//!  client                                                                            nodes
//!    │ TCP / unix                                                                    ▲ ▲ ▲
//!    ▼                                                                               │ │ │
//!  listener ──▶ startup (TLS, rules, auth) ──Login──▶ session::greet                 │ │ │
//!                   └ CancelRequest ──▶ session::Registry ──▶ the session it names   │ │ │
//!  ┌──────────────────────── session: one turn after another ────────────────────────┼─┼─┼──┐
//!  │ look at the request  ▶ class     ▶ route      ▶ check out   ▶ relay    ▶ settle │ │ │  │
//!  │ (session::demand)     (classify)  (routing)     (pool)        (relay)   (pool)──┘ │ │  │
//!  └───────────────────────────────────────▲──────────────────────────────────────────┼─┼──┘
//!                                one load a turn; no lock, no await                    │ │
//!                               ArcSwap<RoutingTable>            login ────────────────┘ │
//!                                          ▲ publish(RoutingTable::derive(view, policy)) │
//!  halyard_health: probes ▶ ClusterView (a watch channel) ───────────────────────────────┘
//! ```
//! Above is the data plane, below the control plane; between them stands only an immutable table. `docs/ARCHITECTURE.md`
//! has the invariants, and `docs/adr/` the decisions behind them.
//!
//! # The modules
//! | module | answers |
//! |---|---|
//! | [`wire`] | what do these bytes say? frames, buffers with cursors, encoders; pure |
//! | [`classify`] | may a standby run this text? a lexer and a walk; pure |
//! | [`catalog`] | what do the functions of this database do? read from the primary, swapped whole |
//! | [`startup`] | who is this client? encryption, startup packet, rules, authentication |
//! | [`auth`] | SCRAM-SHA-256 and md5, both sides of each; pure |
//! | [`login`] | how does Halyard get into a node, and cancel there? |
//! | [`session`] | what does this client want now, and what is it told if that cannot be? |
//! | [`relay`] | what has to go which way, and which answers are owed? The [`relay::ledger`] is pure |
//! | [`pool`] | which connection is free for it? |
//! | [`notify`] | who listens for clients that keep no connection, and how do they hear of it? |
//! | [`routing`] | which node, by the table in force? |
//! | [`operate`] | what has an operator asked for: pauses, drained nodes, new connections? |
//! | [`app`] | what do all share, and how does the process begin and end? its `workers` are the threads |
//! | [`config`] | what did the operator say? |
//! | [`error`] | how is an error told to a client? |
//! | [`http`], [`status`], [`metrics`], [`logging`] | what can be seen from outside? |
//! | [`cli`] | what can be typed? |
//! | [`stream`], [`tcp`], [`tls`] | what do the bytes travel over? |
//! | `listener`, `handshake`, `worker` | accepting; messages one at a time before a session; what belongs to one thread |

pub mod app;
pub mod auth;
pub mod catalog;
pub mod classify;
pub mod cli;
pub mod config;
pub mod consistency;
pub mod console;
pub mod error;
mod handshake;
pub mod held;
pub mod http;
mod listener;
pub mod logging;
pub mod login;
pub mod metrics;
pub mod notify;
pub mod operate;
pub mod pool;
pub mod relay;
pub mod routing;
pub mod session;
pub mod startup;
pub mod statistics;
pub mod status;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod wire;
mod worker;
