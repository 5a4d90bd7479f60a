//! Who may connect from where, by rules in the manner of pg_hba.conf (manual, "The pg_hba.conf File").

use std::net::IpAddr;

use super::{Peer, Replication};
use crate::config::{AuthMethod, AuthRule, ConnectionKind};
use crate::error::{Report, SqlState};

/// A connection as the rules see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor<'v> {
    pub(super) peer: Peer,
    pub(super) encrypted: bool,
    pub(super) user: &'v str,
    pub(super) database: &'v str,
    pub(super) replication: Option<Replication>,
}

/// What the first rule that matches asks for; a refusal if it rejects, or if there is none.
pub(super) fn decide(rules: &[AuthRule], visitor: Visitor<'_>) -> Result<Proof, Report> {
    match rules
        .iter()
        .find(|rule| visitor.is_matched_by(rule))
        .map(|rule| rule.method)
    {
        Some(AuthMethod::ScramSha256) => Ok(Proof::ScramSha256),
        Some(AuthMethod::Md5) => Ok(Proof::Md5),
        Some(AuthMethod::Trust) => Ok(Proof::Nothing),
        Some(AuthMethod::Reject) => Err(visitor.refusal("authentication rules reject connection for")),
        None => Err(visitor.refusal("no authentication rule for")),
    }
}

/// What a client has to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    ScramSha256,
    Md5,
    Nothing,
}

impl Visitor<'_> {
    fn is_matched_by(&self, rule: &AuthRule) -> bool {
        self.connection_matches(rule.connection)
            && self.database_matches(&rule.databases)
            && (rule.users.is_empty() || rule.users.iter().any(|user| user == self.user))
            && self.address_matches(&rule.addresses)
    }

    fn connection_matches(&self, kind: ConnectionKind) -> bool {
        match (kind, self.peer) {
            (ConnectionKind::Any, _)
            | (ConnectionKind::Local, Peer::Unix)
            | (ConnectionKind::Host, Peer::Tcp(_)) => true,
            (ConnectionKind::HostSsl, Peer::Tcp(_)) => self.encrypted,
            (ConnectionKind::HostNoSsl, Peer::Tcp(_)) => !self.encrypted,
            (ConnectionKind::Local, Peer::Tcp(_)) => false,
            (ConnectionKind::Host | ConnectionKind::HostSsl | ConnectionKind::HostNoSsl, Peer::Unix) => false,
        }
    }

    /// As in pg_hba.conf, `replication` names physical replication connections, and "all" does not mean them.
    fn database_matches(&self, databases: &[String]) -> bool {
        match self.replication {
            Some(Replication::Physical) => databases.iter().any(|database| database == "replication"),
            Some(Replication::Database) | None => {
                databases.is_empty() || databases.iter().any(|database| database == self.database)
            }
        }
    }

    fn address_matches(&self, networks: &[(IpAddr, u8)]) -> bool {
        match self.peer {
            Peer::Unix => true,
            Peer::Tcp(address) => {
                let address = address.ip().to_canonical();
                networks.is_empty() || networks.iter().any(|&network| contains(network, address))
            }
        }
    }

    fn refusal(&self, why: &str) -> Report {
        let host = match self.peer {
            Peer::Tcp(address) => format!("\"{}\"", address.ip().to_canonical()),
            Peer::Unix => "\"[local]\"".to_owned(),
        };
        let what = match self.replication {
            Some(Replication::Physical) => "replication connection".to_owned(),
            Some(Replication::Database) | None => format!("database \"{}\"", self.database),
        };
        let encryption = match self.encrypted {
            true => "SSL encryption",
            false => "no encryption",
        };
        Report::fatal(
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
            format!("{why} host {host}, user \"{}\", {what}, {encryption}", self.user),
        )
    }
}

/// Whether the network (an address and the length of its prefix) holds the address.
fn contains((network, prefix): (IpAddr, u8), address: IpAddr) -> bool {
    let differ = |left: u128, right: u128, width: u32| {
        let shift = width.saturating_sub(u32::from(prefix));
        (left ^ right).checked_shr(shift).unwrap_or(0) != 0
    };
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            !differ(network.to_bits().into(), address.to_bits().into(), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => !differ(network.to_bits(), address.to_bits(), 128),
        _ => false,
    }
}
