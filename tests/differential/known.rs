//! The exchanges in which a client can tell Halyard from a server, each with the reason.
//!
//! Every one of them is played, and the tests fail if it shows no difference any more: then its line has to go.

/// What never can or shall be the same. `docs/sessions.md` has the same list in words.
pub(crate) const BY_DESIGN: &[(&str, &str)] = &[];

/// What should be the same and is not yet.
pub(crate) const NOT_YET: &[(&str, &str)] = &[];

/// The reason for a known difference in the exchange `theme/name`.
pub(crate) fn reason(exchange: &str) -> Option<&'static str> {
    BY_DESIGN
        .iter()
        .chain(NOT_YET)
        .find(|(known, _)| *known == exchange)
        .map(|(_, reason)| *reason)
}
