//! Nodes die, freeze and come back; clients see a pause at most.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{Address, Client, Cluster, LONG_PATIENCE, Proxy, Wanted, get, until, until_within};

/// How a client sends its writes, none of them in a block.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// One Query message after another's answer.
    Simple,
    /// Several, each with a Sync of its own, before the first answer is read.
    Pipelined,
    /// Several before one Sync: one transaction.
    Batched,
}

impl Way {
    fn of(writer: usize) -> Self {
        match writer {
            0 => Self::Pipelined,
            1 => Self::Batched,
            _ => Self::Simple,
        }
    }

    /// Numbers that are written at a time.
    fn in_flight(self) -> usize {
        match self {
            Self::Simple => 1,
            Self::Pipelined => 5,
            Self::Batched => 3,
        }
    }

    /// Those of them that are one transaction, with one answer.
    fn in_transaction(self) -> usize {
        match self {
            Self::Simple | Self::Pipelined => 1,
            Self::Batched => self.in_flight(),
        }
    }

    fn request(self, table: &str, numbers: &[u64]) -> Vec<u8> {
        let inserts = numbers
            .iter()
            .map(|n| format!("INSERT INTO {table} VALUES ({n})"));
        match self {
            Self::Simple => inserts.flat_map(|sql| query(&sql)).collect(),
            Self::Pipelined => inserts
                .flat_map(|sql| [unnamed(&sql, &[]), sync()].concat())
                .collect(),
            Self::Batched => inserts.flat_map(|sql| unnamed(&sql, &[])).chain(sync()).collect(),
        }
    }
}

/// What became of a client's writes.
struct Written {
    way: Way,
    acknowledged: Vec<u64>,
    /// By transaction.
    unknown: Vec<Vec<u64>>,
}

/// Clients that write numbers, and know which of them the database has acknowledged.
struct Ledger<'a> {
    proxy: &'a Proxy,
    table: &'static str,
    over: AtomicBool,
    acknowledged: AtomicU64,
}

impl<'a> Ledger<'a> {
    const WRITERS: usize = 4;

    fn new(cluster: &Cluster, proxy: &'a Proxy, table: &'static str) -> Self {
        // No key: a number that was written twice has to show.
        cluster.prepare(&format!(
            "DROP TABLE IF EXISTS {table}; CREATE TABLE {table} (n bigint)"
        ));
        Self {
            proxy,
            table,
            over: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Writes until [`Ledger::close`], and returns what was acknowledged and what is of unknown outcome.
    fn write(&self, writer: usize) -> Written {
        let way = Way::of(writer);
        let mut written = Written {
            way,
            acknowledged: Vec::new(),
            unknown: Vec::new(),
        };
        let mut client = self.patient();
        let mut numbers = (writer as u64..).step_by(Self::WRITERS);
        while !self.over.load(Ordering::Relaxed) {
            let flight: Vec<u64> = numbers.by_ref().take(way.in_flight()).collect();
            client.send(&way.request(self.table, &flight));
            for numbers in flight.chunks(way.in_transaction()) {
                let answer = client.answer();
                match answer.sqlstate().as_str() {
                    "" => {
                        written.acknowledged.extend(numbers);
                        self.acknowledged
                            .fetch_add(numbers.len() as u64, Ordering::Relaxed);
                    }
                    "08007" => written.unknown.push(numbers.to_vec()),
                    _ => panic!("a write failed with {:?}", answer.error),
                }
            }
        }
        written
    }

    /// A client that waits as long as a failover takes.
    fn patient(&self) -> Client {
        let client = self.proxy.connect();
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client
    }

    /// Waits until more writes are acknowledged.
    fn goes_on(&self, what: &str) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        until_within(LONG_PATIENCE, what, || {
            (self.acknowledged.load(Ordering::Relaxed) >= before + 20).then_some(())
        });
    }

    fn close(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Compares with what the primary has: everything acknowledged is there, nothing is there twice or in part, and no writer
    /// was left in doubt of more than it had under way.
    #[track_caller]
    fn audit(&self, cluster: &Cluster, written: &[Written]) {
        let mut direct = cluster.app(cluster.primary().port).connect();
        let rows = direct.run(&format!("SELECT n FROM {}", self.table)).rows;
        let numbers: Vec<u64> = rows
            .iter()
            .map(|row| row[0].as_ref().unwrap().parse().unwrap())
            .collect();
        let present: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(present.len(), numbers.len(), "a write took effect twice");
        for Written {
            way,
            acknowledged,
            unknown,
        } in written
        {
            let lost: Vec<_> = acknowledged.iter().filter(|n| !present.contains(n)).collect();
            assert!(lost.is_empty(), "{way:?}: acknowledged and lost: {lost:?}");
            let under_way = way.in_flight() / way.in_transaction();
            assert!(
                unknown.len() <= under_way,
                "{way:?}: more than was under way: {unknown:?}"
            );
            for transaction in unknown {
                let there = transaction.iter().filter(|n| present.contains(n)).count();
                assert!(
                    there == 0 || there == transaction.len(),
                    "{way:?}: a part of {transaction:?}"
                );
            }
        }
    }
}

/// Runs `incident` under writers and readers. No read may fail, no acknowledged write be lost, and each writer may be left
/// in doubt once: it had one statement under way.
fn under_load(cluster: &Cluster, proxy: &Proxy, table: &'static str, incident: impl FnOnce(&Ledger<'_>)) {
    let ledger = Ledger::new(cluster, proxy, table);
    let written = thread::scope(|scope| {
        let ledger = &ledger;
        let writers: Vec<_> = (0..Ledger::WRITERS)
            .map(|writer| scope.spawn(move || ledger.write(writer)))
            .collect();
        for _ in 0..4 {
            scope.spawn(move || {
                let mut reader = ledger.patient();
                while !ledger.over.load(Ordering::Relaxed) {
                    reader.run("SELECT inet_server_port(), count(*) FROM pg_class");
                }
            });
        }
        // Whatever fails in here, the others have to end.
        let closing = Closing(ledger);
        ledger.goes_on("the load to run");
        incident(ledger);
        drop(closing);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    ledger.audit(cluster, &written);
}

struct Closing<'a, 'b>(&'a Ledger<'b>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A client with a statement under way on the primary.
fn busy(cluster: &Cluster, ledger: &Ledger<'_>, sql: &str) -> Client {
    let mut client = ledger.patient();
    client.send(&query(sql));
    cluster.until_runs(cluster.primary(), sql);
    client
}

#[test]
fn killing_the_primary_is_a_pause() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    let proxy = cluster.proxy().start();
    let impatient = cluster.proxy().set("failover.hold", "1s").start();
    let crowded = cluster.proxy().set("failover.held_clients_max", 1).start();
    let mut idle: Vec<Client> = (0..200).map(|_| proxy.connect()).collect();
    for client in &mut idle {
        client.send(&[parse("mine", "SELECT $1::int + 1"), sync()].concat());
        assert!(client.answer().error.is_none());
    }
    under_load(&cluster, &proxy, "ledger_kill", |ledger| {
        let mut in_flight = busy(
            &cluster,
            ledger,
            "INSERT INTO ledger_kill SELECT 0 FROM pg_sleep(600)",
        );
        let mut in_block = ledger.patient();
        in_block.run("BEGIN");
        in_block.run("INSERT INTO ledger_kill VALUES (-1)");
        let mut in_block_too = ledger.patient();
        in_block_too.run("BEGIN");
        in_block_too.run("INSERT INTO ledger_kill VALUES (-2)");
        let mut pinned = ledger.patient();
        pinned.run("CREATE TEMP TABLE lost_with_it (a int)");
        let mut refused = impatient.connect();
        let (mut first, mut second) = (crowded.connect(), crowded.connect());

        let began = Instant::now();
        cluster.kill(&old.name);
        assert_eq!(in_flight.answer().sqlstate(), "08007");

        let failed = in_block.query("SELECT 1");
        assert_eq!((failed.sqlstate().as_str(), failed.status), ("40001", 'E'));
        assert_eq!(in_block.run("ROLLBACK").status, 'I');

        // While there is no primary: a short hold ends with an error, a full one is told at once, and sessions live on.
        crowded.until_role(&old.name, "unknown");
        // A ROLLBACK needs no node, in the extended protocol neither.
        assert_eq!(in_block_too.failure("SELECT 1"), "40001");
        in_block_too.send(&[unnamed("ROLLBACK", &[]), sync()].concat());
        let told = in_block_too.answer();
        assert_eq!(
            (told.tags, told.status),
            (vec!["ROLLBACK".to_owned()], 'I'),
            "{:?}",
            told.error
        );
        assert!(
            cluster.nodes().iter().all(|node| !cluster.is_writable(node)),
            "it was not held"
        );
        first.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        first.send(&query("BEGIN; COMMIT"));
        until("it to be held", || crowded.clients("held") == 1);
        assert_eq!(second.failure("BEGIN"), "57P03");
        let told = refused.query("CREATE TABLE never_made (a int)");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P03", 'I'));
        assert_eq!(refused.value("SELECT 'alive'"), "alive");

        // Held until the new primary is there.
        in_block.run("BEGIN");
        assert_ne!(in_block.server_port(), old.port);
        in_block.run("COMMIT");
        assert!(first.answer().error.is_none());
        ledger.goes_on("writes on the new primary");
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it took {:?}",
            began.elapsed()
        );

        let lost = pinned.query("SELECT 1");
        assert_eq!(lost.sqlstate(), "57P01", "{lost:?}");
        assert_eq!(pinned.value("SELECT 'alive'"), "alive");
        in_flight.run("BEGIN; COMMIT");
        refused.run("BEGIN; COMMIT");
    });
    assert_ne!(cluster.primary().name, old.name);
    for client in &mut idle {
        client.send(&[bind("", "mine", &[Some("41")]), execute("", 0), sync()].concat());
        assert_eq!(client.answer().rows, [[Some("42".to_owned())]]);
        client.run("BEGIN; COMMIT");
    }
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
    for (proxy, metric) in [
        (&proxy, "halyard_backend_losses_total{outcome=\"unknown\"}"),
        (&proxy, "halyard_backend_losses_total{outcome=\"rolled_back\"}"),
        (&proxy, "halyard_backend_losses_total{outcome=\"state_lost\"}"),
        (&proxy, "halyard_held_total{reason=\"no_primary\"}"),
        (&proxy, "halyard_hold_seconds_count"),
        (&proxy, "halyard_failover_detection_seconds_count"),
        (&proxy, "halyard_failover_seconds_count"),
        (&crowded, "halyard_held_refused_total{reason=\"clients\"}"),
        (&impatient, "halyard_held_refused_total{reason=\"time\"}"),
    ] {
        assert!(proxy.metric(metric) >= 1.0, "{metric}");
    }
    assert_eq!(
        proxy.metric("halyard_held_clients"),
        0.0,
        "nobody is held any more"
    );

    cluster.start(&old.name);
    proxy.until_role(&old.name, "standby");
    assert_ne!(
        cluster.primary().name,
        old.name,
        "it does not take its place back"
    );
}

/// A frozen server keeps its connections open and takes new ones; nothing but silence tells. When it wakes it believes
/// to be the primary still.
#[test]
fn a_frozen_primary_is_replaced_and_gets_no_write_when_it_wakes() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    let proxy = cluster.proxy().start();
    under_load(&cluster, &proxy, "ledger_freeze", |ledger| {
        cluster.freeze(&old.name);
        ledger.goes_on("writes on another node");
        assert_ne!(cluster.primary().name, old.name);
        cluster.thaw(&old.name);
        ledger.goes_on("writes after the old primary woke");
        proxy.until_role(&old.name, "standby");
        ledger.goes_on("writes after the old primary rejoined");
    });
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
}

#[test]
fn killing_a_replica_is_not_seen() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    under_load(&cluster, &proxy, "ledger_replica", |ledger| {
        cluster.kill("ro1");
        ledger.goes_on("writes without the replica");
        cluster.freeze("ro2");
        ledger.goes_on("writes without the frozen replica");
        let mut client = ledger.patient();
        until("reads to avoid both", || {
            (0..20).all(|_| client.server_port() == cluster.node("ro3").port)
        });
        cluster.thaw("ro2");
        cluster.start("ro1");
        let mut seen = BTreeSet::new();
        until("all three to serve", || {
            seen.insert(client.server_port());
            cluster.replica_ports().iter().all(|port| seen.contains(port))
        });
    });
}

#[test]
fn a_proxy_without_its_monitor_goes_on() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    under_load(&cluster, &proxy, "ledger_monitor", |ledger| {
        cluster.kill("monitor");
        ledger.goes_on("writes without a monitor");
        let mut client = ledger.patient();
        client.run("BEGIN; COMMIT");
        cluster.start("monitor");
        ledger.goes_on("writes with the monitor back");
    });
}

#[test]
fn a_primary_that_is_stopped_cleanly_is_replaced() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    let proxy = cluster.proxy().start();
    // A server that shuts down ends its connections one after another. Who has lost one of them was sent on to the next, and
    // was in doubt once more.
    under_load(&cluster, &proxy, "ledger_stop", |ledger| {
        cluster.stop(&old.name);
        ledger.goes_on("writes on another node");
        assert_ne!(cluster.primary().name, old.name);
        cluster.start(&old.name);
        proxy.until_role(&old.name, "standby");
    });
}

/// An open transaction is never cut off by a switchover: it is the switchover that does not happen.
#[test]
fn a_switchover_that_an_open_transaction_prevents_leaves_everything_as_it_was() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS kept; CREATE TABLE kept (a int)");
    let old = cluster.primary().clone();
    let mut in_block = cluster.front().connect();
    in_block.run("BEGIN");
    in_block.run("INSERT INTO kept VALUES (1)");

    let refused = cluster.switchover(&["--wait", "1"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains("1 transactions are open still after 1000 ms"),
        "{told}"
    );
    assert_eq!(*cluster.primary(), old);
    let mut other = cluster.front().connect();
    other.run("INSERT INTO kept VALUES (2)");
    in_block.run("COMMIT");
    assert_eq!(other.value("BEGIN; SELECT sum(a) FROM kept; COMMIT"), "3");

    let to_itself = cluster.command(&["switchover", "--to", &old.name]);
    assert!(!to_itself.status.success());
}

/// A proxy whose administrator is the application's user.
fn administered(cluster: &Cluster) -> Wanted<'_> {
    cluster.proxy().set("admin.users", vec![cluster.app(1).user])
}

fn console(proxy: &Proxy) -> Client {
    let console = Address {
        database: "halyard".to_owned(),
        ..proxy.address.clone()
    };
    let console = console.connect();
    console.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    console
}

/// How many clients write in [`written_while`].
const WRITERS: u64 = 4;

/// Has clients write ones to a table and read it while something happens, without an error for any of them; how many they
/// have written in the end.
fn written_while(address: &Address, table: &str, incident: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = address.connect();
                    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
                    let mut count = 0;
                    while !over.load(Ordering::Relaxed) {
                        client.run(&format!("BEGIN; INSERT INTO {table} VALUES (1); COMMIT"));
                        client.run(&format!("SELECT count(*) FROM {table}"));
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        // Whatever fails in here, the others have to end.
        let closing = Setting(&over);
        incident();
        drop(closing);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum()
    })
}

/// Sets a flag when it is dropped.
struct Setting<'a>(&'a AtomicBool);

impl Drop for Setting<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_switchover_is_a_pause_and_no_error_for_anybody() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS switched; CREATE TABLE switched (n bigint)");
    let old = cluster.primary().clone();
    let written = written_while(&cluster.front(), "switched", || {
        let output = cluster.switchover(&[]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    assert_ne!(*cluster.primary(), old);
    let mut client = cluster.front().connect();
    let count = client.value("BEGIN; SELECT count(*) FROM switched; COMMIT");
    assert_eq!(count, written.to_string());
}

#[test]
fn a_switchover_on_the_console_is_a_pause_and_is_called_off_where_it_cannot_be() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS console_switched; CREATE TABLE console_switched (n bigint)");
    let old = cluster.primary().clone();
    let proxy = administered(&cluster).set("admin.pause_timeout", "1s").start();
    let mut console = console(&proxy);

    // Whoever is in the middle of something is not cut off, and everybody goes on.
    let mut in_block = proxy.connect();
    in_block.run("BEGIN");
    in_block.run("INSERT INTO console_switched VALUES (0)");
    let refused = console.query("SWITCHOVER");
    let told = refused.error.unwrap().field(b'M');
    assert!(
        told.contains("1 transactions are open still after 1000 ms"),
        "{told}"
    );
    let mut other = proxy.connect();
    other.run("INSERT INTO console_switched VALUES (0)");
    in_block.run("COMMIT");
    assert_eq!(console.failure(&format!("SWITCHOVER TO {}", old.name)), "55000");
    assert_eq!(console.failure("SWITCHOVER TO ro1"), "55000");
    assert_eq!(console.failure("SWITCHOVER TO nobody"), "42704");
    assert_eq!(*cluster.primary(), old);

    let written = written_while(&proxy.address, "console_switched", || {
        let switched = console.query("SWITCHOVER");
        assert_eq!(switched.tags, ["SWITCHOVER"], "{:?}", switched.error);
    });
    assert_ne!(*cluster.primary(), old);
    let count = other.value("BEGIN; SELECT count(*) FROM console_switched WHERE n = 1; COMMIT");
    assert_eq!(count, written.to_string());
    let events = console.run("SHOW EVENTS").rows;
    let noted = |row: &Vec<Option<String>>| {
        row.iter()
            .flatten()
            .any(|column| column.starts_with(&format!("SWITCHOVER from {}", old.name)))
    };
    assert!(events.iter().any(noted), "{events:?}");
    assert!(proxy.metric("halyard_failover_detection_seconds_count") >= 1.0);
    assert!(proxy.metric("halyard_held_total{reason=\"paused\"}") >= 1.0);
}

/// Everything is ready for the order, and the engine does not take it.
#[test]
fn a_switchover_that_the_engine_refuses_holds_nobody_on() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS not_ordered; CREATE TABLE not_ordered (n bigint)");
    let old = cluster.primary().clone();
    // It may look at the engine's state as Halyard's own role may, and not have anybody promoted.
    let mut monitor = cluster.monitor().connect();
    monitor.run(
        "DO $$ BEGIN CREATE ROLE onlooker LOGIN PASSWORD 'looks on'; EXCEPTION WHEN duplicate_object THEN END $$;
         GRANT CONNECT ON DATABASE pg_auto_failover TO onlooker;
         GRANT USAGE ON SCHEMA pgautofailover TO onlooker;
         GRANT SELECT ON ALL TABLES IN SCHEMA pgautofailover TO onlooker;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgautofailover TO onlooker;
         REVOKE EXECUTE ON FUNCTION pgautofailover.perform_promotion(text, text) FROM onlooker",
    );
    let proxy = administered(&cluster)
        .set("engine.user", "onlooker")
        .set("engine.password", "looks on")
        .start();
    let mut console = console(&proxy);
    let written = written_while(&proxy.address, "not_ordered", || {
        let refused = console.query("SWITCHOVER");
        assert_eq!(refused.sqlstate(), "55000", "{refused:?}");
        let told = refused.error.unwrap();
        assert!(
            told.field(b'M').contains("the engine refused: permission denied")
                && told.field(b'H').contains("onlooker"),
            "{told}"
        );
    });
    assert!(proxy.metric("halyard_held_total{reason=\"paused\"}") >= 1.0);
    let mut client = proxy.connect();
    let count = client.value("BEGIN; SELECT count(*) FROM not_ordered; COMMIT");
    assert_eq!(count, written.to_string());
    assert_eq!(*cluster.primary(), old);
}

/// Has the engine take an order to promote somebody and do nothing, as long as it lives.
struct DeafEngine(Client);

impl DeafEngine {
    fn of(cluster: &Cluster) -> Self {
        let mut monitor = cluster.monitor().connect();
        monitor.run(
            "ALTER FUNCTION pgautofailover.perform_promotion(text, text) RENAME TO perform_promotion_in_fact;
             CREATE FUNCTION pgautofailover.perform_promotion(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';
             GRANT EXECUTE ON FUNCTION pgautofailover.perform_promotion(text, text) TO PUBLIC",
        );
        Self(monitor)
    }
}

impl Drop for DeafEngine {
    fn drop(&mut self) {
        let _ = self.0.try_send(&query(
            "DROP FUNCTION pgautofailover.perform_promotion(text, text);
             ALTER FUNCTION pgautofailover.perform_promotion_in_fact(text, text) RENAME TO perform_promotion",
        ));
        let _ = self.0.try_answer();
    }
}

/// It has the order, and nobody is promoted: who ordered it is told that it may still be, and nobody is held on.
#[test]
fn a_switchover_that_the_engine_takes_and_does_not_carry_out_holds_nobody_on() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS not_carried_out; CREATE TABLE not_carried_out (n bigint)");
    let old = cluster.primary().clone();
    let proxy = administered(&cluster).start();
    let mut console = console(&proxy);
    let deaf = DeafEngine::of(&cluster);
    let written = written_while(&proxy.address, "not_carried_out", || {
        let told = console.query("SWITCHOVER");
        assert_eq!(told.sqlstate(), "55000", "{told:?}");
        let message = told.error.unwrap().field(b'M');
        assert!(message.starts_with("the engine has its order"), "{message}");
    });
    drop(deaf);
    assert_eq!(*cluster.primary(), old);
    let mut client = proxy.connect();
    let count = client.value("BEGIN; SELECT count(*) FROM not_carried_out; COMMIT");
    assert_eq!(count, written.to_string());
    assert!(written > 0);
    // When it hears again it is done as ever.
    assert_eq!(console.run("SWITCHOVER").tags, ["SWITCHOVER"]);
    assert_ne!(*cluster.primary(), old);
}

/// Has the standbys that could become the primary replay nothing for as long as it lives.
struct ReplayStopped(Vec<Client>);

impl ReplayStopped {
    fn on(cluster: &Cluster) -> Self {
        let primary = cluster.primary();
        let standbys = cluster.nodes().iter();
        let standbys = standbys.filter(|node| *node != primary && node.name.starts_with("node"));
        let clients = standbys.map(|node| {
            let mut client = cluster.superuser(node).connect();
            client.run("SELECT pg_wal_replay_pause()");
            until("the replay to stop", || {
                client.value("SELECT pg_get_wal_replay_pause_state()") == "paused"
            });
            client
        });
        Self(clients.collect())
    }
}

impl Drop for ReplayStopped {
    fn drop(&mut self) {
        for client in &mut self.0 {
            let _ = client.try_send(&query("SELECT pg_wal_replay_resume()"));
            let _ = client.try_answer();
        }
    }
}

#[test]
fn a_switchover_whose_target_does_not_catch_up_or_that_is_called_off_holds_nobody_on() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS behind; CREATE TABLE behind (n bigint)");
    let old = cluster.primary().clone();
    let proxy = administered(&cluster).start();
    let stopped = ReplayStopped::on(&cluster);
    let written = written_while(&proxy.address, "behind", || {
        let begin = || {
            let mut console = console(&proxy);
            // Behind a write that no standby has replayed.
            let held = proxy.metric("halyard_held_total{reason=\"paused\"}");
            console.send(&query("SWITCHOVER"));
            until("all writers to be held", || proxy.clients("held") == WRITERS);
            assert!(proxy.metric("halyard_held_total{reason=\"paused\"}") > held);
            console
        };
        let goes_on = || {
            until("the writers to go on", || proxy.clients("held") == 0);
            proxy.connect().run("INSERT INTO behind VALUES (0)");
        };

        let mut cancelled = begin();
        cancelled.cancel();
        assert_eq!(cancelled.answer().sqlstate(), "57014");
        goes_on();
        cancelled.run("SHOW STATE");

        // Nobody is there any more who would be told.
        begin().vanish();
        goes_on();

        let refused = begin().answer();
        assert_eq!(refused.sqlstate(), "55000", "{refused:?}");
        let told = refused.error.unwrap().field(b'M');
        assert!(told.contains("the target has not replayed everything"), "{told}");
        goes_on();
    });
    drop(stopped);
    let mut client = proxy.connect();
    let count = client.value("BEGIN; SELECT count(*) FROM behind WHERE n = 1; COMMIT");
    assert_eq!(count, written.to_string());
    assert_eq!(*cluster.primary(), old);
}

/// All that it can reach then says that it takes writes.
#[test]
fn a_proxy_that_is_restarted_does_not_believe_a_primary_of_the_past() {
    let cluster = Cluster::breakable();
    let state = cluster.dir().join("remembered.json");
    let remembering = || cluster.proxy().set("general.state_file", state.to_str().unwrap());
    let proxy = remembering().start();
    let primary = cluster.primary().clone();
    let timeline: u64 = until_within(LONG_PATIENCE, "the state to be written", || {
        let text = std::fs::read_to_string(&state).ok()?;
        let written: serde_json::Value = serde_json::from_str(&text).ok()?;
        written["timeline"].as_u64()
    });
    drop(proxy);
    // As another node would have left it that was promoted since and cannot be reached now.
    let text = std::fs::read_to_string(&state).unwrap();
    let later = text.replace(&format!(":{timeline}}}"), &format!(":{}}}", timeline + 1));
    assert_ne!(text, later);
    std::fs::write(&state, later).unwrap();
    let proxy = remembering()
        .only_nodes(|name| name == primary.name)
        .observed()
        .start_without_waiting();
    let reason = until_within(LONG_PATIENCE, "the proxy to see its node", || {
        let (_, body) = get(proxy.http_port(), "/status")?;
        let status: serde_json::Value = serde_json::from_str(&body).ok()?;
        assert_ne!(status["nodes"][0]["role"], "primary", "{status}");
        status["nodes"][0]["reason"]
            .as_str()
            .map(str::to_owned)
            .filter(|reason| reason.contains("fenced"))
    });
    assert!(reason.contains("which was overtaken"), "{reason}");
    std::fs::remove_file(&state).unwrap();
}
