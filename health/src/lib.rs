//! Halyard's control plane: who is the primary, who is behind, and how we know.
//!
//! ```text
//!  node ──answer──▶ Prober ──Report──▶ Cluster ─────evaluate─────▶ ClusterView ──▶ watch ──▶ the data plane
//!  (a task each)      ▲               NodeState, Memory,                │
//!                     │ cadence,      History, Samples                  │
//!                     │ bells            ▲                              │
//!  Signals ───────────┴──────────────────┼──────────────────────────────┘ pace
//!  engine ◀──asks── Adapter ──AuthorityView
//! ```
//!
//! Evidence, not opinion: the view changes only by what nodes and the engine answer. A signal from the data plane
//! is a reason to look at once, never a fact. The rules are pure functions over observations ([`topology`],
//! [`lag`], [`reads`], [`samples`]); tasks do nothing but ask, hand over and publish.
//!
//! The control plane knows nothing of the proxy in front, and tells no node what to do: it promotes nobody.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod lag;
pub mod lsn;
pub mod node;
pub mod probe;
pub mod reads;
pub mod samples;
pub mod topology;

mod cluster;
mod config;
mod engines;
mod events;
mod monitor;
mod signals;
mod view;

pub use config::{
    Config, EngineConfig, MaxLag, NodeConfig, PatroniConfig, PatroniMember, PgAutoFailoverConfig, Secret,
};
pub use engines::{AUTHORITY_STALE_AFTER, Answer, AuthorityView, EngineNode};
pub use lag::Lag;
pub use lsn::{Lsn, SystemIdentifier, TimelineId};
pub use monitor::{
    CANDIDATE_INTERVAL, Health, PUBLISH_AT_LEAST_EVERY, SAMPLING_LIMIT, SEARCH_INTERVAL, SEARCH_LIMIT, spawn,
    spawn_with_tls,
};
pub use node::{FailureKind, Incarnation, NodeId, Promotion};
pub use samples::{Coverage, Covered, Fences, Sample, SampleNumber, Seen};
pub use signals::{DOUBT_SPACING, Evidence, Signals};
pub use tokio_postgres::config::SslMode;
pub use topology::{NoPrimary, NotWritable, Topology};
pub use view::{ClusterView, NodeView, Reason, ReceiverView, Role};
