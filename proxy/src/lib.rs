//! Halyard.

pub mod config;
pub mod error;
pub mod stream;
