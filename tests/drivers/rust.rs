//! tokio-postgres: statements and their types, pipelines of futures, blocks, portals, COPY, notices, cancelling.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Config, IsolationLevel, NoTls};

use super::{AT_A_TIME, few_backends};
use crate::support::{Address, Cluster, LONG_PATIENCE};

#[tokio::test]
async fn tokio_postgres() {
    let [direct, split, few] = tokio::task::spawn_blocking(|| {
        let cluster = Cluster::shared();
        [
            cluster.app(cluster.primary().port),
            Cluster::shared_proxy().address.clone(),
            few_backends().address.clone(),
        ]
    })
    .await
    .unwrap();
    let run = async {
        work(&direct, "tokio_direct").await;
        work(&split, "tokio_split").await;
        notifications(&direct, "tokio_direct").await;
        notifications(&split, "tokio_split").await;
        let at_once = (0..AT_A_TIME).map(|number| {
            let few = &few;
            async move { work(few, &format!("tokio_few_{number}")).await }
        });
        futures_util::future::join_all(at_once).await;
    };
    tokio::time::timeout(LONG_PATIENCE, run).await.unwrap();
}

/// A client in a schema of its own, with what the server says besides.
async fn connect(address: &Address, schema: &str) -> (Client, UnboundedReceiver<AsyncMessage>) {
    let mut config: Config = address.conninfo().parse().unwrap();
    config.options(format!("-c search_path={schema}"));
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (said, heard) = unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(message) = messages.next().await {
            let _ = said.send(message.unwrap());
        }
    });
    (client, heard)
}

async fn work(address: &Address, schema: &str) {
    let (mut client, mut heard) = connect(address, schema).await;
    let made = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
    client.batch_execute(&made).await.unwrap();
    prepared(&client).await;
    pipelined(&client).await;
    transactions(&mut client).await;
    kinds_of_transactions(&mut client).await;
    copies(&mut client).await;
    types(&client).await;
    cancelled(&client, address.port).await;
    notices(&client, &mut heard).await;
    let dropped = format!("DROP SCHEMA {schema} CASCADE");
    client.batch_execute(&dropped).await.unwrap();
}

async fn prepared(client: &Client) {
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
async fn pipelined(client: &Client) {
    let statement = client.prepare("SELECT $1::int4").await.unwrap();
    let queries = (0..200).map(|n: i32| {
        let statement = &statement;
        async move { client.query_one(statement, &[&n]).await.unwrap().get::<_, i32>(0) }
    });
    let answers = futures_util::future::join_all(queries).await;
    assert_eq!(answers, (0..200).collect::<Vec<_>>());
    // An error in the middle is its own future's alone.
    let divide = client.prepare("SELECT 12 / $1::int4").await.unwrap();
    let quotients = [3, 0, 4].map(|by: i32| {
        let divide = &divide;
        async move { client.query_one(divide, &[&by]).await.ok().map(|row| row.get(0)) }
    });
    let quotients = futures_util::future::join_all(quotients).await;
    assert_eq!(quotients, [Some(4), None, Some(3)]);
    // Texts that are prepared at the same time, reads and writes in one order.
    client
        .batch_execute("CREATE TABLE counted (a int8)")
        .await
        .unwrap();
    client
        .execute("INSERT INTO counted VALUES (0)", &[])
        .await
        .unwrap();
    let (added, read) = futures_util::future::join(
        client.execute("UPDATE counted SET a = a + $1", &[&5_i64]),
        client.query_one("SELECT a FROM counted", &[]),
    )
    .await;
    assert_eq!(added.unwrap(), 1);
    read.unwrap();
    let row = client.query_one("SELECT a FROM counted", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 5);
}

async fn transactions(client: &mut Client) {
    client
        .batch_execute("CREATE TABLE by_tokio (a int PRIMARY KEY)")
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

async fn kinds_of_transactions(client: &mut Client) {
    let shown = async |transaction: &tokio_postgres::Transaction<'_>, setting: &str| -> String {
        let row = transaction
            .query_one(&format!("SHOW {setting}"), &[])
            .await
            .unwrap();
        row.get(0)
    };
    let reader = client.build_transaction().read_only(true).start().await.unwrap();
    assert_eq!(shown(&reader, "transaction_read_only").await, "on");
    let row = reader
        .query_one("SELECT count(*) FROM by_tokio", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 100, "its own writes");
    let error = reader.execute("DELETE FROM by_tokio", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
    reader.rollback().await.unwrap();
    let serializable = client
        .build_transaction()
        .isolation_level(IsolationLevel::Serializable)
        .read_only(true)
        .deferrable(true)
        .start()
        .await
        .unwrap();
    assert_eq!(
        shown(&serializable, "transaction_isolation").await,
        "serializable"
    );
    assert_eq!(shown(&serializable, "transaction_deferrable").await, "on");
    // Dropped, it is rolled back.
    drop(serializable);
    let row = client.query_one("SHOW transaction_isolation", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "read committed");
}

async fn copies(client: &mut Client) {
    let transaction = client.transaction().await.unwrap();
    let sink = transaction
        .copy_in::<_, bytes::Bytes>("COPY by_tokio FROM STDIN")
        .await
        .unwrap();
    let lines = (1001..2001).map(|n| Ok(bytes::Bytes::from(format!("{n}\n"))));
    pin_mut!(sink);
    SinkExt::send_all(&mut sink, &mut futures_util::stream::iter(lines))
        .await
        .unwrap();
    assert_eq!(sink.finish().await.unwrap(), 1000);
    let out = transaction.copy_out("COPY by_tokio TO STDOUT").await.unwrap();
    let chunks: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    assert_eq!(chunks.len(), 1100);
    transaction.rollback().await.unwrap();
    client
        .batch_execute("CREATE TABLE copied (a int4, b text)")
        .await
        .unwrap();
    let sink = client
        .copy_in("COPY copied FROM STDIN (FORMAT binary)")
        .await
        .unwrap();
    let writer = BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]);
    pin_mut!(writer);
    for n in 0..500 {
        writer.as_mut().write(&[&n, &n.to_string()]).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), 500);
    let out = client
        .copy_out("COPY copied TO STDOUT (FORMAT binary)")
        .await
        .unwrap();
    let rows: Vec<_> = BinaryCopyOutStream::new(out, &[Type::INT4, Type::TEXT])
        .try_collect()
        .await
        .unwrap();
    assert_eq!(rows.len(), 500);
    assert_eq!((rows[7].get::<i32>(0), rows[7].get::<&str>(1)), (7, "7"));
    // A sink that is dropped fails its COPY, and nothing of it stays.
    let mut sink = pin!(client.copy_in("COPY copied FROM STDIN").await.unwrap());
    sink.send(bytes::Bytes::from("1\tone\n")).await.unwrap();
    let broken = sink.send(bytes::Bytes::from("no number\ttwo\n")).await;
    assert!(broken.is_err() || sink.finish().await.is_err());
    let row = client
        .query_one("SELECT count(*) FROM copied", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 500);
    let rows = client
        .query_raw("SELECT generate_series(1, 10)", Vec::<i32>::new())
        .await
        .unwrap();
    assert_eq!(rows.count().await, 10);
}

async fn cancelled(client: &Client, port: u16) {
    let token = client.cancel_token();
    let sleeping = client.batch_execute("SELECT pg_sleep(60)");
    pin_mut!(sleeping);
    let error = loop {
        tokio::select! {
            done = &mut sleeping => break done.unwrap_err(),
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                // The driver's own `cancel_query` does not wait until it is done: the next statement could meet it.
                let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                token.cancel_query_raw(&mut stream, NoTls).await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
    };
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
}

async fn types(client: &Client) {
    // Types of the schema's own, for which the driver asks the catalogue before it binds.
    client
        .batch_execute(
            "CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE DOMAIN positive AS int8 CHECK (VALUE > 0)",
        )
        .await
        .unwrap();
    let statement = client
        .prepare("SELECT $1::mood, $2::mood[]::text, $3::positive")
        .await
        .unwrap();
    assert_eq!(statement.params()[0].name(), "mood");
    let raw = (vec![0_u8, 255], SystemTime::UNIX_EPOCH, vec![Some(1_i32), None]);
    let row = client
        .query_one(
            "SELECT $1::bytea, $2::timestamptz, $3::int4[]",
            &[&raw.0, &raw.1, &raw.2],
        )
        .await
        .unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), raw);
    let typed = [(&7_i64 as &(dyn tokio_postgres::types::ToSql + Sync), Type::INT8)];
    let rows = client.query_typed("SELECT $1 + 1", &typed).await.unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 8);
}

async fn notices(client: &Client, heard: &mut UnboundedReceiver<AsyncMessage>) {
    client
        .batch_execute("DO $$ BEGIN RAISE NOTICE 'look'; END $$")
        .await
        .unwrap();
    while let Some(message) = heard.recv().await {
        if matches!(&message, AsyncMessage::Notice(notice) if notice.message() == "look") {
            break;
        }
    }
}

async fn notifications(address: &Address, schema: &str) {
    let (listener, mut heard) = connect(address, schema).await;
    let (other, _) = connect(address, schema).await;
    listener.batch_execute(&format!("LISTEN {schema}")).await.unwrap();
    for number in 0..3 {
        let payload = number.to_string();
        other
            .execute("SELECT pg_notify($1, $2)", &[&schema, &payload])
            .await
            .unwrap();
    }
    listener
        .batch_execute(&format!("NOTIFY {schema}, '3'"))
        .await
        .unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < 4 {
        if let Some(AsyncMessage::Notification(notification)) = heard.recv().await {
            assert_eq!(notification.channel(), schema);
            payloads.push(notification.payload().to_owned());
        }
    }
    assert_eq!(payloads, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn tokio_postgres_picks_its_target_among_several_hosts() {
    let (proxy, primary, replica) = tokio::task::spawn_blocking(|| {
        let (proxy, primary) = Cluster::shared().proxy().also_listening("primary");
        let (proxy, replica) = proxy.also_listening("replica");
        (proxy.start(), primary, replica)
    })
    .await
    .unwrap();
    let any = proxy.address.port;
    let pick = async |attrs, ports: &[u16]| {
        let mut config = Config::new();
        config
            .user(&proxy.address.user)
            .password(&proxy.address.password)
            .dbname(&proxy.address.database);
        for port in ports {
            config.host("127.0.0.1").port(*port);
        }
        let (client, connection) = config.target_session_attrs(attrs).connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        let row = client.query_one("SHOW transaction_read_only", &[]).await.unwrap();
        Some(row.get::<_, String>(0))
    };
    let (writes, reads) = (Some("off".to_owned()), Some("on".to_owned()));
    assert_eq!(
        pick(TargetSessionAttrs::ReadWrite, &[replica, primary]).await,
        writes
    );
    assert_eq!(pick(TargetSessionAttrs::ReadWrite, &[replica, any]).await, writes);
    assert_eq!(
        pick(TargetSessionAttrs::ReadOnly, &[primary, replica]).await,
        reads
    );
    assert_eq!(pick(TargetSessionAttrs::ReadOnly, &[any, replica]).await, reads);
    assert_eq!(pick(TargetSessionAttrs::ReadWrite, &[replica]).await, None);
    assert_eq!(pick(TargetSessionAttrs::ReadOnly, &[any, primary]).await, None);
    // Dropping it waits for a process.
    tokio::task::spawn_blocking(|| drop(proxy)).await.unwrap();
}
