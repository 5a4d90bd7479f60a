//! Logical replication through the port: decoding by hand, by `pg_recvlogical`, and by another server that subscribes.

use std::sync::OnceLock;

use crate::server::{Front, Server};
use crate::support::message::*;
use crate::support::{Address, Client, Message, Program, until};

/// A server that decodes what it writes, with Halyard before it. pg_auto_failover's nodes do not (`wal_level`).
struct Publisher {
    server: Server,
    front: Front,
}

impl Publisher {
    fn shared() -> &'static Self {
        static PUBLISHER: OnceLock<Publisher> = OnceLock::new();
        PUBLISHER.get_or_init(|| {
            let server = Server::start("publisher", "wal_level = logical\nautovacuum = off");
            server.superuser("postgres").connect().run(
                "CREATE ROLE app LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO app; \
                 GRANT CREATE ON SCHEMA public TO app; \
                 CREATE ROLE styled LOGIN REPLICATION; ALTER ROLE styled SET datestyle = 'SQL, DMY'; \
                 ALTER ROLE styled SET intervalstyle = 'sql_standard'; ALTER ROLE styled SET extra_float_digits = 0",
            );
            let front = Front::start(&server, "publisher", &[("app", 2), ("styled", 2)], &[], "");
            Self { server, front }
        })
    }

    /// The role that replicates, on the server itself.
    fn direct(&self) -> Address {
        self.server.user("app", "postgres")
    }

    /// The same through the port.
    fn through(&self) -> Address {
        Address {
            port: self.front.port,
            ..self.direct()
        }
    }

    fn superuser(&self) -> Client {
        self.server.superuser("postgres").connect()
    }

    /// Waits until so many replication slots are as a condition says.
    fn until_slots(&self, condition: &str, count: &str) {
        let mut superuser = self.superuser();
        until(condition, || {
            superuser.value(&format!(
                "SELECT count(*) FROM pg_replication_slots WHERE {condition}"
            )) == count
        });
    }
}

/// A position in the WAL as servers write it.
fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    let [high, low] = [high, low].map(|half| u64::from_str_radix(half, 16).unwrap());
    high << 32 | low
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

/// A walsender's client, with a slot that lives as long as it does (manual, "Streaming Replication Protocol").
struct Decoder {
    client: Client,
    slot: &'static str,
}

impl Decoder {
    /// Creates the slot, and returns the snapshot that shows what was there before it.
    fn create(address: &Address, slot: &'static str) -> (Self, String) {
        let mut client = address.connect_with(&[("replication", "database")]);
        let created = client
            .run(&format!(
                "CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput"
            ))
            .rows
            .remove(0);
        let [name, position, snapshot, plugin] = created.try_into().unwrap();
        assert_eq!(
            (name.as_deref(), plugin.as_deref()),
            (Some(slot), Some("pgoutput"))
        );
        assert_ne!(lsn(&position.unwrap()), 0);
        (Self { client, slot }, snapshot.unwrap())
    }

    fn start(&mut self, publication: &str) {
        self.client.send(&query(&format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{publication}')",
            self.slot
        )));
        let begun = self.client.receive();
        assert_eq!((begun.kind, &begun.body[..]), (b'W', &[0, 0, 0][..]), "{begun}");
    }

    /// What comes within the copy: the walsender's messages, each in a CopyData.
    fn copied(&mut self) -> Vec<u8> {
        let message = self.client.receive();
        assert_eq!(message.kind, b'd', "{message}");
        message.body
    }

    /// The messages of pgoutput of the next transaction, from Begin to Commit.
    fn transaction(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while messages.last().is_none_or(|last: &Vec<u8>| last[0] != b'C') {
            let copied = self.copied();
            match copied[0] {
                // XLogData: two positions and the time stand before the output.
                b'w' => messages.push(copied[25..].to_vec()),
                b'k' => {}
                kind => panic!("a walsender says {:?}", char::from(kind)),
            }
        }
        messages
    }

    /// Says that everything up to a position is flushed, asks for an answer, and waits for one.
    fn flushed(&mut self, position: u64) {
        let mut status = vec![b'r'];
        for position in [position; 3] {
            status.extend(position.to_be_bytes());
        }
        status.extend([0; 8]);
        status.push(1);
        self.client.send(&copy_data(&status));
        until("the status update to be answered", || {
            let copied = self.copied();
            assert_eq!(copied[0], b'k');
            number(&copied[1..9]) >= position
        });
    }

    /// Ends the copy, and returns what the server says to that.
    fn end(&mut self) -> Vec<Message> {
        self.client.send(&copy_done());
        let mut last = self.client.until_ready();
        last.retain(|message| message.kind != b'd');
        last
    }
}

#[test]
fn a_transaction_is_decoded_through_the_port() {
    let publisher = Publisher::shared();
    // The initial copy and the writes come by the pool, as any client's.
    let mut writer = publisher.through().connect();
    writer.run(
        "CREATE TABLE decoded (n int PRIMARY KEY, a text); INSERT INTO decoded VALUES (0, 'before'); \
         CREATE PUBLICATION decoded FOR TABLE decoded",
    );
    let (mut direct, _) = Decoder::create(&publisher.direct(), "decoded_directly");
    let (mut through, snapshot) = Decoder::create(&publisher.through(), "decoded_through");
    writer.run("INSERT INTO decoded VALUES (1, 'behind')");
    writer.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    writer.run(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"));
    assert_eq!(
        writer.value("SELECT string_agg(a, ',') FROM decoded"),
        "before",
        "the slot begins where its snapshot ends"
    );
    writer.run("COMMIT");
    direct.start("decoded");
    through.start("decoded");

    let first = through.transaction();
    assert_eq!(first, direct.transaction());
    let kinds =
        |messages: &[Vec<u8>]| -> String { messages.iter().map(|message| char::from(message[0])).collect() };
    assert_eq!(kinds(&first), "BRIC", "Begin, Relation, Insert, Commit");
    assert!(
        first[2].ends_with(b"N\0\x02t\0\0\0\x011t\0\0\0\x06behind"),
        "{:?}",
        first[2]
    );

    // Longer than any buffer on the way.
    writer.run("BEGIN");
    writer.run("UPDATE decoded SET a = repeat('long', 100000) WHERE n = 1");
    writer.run("DELETE FROM decoded WHERE n = 0");
    writer.run("COMMIT");
    let second = through.transaction();
    assert_eq!(second, direct.transaction());
    assert_eq!(kinds(&second), "BUDC");
    assert!(second[1].len() > 400_000);

    let end = number(&second[3][10..18]);
    for decoder in [&mut direct, &mut through] {
        decoder.flushed(end);
        let position = format!("{:X}/{:X}", end >> 32, end & 0xffff_ffff);
        publisher.until_slots(
            &format!(
                "slot_name = '{}' AND confirmed_flush_lsn >= '{position}'",
                decoder.slot
            ),
            "1",
        );
    }
    assert_eq!(
        through.end(),
        direct.end(),
        "CopyDone, and the command is complete"
    );

    // SQL and commands of replication, as before the copy.
    assert_eq!(through.client.value("SELECT n FROM decoded"), "1");
    through.client.run("DROP_REPLICATION_SLOT decoded_through");
    publisher.until_slots("slot_name = 'decoded_through'", "0");
    through.client.send(&query("SELECT pg_sleep(60)"));
    assert_eq!(through.client.cancelled().sqlstate(), "57014");

    // One that is not dropped goes with its connection.
    let (left, _) = Decoder::create(&publisher.through(), "decoded_left");
    publisher.until_slots("slot_name = 'decoded_left' AND temporary", "1");
    left.client.vanish();
    publisher.until_slots("slot_name = 'decoded_left'", "0");
}

#[test]
fn pg_recvlogical_receives_through_the_port() {
    let publisher = Publisher::shared();
    let mut writer = publisher.through().connect();
    writer.run("CREATE TABLE received (a int)");
    let receive = |arguments: &[&str]| {
        Program::new("/usr/lib/postgresql/15/bin/pg_recvlogical", &publisher.through())
            .with(&["--dbname", "postgres", "--slot", "received"])
            .with(arguments)
            .succeed()
    };
    receive(&["--create-slot", "--plugin", "test_decoding"]);
    for n in 0..2 {
        writer.run(&format!("INSERT INTO received VALUES ({n})"));
        let until_here = publisher.superuser().value("SELECT pg_current_wal_lsn()");
        let heard = receive(&[
            "--start",
            "--file",
            "-",
            "--endpos",
            &until_here,
            "--option",
            "skip-empty-xacts=1",
        ]);
        assert!(
            heard.contains(&format!("table public.received: INSERT: a[integer]:{n}")),
            "{heard}"
        );
        assert_eq!(
            heard.matches("public.received: INSERT").count(),
            1,
            "what was confirmed does not come again: {heard}"
        );
    }
    receive(&["--drop-slot"]);
    publisher.until_slots("slot_name = 'received'", "0");
}

/// Its apply worker and its workers for the initial copy connect with settings of their own: in the styles of the role that
/// they connect as, the subscriber would take some values for others.
#[test]
fn a_subscription_follows_through_the_port() {
    let publisher = Publisher::shared();
    let server = Server::start(
        "subscriber",
        "autovacuum = off\nwal_retrieve_retry_interval = '200ms'",
    );
    let mut subscriber = server.superuser("postgres").connect();
    let mut writer = publisher.through().connect();
    let table = "CREATE TABLE followed (n int PRIMARY KEY, day date, share float8, took interval)";
    let row = |n: u32| {
        format!("INSERT INTO followed VALUES ({n}, '2024-02-03', 0.1::float8 + 0.2, '-1 day 2 hours')")
    };
    subscriber.run(table);
    writer.run(table);
    writer.run(&row(1));
    writer.run("CREATE PUBLICATION followed FOR TABLE followed");
    writer.run("GRANT SELECT ON followed TO styled");
    let conninfo = format!(
        "host=127.0.0.1 port={} user=styled dbname=postgres",
        publisher.front.port
    );
    subscriber.run(&format!(
        "CREATE SUBSCRIPTION followed CONNECTION '{conninfo}' PUBLICATION followed"
    ));
    let mut follows = |writer: &mut Client, what| {
        let rows = "SELECT string_agg(followed::text, ' ' ORDER BY n) FROM followed";
        let wanted = writer.value(rows);
        until(what, || subscriber.value(rows) == wanted);
    };
    follows(&mut writer, "the initial copy");
    for n in 2..5 {
        writer.run(&row(n));
    }
    writer.run("UPDATE followed SET share = share / 3 WHERE n = 1");
    follows(&mut writer, "what came later");
    subscriber.run("DROP SUBSCRIPTION followed");
    publisher.until_slots("slot_name = 'followed'", "0");
}
