//! Passwords: random, one a role and cluster, kept in files of mode 0600 and never in an argument list or log.

use std::fmt;
use std::io::Read;
use std::path::Path;

use postgres_protocol::password::scram_sha_256;
use serde::{Deserialize, Serialize};

use crate::error::{ClusterError, Result};
use crate::layout::{HOST, Ports, Service};

/// A password. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(String);

impl Secret {
    /// Random bytes in a password: 128 bits.
    const BYTES: usize = 16;

    /// A new one, in hexadecimal: it needs no quoting anywhere.
    pub(crate) fn random() -> Result<Secret> {
        let source = Path::new("/dev/urandom");
        let mut bytes = [0u8; Secret::BYTES];
        std::fs::File::open(source)
            .and_then(|mut file| file.read_exact(&mut bytes))
            .map_err(ClusterError::io("read", source))?;
        Ok(Secret(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The password itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// What a server may be told and log: the verifier that PostgreSQL stores, as psql's `\password` sends it.
    pub(crate) fn verifier(&self) -> String {
        scram_sha_256(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The passwords of the roles that the engine and the replicas use. People have no use for them; they live in
/// `DIR/etc/pgpass` only.
#[derive(Debug)]
pub(crate) struct EngineSecrets {
    /// The keepers' role on the monitor.
    pub(crate) autoctl_node: Secret,
    /// The role the nodes stream and rewind with; pg_auto_failover makes it a superuser.
    pub(crate) replicator: Secret,
}

/// The password of the role the monitor's health checks log in with. It is compiled into pg_auto_failover 2.0;
/// the role may do nothing but connect, and `pg_hba.conf` lets it into the empty database `postgres` only.
const HEALTH_CHECK: (&str, &str) = ("pgautofailover_monitor", "pgautofailover_monitor");

impl EngineSecrets {
    /// New random ones.
    pub(crate) fn random() -> Result<EngineSecrets> {
        Ok(EngineSecrets {
            autoctl_node: Secret::random()?,
            replicator: Secret::random()?,
        })
    }

    /// The servers' password file. `replication` is the role that the read-only replicas stream with.
    pub(crate) fn pgpass(&self, replication: (&str, &Secret)) -> String {
        let entries = [
            ("autoctl_node", self.autoctl_node.expose()),
            ("pgautofailover_replicator", self.replicator.expose()),
            HEALTH_CHECK,
            (replication.0, replication.1.expose()),
        ];
        entries
            .iter()
            .map(|(role, password)| format!("*:*:*:{role}:{password}\n"))
            .collect()
    }
}

/// The password file for people: each role on each port of this cluster, and nowhere else.
pub(crate) fn pgpass(ports: &Ports, roles: &[(&str, &Secret)]) -> String {
    let mut text = String::new();
    for service in ports.servers().chain([Service::Proxy]) {
        for (role, password) in roles {
            text.push_str(&format!(
                "{HOST}:{}:*:{role}:{}\n",
                ports.of(service),
                password.expose()
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests;
