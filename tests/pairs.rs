//! Read your own writes, by numbers: pairs of a write and a read behind it, while the standbys lag by anything up to ten
//! seconds and crash.
//!
//! `make test` runs some thousands of pairs; `make pairs` a million for each consistency (`HALYARD_PAIRS`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::message::{bind, execute, parse, sync, unnamed};
use crate::support::{Client, Cluster, Proxy, until};

const SESSIONS: usize = 64;
const REPLICAS: [&str; 3] = ["ro1", "ro2", "ro3"];

fn pairs_wanted() -> usize {
    std::env::var("HALYARD_PAIRS").map_or(6_400, |wanted| wanted.parse().expect("HALYARD_PAIRS is a number"))
}

/// Numbers by chance that are the same in every run (xorshift, G. Marsaglia, 2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// How a pair is sent.
#[derive(Clone, Copy)]
enum Way {
    Simple,
    Extended,
    Prepared,
    Block,
    Pipeline,
}

const WAYS: [Way; 5] = [
    Way::Simple,
    Way::Extended,
    Way::Prepared,
    Way::Block,
    Way::Pipeline,
];

const READ: &str = "SELECT n, inet_server_port() FROM pairs WHERE session = $1::int";

fn read(client: &mut Client, way: Way, row: usize) -> (String, u16) {
    let row = row.to_string();
    match way {
        Way::Simple | Way::Block => client.send(&crate::support::message::query(&READ.replace("$1", &row))),
        Way::Extended | Way::Pipeline => client.send(&[unnamed(READ, &[Some(&row)]), sync()].concat()),
        Way::Prepared => client.send(&[bind("", "read", &[Some(&row)]), execute("", 0), sync()].concat()),
    }
    told(client)
}

fn told(client: &mut Client) -> (String, u16) {
    let answer = client.answer();
    assert!(answer.error.is_none(), "{answer:?}");
    let row = &answer.rows[0];
    (
        row[0].clone().unwrap(),
        row[1].as_deref().unwrap().parse().unwrap(),
    )
}

/// Writes `n` into the session's row by `writer`, then reads it by `reader` or by the writer itself.
fn pair(writer: &mut Client, reader: Option<&mut Client>, way: Way, row: usize, n: u64) -> (String, u16) {
    let update = format!("UPDATE pairs SET n = {n} WHERE session = {row}");
    match (way, reader) {
        (Way::Pipeline, None) => {
            let id = row.to_string();
            writer.send(&[unnamed(&update, &[]), sync(), unnamed(READ, &[Some(&id)]), sync()].concat());
            let answer = writer.answer();
            assert!(answer.error.is_none(), "{answer:?}");
            told(writer)
        }
        (_, reader) => {
            match way {
                Way::Simple => drop(writer.run(&update)),
                Way::Block => {
                    writer.run("BEGIN");
                    writer.run(&update);
                    writer.run("COMMIT");
                }
                Way::Extended | Way::Prepared | Way::Pipeline => {
                    writer.send(&[unnamed(&update, &[]), sync()].concat());
                    let answer = writer.answer();
                    assert!(answer.error.is_none(), "{answer:?}");
                }
            }
            read(reader.unwrap_or(writer), way, row)
        }
    }
}

fn connect(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    client.send(&[parse("read", READ), sync()].concat());
    assert!(client.answer().error.is_none());
    client
}

/// Moves the standbys' delays and crashes them, until it is over; leaves them as they were.
fn trouble(cluster: &Cluster, seed: u64, over: &AtomicBool) -> u64 {
    let mut chance = Chance(seed);
    let mut crashes = 0;
    while !over.load(Ordering::Relaxed) {
        let replica = REPLICAS[usize::try_from(chance.below(3)).unwrap()];
        if chance.below(6) == 0 {
            cluster.kill(replica);
            cluster.start(replica);
            crashes += 1;
        } else {
            let delay = [0, 0, 20, 200, 1 + chance.below(10_000)][usize::try_from(chance.below(5)).unwrap()];
            delay_replay(
                cluster,
                replica,
                &format!("SET recovery_min_apply_delay = {delay}"),
            );
        }
        thread::sleep(Duration::from_millis(100 + chance.below(900)));
    }
    for replica in REPLICAS {
        delay_replay(cluster, replica, "RESET recovery_min_apply_delay");
    }
    crashes
}

fn delay_replay(cluster: &Cluster, replica: &str, change: &str) {
    let node = cluster.node(replica);
    let mut connected = None;
    until(&format!("{replica} to answer"), || {
        connected = cluster.superuser(node).try_connect(&[]).ok();
        connected.is_some()
    });
    let mut client = connected.unwrap();
    client.run(&format!("ALTER SYSTEM {change}"));
    client.run("SELECT pg_reload_conf()");
}

struct Outcome {
    pairs: u64,
    stale: u64,
    by_standbys: u64,
    crashes: u64,
}

/// Runs the pairs over all sessions. `apart`: another session reads what one has written.
fn run(cluster: &Cluster, proxy: &Proxy, pairs: usize, apart: bool, think: Duration) -> Outcome {
    let each = u64::try_from(pairs.div_ceil(SESSIONS)).unwrap();
    let ports = cluster.replica_ports();
    let over = AtomicBool::new(false);
    let (stale, by_standbys) = (AtomicU64::new(0), AtomicU64::new(0));
    let crashes = thread::scope(|scope| {
        let trouble = scope.spawn(|| trouble(cluster, 0x5eed_0001, &over));
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|row| {
                let (ports, stale, by_standbys) = (&ports, &stale, &by_standbys);
                scope.spawn(move || {
                    let mut chance = Chance(row as u64 + 1);
                    let mut writer = connect(proxy);
                    let mut reader = apart.then(|| connect(proxy));
                    for n in 0..each {
                        let way = WAYS[usize::try_from(n).unwrap() % WAYS.len()];
                        let (seen, port) = pair(&mut writer, reader.as_mut(), way, row, n);
                        stale.fetch_add(u64::from(seen != n.to_string()), Ordering::Relaxed);
                        by_standbys.fetch_add(u64::from(ports.contains(&port)), Ordering::Relaxed);
                        // A few reads later the standbys have it: those must not be behind either.
                        for _ in 0..chance.below(3) {
                            thread::sleep(think);
                            let (seen, port) = read(reader.as_mut().unwrap_or(&mut writer), way, row);
                            stale.fetch_add(u64::from(seen != n.to_string()), Ordering::Relaxed);
                            by_standbys.fetch_add(u64::from(ports.contains(&port)), Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let failed = sessions
            .into_iter()
            .filter_map(|session| session.join().err())
            .count();
        over.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "sessions that did not get through");
        trouble.join().unwrap()
    });
    Outcome {
        pairs: each * SESSIONS as u64,
        stale: stale.into_inner(),
        by_standbys: by_standbys.into_inner(),
        crashes,
    }
}

fn pairs_under(consistency: &str, pairs: usize, apart: bool) -> Outcome {
    let cluster = Cluster::breakable();
    cluster.prepare(
        "DROP TABLE IF EXISTS pairs; \
         CREATE TABLE pairs AS SELECT g AS session, -1::bigint AS n FROM generate_series(0, 63) g; \
         ALTER TABLE pairs ADD PRIMARY KEY (session)",
    );
    let proxy = cluster
        .proxy()
        .set("routing.read_consistency", consistency)
        .start();
    let outcome = run(&cluster, &proxy, pairs, apart, Duration::from_millis(20));
    println!(
        "{consistency}: {} pairs, {} stale reads, {} reads by standbys, {} crashes of a standby",
        outcome.pairs, outcome.stale, outcome.by_standbys, outcome.crashes
    );
    assert!(outcome.by_standbys > 0, "standbys read");
    outcome
}

#[test]
fn a_session_reads_its_own_writes_from_standbys_that_lag_and_crash() {
    assert_eq!(pairs_under("session", pairs_wanted(), false).stale, 0);
}

#[test]
fn every_session_reads_all_writes_under_global_consistency() {
    assert_eq!(pairs_under("global", pairs_wanted(), true).stale, 0);
}

/// What the two others are measured by: the same pairs do find stale reads where nothing is promised.
#[test]
fn eventual_consistency_shows_stale_reads() {
    assert_ne!(pairs_under("eventual", 6_400, false).stale, 0);
}

/// The primary gets the writes, the reads that no standby may serve, and not one question more: by its own log.
#[test]
fn consistency_asks_the_primary_nothing() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS asked; CREATE TABLE asked AS SELECT -1::bigint AS n");
    let primary = cluster.primary();
    let mut superuser = cluster.superuser(primary).connect();
    let user = cluster.app(primary.port).user;
    superuser.run(&format!("ALTER ROLE {user} SET log_statement = 'all'"));
    cluster.replicated();
    let proxy = cluster.proxy().set("routing.read_consistency", "session").start();
    let log = cluster.dir().join("log").join(format!("{}.log", primary.name));
    let mut client = proxy.connect();
    client.run("SELECT n FROM asked");
    let before = std::fs::read_to_string(&log).unwrap().len();
    let mut expected = Vec::new();
    for n in 0..200 {
        let update = format!("UPDATE asked SET n = {n}");
        client.run(&update);
        expected.push(update);
        for _ in 0..4 {
            let select = "SELECT n, inet_server_port() FROM asked";
            let row = client.run(select).rows.remove(0);
            assert_eq!(row[0], Some(n.to_string()));
            if row[1] == Some(primary.port.to_string()) {
                expected.push(select.to_owned());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    superuser.run(&format!("ALTER ROLE {user} RESET log_statement"));
    let text = std::fs::read_to_string(&log).unwrap();
    let of_user = format!(" {user}@");
    let asked: Vec<_> = text[before..]
        .lines()
        .filter(|line| line.contains(&of_user))
        .filter_map(|line| line.split_once("statement: "))
        .map(|(_, statement)| statement.to_owned())
        // What a connection is asked when it is opened, before it has a client.
        .skip_while(|statement| statement == "SHOW statement_timeout")
        .collect();
    let reads = expected.len() - 200;
    println!("of 800 reads behind 200 writes the primary served {reads}");
    assert_eq!(asked, expected);
    assert!(reads < 800, "standbys served none");
}
