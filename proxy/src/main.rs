//! Halyard.
fn main() {}
