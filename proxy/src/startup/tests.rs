//! A scripted client over a loopback socket against [`accept`].

#![allow(clippy::unwrap_used)]

mod parsing;
mod psql;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::auth::scram::client::{self as scram_client, Binding};
use crate::auth::scram::{self, Keys, Verifier};
use crate::config::{AuthMethod, ConnectionKind, Secret, SslMode, User};
use crate::tls::TlsPolicy;

/// Every wait in these tests ends after this, with a failure.
const DEADLINE: Duration = Duration::from_secs(20);

fn rule(method: AuthMethod) -> AuthRule {
    AuthRule {
        connection: ConnectionKind::Any,
        databases: vec![],
        users: vec![],
        addresses: vec![],
        method,
    }
}

fn user(name: &str, password: &str) -> User {
    User {
        name: name.to_owned(),
        password: Some(Secret::new(password)),
        pool_size: None,
        pool_mode: None,
        route: None,
        read_consistency: None,
    }
}

fn gate(method: AuthMethod) -> Gate {
    Gate::build(&auth(method), None).unwrap()
}

fn auth(method: AuthMethod) -> Auth {
    Auth {
        rules: vec![rule(method)],
        users: vec![user("alice", "secret")],
    }
}

/// A certificate for localhost in files that live as long as this.
struct Certificate {
    _folder: tempfile::TempDir,
    tls: ClientTls,
}

impl Certificate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: String| -> PathBuf {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let tls = ClientTls {
            certificate: write("server.crt", made.cert.pem()),
            key: write("server.key", made.signing_key.serialize_pem()),
            required: false,
        };
        Self { _folder: folder, tls }
    }

    fn gate(&self, method: AuthMethod) -> Gate {
        Gate::build(&auth(method), Some(&self.tls)).unwrap()
    }

    fn gate_that_requires_tls(&self) -> Gate {
        let tls = ClientTls {
            required: true,
            ..self.tls.clone()
        };
        Gate::build(&auth(AuthMethod::Trust), Some(&tls)).unwrap()
    }
}

type Verdict = Result<Accepted, StartupError>;

/// Connects a client to `accept`.
async fn meet(gate: Gate) -> (Client, JoinHandle<Verdict>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (server, address) = listener.accept().await.unwrap();
    let accepting = tokio::spawn(async move { accept(Socket::Tcp(server), Peer::Tcp(address), &gate).await });
    (Client { stream: client }, accepting)
}

/// The scripted client.
struct Client<S = TcpStream> {
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    async fn byte(&mut self) -> u8 {
        within(self.stream.read_u8()).await.unwrap()
    }

    async fn message(&mut self) -> (u8, Vec<u8>) {
        let kind = self.byte().await;
        let length = within(self.stream.read_u32()).await.unwrap();
        let mut body = vec![0; length as usize - 4];
        within(self.stream.read_exact(&mut body)).await.unwrap();
        (kind, body)
    }

    /// Reads an authentication request of this code.
    async fn authentication(&mut self, code: u8) -> Vec<u8> {
        let (kind, body) = self.message().await;
        assert_eq!((kind, &body[..4]), (b'R', &[0, 0, 0, code][..]));
        body[4..].to_vec()
    }

    /// Reads an ErrorResponse and the end of the stream: SQLSTATE and message.
    async fn farewell(mut self) -> (String, String) {
        let (kind, body) = self.message().await;
        assert_eq!(kind, b'E', "{}", body.escape_ascii());
        let rest = within(self.stream.read_u8()).await;
        assert_eq!(rest.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        fields(&body)
    }

    /// Answers a SCRAM exchange in full, with `after` behind the last message in the same write.
    async fn prove(&mut self, password: &str, after: &[u8]) {
        self.authentication(10).await;
        let (first, next) = scram_client::begin(Binding::Unsupported, scram::nonce());
        self.send(&sasl_initial("SCRAM-SHA-256", &first)).await;
        let challenge = next.server_first(&self.authentication(11).await).unwrap();
        let keys = Keys::derive(password, challenge.salt(), challenge.iterations());
        let (last, _) = challenge.answer(&keys);
        let mut bytes = framed(b'p', &last);
        bytes.extend_from_slice(after);
        self.send(&bytes).await;
    }
}

async fn within<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("an answer before the deadline")
}

fn fields(body: &[u8]) -> (String, String) {
    let field = |name: u8| {
        let value = body
            .split(|&byte| byte == 0)
            .find(|field| field.first() == Some(&name))
            .unwrap();
        String::from_utf8(value[1..].to_vec()).unwrap()
    };
    assert_eq!(field(b'V'), "FATAL");
    (field(b'C'), field(b'M'))
}

fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend_from_slice(&packet(body));
    message
}

/// A packet without a type: a length, and the body.
fn packet(body: &[u8]) -> Vec<u8> {
    let mut packet = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
    packet.extend_from_slice(body);
    packet
}

fn startup_packet(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    packet(&body)
}

const V3_0: u32 = 3 << 16;

fn alice() -> Vec<u8> {
    startup_packet(V3_0, &[("user", "alice"), ("database", "shop")])
}

fn ssl_request() -> Vec<u8> {
    packet(&80_877_103_u32.to_be_bytes())
}

fn gssenc_request() -> Vec<u8> {
    packet(&80_877_104_u32.to_be_bytes())
}

fn cancel_request(secret: &[u8]) -> Vec<u8> {
    packet(&[&80_877_102_u32.to_be_bytes()[..], &7_u32.to_be_bytes(), secret].concat())
}

fn sasl_initial(mechanism: &str, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    framed(b'p', &[mechanism.as_bytes(), b"\0", &length, message].concat())
}

async fn login(accepting: JoinHandle<Verdict>) -> Login {
    match within(accepting).await.unwrap().unwrap() {
        Accepted::Login(login) => *login,
        other => panic!("no login but {other:?}"),
    }
}

async fn refusal(accepting: JoinHandle<Verdict>) -> Report {
    match within(accepting).await.unwrap() {
        Err(StartupError::Refused(report)) => report,
        other => panic!("no refusal but {other:?}"),
    }
}

fn tls_connector() -> tokio_rustls::TlsConnector {
    let tls = crate::config::ServerTls {
        mode: SslMode::Require,
        root_certificate: None,
    };
    match TlsPolicy::new(&tls).unwrap() {
        TlsPolicy::Always(connector) => connector,
        other => panic!("{other:?}"),
    }
}

impl Client {
    async fn encrypt(self) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let stream = within(tls_connector().connect(name, self.stream)).await.unwrap();
        Client { stream }
    }
}

#[tokio::test]
async fn scram_logs_in() {
    let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
    client.send(&alice()).await;
    client.prove("secret", b"").await;
    let login = login(accepting).await;
    assert_eq!((&login.user[..], &login.database[..]), ("alice", "shop"));
    assert_eq!(login.protocol, ProtocolVersion::V3_0);
    assert!(login.leftover.is_empty());
    // AuthenticationSASLFinal, then AuthenticationOk, not yet written.
    assert_eq!((login.pending[0], login.pending[8]), (b'R', 12));
    assert!(login.pending.ends_with(b"R\0\0\0\x08\0\0\0\0"));
    assert!(matches!(login.credential, Credential::Password(_)));
}

/// A client that pipelines its first query with its last authentication message lost it elsewhere: the read
/// buffer was dropped between two phases.
#[tokio::test]
async fn a_query_pipelined_behind_the_proof_is_not_lost() {
    let query = framed(b'Q', b"SELECT 1\0");
    let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
    client.send(&alice()).await;
    client.prove("secret", &query).await;
    assert_eq!(login(accepting).await.leftover, query);

    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client.send(&[alice(), query.clone()].concat()).await;
    assert_eq!(login(accepting).await.leftover, query);
}

#[tokio::test]
async fn bytes_may_come_one_at_a_time() {
    let (mut client, accepting) = meet(gate(AuthMethod::Md5)).await;
    for packet in [gssenc_request(), ssl_request()] {
        send_torn(&mut client, &packet).await;
        assert_eq!(client.byte().await, b'N');
    }
    send_torn(&mut client, &alice()).await;
    let salt = client.authentication(5).await;
    let answer = crate::auth::Md5Hash::of("secret", "alice").answer(salt.try_into().unwrap());
    send_torn(&mut client, &framed(b'p', format!("{answer}\0").as_bytes())).await;
    assert_eq!(login(accepting).await.user, "alice");
}

async fn send_torn(client: &mut Client, bytes: &[u8]) {
    for byte in bytes {
        client.send(&[*byte]).await;
        // Lets the other side read it before the next one comes.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_verifier_gives_the_clients_keys_and_not_its_password() {
    let verifier = Verifier::derive("secret", b"0123456789abcdef".to_vec(), scram::ITERATIONS_DEFAULT);
    let mut auth = auth(AuthMethod::ScramSha256);
    auth.users = vec![user("alice", &pg_authid("secret"))];
    let (mut client, accepting) = meet(Gate::build(&auth, None).unwrap()).await;
    client.send(&alice()).await;
    client.prove("secret", b"").await;
    let Credential::ScramKeys(known) = login(accepting).await.credential else {
        panic!("the proof reveals the keys");
    };
    assert_eq!(
        known.keys.verifier(known.salt.clone(), known.iterations),
        verifier
    );
}

/// `SCRAM-SHA-256$…` of `secret` with the salt `0123456789abcdef`.
fn pg_authid(password: &str) -> String {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use ring::{digest, hmac, pbkdf2};
    let mut salted = [0; 32];
    let salt = b"0123456789abcdef";
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        scram::ITERATIONS_DEFAULT,
        salt,
        password.as_bytes(),
        &mut salted,
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, &salted);
    let stored = digest::digest(&digest::SHA256, hmac::sign(&key, b"Client Key").as_ref());
    let server = hmac::sign(&key, b"Server Key");
    format!(
        "SCRAM-SHA-256$4096:{}${}:{}",
        BASE64_STANDARD.encode(salt),
        BASE64_STANDARD.encode(stored),
        BASE64_STANDARD.encode(server)
    )
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_are_told_the_same() {
    for name in ["alice", "mallory"] {
        let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
        client.send(&startup_packet(V3_0, &[("user", name)])).await;
        client.prove("guess", b"").await;
        let told = client.farewell().await;
        assert_eq!(told.0, "28P01");
        assert_eq!(
            told.1,
            format!("password authentication failed for user \"{name}\"")
        );
        refusal(accepting).await;

        let (mut client, accepting) = meet(gate(AuthMethod::Md5)).await;
        client.send(&startup_packet(V3_0, &[("user", name)])).await;
        client.authentication(5).await;
        client.send(&framed(b'p', b"md5guess\0")).await;
        assert_eq!(client.farewell().await, told);
        refusal(accepting).await;
    }
}

#[tokio::test]
async fn what_does_not_belong_into_authentication_is_refused() {
    let cases: [(&[u8], &str); 9] = [
        (
            &framed(b'Q', b"SELECT 1\0"),
            "expected SASL response, got message type 81",
        ),
        (
            b"Q\x7f\xff\xff\xff",
            "expected SASL response, got message type 81",
        ),
        (b"p\0\0\0\x03", "invalid message length"),
        (b"p\x7f\xff\xff\xff", "invalid message length"),
        (&framed(b'p', &[b'x'; 4096]), "invalid message length"),
        (&framed(b'p', b"no terminator"), "malformed SASL initial response"),
        (
            &framed(b'p', b"SCRAM-SHA-256\0\0\0\0\x10n,,"),
            "malformed SASL initial response",
        ),
        (
            &sasl_initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
            "client selected an invalid SASL authentication mechanism",
        ),
        (
            &sasl_initial("SCRAM-SHA-256", b"n,,nonsense"),
            "malformed SCRAM message",
        ),
    ];
    for (message, expected) in cases {
        let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
        client.send(&alice()).await;
        client.authentication(10).await;
        client.send(message).await;
        let told = client.farewell().await;
        assert_eq!(told, ("08P01".to_owned(), expected.to_owned()));
        refusal(accepting).await;
    }
}

#[tokio::test]
async fn a_client_may_choose_its_mechanism_before_it_speaks() {
    let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
    client.send(&alice()).await;
    client.authentication(10).await;
    client
        .send(&framed(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff"))
        .await;
    assert!(client.authentication(11).await.is_empty());
    let (first, next) = scram_client::begin(Binding::Unsupported, scram::nonce());
    client.send(&framed(b'p', &first)).await;
    let challenge = next.server_first(&client.authentication(11).await).unwrap();
    let keys = Keys::derive("secret", challenge.salt(), challenge.iterations());
    client.send(&framed(b'p', &challenge.answer(&keys).0)).await;
    assert_eq!(login(accepting).await.user, "alice");
}

#[tokio::test]
async fn startup_packets_that_postgresql_refuses_are_refused() {
    let missing_end = packet(&[&V3_0.to_be_bytes()[..], b"user\0alice\0"].concat());
    let more_behind = packet(&[&V3_0.to_be_bytes()[..], b"user\0alice\0\0Q\0\0\0\x04"].concat());
    let latin1 = packet(&[&V3_0.to_be_bytes()[..], b"user\0ren\xe9\0\0"].concat());
    let oversize = (u32::try_from(STARTUP_PACKET_SIZE_MAX).unwrap() + 5).to_be_bytes();
    let layout = "invalid startup packet layout: expected terminator as last byte";
    let cases: [(&[u8], &str, &str); 14] = [
        (&[0; 8], "08P01", "invalid length of startup packet"),
        (
            &[0, 0, 0, 7, 0, 3, 0],
            "08P01",
            "invalid length of startup packet",
        ),
        (&[0xff; 8], "08P01", "invalid length of startup packet"),
        (&oversize, "08P01", "invalid length of startup packet"),
        (
            b"GET / HTTP/1.1\r\n\r\n",
            "08P01",
            "invalid length of startup packet",
        ),
        (&missing_end, "08P01", layout),
        (&more_behind, "08P01", layout),
        (
            &latin1,
            "22021",
            "invalid byte sequence for encoding \"UTF8\" in startup packet",
        ),
        (
            &startup_packet(V3_0, &[("database", "shop")]),
            "28000",
            "no PostgreSQL user name specified in startup packet",
        ),
        (
            &startup_packet(2 << 16, &[]),
            "0A000",
            "unsupported frontend protocol 2.0: server supports 3.0 to 3.2",
        ),
        (
            &startup_packet((4 << 16) + 1, &[]),
            "0A000",
            "unsupported frontend protocol 4.1: server supports 3.0 to 3.2",
        ),
        (
            &startup_packet(V3_0, &[("user", "alice"), ("options", "-d 5")]),
            "42601",
            "invalid command-line argument for server process: -d",
        ),
        (
            &startup_packet(V3_0, &[("user", "alice"), ("replication", "maybe")]),
            "22023",
            "invalid value for parameter \"replication\": \"maybe\"",
        ),
        (
            &cancel_request(b"abc"),
            "08P01",
            "invalid length of cancel request packet",
        ),
    ];
    for (bytes, sqlstate, message) in cases {
        let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
        client.send(bytes).await;
        let told = client.farewell().await;
        assert_eq!(told, (sqlstate.to_owned(), message.to_owned()));
        assert_eq!(refusal(accepting).await.sqlstate.as_str(), sqlstate);
    }
}

#[tokio::test]
async fn the_largest_startup_packet_is_taken() {
    let frame = startup_packet(V3_0, &[("user", "alice"), ("x", "")]).len() - 4;
    let value = "v".repeat(STARTUP_PACKET_SIZE_MAX - frame);
    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client
        .send(&startup_packet(V3_0, &[("user", "alice"), ("x", &value)]))
        .await;
    assert_eq!(login(accepting).await.settings, [("x".to_owned(), value)]);
}

#[tokio::test]
async fn a_newer_protocol_is_negotiated() {
    let cases = [
        (V3_0, None, None, ProtocolVersion::V3_0),
        (V3_0 + 1, None, None, ProtocolVersion::V3_0),
        (V3_0 + 2, None, None, ProtocolVersion::V3_2),
        (
            V3_0 + 9999,
            None,
            Some("\0\x03\0\x02\0\0\0\0"),
            ProtocolVersion::V3_2,
        ),
        (
            V3_0,
            Some("_pq_.x"),
            Some("\0\x03\0\0\0\0\0\x01_pq_.x\0"),
            ProtocolVersion::V3_0,
        ),
    ];
    for (version, option, negotiation, spoken) in cases {
        let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
        let mut parameters = vec![("user", "alice")];
        parameters.extend(option.map(|name| (name, "on")));
        client.send(&startup_packet(version, &parameters)).await;
        if let Some(negotiation) = negotiation {
            assert_eq!(client.message().await, (b'v', negotiation.as_bytes().to_vec()));
        }
        client.prove("secret", b"").await;
        let login = login(accepting).await;
        assert_eq!(login.protocol, spoken);
        assert!(login.settings.is_empty());
    }
}

#[tokio::test]
async fn encryption_may_be_asked_for_in_either_order_and_each_once() {
    for (first, second) in [
        (ssl_request(), gssenc_request()),
        (gssenc_request(), ssl_request()),
    ] {
        let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
        client.send(&first).await;
        assert_eq!(client.byte().await, b'N');
        client.send(&second).await;
        assert_eq!(client.byte().await, b'N');
        client.send(&alice()).await;
        assert_eq!(login(accepting).await.user, "alice");

        let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
        client.send(&first).await;
        assert_eq!(client.byte().await, b'N');
        client.send(&first).await;
        let (sqlstate, message) = client.farewell().await;
        assert_eq!(sqlstate, "0A000");
        assert!(
            message.starts_with("unsupported frontend protocol 1234."),
            "{message}"
        );
        refusal(accepting).await;
    }
}

/// CVE-2021-23214: what comes with an SSLRequest was sent by somebody before the channel was safe.
#[tokio::test]
async fn bytes_injected_behind_a_request_for_encryption_are_refused() {
    let certificate = Certificate::new();
    for (request, what) in [(ssl_request(), "SSL"), (gssenc_request(), "GSSAPI encryption")] {
        let (mut client, accepting) = meet(certificate.gate(AuthMethod::Trust)).await;
        client.send(&[request, alice()].concat()).await;
        let told = client.farewell().await;
        assert_eq!(
            told,
            (
                "08P01".to_owned(),
                format!("received unencrypted data after {what} request")
            )
        );
        refusal(accepting).await;
    }
}

#[tokio::test]
async fn gss_then_ssl_then_startup() {
    let certificate = Certificate::new();
    let (mut client, accepting) = meet(certificate.gate(AuthMethod::ScramSha256)).await;
    client.send(&gssenc_request()).await;
    assert_eq!(client.byte().await, b'N');
    client.send(&ssl_request()).await;
    assert_eq!(client.byte().await, b'S');
    let mut client = client.encrypt().await;
    client.send(&alice()).await;
    client.prove("secret", &framed(b'Q', b"SELECT 1\0")).await;
    let login = login(accepting).await;
    assert!(login.stream.is_tls());
    assert_eq!(login.leftover, framed(b'Q', b"SELECT 1\0"));
}

#[tokio::test]
async fn no_encryption_is_asked_for_inside_tls() {
    let certificate = Certificate::new();
    for request in [ssl_request(), gssenc_request()] {
        let (mut client, accepting) = meet(certificate.gate(AuthMethod::Trust)).await;
        client.send(&ssl_request()).await;
        assert_eq!(client.byte().await, b'S');
        let mut client = client.encrypt().await;
        client.send(&request).await;
        assert_eq!(client.farewell().await.0, "0A000");
        refusal(accepting).await;
    }
}

/// A client that can bind the channel and was not offered it, although we did, has somebody in between.
#[tokio::test]
async fn a_stripped_offer_of_channel_binding_is_noticed() {
    let certificate = Certificate::new();
    let (mut client, accepting) = meet(certificate.gate(AuthMethod::ScramSha256)).await;
    client.send(&ssl_request()).await;
    assert_eq!(client.byte().await, b'S');
    let mut client = client.encrypt().await;
    client.send(&alice()).await;
    assert_eq!(
        client.authentication(10).await,
        b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
    );
    client.send(&sasl_initial("SCRAM-SHA-256", b"y,,n=,r=abc")).await;
    let told = client.farewell().await;
    assert_eq!(
        told,
        (
            "28000".to_owned(),
            "SCRAM channel binding negotiation error".to_owned()
        )
    );
    refusal(accepting).await;
}

#[tokio::test]
async fn direct_tls() {
    let certificate = Certificate::new();
    let (client, accepting) = meet(certificate.gate(AuthMethod::Trust)).await;
    let mut client = client.encrypt().await;
    client.send(&alice()).await;
    assert!(login(accepting).await.stream.is_tls());

    let (client, accepting) = meet(gate(AuthMethod::Trust)).await;
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    assert!(
        within(tls_connector().connect(name, client.stream))
            .await
            .is_err()
    );
    assert!(matches!(
        within(accepting).await.unwrap(),
        Err(StartupError::Tls(_))
    ));
}

#[tokio::test]
async fn direct_tls_without_alpn_is_refused() {
    let certificate = Certificate::new();
    let (client, accepting) = meet(certificate.gate(AuthMethod::Trust)).await;
    let mut config = tls_connector().config().as_ref().clone();
    config.alpn_protocols.clear();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let client = Client {
        stream: within(connector.connect(name, client.stream)).await.unwrap(),
    };
    let (sqlstate, message) = client.farewell().await;
    assert_eq!(sqlstate, "08P01");
    assert!(message.contains("without ALPN"), "{message}");
    refusal(accepting).await;
}

#[tokio::test]
async fn tls_that_is_required_is_required() {
    let certificate = Certificate::new();
    let (mut client, accepting) = meet(certificate.gate_that_requires_tls()).await;
    client.send(&alice()).await;
    assert_eq!(client.farewell().await.0, "28000");
    assert!(refusal(accepting).await.hint.unwrap().contains("sslmode=require"));

    let (mut client, accepting) = meet(certificate.gate_that_requires_tls()).await;
    client.send(&ssl_request()).await;
    assert_eq!(client.byte().await, b'S');
    let mut client = client.encrypt().await;
    client.send(&alice()).await;
    assert!(login(accepting).await.stream.is_tls());
}

/// The client takes the close of its connection for the sign that the cancel has been passed on.
#[tokio::test]
async fn a_cancel_request_is_held_open() {
    let long = [7; 256];
    for secret in [&b"abcd"[..], &long] {
        let (mut client, accepting) = meet(gate(AuthMethod::Reject)).await;
        client.send(&cancel_request(secret)).await;
        let Accepted::Cancel(cancel) = within(accepting).await.unwrap().unwrap() else {
            panic!("a CancelRequest is one whatever the rules say");
        };
        assert_eq!((cancel.key.pid, &cancel.key.secret[..]), (7, secret));
        let mut early = [0];
        assert!(
            client.stream.try_read(&mut early).is_err(),
            "nothing is to be read yet"
        );
        drop(cancel.held);
        assert_eq!(within(client.stream.read(&mut early)).await.unwrap(), 0);
    }
    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client.send(&cancel_request(&[7; 257])).await;
    client.farewell().await;
    refusal(accepting).await;
}

#[tokio::test]
async fn probes_are_nothing() {
    let (client, accepting) = meet(gate(AuthMethod::Trust)).await;
    drop(client);
    assert!(matches!(within(accepting).await.unwrap(), Ok(Accepted::Nothing)));

    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client.send(&ssl_request()).await;
    assert_eq!(client.byte().await, b'N');
    drop(client);
    assert!(matches!(within(accepting).await.unwrap(), Ok(Accepted::Nothing)));

    // psql asks its user for the password only when it knows that one is needed.
    let (mut client, accepting) = meet(gate(AuthMethod::ScramSha256)).await;
    client.send(&alice()).await;
    client.authentication(10).await;
    drop(client);
    assert!(matches!(within(accepting).await.unwrap(), Ok(Accepted::Nothing)));

    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client.send(&alice()[..9]).await;
    drop(client);
    assert!(matches!(
        within(accepting).await.unwrap(),
        Err(StartupError::Io(_))
    ));
}

#[tokio::test]
async fn rules_reject_in_postgresqls_words() {
    let (mut client, accepting) = meet(gate(AuthMethod::Reject)).await;
    client.send(&alice()).await;
    assert_eq!(
        client.farewell().await.1,
        "authentication rules reject connection for host \"127.0.0.1\", user \"alice\", database \"shop\", no \
         encryption"
    );
    refusal(accepting).await;
}

#[tokio::test]
async fn a_client_turned_away_is_told_why_and_a_cancel_is_not() {
    let report = || Report::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already");
    for (bytes, is_cancel) in [(alice(), false), (cancel_request(b"abcd"), true)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, address) = listener.accept().await.unwrap();
        let mut client = Client { stream };
        client.send(&bytes).await;
        let gate = gate(AuthMethod::Trust);
        let turning_away = turn_away(Socket::Tcp(server), Peer::Tcp(address), &gate, report());
        if is_cancel {
            assert!(matches!(within(turning_away).await, Ok(Accepted::Cancel(_))));
        } else {
            let (verdict, told) = tokio::join!(turning_away, client.farewell());
            assert!(matches!(verdict, Err(StartupError::Refused(_))));
            assert_eq!(told.0, "53300");
        }
    }
}

#[tokio::test]
async fn an_admitted_client_can_still_be_refused() {
    let (mut client, accepting) = meet(gate(AuthMethod::Trust)).await;
    client.send(&alice()).await;
    let login = login(accepting).await;
    let report = Report::fatal(SqlState::INVALID_CATALOG_NAME, "database \"shop\" does not exist");
    let told = async {
        client.authentication(0).await;
        client.farewell().await
    };
    let ((), told) = tokio::join!(login.refuse(&report), told);
    assert_eq!(told.0, "3D000");
}
