//! Halyard.

pub mod cli;
pub mod config;
pub mod error;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod status;
pub mod stream;
