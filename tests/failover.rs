//! Nodes die, freeze and come back; clients see a pause at most.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::message::*;
use crate::support::{
    Address, Client, Cluster, LONG_PATIENCE, Message, Node, Proxy, Wanted, get, guardian, until, until_within,
};

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
    let proxy = administered(&cluster).start();
    let timeline = leader(&proxy).1;
    let impatient = cluster.proxy().set("failover.hold", "1s").start();
    let crowded = cluster.proxy().set("failover.held_clients_max", 1).start();
    let on_its_own = cluster.proxy().observed().start();
    let in_sessions = InSessions::start(&cluster);
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
        let mut by_looking = on_its_own.connect();
        by_looking.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();

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
        by_looking.send(&query(
            "INSERT INTO ledger_kill VALUES (1000000000000000) RETURNING inet_server_port()",
        ));
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
        let looked = by_looking.answer();
        assert_eq!(looked.tags, ["INSERT 0 1"], "{:?}", looked.error);
        assert_ne!(looked.rows, [[Some(old.port.to_string())]]);
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
    in_sessions.go_on(&cluster);
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
    for proxy in [&proxy, &on_its_own] {
        proxy.until_role(&old.name, "standby");
    }
    assert_ne!(
        cluster.primary().name,
        old.name,
        "it does not take its place back"
    );
    is_told_afterwards(&proxy, &old, timeline, cluster.primary());
}

/// Who leads in the words of `GET /cluster`, and on which timeline.
#[track_caller]
fn leader(proxy: &Proxy) -> (String, u64) {
    let (status, body) = get(proxy.http_port(), "/cluster").unwrap();
    assert_eq!(status, 200, "{body}");
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    let leaders = told["members"].as_array().unwrap().iter();
    let leaders: Vec<_> = leaders.filter(|member| member["role"] == "leader").collect();
    assert_eq!(leaders.len(), 1, "{told}");
    let name = leaders[0]["name"].as_str().unwrap();
    (name.to_owned(), leaders[0]["timeline"].as_u64().unwrap())
}

/// What there is to read of a failover that is over: in SHOW EVENTS, one after another, and in who leads now.
#[track_caller]
fn is_told_afterwards(proxy: &Proxy, old: &Node, timeline: u64, new: &Node) {
    let (name, later) = leader(proxy);
    assert_eq!(name, new.name);
    assert!(later > timeline, "{later} follows {timeline}");
    let mut console = console(proxy);
    // What is seen of a node is noted a moment later.
    until("the events to be told in their order", || {
        let events = console.run("SHOW EVENTS").rows;
        let mut left = events.iter().map(|row| row.iter().flatten().collect::<Vec<_>>());
        let mut is_next = |node: Option<&Node>, begins: &str, ends: &str| {
            left.any(|row| {
                let of_node = node.is_none_or(|node| row.contains(&&node.name));
                of_node
                    && row
                        .iter()
                        .any(|event| event.starts_with(begins) && event.contains(ends))
            })
        };
        let on_it = format!(" on timeline {later}");
        is_next(None, "no primary: ", "")
            && is_next(Some(new), "one primary", &on_it)
            && is_next(Some(old), "standby, which was ", &on_it)
    });
}

/// Two clients in session pooling, each with a connection of its own: one with settings and a prepared statement, one that
/// listens.
struct InSessions {
    proxy: Proxy,
    old: u16,
    setting: Client,
    listener: Client,
}

impl InSessions {
    fn start(cluster: &Cluster) -> Self {
        let proxy = administered(cluster).set("pool.mode", "session").cold().start();
        let patient = || {
            let client = proxy.connect();
            client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
            client
        };
        let (mut setting, mut listener) = (patient(), patient());
        setting.run("SET work_mem = '5MB'");
        setting.run("SET failover.tenant = 'seven'");
        setting.send(&[parse("mine", "SELECT $1::int + 1"), sync()].concat());
        assert!(setting.answer().error.is_none());
        listener.run("LISTEN of_sessions");
        for client in [&mut setting, &mut listener] {
            client.run("BEGIN; COMMIT");
        }
        Self {
            old: cluster.primary().port,
            proxy,
            setting,
            listener,
        }
    }

    /// Neither has lost anything: there is no more to it than a warning that something may not have been heard.
    #[track_caller]
    fn go_on(mut self, cluster: &Cluster) {
        let new = cluster.primary().port;
        assert_ne!(new, self.old);
        assert_eq!(self.setting.value("SHOW work_mem"), "5MB");
        assert_eq!(self.setting.value("SHOW failover.tenant"), "seven");
        let bound = bind("", "mine", &[Some("41")]);
        self.setting.send(&[bound, execute("", 0), sync()].concat());
        assert_eq!(self.setting.answer().rows, [[Some("42".to_owned())]]);
        self.setting.run("BEGIN");
        assert_eq!(self.setting.server_port(), new);
        self.setting.run("COMMIT");

        let warned = self.listener.receive();
        assert_eq!(
            (warned.kind, warned.field(b'V')),
            (b'N', "WARNING".to_owned()),
            "{warned}"
        );
        assert_eq!(
            self.listener.value("SELECT pg_listening_channels()"),
            "of_sessions"
        );
        self.proxy.connect().run("NOTIFY of_sessions, 'after'");
        let heard = self.listener.receive();
        assert_eq!(heard.to_string(), "NotificationResponse(of_sessions, after)");
        self.listener.run("BEGIN");
        assert_eq!(self.listener.server_port(), new);
        self.listener.run("COMMIT");
    }
}

/// What has run on any node, whatever became of its transaction and of the node's data: a function that leaves a file
/// beside the data.
struct Traces(PathBuf);

impl Traces {
    fn on(cluster: &Cluster) -> Self {
        let folder = guardian::folder().join("traces");
        std::fs::create_dir_all(&folder).unwrap();
        // The servers run as another user.
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        cluster.superuser(cluster.primary()).connect().run(&format!(
            "CREATE OR REPLACE FUNCTION leave_trace(name text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN EXECUTE format('COPY (SELECT 1) TO %L', '{}/' || name); RETURN name; END $$",
            folder.display()
        ));
        cluster.replicated();
        Self(folder)
    }

    fn left(&self) -> BTreeSet<String> {
        let files = std::fs::read_dir(&self.0).unwrap();
        files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Who has something on the primary that no other node has: a temporary table, and a block, which its next statement or
/// its end may meet.
struct Bound {
    table: Client,
    block: Client,
    ending: Client,
}

impl Bound {
    fn to_the_primary(ledger: &Ledger<'_>) -> Self {
        let [mut table, mut block, mut ending] = [0; 3].map(|_| ledger.patient());
        // A server process drops its temporary tables when its client goes, and waits for a standby to have that: on a node
        // that has none any more for ever, and the node never shuts down (PostgreSQL ignores signals by then).
        table.run("SET synchronous_commit = local");
        table.run("CREATE TEMP TABLE of_the_old (a int)");
        for client in [&mut block, &mut ending] {
            client.run("BEGIN");
            client.run("SELECT txid_current()");
        }
        Self { table, block, ending }
    }

    /// Each is told once what it has lost, and goes on; nothing is run for it before that.
    #[track_caller]
    fn are_told(&mut self, when: &str) {
        for (client, sql, told) in [
            (
                &mut self.table,
                &*format!("SELECT leave_trace('table_{when}')"),
                ("57P01", 'I'),
            ),
            (
                &mut self.block,
                &*format!("SELECT leave_trace('block_{when}')"),
                ("40001", 'E'),
            ),
            (&mut self.ending, "COMMIT", ("40001", 'E')),
        ] {
            let answer = client.query(sql);
            assert_eq!(
                (answer.sqlstate().as_str(), answer.status),
                told,
                "{sql}, {answer:?}"
            );
        }
        for client in [&mut self.block, &mut self.ending] {
            client.run("ROLLBACK");
        }
        for client in [&mut self.table, &mut self.block, &mut self.ending] {
            client.run("BEGIN; COMMIT");
        }
    }
}

/// A frozen server keeps its connections open and takes new ones; nothing but silence tells. When it wakes it believes
/// to be the primary still, and whoever was bound to it has its connections there as they were.
#[test]
fn a_frozen_primary_is_replaced_and_gets_no_write_when_it_wakes() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    let traces = Traces::on(&cluster);
    let proxy = cluster.proxy().start();
    under_load(&cluster, &proxy, "ledger_freeze", |ledger| {
        let [mut asleep, mut awake, mut late] = [0; 3].map(|_| Bound::to_the_primary(ledger));
        cluster.freeze(&old.name);
        ledger.goes_on("writes on another node");
        assert_ne!(cluster.primary().name, old.name);
        asleep.are_told("asleep");
        until("no connection to it to be left", || {
            let metrics = proxy.metrics();
            let of_old = format!("halyard_backends{{node=\"{}\"", old.name);
            let of_old = metrics.iter().filter(|(series, _)| series.starts_with(&of_old));
            let open: Vec<f64> = of_old
                .filter(|(series, _)| !series.contains("connecting"))
                .map(|(_, count)| *count)
                .collect();
            assert!(!open.is_empty(), "there is no halyard_backends of {}", old.name);
            open.iter().all(|count| *count == 0.0)
        });
        cluster.thaw(&old.name);
        awake.are_told("awake");
        ledger.goes_on("writes after the old primary woke");
        proxy.until_role(&old.name, "standby");
        late.are_told("late");
        ledger.goes_on("writes after the old primary rejoined");
        late.table.run("SELECT leave_trace('of_the_new')");
    });
    assert_eq!(proxy.metric("halyard_writes_sent_to_standby_total"), 0.0);
    assert_eq!(traces.left(), ["of_the_new".to_owned()].into());
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
pub(crate) fn administered(cluster: &Cluster) -> Wanted<'_> {
    cluster.proxy().set("admin.users", vec![cluster.app(1).user])
}

pub(crate) fn console(proxy: &Proxy) -> Client {
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
pub(crate) fn written_while(address: &Address, table: &str, incident: impl FnOnce()) -> u64 {
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
    let new = cluster.primary().clone();
    assert_ne!(new, old);
    let mut client = cluster.front().connect();
    let count = client.value("BEGIN; SELECT count(*) FROM switched; COMMIT");
    assert_eq!(count, written.to_string());

    // The one that nobody would have chosen: neither has it been the primary, nor was it preferred to the one that is.
    let third = third(&cluster, &[&old, &new]);
    let again = written_while(&cluster.front(), "switched", || {
        let output = cluster.switchover(&["--to", &third.name]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    assert_eq!(cluster.primary(), third);
    let count = client.value("BEGIN; SELECT count(*) FROM switched; COMMIT");
    assert_eq!(count, (written + again).to_string());
}

/// Nor for whoever keeps something in its session, but for what is gone with its connection: of that it is told once.
#[test]
fn a_switchover_tells_whoever_loses_something_and_nobody_else() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS kept_switched; CREATE TABLE kept_switched (n bigint)");
    let old = cluster.primary().clone();
    let sessions = InSessions::start(&cluster);
    assert_eq!(console(&sessions.proxy).run("SWITCHOVER").tags, ["SWITCHOVER"]);
    sessions.go_on(&cluster);

    let proxy = administered(&cluster).start();
    proxy.until_role(&old.name, "standby");
    let [mut table, mut lock, mut cursor, mut setting, mut listener] = [0; 5].map(|_| {
        let client = proxy.connect();
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client
    });
    table.run("CREATE TEMP TABLE of_the_old (a int)");
    lock.run("SELECT pg_advisory_lock(4711)");
    cursor.run("BEGIN; DECLARE kept CURSOR WITH HOLD FOR SELECT 1; COMMIT");
    setting.run("SET work_mem = '5MB'");
    listener.run("LISTEN of_the_switched");
    let between = cluster.primary().clone();
    // The engine may still be about the first.
    let switched = until_within(LONG_PATIENCE, "the engine to be at rest", || {
        let told = console(&proxy).query("SWITCHOVER");
        let moves = |report: &Message| report.field(b'M').contains("not at rest");
        (!told.error.as_ref().is_some_and(moves)).then_some(told)
    });
    assert_eq!(switched.tags, ["SWITCHOVER"], "{:?}", switched.error);
    assert_ne!(*cluster.primary(), between);
    for (client, what) in [
        (&mut table, "temporary objects"),
        (&mut lock, "advisory locks"),
        (&mut cursor, "cursors WITH HOLD"),
    ] {
        let told = client.query("INSERT INTO kept_switched VALUES (1)");
        assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'I'), "{what}");
        let error = told.error.unwrap();
        let words = [b'M', b'D', b'H'].map(|field| error.field(field)).concat();
        assert!(words.contains(what), "{words}");
        client.run("INSERT INTO kept_switched VALUES (2)");
    }
    assert_eq!(setting.value("SHOW work_mem"), "5MB");
    let warned = listener.receive();
    assert_eq!((warned.kind, warned.field(b'V')), (b'N', "WARNING".to_owned()));
    setting.run("NOTIFY of_the_switched, 'after'");
    let heard = listener.receive();
    assert_eq!(heard.to_string(), "NotificationResponse(of_the_switched, after)");
    let written = setting.value("BEGIN; SELECT string_agg(n::text, ' ') FROM kept_switched; COMMIT");
    assert_eq!(written, "2 2 2");
    proxy.until_role(&between.name, "standby");
}

/// Who else may become the primary.
fn third<'a>(cluster: &'a Cluster, others: &[&Node]) -> &'a Node {
    let mut nodes = cluster.nodes().iter();
    let third = nodes.find(|node| node.name.starts_with("node") && !others.contains(node));
    third.unwrap()
}

#[test]
fn a_switchover_on_the_console_is_a_pause_and_is_called_off_where_it_cannot_be() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS console_switched; CREATE TABLE console_switched (n bigint)");
    let old = cluster.primary().clone();
    let wanted = administered(&cluster).set("admin.pause_timeout", "1s");
    let (wanted, primary_alone) = wanted.also_listening("primary");
    let (wanted, standbys_alone) = wanted.also_listening("replica");
    let proxy = wanted.start();
    let mut console = console(&proxy);
    let ports = [proxy.address.port, primary_alone, standbys_alone];
    let roles_are_told = || {
        for (port, in_hot_standby) in ports.into_iter().zip(["off", "off", "on"]) {
            let client = proxy.on_port(port).connect();
            let told =
                ["in_hot_standby", "default_transaction_read_only"].map(|name| &*client.parameters[name]);
            assert_eq!(told, [in_hot_standby, "off"], "on port {port} of {ports:?}");
        }
    };
    roles_are_told();

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
    roles_are_told();
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

    let third = third(&cluster, &[&old, cluster.primary()]);
    let again = written_while(&proxy.address, "console_switched", || {
        // The engine may be busy with the other still.
        let switched = until_within(LONG_PATIENCE, "the engine to be at rest", || {
            let told = console.query(&format!("SWITCHOVER TO {}", third.name));
            let moves = |error: &Message| error.field(b'M').contains("not at rest");
            (!told.error.as_ref().is_some_and(moves)).then_some(told)
        });
        assert_eq!(switched.tags, ["SWITCHOVER"], "{:?}", switched.error);
    });
    assert_eq!(cluster.primary(), third);
    let count = other.value("BEGIN; SELECT count(*) FROM console_switched WHERE n = 1; COMMIT");
    assert_eq!(count, (written + again).to_string());
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

/// Has the engine refuse to promote anybody for as long as it lives.
struct RefusingEngine(Client);

impl RefusingEngine {
    fn of(cluster: &Cluster) -> Self {
        let mut monitor = cluster.monitor().connect();
        monitor.run(
            "ALTER FUNCTION pgautofailover.perform_promotion(text, text) RENAME TO perform_promotion_in_fact;
             CREATE FUNCTION pgautofailover.perform_promotion(text, text) RETURNS bool LANGUAGE plpgsql
                 AS 'BEGIN RAISE ''nobody is promoted today''; END'",
        );
        Self(monitor)
    }
}

impl Drop for RefusingEngine {
    fn drop(&mut self) {
        let _ = self.0.try_send(&query(
            "DROP FUNCTION pgautofailover.perform_promotion(text, text);
             ALTER FUNCTION pgautofailover.perform_promotion_in_fact(text, text) RENAME TO perform_promotion",
        ));
        let _ = self.0.try_answer();
    }
}

/// As on the console: whatever fails behind the hold, the hold is over with it, and nothing has changed.
#[test]
fn a_switchover_by_command_that_fails_behind_its_hold_holds_nobody_on() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS by_command; CREATE TABLE by_command (n bigint)");
    let old = cluster.primary().clone();
    let fails_with = |words: &str| {
        let refused = cluster.switchover(&[]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains(words), "{told}");
        cluster.front().connect().run("INSERT INTO by_command VALUES (0)");
    };
    let written = written_while(&cluster.front(), "by_command", || {
        let stopped = ReplayStopped::on(&cluster);
        // There is something to be replayed.
        cluster.front().connect().run("INSERT INTO by_command VALUES (0)");
        fails_with("everything replayed");
        drop(stopped);
        let refusing = RefusingEngine::of(&cluster);
        fails_with("nobody is promoted today");
        drop(refusing);
    });
    assert_eq!(*cluster.primary(), old);
    let mut client = cluster.front().connect();
    let count = client.value("BEGIN; SELECT count(*) FROM by_command WHERE n = 1; COMMIT");
    assert_eq!(count, written.to_string());
    assert!(written > 0);
    assert!(cluster.switchover(&[]).status.success());
    assert_ne!(*cluster.primary(), old);
}

/// The only node that a proxy could write to has become a standby: what sessions had on it is told as lost, nothing is
/// written anywhere, and writes wait until it is the primary again.
#[test]
fn a_primary_that_becomes_a_standby_with_no_other_in_sight_keeps_writes_waiting() {
    let cluster = Cluster::breakable();
    cluster.prepare("DROP TABLE IF EXISTS demoted; CREATE TABLE demoted (n int)");
    let old = cluster.primary().clone();
    let proxy = cluster
        .proxy()
        .only_nodes(|name| name == old.name || name.starts_with("ro"))
        .start();
    let [mut keeps, mut in_block, mut idle] = [proxy.connect(), proxy.connect(), proxy.connect()];
    keeps.run("CREATE TEMP TABLE kept_there (n int)");
    in_block.run("BEGIN");
    in_block.run("INSERT INTO demoted VALUES (1)");
    idle.run("INSERT INTO demoted VALUES (2)");

    assert!(cluster.command(&["switchover"]).status.success());
    proxy.until_role(&old.name, "standby");
    let told = keeps.query("INSERT INTO demoted VALUES (3)");
    assert_eq!((told.sqlstate().as_str(), told.status), ("57P01", 'I'));
    let detail = told.error.unwrap().field(b'D');
    assert!(detail.contains("the session's temporary objects"), "{detail}");
    let told = in_block.query("INSERT INTO demoted VALUES (4)");
    assert_eq!((told.sqlstate().as_str(), told.status), ("40001", 'E'));
    in_block.run("ROLLBACK");
    let mut waiting = [keeps, in_block, idle];
    for client in &mut waiting {
        client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
        client.send(&query("INSERT INTO demoted VALUES (5)"));
    }
    until("the writes to wait", || proxy.clients("held") == 3);

    assert!(cluster.switchover(&["--to", &old.name]).status.success());
    for client in &mut waiting {
        assert_eq!(client.answer().tags, ["INSERT 0 1"]);
    }
    let written = "SELECT string_agg(n::text, ' ' ORDER BY n) FROM demoted";
    assert_eq!(proxy.connect().value(written), "2 5 5 5");
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
