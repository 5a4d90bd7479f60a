//! Halyard.

pub mod classify;
