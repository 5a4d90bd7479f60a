//! Other people's clients, as they come: psql, pgbench, libpq, tokio-postgres, psycopg and asyncpg.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, pin_mut};
use rcgen::{CertificateParams, KeyPair};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use crate::support::{Address, Cluster, LONG_PATIENCE, Program, compiled, python};

#[test]
fn psql_runs_its_backslash_commands() {
    let proxy = Cluster::shared_proxy();
    let script = r"
DROP TABLE IF EXISTS by_psql;
CREATE TABLE by_psql (a int PRIMARY KEY, b text);
\copy by_psql FROM PROGRAM 'printf ''1\tone\n2\ttwo\n''' 
BEGIN;
\copy (SELECT b FROM by_psql ORDER BY a) TO STDOUT
SELECT count(*) AS rows FROM by_psql \gset
COMMIT;
\echo :rows rows
SELECT format('SELECT %s', g) FROM generate_series(1, 3) g \gexec
\set AUTOCOMMIT off
INSERT INTO by_psql VALUES (3, 'three');
ROLLBACK;
\set AUTOCOMMIT on
BEGIN;
SELECT count(*) FROM by_psql;
END;
\d by_psql
\dt by_psql
";
    let out = Program::psql(&proxy.address).input(script).succeed();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(&lines[..7], ["one", "two", "2 rows", "1", "2", "3", "2"]);
    assert!(out.contains("a|integer||not null|"), "{out}");
}

#[test]
fn psql_by_tls_as_sslmode_says() {
    let cluster = Cluster::shared();
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let paths = ["server.crt", "server.key"].map(|name| folder.path().join(name));
    std::fs::write(&paths[0], certificate.pem()).unwrap();
    std::fs::write(&paths[1], key.serialize_pem()).unwrap();
    std::fs::set_permissions(&paths[1], std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let [certificate, key] = paths.map(|path| path.to_str().unwrap().to_owned());
    let proxy = cluster
        .proxy()
        .set("client_tls.certificate", certificate.as_str())
        .set("client_tls.key", key.as_str())
        .set("client_tls.required", true)
        .cold()
        .start();
    let connect = |options: &str| {
        Program::psql(&proxy.address)
            .env("PGSSLROOTCERT", &certificate)
            .with(&[
                "-d",
                options,
                "-c",
                "\\conninfo",
                "-c",
                "LISTEN by_tls",
                "-c",
                "NOTIFY by_tls",
            ])
            .with(&["-c", "SELECT 'by TLS'"])
            .run()
    };
    for mode in ["prefer", "require", "verify-ca"] {
        let ended = connect(&format!("sslmode={mode}"));
        assert!(
            ended.success && ended.out.contains("SSL connection") && ended.out.ends_with("by TLS\n"),
            "{ended:?}"
        );
        assert!(
            ended.out.contains("notification \"by_tls\" received"),
            "{ended:?}"
        );
    }
    assert!(connect("host=localhost sslmode=verify-full").success);
    let refused = connect("sslmode=disable");
    assert!(!refused.success, "{refused:?}");
    assert!(
        !connect("host=127.0.0.2 sslmode=verify-full").success,
        "no certificate for this name"
    );
}

fn pgbench(address: &Address, arguments: &[&str]) -> String {
    let out = Program::pgbench(address).with(arguments).succeed();
    assert!(!out.contains("aborted"), "{out}");
    out
}

#[test]
fn pgbench_in_its_three_modes() {
    let cluster = Cluster::shared();
    let proxy = cluster.proxy().set("pool.size", 4).start();
    pgbench(&proxy.address, &["-i", "-q", "-s", "1"]);
    cluster.replicated();
    let primary = r#"halyard_statements_total{target="primary"}"#;
    for mode in ["simple", "extended", "prepared"] {
        let written = proxy.metric(primary);
        let out = pgbench(&proxy.address, &["-n", "-S", "-M", mode, "-c", "16", "-t", "50"]);
        assert!(
            out.contains("number of transactions actually processed: 800/800"),
            "{out}"
        );
        assert!(out.contains("number of failed transactions: 0"), "{out}");
        assert_eq!(
            proxy.metric(primary),
            written,
            "reads went to the primary with -M {mode}"
        );
        let out = pgbench(&proxy.address, &["-n", "-M", mode, "-c", "16", "-t", "10"]);
        assert!(
            out.contains("number of transactions actually processed: 160/160"),
            "{out}"
        );
        assert!(out.contains("number of failed transactions: 0"), "{out}");
    }
    let out = pgbench(&proxy.address, &["-n", "-C", "-c", "8", "-t", "5"]);
    assert!(out.contains("number of failed transactions: 0"), "{out}");
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
    let mut direct = cluster.app(cluster.primary().port).connect();
    assert_eq!(
        direct.value("SELECT count(*) FROM pgbench_history"),
        (3 * 160 + 40).to_string()
    );
}

#[test]
fn libpq_with_pipelines_copy_and_cancel() {
    let program = compiled("pipeline.c");
    let cluster = Cluster::shared();
    let direct = cluster.app(cluster.primary().port);
    assert_eq!(
        Program::new(&program, &direct).succeed(),
        "ok\n",
        "the test itself"
    );
    assert_eq!(
        Program::new(&program, &Cluster::shared_proxy().address).succeed(),
        "ok\n"
    );
}

#[test]
fn psycopg() {
    assert_eq!(python("psycopg3.py", &Cluster::shared_proxy().address), "ok\n");
}

#[test]
fn asyncpg() {
    assert_eq!(
        python("asyncpg_driver.py", &Cluster::shared_proxy().address),
        "ok\n"
    );
}

#[tokio::test]
async fn tokio_postgres() {
    let address = tokio::task::spawn_blocking(|| Cluster::shared_proxy().address.clone())
        .await
        .unwrap();
    let (mut client, connection) = ::tokio_postgres::connect(&address.conninfo(), NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let work = async {
        prepared(&client).await;
        pipelined(&client).await;
        transactions(&mut client).await;
        copies(&mut client).await;
        cancelled(&client).await;
    };
    tokio::time::timeout(LONG_PATIENCE, work).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
}

async fn prepared(client: &::tokio_postgres::Client) {
    let statement = client.prepare("SELECT $1::int8 + 1, $2::text").await.unwrap();
    for n in 0..10_i64 {
        let row = client.query_one(&statement, &[&n, &"text"]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (n + 1, "text"));
    }
    // Types that the driver has to ask the catalogue for, by statements of its own.
    let row = client
        .query_one("SELECT '{a,b}'::information_schema.sql_identifier[]::text", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "{a,b}");
    let error = client.query("SELECT 1/0", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
    let rows = client.simple_query("SELECT 1; SELECT 2").await.unwrap();
    assert!(rows.len() >= 4);
}

/// The driver sends what is polled at the same time without waiting for answers in between.
async fn pipelined(client: &::tokio_postgres::Client) {
    let statement = client.prepare("SELECT $1::int4").await.unwrap();
    let queries = (0..200).map(|n: i32| {
        let statement = &statement;
        async move { client.query_one(statement, &[&n]).await.unwrap().get::<_, i32>(0) }
    });
    let answers = futures_util::future::join_all(queries).await;
    assert_eq!(answers, (0..200).collect::<Vec<_>>());
}

async fn transactions(client: &mut ::tokio_postgres::Client) {
    client
        .batch_execute("DROP TABLE IF EXISTS by_tokio; CREATE TABLE by_tokio (a int PRIMARY KEY)")
        .await
        .unwrap();
    let mut transaction = client.transaction().await.unwrap();
    transaction
        .execute("INSERT INTO by_tokio SELECT generate_series(1, 100)", &[])
        .await
        .unwrap();
    let savepoint = transaction.transaction().await.unwrap();
    savepoint
        .execute("INSERT INTO by_tokio VALUES (1)", &[])
        .await
        .unwrap_err();
    savepoint.rollback().await.unwrap();
    let portal = transaction
        .bind("SELECT a FROM by_tokio ORDER BY a", &[])
        .await
        .unwrap();
    let mut seen = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 30).await.unwrap();
        if rows.is_empty() {
            break;
        }
        seen.extend(rows.iter().map(|row| row.get::<_, i32>(0)));
    }
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    drop(portal);
    transaction.commit().await.unwrap();
}

async fn copies(client: &mut ::tokio_postgres::Client) {
    let transaction = client.transaction().await.unwrap();
    let sink = transaction
        .copy_in::<_, bytes::Bytes>("COPY by_tokio FROM STDIN")
        .await
        .unwrap();
    let lines = (1001..2001).map(|n| Ok(bytes::Bytes::from(format!("{n}\n"))));
    pin_mut!(sink);
    futures_util::SinkExt::send_all(&mut sink, &mut futures_util::stream::iter(lines))
        .await
        .unwrap();
    assert_eq!(sink.finish().await.unwrap(), 1000);
    let out = transaction.copy_out("COPY by_tokio TO STDOUT").await.unwrap();
    let chunks: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    assert_eq!(chunks.len(), 1100);
    transaction.rollback().await.unwrap();
    let rows = client
        .query_raw("SELECT generate_series(1, 10)", Vec::<i32>::new())
        .await
        .unwrap();
    assert_eq!(rows.count().await, 10);
}

async fn cancelled(client: &::tokio_postgres::Client) {
    let token = client.cancel_token();
    let sleeping = client.batch_execute("SELECT pg_sleep(60)");
    pin_mut!(sleeping);
    let error = loop {
        tokio::select! {
            done = &mut sleeping => break done.unwrap_err(),
            () = tokio::time::sleep(Duration::from_millis(50)) => token.cancel_query(NoTls).await.unwrap(),
        }
    };
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
}
