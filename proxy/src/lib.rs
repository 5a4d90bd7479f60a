//! Halyard.

pub mod auth;
pub mod config;
pub mod error;
mod handshake;
pub mod login;
pub mod startup;
pub mod stream;
pub mod tcp;
pub mod tls;
