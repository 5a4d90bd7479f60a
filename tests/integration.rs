//! Halyard as its users meet it: real clusters, the real binary, and real clients.
//!
//! One program, so that all themes share one cluster: bringing one up takes longer than most tests. The harness is in
//! `tests/support`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[allow(dead_code, reason = "others use the rest")]
#[path = "differential/server.rs"]
mod server;

mod ahead;
mod blocks;
mod cancel;
mod clients;
mod commits;
mod consistency;
mod console;
mod copy;
mod drivers;
mod endings;
mod engine;
mod failover;
mod hostile;
mod lag;
mod logical;
mod logins;
mod meanings;
mod notify;
mod operations;
mod pairs;
mod patience;
mod pipelines;
mod policy;
mod pooling;
mod protocol;
mod replicas;
mod replication;
mod routing;
mod sequences;
mod sessions;
mod swaps;
mod tls;
