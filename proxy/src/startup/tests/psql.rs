//! Real libpq: psql against `accept` and the least that a session must say.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::sync::Arc;

use tokio::net::UnixListener;
use tokio::process::Command;

use super::*;

const PSQL: &str = "/usr/bin/psql";

/// Accepts until it is dropped, answering each session's queries with nothing.
struct Server {
    port: u16,
    accepting: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Server {
    async fn start(gate: Gate) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let gate = Arc::new(gate);
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, address) = listener.accept().await.unwrap();
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    let accepted = accept(Socket::Tcp(socket), Peer::Tcp(address), &gate).await;
                    if let Ok(Accepted::Login(login)) = accepted {
                        serve(*login).await;
                    }
                });
            }
        });
        Self { port, accepting }
    }

    /// Runs psql; what follows `host=… port=…` is `connection`.
    async fn psql(&self, connection: &str, password: &str) -> Output {
        let place = format!("host=localhost hostaddr=127.0.0.1 port={}", self.port);
        psql(&format!("{place} dbname=shop {connection}"), password).await
    }
}

async fn psql(connection: &str, password: &str) -> Output {
    let mut command = Command::new(PSQL);
    command.args(["-X", "-w", "-d", connection, "-c", "\\conninfo", "-c", "SELECT"]);
    command
        .env_clear()
        .env("PGPASSWORD", password)
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent");
    command.kill_on_drop(true);
    within(command.output()).await.unwrap()
}

/// Says the least that makes a session, and answers every Query with CommandComplete.
async fn serve(login: Login) {
    let mut stream = login.stream;
    let mut greeting = login.pending;
    for (name, value) in [("server_version", "15.0"), ("client_encoding", "UTF8")] {
        greeting.extend(framed(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    greeting.extend(framed(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
    greeting.extend(framed(b'Z', b"I"));
    stream.write_all(&greeting).await.unwrap();
    stream.flush().await.unwrap();
    let mut client = Client { stream };
    while let (b'Q', _) = client.message().await {
        client
            .send(&[framed(b'C', b"SELECT 0\0"), framed(b'Z', b"I")].concat())
            .await;
    }
}

#[track_caller]
fn assert_connected(output: &Output, conninfo: &str) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    assert!(
        stdout.contains("You are connected to database \"shop\" as user \"alice\""),
        "{stdout}"
    );
    assert!(stdout.contains(conninfo), "{stdout}");
}

#[track_caller]
fn assert_refused(output: &Output, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains(message), "{stderr}");
}

#[tokio::test]
async fn with_each_method() {
    for method in [AuthMethod::ScramSha256, AuthMethod::Md5, AuthMethod::Trust] {
        let server = Server::start(gate(method)).await;
        assert_connected(&server.psql("user=alice", "secret").await, "");
    }
    for method in [AuthMethod::ScramSha256, AuthMethod::Md5] {
        let server = Server::start(gate(method)).await;
        for name in ["alice", "mallory"] {
            let output = server.psql(&format!("user={name}"), "wrong").await;
            assert_refused(
                &output,
                &format!("FATAL:  password authentication failed for user \"{name}\""),
            );
        }
    }
}

#[tokio::test]
async fn with_a_password_that_saslprep_changes() {
    let mut auth = auth(AuthMethod::ScramSha256);
    auth.users = vec![user("alice", "I\u{ad}X \u{2168}")];
    let server = Server::start(Gate::build(&auth, None).unwrap()).await;
    assert_connected(&server.psql("user=alice", "IX IX").await, "");
    assert_connected(&server.psql("user=alice", "I\u{ad}X \u{2168}").await, "");
}

#[tokio::test]
async fn with_each_sslmode() {
    let certificate = Certificate::new();
    let server = Server::start(certificate.gate(AuthMethod::ScramSha256)).await;
    let root = certificate.tls.certificate.display();
    for connection in [
        "sslmode=prefer".to_owned(),
        "sslmode=require channel_binding=disable".to_owned(),
        "sslmode=require channel_binding=prefer".to_owned(),
        // The proof is bound to our certificate.
        "sslmode=require channel_binding=require".to_owned(),
        "sslmode=require ssl_min_protocol_version=TLSv1.2 ssl_max_protocol_version=TLSv1.2".to_owned(),
        format!("sslmode=verify-ca sslrootcert={root}"),
        format!("sslmode=verify-full sslrootcert={root}"),
    ] {
        let output = server.psql(&format!("user=alice {connection}"), "secret").await;
        assert_connected(&output, "SSL connection");
    }
    let output = server.psql("user=alice sslmode=disable", "secret").await;
    assert_connected(&output, "");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("SSL connection"));

    let plain = Server::start(gate(AuthMethod::ScramSha256)).await;
    assert_connected(&plain.psql("user=alice sslmode=prefer", "secret").await, "");
    let output = plain.psql("user=alice sslmode=require", "secret").await;
    assert_refused(&output, "server does not support SSL");
}

#[tokio::test]
async fn without_the_tls_that_is_required() {
    let certificate = Certificate::new();
    let server = Server::start(certificate.gate_that_requires_tls()).await;
    let output = server.psql("user=alice sslmode=disable", "").await;
    assert_refused(&output, "HINT:  Connect with sslmode=require or a stronger one.");
    assert_connected(
        &server.psql("user=alice sslmode=require", "").await,
        "SSL connection",
    );
}

#[tokio::test]
async fn over_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let listener = UnixListener::bind(folder.path().join(".s.PGSQL.6432")).unwrap();
    let certificate = Certificate::new();
    let gate = certificate.gate(AuthMethod::ScramSha256);
    let accepting = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let Ok(Accepted::Login(login)) = accept(Socket::Unix(socket), Peer::Unix, &gate).await else {
            panic!("psql logs in");
        };
        serve(*login).await;
    });
    let place = format!("host={} port=6432", folder.path().display());
    let output = psql(&format!("{place} dbname=shop user=alice"), "secret").await;
    assert_connected(&output, "");
    within(accepting).await.unwrap();
}
