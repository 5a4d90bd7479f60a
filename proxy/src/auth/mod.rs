//! Proofs of identity, as pure functions: SCRAM-SHA-256 and md5, both sides of each.
//!
//! Nothing here does I/O. [`scram`] holds the exchange as states that consume themselves, [`md5`] the old
//! challenge, [`Users`] what is known about those who may come, and [`Credential`] what a client's own login
//! leaves in our hands to log in to the nodes with.

mod credential;
pub mod md5;
pub mod scram;
mod users;

pub use credential::{Credential, Password, ScramKeys};
pub use md5::Md5Hash;
pub use users::{Challenge, PasswordMethod, Standing, UserError, Users};

#[cfg(test)]
mod tests;
