//! Halyard.
