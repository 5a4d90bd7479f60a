//! Halyard.

pub mod auth;
pub mod config;
pub mod error;
mod handshake;
pub mod login;
pub mod relay;
pub mod startup;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod wire;
