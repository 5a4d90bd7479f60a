#![allow(clippy::unwrap_used)]

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::{ServerTls, SslMode as Word, parse};
use crate::login::tests::postgres::{HOST_IN_CERTIFICATE, Postgres};
use crate::routing::{Policy, RoutingTable};

/// Every wait in these tests ends after this, with a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// Catalogues of one node, which is the primary, as its `tls_user` reads them.
fn catalogs(host: &str, port: u16, tls: TlsPolicy) -> Catalogs {
    let text = format!(
        "[[node]]\nname = \"node1\"\nhost = \"{host}\"\nport = {port}\n[health]\nuser = \"tls_user\"\npassword = \"secret\"\n"
    );
    let config = parse(&text, Path::new("halyard.toml"), &|_| None).unwrap().config;
    // A view in which nothing is known yet, from a monitor that watches nobody.
    let nobody = halyard_health::Config::new(vec![], "nobody", halyard_health::Secret::default(), "postgres");
    let nothing_known = halyard_health::spawn(nobody, CancellationToken::new());
    let policy = Policy {
        nodes: vec![],
        read_fallback: config.routing.read_fallback,
    };
    let mut table = RoutingTable::derive(&nothing_known.view.borrow(), &policy);
    table.primary = Some(halyard_health::NodeId(0));
    let routing = Arc::new(Routing::new(table));
    Catalogs::new(Arc::new(config), routing, tls, CancellationToken::new())
}

async fn read(catalogs: &Catalogs, database: &str) -> Result<FunctionCatalog, ReadError> {
    tokio::time::timeout(DEADLINE, catalogs.reader.read(database))
        .await
        .unwrap()
}

/// What becomes of the waiting when the server said no, and when it may be back in a moment.
const REFRESH: Duration = Duration::from_secs(60);

/// `tls_user` is let in by a `hostssl` line alone.
#[tokio::test]
async fn it_is_read_over_tls_as_each_sslmode_asks() {
    let postgres = Postgres::start();
    let with = |host: &str, mode, root_certificate| {
        let tls = TlsPolicy::new(&ServerTls {
            mode,
            root_certificate: Some(root_certificate),
        })
        .unwrap();
        catalogs(host, postgres.port, tls)
    };
    for mode in [Word::Prefer, Word::Require, Word::VerifyCa, Word::VerifyFull] {
        let functions = read(
            &with(HOST_IN_CERTIFICATE, mode, postgres.root_certificate()),
            "postgres",
        )
        .await;
        assert!(functions.unwrap().functions() > 1_000, "{mode:?}");
    }

    let plain = with("127.0.0.1", Word::Disable, postgres.root_certificate());
    let error = read(&plain, "postgres").await.unwrap_err();
    assert!(error.to_string().ends_with("(28000)"), "{error}");
    assert_eq!(error.pause(REFRESH), REFRESH);

    // The certificate carries the name and not the address; and a root that did not sign it.
    let by_address = with("127.0.0.1", Word::VerifyCa, postgres.root_certificate());
    read(&by_address, "postgres").await.unwrap();
    for (host, mode, root) in [
        ("127.0.0.1", Word::VerifyFull, postgres.root_certificate()),
        (
            HOST_IN_CERTIFICATE,
            Word::VerifyFull,
            postgres.foreign_root_certificate(),
        ),
        (
            HOST_IN_CERTIFICATE,
            Word::VerifyCa,
            postgres.foreign_root_certificate(),
        ),
    ] {
        let error = read(&with(host, mode, root), "postgres").await.unwrap_err();
        let ReadError::Node(error) = error else {
            panic!("{error:?}")
        };
        assert!(
            error.source().is_some_and(|source| source.is::<rustls::Error>()),
            "{error:?}"
        );
    }

    // PostgreSQL has no TLS on its Unix sockets, and libpq asks for none there, whatever the mode.
    let over_socket = with(
        postgres.socket_directory(),
        Word::VerifyFull,
        postgres.root_certificate(),
    );
    read(&over_socket, "postgres").await.unwrap();
}

#[tokio::test]
async fn a_server_that_said_no_is_not_asked_again_soon() {
    let postgres = Postgres::start();
    postgres.sql("CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC;");
    let tls = TlsPolicy::new(&ServerTls {
        mode: Word::Require,
        root_certificate: None,
    })
    .unwrap();
    let catalogs = catalogs("127.0.0.1", postgres.port, tls);
    for (database, state) in [
        ("missing", "(3D000)"),
        ("closed", "(42501)"),
        ("template0", "(55000)"),
    ] {
        let error = read(&catalogs, database).await.unwrap_err();
        assert!(error.to_string().ends_with(state), "{error}");
        assert_eq!(error.pause(REFRESH), REFRESH, "{error}");
    }
    drop(postgres);
    let error = read(&catalogs, "postgres").await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(error.pause(REFRESH), RETRY);
    assert_eq!(ReadError::TooLong.pause(REFRESH), RETRY);
}

/// A node that lets a client in and then says nothing more.
async fn let_in(listener: &TcpListener) -> TcpStream {
    let (mut socket, _) = tokio::time::timeout(DEADLINE, listener.accept())
        .await
        .unwrap()
        .unwrap();
    let length = socket.read_u32().await.unwrap();
    socket
        .read_exact(&mut vec![0; length as usize - 4])
        .await
        .unwrap();
    socket
        .write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
        .await
        .unwrap();
    assert_eq!(socket.read_u8().await.unwrap(), b'Q');
    socket
}

/// Reads to the end of the stream.
async fn ends(mut socket: TcpStream) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(DEADLINE, socket.read_to_end(&mut rest))
        .await
        .is_ok()
}

/// Each failed reading of a frozen node used to leave its connection's task behind, and so its connection.
#[tokio::test]
async fn a_reading_that_is_given_up_closes_its_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let catalogs = catalogs(
        "127.0.0.1",
        listener.local_addr().unwrap().port(),
        TlsPolicy::Never,
    );
    let mut reading = Box::pin(catalogs.reader.read("postgres"));
    let socket = tokio::select! {
        socket = let_in(&listener) => socket,
        result = &mut reading => panic!("{:?}", result.err()),
    };
    drop(reading);
    assert!(ends(socket).await);
}

/// The task of a database's catalogue used to live, and to try again, until the end of the process.
#[tokio::test]
async fn it_is_kept_up_for_as_long_as_somebody_holds_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let catalogs = catalogs(
        "127.0.0.1",
        listener.local_addr().unwrap().port(),
        TlsPolicy::Never,
    );
    let first = catalogs.open("postgres");
    let second = catalogs.open("postgres");
    assert!(Arc::ptr_eq(&first, &second), "one for all users of a database");
    let socket = let_in(&listener).await;

    drop(first);
    let third = catalogs.open("postgres");
    assert!(Arc::ptr_eq(&second, &third), "it is held still");

    drop((second, third));
    assert!(ends(socket).await);
    let again = catalogs.open("postgres");
    let socket = let_in(&listener).await;
    // The names of databases that nobody uses any more are forgotten.
    for number in 0..100 {
        drop(catalogs.open(&format!("database{number}")));
    }
    assert!(catalogs.handles.lock().len() <= 2);
    drop((again, socket));
}
