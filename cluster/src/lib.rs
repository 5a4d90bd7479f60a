//! The cluster around Halyard, as plain processes on one machine: a pg_auto_failover monitor, three nodes that
//! it manages, read-only replicas beside it, and Halyard in front.
//!
//! ```text
//!  halyard ──── writes ──▶ primary ─┬─▶ backup ─┬─▶ ro1
//!     │                             │           └─▶ ro3         monitor: watches node1-3, promotes
//!     └──────── reads ───▶ ro1-3    └─▶ backup ───▶ ro2
//! ```
//!
//! The engine owns promotion, fencing and rejoin; this crate owns processes, configuration, secrets and faults.
//! Nothing here runs on but `tend`, one process beside each read-only replica: every command looks at the folder
//! and at `/proc`, does its work and ends.
//!
//! | module | answers |
//! |---|---|
//! | `cli` | what a person can ask for, and what they are told |
//! | `up`, `faults`, `switchover`, `status`, `demo` | the commands |
//! | `engine`, `replica`, `proxy` | how each kind of server is made and run |
//! | `tend`, `timeline` | what a replica must not do to the engine, and who sees to it |
//! | `rewind` | nodes that the engine leaves behind |
//! | `say` | what the commands print |
//! | `layout`, `record`, `server_config`, `proxy_config`, `secrets` | where things are and what files say |
//! | `site`, `process`, `owner`, `sql`, `preflight`, `pgbench` | this machine: programs, processes, users, connections |

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod demo;
mod engine;
mod error;
mod faults;
mod layout;
mod owner;
mod pgbench;
mod preflight;
mod process;
mod proxy;
mod proxy_config;
mod record;
mod replica;
mod rewind;
mod say;
mod secrets;
mod server_config;
mod site;
mod sql;
mod status;
mod switchover;
mod tend;
mod timeline;
mod up;

pub use cli::{ClusterCommand, run};
