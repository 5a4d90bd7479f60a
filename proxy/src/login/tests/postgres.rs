//! A PostgreSQL of a test's own: on a free port, in a temporary folder, with a role for each method and with TLS.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The name that the server's certificate carries; `/etc/hosts` gives it both loopback addresses.
pub(crate) const HOST_IN_CERTIFICATE: &str = "localhost";

const HBA: &str = "\
local   all postgres                trust
local   all all                     scram-sha-256
hostssl all tls_user   127.0.0.1/32 scram-sha-256
host    all scram_user 127.0.0.1/32 scram-sha-256
host    all md5_user   127.0.0.1/32 md5
host    all clear_user 127.0.0.1/32 password
host    all trust_user 127.0.0.1/32 trust
";

const ROLES: &str = "\
CREATE ROLE scram_user LOGIN PASSWORD 'secret';
CREATE ROLE clear_user LOGIN PASSWORD 'secret';
CREATE ROLE tls_user LOGIN PASSWORD 'secret';
CREATE ROLE trust_user LOGIN;
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN PASSWORD 'secret';
";

/// A running server; it ends with this value.
pub(crate) struct Postgres {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Postgres {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        give_to_postgres(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let postgres = Self { folder, port };

        let data = postgres.data();
        run(postgres
            .command("initdb")
            .args([
                "--no-sync",
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--no-locale",
                "-D",
            ])
            .arg(&data));
        postgres.write_certificates();
        postgres.write("data/pg_hba.conf", HBA);
        let socket_directory = postgres.socket_directory();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{socket_directory}'\n\
             fsync = off\nssl = on\n"
        );
        postgres.write("data/postgresql.auto.conf", &settings);
        let log = postgres.folder.path().join("log");
        run(postgres
            .command("pg_ctl")
            .args(["start", "-w", "-t", "60", "-D"])
            .arg(&data)
            .arg("-l")
            .arg(log));
        postgres.sql(ROLES);
        postgres
    }

    /// Where its Unix-domain socket is.
    pub(crate) fn socket_directory(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.folder.path().join("root.crt")
    }

    /// A root that did not sign the server's certificate.
    pub(crate) fn foreign_root_certificate(&self) -> PathBuf {
        self.folder.path().join("foreign.crt")
    }

    /// Runs SQL as the superuser: what it prints, without decoration.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut command = self.command("psql");
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            "postgres",
            "-d",
            "postgres",
        ]);
        command.args(["-h", self.socket_directory(), "-p", &self.port.to_string()]);
        let mut psql = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        let output = psql.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        give_to_postgres(&path);
    }

    fn write_certificates(&self) {
        let root = |name: &str| {
            let mut parameters = CertificateParams::new(vec![]).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            self.write(name, &parameters.self_signed(&key).unwrap().pem());
            Issuer::new(parameters, key)
        };
        let issuer = root("root.crt");
        root("foreign.crt");
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![HOST_IN_CERTIFICATE.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        self.write("data/server.crt", &certificate.pem());
        self.write("data/server.key", &key.serialize_pem());
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(self.data().join("server.key"), private).unwrap();
    }

    /// A program of PostgreSQL's, run by a user whom it accepts: it refuses root.
    fn command(&self, program: &str) -> Command {
        let program = Path::new(BIN).join(program);
        let mut command = if is_root() {
            let mut setpriv = Command::new("setpriv");
            setpriv
                .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
                .arg(program);
            setpriv
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.folder.path())
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "-w", "-m", "immediate", "-D"])
            .arg(self.data());
        // A server that did not start has nothing to stop; the test has failed already.
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}");
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn give_to_postgres(path: &Path) {
    if !is_root() {
        return;
    }
    let id = |what: &str| -> u32 {
        let output = Command::new("id").args([what, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    chown(path, Some(id("-u")), Some(id("-g"))).unwrap();
}
