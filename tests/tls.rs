//! With TLS to the clients and to the node a server process that is killed means the same as without.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::server::{Front, Server, give_to_postgres};
use crate::support::message::*;
use crate::support::{Address, Client, LONG_PATIENCE, guardian, until, until_within};

/// A certificate of its own making and its key, for localhost.
struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let [certificate_file, key_file] = ["tls.crt", "tls.key"].map(|name| guardian::folder().join(name));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        // The server's user has to own it; who runs Halyard here may read it all the same.
        give_to_postgres(&key_file);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Self {
            certificate: text(&certificate_file),
            key: text(&key_file),
        }
    }

    fn connector(&self) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.certificate).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config).into()
    }
}

/// Speaks TLS for clients that do not: each connection to the returned port is one by TLS to the other.
fn by_tls(identity: &Identity, to: u16) -> u16 {
    let connector = identity.connector();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let connector = connector.clone();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    client.set_nonblocking(true).unwrap();
                    let mut client = tokio::net::TcpStream::from_std(client).unwrap();
                    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    // SSLRequest.
                    server.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
                    assert_eq!(server.read_u8().await.unwrap(), b'S');
                    let name = ServerName::try_from("localhost").unwrap();
                    let mut server = connector.connect(name, server).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            });
        }
    });
    port
}

/// Who does something when a server process is killed, and what that one runs in `pg_stat_activity`'s words.
const VICTIMS: [(&str, &str); 6] = [
    ("nobody's", "state = 'idle'"),
    ("a read's", "query = $q$SELECT 'read' FROM pg_sleep(1)$q$"),
    ("that of rows", "query LIKE '%rows of many%'"),
    ("a write's", "query LIKE 'INSERT INTO by_a_killed%'"),
    ("a block's", "state = 'idle in transaction'"),
    ("a temporary table's", "query LIKE '%of a table%'"),
];

/// What a client is told: SQLSTATE, and where it is then.
type Told = (&'static str, String, char);

fn told(what: &'static str, client: &mut Client) -> Told {
    let answer = client.answer();
    (what, answer.sqlstate(), answer.status)
}

/// What all clients are told when the process of one of them is killed. The server ends all others by that, with a word.
fn told_of(server: &Server, address: &Address, victim: &str) -> Vec<Told> {
    let [mut idle, mut reads, mut rows, mut writes, mut block, mut table] = [0; 6].map(|_| {
        let client = address.connect();
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client
    });
    idle.run("SET work_mem = '5MB'");
    idle.send(&[parse("mine", "SELECT $1::int + 1"), sync()].concat());
    assert!(idle.answer().error.is_none());
    block.run("BEGIN");
    block.run("INSERT INTO by_a_killed VALUES (1)");
    table.run("CREATE TEMP TABLE of_it (a int)");
    table.run("SELECT 'of a table'");
    rows.send(&query(
        "SELECT 'rows of many', repeat('x', 4000), pg_sleep(0.01) FROM generate_series(1, 100000)",
    ));
    while rows.receive().kind != b'D' {}
    writes.send(&query("INSERT INTO by_a_killed SELECT 1 FROM pg_sleep(600)"));
    reads.send(&query("SELECT 'read' FROM pg_sleep(1)"));
    let mut superuser = server.superuser("postgres").connect();
    let which = format!("usename = 'app' AND {victim} LIMIT 1");
    let pid = until_within(LONG_PATIENCE, "the process to be there", || {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE {which}");
        superuser.run(&sql).rows.pop()?.pop()?
    });
    until("the write and the read to be under way", || {
        superuser
            .value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND usename = 'app'")
            == "3"
    });
    let killed = Command::new("/bin/kill").args(["-9", &pid]).status().unwrap();
    assert!(killed.success());

    let mut all = vec![told("a read without an answer", &mut reads)];
    all.push(told("a read with rows", &mut rows));
    all.push(told("a write", &mut writes));
    block.send(&query("SELECT 1"));
    all.push(told("an open block", &mut block));
    block.send(&query("ROLLBACK"));
    all.push(told("its end", &mut block));
    table.send(&query("SELECT 1"));
    all.push(told("a temporary table", &mut table));
    idle.send(&[bind("", "mine", &[Some("41")]), execute("", 0), sync()].concat());
    all.push(told("nothing", &mut idle));
    assert_eq!(idle.value("SHOW work_mem"), "5MB");
    for client in [
        &mut idle,
        &mut reads,
        &mut rows,
        &mut writes,
        &mut block,
        &mut table,
    ] {
        assert_eq!(client.value("SELECT 'alive'"), "alive");
    }
    all
}

#[test]
fn a_server_process_that_is_killed_means_the_same_with_tls() {
    let identity = Identity::new();
    let (certificate, key) = (&identity.certificate, &identity.key);
    let server = Server::start(
        "encrypted",
        &format!("ssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\nautovacuum = off"),
    );
    server.superuser("postgres").connect().run(
        "CREATE ROLE app LOGIN; GRANT CREATE, TEMP ON DATABASE postgres TO app;
         CREATE TABLE by_a_killed (a int); GRANT ALL ON by_a_killed TO app",
    );
    let plain = Front::start(&server, "in_the_clear", &[("app", 8)], &[], "");
    let encrypted = Front::start(
        &server,
        "encrypting",
        &[("app", 8)],
        &[],
        &format!(
            "[server_tls]\nmode = 'verify-full'\nroot_certificate = '{certificate}'\n\
             [client_tls]\ncertificate = '{certificate}'\nkey = '{key}'\nrequired = true\n"
        ),
    );
    let app = |port| Address {
        port,
        ..server.user("app", "postgres")
    };
    let (clear, by_tls) = (app(plain.port), app(by_tls(&identity, encrypted.port)));
    let is_encrypted =
        "/* halyard.route: primary */ SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(clear.connect().value(is_encrypted), "f");
    assert_eq!(by_tls.connect().value(is_encrypted), "t");

    let expected = [
        ("a read without an answer", "", 'I'),
        ("a read with rows", "57P01", 'I'),
        ("a write", "08007", 'I'),
        ("an open block", "40001", 'E'),
        ("its end", "", 'I'),
        ("a temporary table", "57P01", 'I'),
        ("nothing", "", 'I'),
    ]
    .map(|(what, sqlstate, status)| (what, sqlstate.to_owned(), status));
    for (whose, victim) in VICTIMS {
        for address in [&clear, &by_tls] {
            let told = told_of(&server, address, victim);
            let how = if address.port == clear.port {
                "in the clear"
            } else {
                "by TLS"
            };
            assert_eq!(told, expected, "{whose} process was killed, {how}");
        }
    }
}
