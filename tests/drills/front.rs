//! What clients connect to: the cluster's own Halyard, or one of the drills' own with TLS on both legs.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::support::{Address, Cluster, Proxy, until};

/// See the module.
pub(crate) struct Front {
    pub(crate) address: Address,
    /// Where it logs.
    pub(crate) log: PathBuf,
    /// The drills' own.
    own: Option<Proxy>,
}

impl Front {
    /// The one that the cluster has.
    pub(crate) fn of(cluster: &'static Cluster) -> Self {
        Self {
            address: cluster.front(),
            log: cluster.dir().join("log/halyard.log"),
            own: None,
        }
    }

    /// One that encrypts, in front of servers that do.
    pub(crate) fn with_tls(cluster: &'static Cluster) -> Self {
        encrypt(cluster);
        let (certificate, key) = certificate(cluster.dir(), "front");
        let proxy = cluster
            .proxy()
            .set("client_tls.certificate", certificate.to_str().unwrap())
            .set("client_tls.key", key.to_str().unwrap())
            .set("server_tls.mode", "prefer")
            .set("limits.client_connections_max", 20_000)
            .set("admin.users", vec![cluster.app(1).user])
            .start();
        Self {
            address: proxy.address.clone(),
            log: proxy.config().with_extension("log"),
            own: Some(proxy),
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.own.is_some()
    }

    /// Moves the primary, and panics if that fails.
    pub(crate) fn switch_over(&self, cluster: &Cluster) {
        if self.own.is_none() {
            let output = cluster.command(&["switchover"]);
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "the switchover failed: {told}");
            return;
        }
        let mut console = Address {
            database: "halyard".to_owned(),
            ..self.address.clone()
        }
        .connect();
        console
            .stream()
            .set_read_timeout(Some(crate::support::LONG_PATIENCE))
            .unwrap();
        console.run("SWITCHOVER");
    }
}

/// Has every server encrypt. What is connected already goes on as it is.
fn encrypt(cluster: &Cluster) {
    let (certificate, key) = certificate(cluster.dir(), "server");
    let data = std::fs::metadata(cluster.dir().join("node1")).unwrap();
    for file in [&certificate, &key] {
        chown(file, Some(data.uid()), Some(data.gid())).unwrap();
    }
    for node in cluster.nodes() {
        let mut direct = cluster.superuser(node).connect();
        for (setting, value) in [("ssl_cert_file", &certificate), ("ssl_key_file", &key)] {
            direct.run(&format!("ALTER SYSTEM SET {setting} = '{}'", value.display()));
        }
        direct.run("ALTER SYSTEM SET ssl = on");
        direct.run("SELECT pg_reload_conf()");
        until("the server to encrypt", || {
            let mut direct = cluster.superuser(node).connect();
            direct.value("SHOW ssl") == "on"
        });
    }
}

/// A certificate and its key, signed by itself.
fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    (certificate, key)
}
