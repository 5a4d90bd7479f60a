//! The way of bytes between one client and one backend.

pub mod ledger;
