//! Where statements go and what reads see: the words for it, and what holds for one database and user.

use std::fmt;

use super::{Config, ListenerRole, ReadConsistency};

/// Where a session's statements go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteSetting {
    /// Each by what it does.
    Auto,
    /// All to the primary.
    Primary,
    /// All to standbys, which refuse what writes.
    Replica,
}

impl RouteSetting {
    /// The values in the order in which they are offered.
    pub const VALUES: [(&'static str, Self); 3] = [
        ("auto", Self::Auto),
        ("primary", Self::Primary),
        ("replica", Self::Replica),
    ];

    /// The role of a port on which everything goes like this.
    #[inline]
    pub fn as_port(self) -> ListenerRole {
        match self {
            Self::Auto => ListenerRole::Auto,
            Self::Primary => ListenerRole::Primary,
            Self::Replica => ListenerRole::Replica,
        }
    }
}

impl fmt::Display for RouteSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&Self::VALUES, *self))
    }
}

impl ReadConsistency {
    /// The values in the order in which they are offered.
    pub const VALUES: [(&'static str, Self); 3] = [
        ("eventual", Self::Eventual),
        ("session", Self::Session),
        ("global", Self::Global),
    ];
}

impl fmt::Display for ReadConsistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&Self::VALUES, *self))
    }
}

fn name_of<T: Copy + PartialEq>(values: &[(&'static str, T)], wanted: T) -> &'static str {
    values
        .iter()
        .find_map(|(name, value)| (*value == wanted).then_some(*name))
        .unwrap_or_default()
}

/// What holds for a database and user where their sessions say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePolicy {
    /// Where statements go.
    pub route: RouteSetting,
    /// What reads see at least.
    pub consistency: ReadConsistency,
}

/// A database with a policy of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Where its statements go, if it is said.
    pub route: Option<RouteSetting>,
    /// What its reads see at least, if it is said.
    pub read_consistency: Option<ReadConsistency>,
}

impl Config {
    /// Where the statements of a database and user go, and what their reads see: what is said of the user counts before
    /// what is said of the database, and that before what is said of all.
    pub fn route_policy(&self, database: &str, user: &str) -> RoutePolicy {
        let user = self.auth.users.iter().find(|known| known.name == user);
        let database = self.databases.iter().find(|known| known.name == database);
        let route = user
            .and_then(|user| user.route)
            .or(database.and_then(|database| database.route));
        let consistency = user
            .and_then(|user| user.read_consistency)
            .or(database.and_then(|database| database.read_consistency));
        RoutePolicy {
            route: route.unwrap_or(RouteSetting::Auto),
            consistency: consistency.unwrap_or(self.routing.read_consistency),
        }
    }
}
