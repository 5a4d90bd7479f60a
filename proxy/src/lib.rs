//! Halyard.

pub mod config;
pub mod error;
pub mod metrics;
pub mod status;
pub mod stream;
