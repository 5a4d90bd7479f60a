//! Nodes that misbehave, by script.

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

/// A node that reads the startup packet and then writes `answers`, one for each message of the client's, and
/// closes after the last. An empty one is silence.
async fn node(answers: Vec<Vec<u8>>) -> (Target, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target("127.0.0.1", listener.local_addr().unwrap().port());
    let scripted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut answers = answers.into_iter();
        skip_packet(&mut stream).await;
        stream.write_all(&answers.next().unwrap()).await.unwrap();
        for answer in answers {
            stream.read_u8().await.unwrap();
            skip_packet(&mut stream).await;
            stream.write_all(&answer).await.unwrap();
        }
        // Reads on until the client leaves: closing with unread bytes would reset the connection.
        stream.shutdown().await.unwrap();
        while stream.read(&mut [0; 64]).await.is_ok_and(|size| size > 0) {}
    });
    (target, scripted)
}

async fn skip_packet(stream: &mut TcpStream) {
    let length = stream.read_u32().await.unwrap();
    stream
        .read_exact(&mut vec![0; length as usize - 4])
        .await
        .unwrap();
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend_from_slice(body);
    message
}

fn authentication(code: u8, data: &[u8]) -> Vec<u8> {
    message(b'R', &[&[0, 0, 0, code][..], data].concat())
}

fn key() -> Vec<u8> {
    message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2])
}

async fn log_in_to(answers: Vec<Vec<u8>>) -> Result<BackendLink, LoginError> {
    let (target, scripted) = node(answers).await;
    let result = try_log_in(&target, "alice", &password("secret")).await;
    scripted.abort();
    result
}

#[tokio::test]
async fn what_postgresql_would_not_say_is_a_protocol_violation() {
    let scram = || authentication(10, b"SCRAM-SHA-256\0\0");
    let ok = || authentication(0, b"");
    let notices = vec![message(b'S', &[b'x'; 60 * 1024]); 20].concat();
    let cases: Vec<Vec<Vec<u8>>> = vec![
        // Not a message, or none of a login.
        vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()],
        vec![message(b'T', b"")],
        vec![b"R\0\0\0\x03".to_vec()],
        vec![b"R\xff\xff\xff\xff".to_vec()],
        // Larger than a login takes, in one and in all.
        vec![b"S\x00\x01\x00\x05".to_vec()],
        vec![[ok(), notices].concat()],
        // Malformed requests.
        vec![message(b'R', b"")],
        vec![message(b'R', b"\0\0\0")],
        vec![authentication(5, b"abc")],
        vec![authentication(10, b"SCRAM-SHA-256")],
        vec![authentication(11, b"r=abc")],
        vec![authentication(12, b"v=abc")],
        // A node that lets us in without proving itself.
        vec![scram(), ok()],
        vec![authentication(3, b""), authentication(3, b"")],
        // Malformed or missing messages after AuthenticationOk.
        vec![[ok(), message(b'K', b"1234567")].concat()],
        vec![[ok(), message(b'S', b"name\0value")].concat()],
        vec![[ok(), key(), message(b'Z', b"")].concat()],
        vec![[ok(), message(b'Z', b"I")].concat()],
        vec![[ok(), ok()].concat()],
    ];
    for answers in cases {
        let shown = answers[0].escape_ascii().to_string();
        let result = log_in_to(answers).await;
        assert!(
            matches!(result, Err(LoginError::Protocol(_))),
            "{shown:.80}: {result:?}"
        );
    }
}

/// CVE-2026-6665 and its like: a nonce, a salt or an iteration count made to hurt.
#[tokio::test]
async fn hostile_challenges_are_refused() {
    for first in [
        format!("r={},s=AAAA,i=4096", "x".repeat(60_000)),
        "r=abc,s=AAAA,i=4096".to_owned(),
        "nonsense".to_owned(),
        String::new(),
    ] {
        let scram = authentication(10, b"SCRAM-SHA-256\0\0");
        let result = log_in_to(vec![scram, authentication(11, first.as_bytes())]).await;
        assert!(matches!(result, Err(LoginError::Scram(_))), "{result:?}");
    }
}

#[tokio::test]
async fn methods_that_are_not_spoken_are_named() {
    for (request, expected) in [
        (authentication(2, b""), "Kerberos V5"),
        (authentication(7, b""), "GSSAPI"),
        (authentication(9, b""), "SSPI"),
        (
            authentication(10, b"OAUTHBEARER\0\0"),
            "no SASL mechanism that both sides know",
        ),
        (authentication(99, b""), "an unknown method"),
    ] {
        match log_in_to(vec![request]).await {
            Err(LoginError::AuthenticationUnsupported(what)) => assert_eq!(what, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// CVE-2026-6666: an ErrorResponse without SQLSTATE.
#[tokio::test]
async fn an_error_without_sqlstate_is_still_an_error() {
    let result = log_in_to(vec![message(b'E', b"SFATAL\0Mgo away\0\0")]).await;
    let Err(LoginError::Server(report)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(
        (report.sqlstate.as_str(), &report.message[..]),
        ("08P01", "go away")
    );
}

#[tokio::test]
async fn notices_are_passed_over_and_leftovers_are_kept() {
    let notice = message(b'N', b"SNOTICE\0Mhello\0\0");
    let parameter = |value: &str| message(b'S', format!("x\0{value}\0").as_bytes());
    let late = parameter("late");
    let greeting = [
        notice.clone(),
        authentication(0, b""),
        notice,
        parameter("1"),
        key(),
        parameter("2"),
        message(b'Z', b"I"),
        late.clone(),
    ]
    .concat();
    let link = log_in_to(vec![greeting]).await.unwrap();
    assert_eq!(link.leftover, late);
    assert_eq!(link.parameters, [("x".to_owned(), "2".to_owned())]);
}

#[tokio::test]
async fn a_node_that_hangs_up_is_lost() {
    for answers in [
        vec![vec![]],
        vec![b"R\0\0".to_vec()],
        vec![authentication(0, b"")],
    ] {
        let result = log_in_to(answers).await;
        assert!(matches!(result, Err(LoginError::Io(_))), "{result:?}");
    }
}

#[tokio::test]
async fn a_silent_node_is_given_up_in_time() {
    // The kernel completes the connection; nobody ever accepts it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target("127.0.0.1", listener.local_addr().unwrap().port());
    let limits = LoginLimits {
        timeout: Duration::from_millis(50),
        ..limits()
    };
    let result = log_in(&target, "alice", "shop", &[], &Credential::None, &limits).await;
    assert!(matches!(result, Err(LoginError::Timeout(_))), "{result:?}");
    let key = BackendKey {
        pid: 1,
        secret: vec![0; 4],
    };
    assert_eq!(
        send_cancel(&target, &key, &limits).await.unwrap_err().kind(),
        io::ErrorKind::TimedOut
    );
}

#[tokio::test]
async fn a_node_without_tls_is_used_only_where_tls_is_preferred() {
    for mode in [SslMode::Prefer, SslMode::Require] {
        let (plain, scripted) = refusing_tls(b"N").await;
        let result = try_log_in(&with_tls(plain, mode), "alice", &Credential::None).await;
        match mode {
            SslMode::Prefer => assert!(!result.unwrap().stream.is_tls()),
            _ => assert!(matches!(result, Err(LoginError::TlsUnavailable)), "{result:?}"),
        }
        scripted.abort();
    }
}

/// CVE-2021-23222: what stands in for the node's answer before TLS is never taken for the node's.
#[tokio::test]
async fn bytes_injected_before_tls_are_not_believed() {
    let injected = [&b"S"[..], &authentication(0, b""), &key(), &message(b'Z', b"I")].concat();
    for (answer, mode) in [
        (&injected[..], SslMode::Prefer),
        (b"E\0\0\0\x05\0", SslMode::Prefer),
        (b"X", SslMode::Prefer),
    ] {
        let (target, scripted) = refusing_tls(answer).await;
        let result = try_log_in(&with_tls(target, mode), "alice", &Credential::None).await;
        assert!(
            matches!(result, Err(LoginError::Tls(_) | LoginError::Protocol(_))),
            "{result:?}"
        );
        scripted.abort();
    }
}

/// A node that answers SSLRequest with `answer` and trusts whoever goes on in plain text.
async fn refusing_tls(answer: &[u8]) -> (Target, JoinHandle<()>) {
    let greeting = [authentication(0, b""), key(), message(b'Z', b"I")].concat();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = target("127.0.0.1", listener.local_addr().unwrap().port());
    let answer = answer.to_vec();
    let scripted = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        skip_packet(&mut stream).await;
        stream.write_all(&answer).await.unwrap();
        if answer == b"N" {
            skip_packet(&mut stream).await;
            stream.write_all(&greeting).await.unwrap();
        }
        while stream.read(&mut [0; 64]).await.is_ok_and(|size| size > 0) {}
    });
    (target, scripted)
}

fn with_tls(target: Target, mode: SslMode) -> Target {
    let tls = ServerTls {
        mode,
        root_certificate: None,
    };
    Target {
        tls: TlsPolicy::new(&tls).unwrap(),
        ..target
    }
}
