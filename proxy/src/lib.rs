//! Halyard.

pub mod app;
pub mod auth;
pub mod catalog;
pub mod classify;
pub mod cli;
pub mod config;
pub mod error;
mod handshake;
pub mod http;
mod listener;
pub mod logging;
pub mod login;
pub mod metrics;
pub mod pool;
pub mod relay;
pub mod routing;
pub mod session;
pub mod startup;
pub mod status;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod wire;
mod worker;
