//! Logging in to a real PostgreSQL, and to nodes that misbehave.

#![allow(clippy::unwrap_used)]

mod hostile;
pub(crate) mod postgres;

use std::sync::Arc;

use proptest::prelude::*;

use self::postgres::{HOST_IN_CERTIFICATE, Postgres};
use super::authenticate::read_request;
use super::node::{read_error, read_key, read_parameter};
use super::*;
use crate::auth::scram::client::{self as scram_client, Binding};
use crate::auth::scram::server::{self, Candidate, ClientFirstAwaited};
use crate::auth::scram::{self, Keys, Verifier};
use crate::auth::{Md5Hash, ScramKeys};
use crate::config::{Secret, ServerTls, SslMode};

/// Every wait in these tests ends after this, with a failure.
const DEADLINE: Duration = Duration::from_secs(30);

fn limits() -> LoginLimits {
    LoginLimits {
        timeout: DEADLINE,
        limits: Limits {
            client_connections_max: 1,
            unauthenticated_max: 1,
            startup_timeout: DEADLINE,
            idle_in_transaction_timeout: None,
            tcp_user_timeout: Some(DEADLINE),
            client_tcp_user_timeout: None,
            tcp_keepalive: DEADLINE,
            pipeline_max: 1,
            notifications_queued_max: 1,
            channels_max: 1,
        },
    }
}

fn target(host: &str, port: u16) -> Target {
    Target {
        name: "node1".to_owned(),
        host: host.to_owned(),
        port,
        tls: TlsPolicy::Never,
    }
}

fn password(text: &str) -> Credential {
    Credential::password(Secret::new(text))
}

impl Postgres {
    fn target(&self) -> Target {
        target("127.0.0.1", self.port)
    }

    fn target_with(&self, host: &str, mode: SslMode) -> Target {
        let tls = ServerTls {
            mode,
            root_certificate: Some(self.root_certificate()),
        };
        Target {
            tls: TlsPolicy::new(&tls).unwrap(),
            ..target(host, self.port)
        }
    }
}

async fn try_log_in(target: &Target, user: &str, credential: &Credential) -> Result<BackendLink, LoginError> {
    log_in(target, user, "postgres", &[], credential, &limits()).await
}

/// Sends one simple query and reads up to ReadyForQuery: the types of the messages, and the bodies one after the
/// other.
async fn query(link: &mut BackendLink, sql: &str) -> (String, String) {
    let mut message = vec![b'Q'];
    message.extend_from_slice(&u32::try_from(sql.len() + 5).unwrap().to_be_bytes());
    message.extend_from_slice(format!("{sql}\0").as_bytes());
    link.stream.write_all(&message).await.unwrap();
    link.stream.flush().await.unwrap();
    let (mut kinds, mut bodies) = (String::new(), String::new());
    while !kinds.ends_with('Z') {
        kinds.push(char::from(link.stream.read_u8().await.unwrap()));
        let length = link.stream.read_u32().await.unwrap();
        let mut body = vec![0; length as usize - 4];
        link.stream.read_exact(&mut body).await.unwrap();
        bodies.push_str(&String::from_utf8_lossy(&body));
    }
    (kinds, bodies)
}

#[tokio::test]
async fn with_each_method() {
    let postgres = Postgres::start();
    let target = postgres.target();
    for user in ["scram_user", "md5_user", "clear_user", "trust_user"] {
        let mut link = try_log_in(&target, user, &password("secret")).await.unwrap();
        assert_eq!(link.transaction_status, b'I');
        assert!(link.leftover.is_empty());
        assert_eq!(link.key.secret.len(), 4);
        let parameter = |name| {
            link.parameters
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| &value[..])
        };
        assert_eq!(parameter("session_authorization"), Some(user));
        assert!(parameter("server_version").is_some_and(|version| version.starts_with("15")));
        let (kinds, bodies) = query(&mut link, "SELECT current_user").await;
        assert_eq!(kinds, "TDCZ");
        assert!(bodies.contains(user));
    }
    for user in ["scram_user", "md5_user", "clear_user"] {
        let error = try_log_in(&target, user, &password("wrong")).await.unwrap_err();
        let LoginError::Server(report) = error else {
            panic!("{error:?}")
        };
        assert_eq!(report.sqlstate.as_str(), "28P01");
        assert_eq!(
            report.message,
            format!("password authentication failed for user \"{user}\"")
        );
        let error = try_log_in(&target, user, &Credential::None).await.unwrap_err();
        assert!(matches!(error, LoginError::NoCredential(_)), "{error:?}");
    }
    try_log_in(&target, "trust_user", &Credential::None)
        .await
        .unwrap();

    let hash = Credential::Md5Hash(Md5Hash::of("secret", "md5_user"));
    try_log_in(&target, "md5_user", &hash).await.unwrap();
    assert!(matches!(
        try_log_in(&target, "scram_user", &hash).await,
        Err(LoginError::NoCredential(_))
    ));
    assert!(matches!(
        try_log_in(&target, "clear_user", &hash).await,
        Err(LoginError::NoCredential(_))
    ));

    // Over the socket, as `host = /directory`; and settings arrive.
    let unix = self::target(postgres.socket_directory(), postgres.port);
    let settings = [("application_name", "halyard's test"), ("search_path", "a,b")];
    let mut link = log_in(
        &unix,
        "scram_user",
        "postgres",
        &settings,
        &password("secret"),
        &limits(),
    )
    .await
    .unwrap();
    assert!(query(&mut link, "SHOW search_path").await.1.contains("a,b"));
    let name = link
        .parameters
        .iter()
        .find(|(name, _)| name == "application_name");
    assert_eq!(name.unwrap().1, "halyard's test");

    let missing = log_in(
        &target,
        "trust_user",
        "missing",
        &[],
        &Credential::None,
        &limits(),
    )
    .await;
    let Err(LoginError::Server(report)) = missing else {
        panic!("{missing:?}")
    };
    assert_eq!(report.sqlstate.as_str(), "3D000");
}

/// A client proves itself to Halyard against a copy of the node's verifier; what the proof reveals logs in to the
/// node, whose password Halyard never knew.
#[tokio::test]
async fn with_the_keys_of_a_clients_own_proof() {
    let postgres = Postgres::start();
    let stored = postgres.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'scram_user'");
    let candidate = Candidate {
        verifier: Arc::new(Verifier::parse(stored.trim()).unwrap()),
        genuine: true,
    };
    let (salt, iterations) = (
        candidate.verifier.salt().to_vec(),
        candidate.verifier.iterations(),
    );
    let (first, on_client) = scram_client::begin(Binding::Unsupported, scram::nonce());
    let (answer, on_server) = ClientFirstAwaited::new(candidate, server::Binding::NotOffered)
        .client_first(&first, &scram::nonce())
        .unwrap();
    let challenge = on_client.server_first(&answer).unwrap();
    let (last, _) = challenge.answer(&Keys::derive("secret", &salt, iterations));
    let keys = on_server.client_final(&last).unwrap().keys;

    let pass_through = |salt: Vec<u8>| {
        let keys = keys.clone();
        Credential::ScramKeys(Arc::new(ScramKeys {
            keys,
            salt,
            iterations,
        }))
    };
    let target = postgres.target();
    let mut link = try_log_in(&target, "scram_user", &pass_through(salt))
        .await
        .unwrap();
    assert_eq!(query(&mut link, "SELECT 1").await.0, "TDCZ");

    // The password was changed on the node meanwhile: nothing is sent that could not fit.
    let other = try_log_in(&target, "scram_user", &pass_through(b"another salt".to_vec())).await;
    assert!(matches!(other, Err(LoginError::NoCredential(_))), "{other:?}");
}

#[tokio::test]
async fn with_each_sslmode() {
    let postgres = Postgres::start();
    let log_in = async |host: &str, mode| {
        try_log_in(
            &postgres.target_with(host, mode),
            "scram_user",
            &password("secret"),
        )
        .await
    };
    // The name has two addresses, of which PostgreSQL listens on one.
    for mode in [
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ] {
        let mut link = log_in(HOST_IN_CERTIFICATE, mode).await.unwrap();
        assert!(link.stream.is_tls(), "{mode:?}");
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(query(&mut link, ssl).await.1.contains('t'));
    }
    let link = log_in(HOST_IN_CERTIFICATE, SslMode::Disable).await.unwrap();
    assert!(!link.stream.is_tls());

    // The certificate carries the name and not the address.
    assert!(
        log_in("127.0.0.1", SslMode::VerifyCa)
            .await
            .unwrap()
            .stream
            .is_tls()
    );
    let full = log_in("127.0.0.1", SslMode::VerifyFull).await;
    assert!(matches!(full, Err(LoginError::Tls(_))), "{full:?}");

    // A root that did not sign it.
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        let tls = ServerTls {
            mode,
            root_certificate: Some(postgres.foreign_root_certificate()),
        };
        let foreign = Target {
            tls: TlsPolicy::new(&tls).unwrap(),
            ..target(HOST_IN_CERTIFICATE, postgres.port)
        };
        let result = try_log_in(&foreign, "scram_user", &password("secret")).await;
        assert!(matches!(result, Err(LoginError::Tls(_))), "{result:?}");
    }

    // Rules of the node's own.
    let disabled = log_in(HOST_IN_CERTIFICATE, SslMode::Disable);
    assert!(disabled.await.is_ok());
    let target = postgres.target_with(HOST_IN_CERTIFICATE, SslMode::Disable);
    let only_tls = try_log_in(&target, "tls_user", &password("secret")).await;
    assert!(matches!(only_tls, Err(LoginError::Server(report)) if report.sqlstate.as_str() == "28000"));
    let target = postgres.target_with(HOST_IN_CERTIFICATE, SslMode::Require);
    try_log_in(&target, "tls_user", &password("secret"))
        .await
        .unwrap();
}

#[test]
fn verifying_needs_a_root() {
    for mode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        let without = ServerTls {
            mode,
            root_certificate: None,
        };
        assert!(TlsPolicy::new(&without).is_err());
    }
}

#[tokio::test]
async fn a_cancel_reaches_its_query() {
    let postgres = Postgres::start();
    for mode in [SslMode::Disable, SslMode::Require] {
        let target = postgres.target_with(HOST_IN_CERTIFICATE, mode);
        let mut victim = try_log_in(&target, "trust_user", &Credential::None)
            .await
            .unwrap();
        let mut watcher = try_log_in(&target, "trust_user", &Credential::None)
            .await
            .unwrap();
        let key = victim.key.clone();
        let canceling = async {
            let sleeping = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND wait_event = 'PgSleep'",
                key.pid
            );
            while !query(&mut watcher, &sleeping).await.1.contains("1SELECT 1") {}
            send_cancel(&target, &key, &limits()).await.unwrap();
        };
        let both = async { tokio::join!(query(&mut victim, "SELECT pg_sleep(600)"), canceling) };
        let ((kinds, bodies), ()) = tokio::time::timeout(DEADLINE, both).await.unwrap();
        assert_eq!(kinds, "TEZ");
        assert!(bodies.contains("57014"), "{bodies}");
    }
}

#[tokio::test]
async fn nobody_listens() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for host in ["127.0.0.1", "localhost", "/nonexistent"] {
        let target = target(host, port);
        let result = try_log_in(&target, "alice", &Credential::None).await;
        assert!(matches!(result, Err(LoginError::Refused)), "{host}: {result:?}");
        let key = BackendKey {
            pid: 1,
            secret: vec![0; 4],
        };
        let cancel = send_cancel(&target, &key, &limits()).await.unwrap_err();
        assert_eq!(cancel.kind(), io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn an_error_may_leave_out_whatever_it_likes() {
    let read = |bytes: &'static [u8]| read_error(bytes.into());
    let whole = read(b"SFATAL\0VFATAL\0C28000\0Mno\0Dwhy\0Hhow\0Fauth.c\0\0");
    assert_eq!((whole.sqlstate.as_str(), &whole.message[..]), ("28000", "no"));
    assert_eq!(
        (whole.detail.as_deref(), whole.hint.as_deref()),
        (Some("why"), Some("how"))
    );
    for bytes in [
        &b""[..],
        b"\0",
        b"C",
        b"C28",
        b"C28\0\0",
        b"C28P012\0\0",
        b"M",
        b"SFATAL\0\0",
    ] {
        assert_eq!(read(bytes).sqlstate.as_str(), "08P01", "{}", bytes.escape_ascii());
    }
    assert_eq!(read(b"Mold words\0\0").message, "old words");
}

proptest! {
    #[test]
    fn no_message_panics(
        code in 0_i32..14,
        body in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'C'), any::<u8>()], 0..64),
    ) {
        let _ = read_request([&code.to_be_bytes()[..], &body].concat().into());
        let body = bytes::Bytes::from(body);
        let _ = read_request(body.clone());
        let _ = read_parameter(body.clone());
        let _ = read_key(body.clone());
        let _ = read_error(body);
    }
}
