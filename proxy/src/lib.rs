//! Halyard.

pub mod config;
pub mod error;
pub mod relay;
pub mod stream;
pub mod wire;
