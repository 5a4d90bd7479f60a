//! How drivers find out whom they are connected to, where libpq's `target_session_attrs` is not theirs.
//!
//! They go by what a server reports at the login, and by a question of their own. Here are the questions, message by
//! message: what a port answers has to be what a server of its role answers, however often it is asked.

use std::collections::BTreeSet;

use crate::support::message::*;
use crate::support::{Address, Client, Cluster, until};

/// Sessions that ask on each port.
const SESSIONS: usize = 20;

/// What a driver asks a server that it has just connected to.
struct Question {
    driver: &'static str,
    /// Each is answered with a ReadyForQuery.
    requests: Vec<Vec<u8>>,
    /// What is asked about.
    about: About,
    /// Whether it is answered in binary.
    binary: bool,
}

#[derive(Clone, Copy, Debug)]
enum About {
    Recovery,
    ReadOnly,
}

impl Question {
    fn new(driver: &'static str, about: About, requests: &[Vec<u8>]) -> Self {
        Self {
            driver,
            requests: requests.to_vec(),
            about,
            binary: false,
        }
    }

    /// What it has to be told first.
    fn answer(&self, port: &Port) -> &'static str {
        match (self.about, self.binary) {
            (About::Recovery, false) if port.recovering => "DataRow(t)",
            (About::Recovery, false) => "DataRow(f)",
            (About::Recovery, true) if port.recovering => "DataRow(\u{1})",
            (About::Recovery, true) => "DataRow(\0)",
            (About::ReadOnly, _) if port.read_only => "DataRow(on)",
            (About::ReadOnly, _) => "DataRow(off)",
        }
    }

    /// Asks it, and returns every message of the answer.
    fn ask(&self, client: &mut Client) -> Vec<String> {
        let mut heard = Vec::new();
        for request in &self.requests {
            client.send(request);
            heard.extend(client.until_ready().iter().map(ToString::to_string));
        }
        heard
    }
}

const SHOW: &str = "show transaction_read_only";
const RECOVERY: &str = "select pg_is_in_recovery()";

/// The questions of pgx (`ValidateConnectTargetSessionAttrs…`, `Exec` in some versions and `ExecParams` in others), of
/// pgjdbc (`ConnectionFactoryImpl.isPrimary`, simple unless `preferQueryMode=extended`), of asyncpg where no
/// `in_hot_standby` was reported, and of Npgsql (`QueryDatabaseState`).
fn questions() -> Vec<Question> {
    let extended = |sql| {
        [
            parse("", sql),
            bind("", "", &[]),
            describe_portal(""),
            execute("", 0),
        ]
        .concat()
    };
    let one = |sql| [extended(sql), sync()].concat();
    // All columns in binary.
    let in_binary = tagged(b'B', b"\0\0\0\0\0\0\0\x01\0\x01");
    let binary = |sql| {
        [
            parse("", sql),
            in_binary.clone(),
            describe_portal(""),
            execute("", 0),
        ]
        .concat()
    };
    let name = "__asyncpg_stmt_1__";
    let in_recovery = "SELECT pg_catalog.pg_is_in_recovery()";
    vec![
        Question::new("pgx, pgjdbc", About::ReadOnly, &[query(SHOW)]),
        Question::new("pgx, pgjdbc extended", About::ReadOnly, &[one(SHOW)]),
        Question::new("pgx", About::Recovery, &[query(RECOVERY)]),
        Question::new("pgx extended", About::Recovery, &[one(RECOVERY)]),
        Question::new(
            "asyncpg",
            About::Recovery,
            &[
                [parse(name, in_recovery), describe_statement(name), sync()].concat(),
                [bind("", name, &[]), execute("", 0), sync()].concat(),
            ],
        ),
        Question {
            binary: true,
            ..Question::new(
                "Npgsql",
                About::Recovery,
                &[[
                    binary(RECOVERY),
                    binary("SHOW default_transaction_read_only"),
                    sync(),
                ]
                .concat()],
            )
        },
    ]
}

/// Where to connect, and as what it has to present itself.
struct Port {
    what: &'static str,
    address: Address,
    parameters: &'static [(&'static str, &'static str)],
    /// A server that it has to be mistaken for.
    like: Address,
    /// The servers that may answer such questions. Each of them does by and by.
    servers: BTreeSet<u16>,
    recovering: bool,
    read_only: bool,
}

#[test]
fn drivers_ask_whom_they_are_connected_to() {
    let cluster = Cluster::shared();
    // The reads in between go to standbys at once, though their sessions have just asked the primary.
    let (wanted, primary) = cluster.eventual().also_listening("primary");
    let (wanted, replica) = wanted.also_listening("replica");
    let proxy = wanted.start();
    let takes_writes = |what, port, parameters, read_only| Port {
        what,
        address: cluster.app(port),
        parameters,
        like: cluster.app(cluster.primary().port),
        servers: BTreeSet::from([cluster.primary().port]),
        recovering: false,
        read_only,
    };
    let only_reads = |what, port, parameters| Port {
        what,
        address: cluster.app(port),
        parameters,
        like: cluster.app(cluster.replica_ports()[0]),
        servers: cluster.replica_ports().into_iter().collect(),
        recovering: true,
        read_only: true,
    };
    let split = proxy.address.port;
    for port in [
        takes_writes("split", split, &[], false),
        takes_writes("primary", primary, &[], false),
        only_reads("replica", replica, &[]),
        takes_writes(
            "split, reading",
            split,
            &[("options", "-c default_transaction_read_only=on")],
            true,
        ),
        only_reads(
            "split, led to standbys",
            split,
            &[("options", "-c halyard.route=replica")],
        ),
    ] {
        asks_as_drivers_do(&port);
        asks_who_answers(&port);
    }
}

/// Every question on many connections, among reads that go wherever they go.
fn asks_as_drivers_do(port: &Port) {
    let mut like = port.like.connect_with(port.parameters);
    let expected: Vec<_> = questions()
        .iter()
        .map(|question| question.ask(&mut like))
        .collect();
    let reported = |client: &Client| {
        ["in_hot_standby", "default_transaction_read_only"].map(|name| client.parameters[name].clone())
    };
    let mut readers = BTreeSet::new();
    for _ in 0..SESSIONS {
        let mut client = port.address.connect_with(port.parameters);
        assert_eq!(reported(&client), reported(&like), "{}", port.what);
        for (question, expected) in questions().iter().zip(&expected) {
            let heard = question.ask(&mut client);
            assert_eq!(heard, *expected, "{} on {}", question.driver, port.what);
            let first = heard.iter().find(|message| message.starts_with("DataRow"));
            assert_eq!(
                first.unwrap(),
                question.answer(port),
                "{} on {}",
                question.driver,
                port.what
            );
            readers.insert(client.server_port());
        }
        client.leave();
    }
    if port.what == "split" {
        assert!(
            readers.len() > 1,
            "other servers answered other reads: {readers:?}"
        );
    }
}

/// The same with the server's own word on who it is, which would be read anywhere.
fn asks_who_answers(port: &Port) {
    const WHO: &str = "SELECT inet_server_port()";
    let mut seen = BTreeSet::new();
    let mut asked = 0;
    until("each server to have answered", || {
        let mut client = port.address.connect_with(port.parameters);
        for (sql, value) in [
            (SHOW, ["off", "on"][usize::from(port.read_only)]),
            (RECOVERY, ["f", "t"][usize::from(port.recovering)]),
        ] {
            for request in [
                query(&format!("{sql}; {WHO}")),
                [unnamed(sql, &[]), unnamed(WHO, &[]), sync()].concat(),
            ] {
                client.send(&request);
                let rows = client.answer().rows;
                let [said, server] = [0, 1].map(|row| rows[row][0].clone().unwrap());
                assert_eq!(said, value, "{sql} on {}, by {server}", port.what);
                seen.insert(server.parse().unwrap());
            }
        }
        client.leave();
        asked += 1;
        asked >= SESSIONS && seen.len() >= port.servers.len()
    });
    assert_eq!(seen, port.servers, "{}", port.what);
}
