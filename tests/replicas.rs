//! The read-only replicas beside the engine: they never keep it from working, and follow whoever is the primary.

use std::time::{Duration, Instant};

use crate::support::message::query;
use crate::support::{Client, Cluster, HeldUp, LONG_PATIENCE, until, until_within};

/// Until a standby that receives nothing while there is a primary is taken for frozen and gets no reads.
const NOT_FOLLOWING: Duration = Duration::from_secs(10);

const RECEIVED: &str = "SELECT pg_last_wal_receive_lsn()";

fn direct(cluster: &Cluster, name: &str) -> Client {
    cluster.superuser(cluster.node(name)).connect()
}

/// Puts what follows into one WAL file: a standby that is ahead of its upstream streams from it only within a file.
fn new_wal_file(cluster: &Cluster) {
    cluster
        .superuser(cluster.primary())
        .connect()
        .run("SELECT pg_switch_wal()");
    cluster.prepare("DROP TABLE IF EXISTS filled; CREATE TABLE filled (a text)");
}

const FILL: &str = "INSERT INTO filled SELECT repeat(md5(i::text), 3) FROM generate_series(1, 20000) i";

/// The backup of the higher priority is behind. Had it been told to fetch from the other one what it lacks, it would
/// have led the timeline of the primary that it replaces: PostgreSQL gives up a recovery that ends at its target's very
/// position, and what starts again is a primary. The old one could never follow it. And before that a failover hung for
/// ever here: replicas that had got further from the other backup came to this one, and kept it from stopping.
#[test]
fn a_backup_that_is_behind_is_not_promoted_and_the_old_primary_comes_back() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    let old = cluster.primary().clone();
    let [behind, current] = cluster.backups();
    new_wal_file(&cluster);
    let before = timeline(&cluster);
    let held_up = HeldUp::new(&mut direct(&cluster, &behind));
    let mut client = proxy.connect();
    client.run(FILL);
    let position = cluster
        .superuser(&old)
        .connect()
        .value("SELECT pg_current_wal_lsn()");
    let mut ahead = direct(&cluster, &current);
    until("the other backup to have it all", || {
        ahead.value(&format!("{RECEIVED} >= '{position}'")) == "t"
    });
    cluster.kill(&old.name);
    held_up.drop_what_waits();
    until_within(
        LONG_PATIENCE,
        "the backup that has it all to be the primary",
        || (cluster.primary().name == current).then_some(()),
    );
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client.run("INSERT INTO filled VALUES ('after')");
    assert_eq!(client.value("SELECT count(*) FROM filled"), "20001");
    assert_eq!(timeline(&cluster), before + 1);
    cluster.start(&old.name);
}

/// The timeline that the primary writes on.
fn timeline(cluster: &Cluster) -> u32 {
    let mut primary = cluster.superuser(cluster.primary()).connect();
    let digits = primary.value("SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)");
    u32::from_str_radix(&digits, 16).unwrap()
}

/// Makes the monitor misjudge what a node reports in an election.
struct Misjudged<'a>(&'a Cluster);

impl<'a> Misjudged<'a> {
    /// It is told to fetch what it lacks although it lacks nothing and is ahead of all.
    const AS_BEHIND: &'static str = "NEW.reportedlsn := NEW.reportedlsn + 1;
        IF NEW.goalstate = 'prepare_promotion' THEN NEW.goalstate := 'fast_forward'; END IF;";
    /// It is taken to be on a later timeline than the others, as nodes are next to one that was promoted and has written no
    /// checkpoint since: it is elected, whatever others have.
    const ON_LATER_TIMELINE: &'static str = "NEW.reportedtli := 1000;";

    fn new(cluster: &'a Cluster, node: &str, how: &str) -> Self {
        let mut monitor = cluster.monitor().connect();
        monitor.run(&format!(
            "CREATE FUNCTION misjudge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.nodename = '{node}' AND NEW.reportedstate = 'report_lsn' THEN {how} END IF;
                RETURN NEW;
            END $$"
        ));
        monitor.run(
            "CREATE TRIGGER misjudge BEFORE UPDATE ON pgautofailover.node
                FOR EACH ROW EXECUTE FUNCTION misjudge()",
        );
        Self(cluster)
    }
}

impl Drop for Misjudged<'_> {
    fn drop(&mut self) {
        if let Ok(mut monitor) = self.0.monitor().try_connect(&[]) {
            let _ = monitor.try_send(&query("DROP FUNCTION misjudge() CASCADE"));
            let _ = monitor.try_answer();
        }
    }
}

/// An election that never ended. The monitor chose by timelines that are told late, its function for the keeper by
/// positions alone: so a primary whose postmaster had crashed was chosen again, and told to fetch what it lacked from the
/// most advanced node, which was itself. It stopped its server for that, and tried to reach it for ever.
#[test]
fn nobody_is_told_to_fetch_from_itself_what_it_lacks() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    let old = cluster.primary().clone();
    let [chosen, _] = cluster.backups();
    new_wal_file(&cluster);
    let mut client = proxy.connect();
    client.run("INSERT INTO filled VALUES ('before')");
    let misjudged = Misjudged::new(&cluster, &chosen, Misjudged::AS_BEHIND);
    cluster.kill(&old.name);
    let fetched = format!(
        "SELECT count(*) > 0 FROM pgautofailover.event
        WHERE nodename = '{chosen}' AND reportedstate = 'fast_forward'"
    );
    let mut monitor = cluster.monitor().connect();
    until_within(LONG_PATIENCE, "the one that was misjudged to have it all", || {
        (monitor.value(&fetched) == "t").then_some(())
    });
    drop(misjudged);
    client.stream().set_read_timeout(Some(LONG_PATIENCE)).unwrap();
    client.run("INSERT INTO filled VALUES ('after')");
    assert_eq!(client.value("SELECT count(*) FROM filled"), "2");
    cluster.start(&old.name);
}

/// A node that is ahead of the one elected can never follow it: its server refuses to start, and its keeper starts it again
/// and again. So it was with a primary that came back in time to report its position, on the timeline that it was promoted
/// from: by stopping for that it had written a checkpoint that nobody else had.
#[test]
fn a_backup_that_is_ahead_of_the_new_primary_is_rewound() {
    let cluster = Cluster::breakable();
    let old = cluster.primary().clone();
    let [elected, ahead] = cluster.backups();
    new_wal_file(&cluster);
    let held_up = HeldUp::new(&mut direct(&cluster, &elected));
    let mut writer = cluster.superuser(&old).connect();
    writer.run("SET synchronous_commit = local");
    writer.run(FILL);
    let position = writer.value("SELECT pg_current_wal_lsn()");
    let mut backup = direct(&cluster, &ahead);
    until("the other backup to have it all", || {
        backup.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t"
    });
    // What it has replayed, its control file knows as well.
    backup.run("CHECKPOINT");
    let misjudged = Misjudged::new(&cluster, &elected, Misjudged::ON_LATER_TIMELINE);
    cluster.kill(&old.name);
    held_up.drop_what_waits();
    until_within(LONG_PATIENCE, "the one that is behind to be the primary", || {
        (cluster.primary().name == elected).then_some(())
    });
    drop(misjudged);
    cluster.start(&ahead);
    cluster.start(&old.name);
    // Nobody had acknowledged it, and it is nowhere.
    for node in [&elected, &ahead, &old.name] {
        let mut node = direct(&cluster, node);
        until("it to follow", || {
            let rows = node.query("SELECT count(*) FROM filled").rows;
            rows == [[Some("0".to_owned())]]
        });
    }
    assert_eq!(
        direct(&cluster, &elected)
            .value("SELECT count(*) FROM pg_stat_replication WHERE application_name ~ '_standby_'"),
        "2"
    );
}

/// A replica that streamed from the primary itself may have what died with it. It can never follow the next one: it is
/// copied anew, and until then no read goes to it.
#[test]
fn a_replica_that_is_ahead_of_the_new_primary_is_copied_anew() {
    let cluster = Cluster::breakable();
    let proxy = cluster.proxy().start();
    let old = cluster.primary().clone();
    let [first, second] = cluster.backups();
    let mut replica = direct(&cluster, "ro1");
    replica.run(&format!(
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=replicator'",
        old.port
    ));
    replica.run("SELECT pg_reload_conf()");
    until("it to stream from the primary", || {
        replica
            .query("SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'")
            .rows
            == [[Some(old.port.to_string())]]
    });
    new_wal_file(&cluster);
    let held_up = [&first, &second].map(|name| HeldUp::new(&mut direct(&cluster, name)));
    let mut writer = cluster.superuser(&old).connect();
    writer.run("SET synchronous_commit = local");
    writer.run("INSERT INTO filled VALUES ('lost')");
    let position = writer.value("SELECT pg_current_wal_lsn()");
    until("the replica to have it", || {
        replica.value(&format!("SELECT pg_last_wal_replay_lsn() >= '{position}'")) == "t"
    });
    replica.run("ALTER SYSTEM RESET primary_conninfo");
    cluster.kill(&old.name);
    held_up.iter().for_each(HeldUp::drop_what_waits);
    replica.run("SELECT pg_reload_conf()");

    until_within(LONG_PATIENCE, "another primary", || {
        (cluster.primary().name != old.name).then_some(())
    });
    let primary = cluster.primary().name.clone();
    proxy.until_role(&primary, "primary");
    let mut reader = proxy.connect();
    let promoted = Instant::now();
    until_within(LONG_PATIENCE, "the replica to be copied anew", || {
        let rows = reader.value("SELECT count(*) FROM filled");
        assert!(
            rows == "0" || promoted.elapsed() < NOT_FOLLOWING,
            "what the primary never had is read {:?} after the promotion",
            promoted.elapsed()
        );
        has_been_copied(&cluster).then_some(())
    });
    until("it to serve again", || {
        reader.server_port() == cluster.node("ro1").port
    });
    cluster.start(&old.name);
}

/// Whether ro1 streams, and has nothing that the primary has not.
fn has_been_copied(cluster: &Cluster) -> bool {
    let question =
        "SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming' AND NOT EXISTS (SELECT FROM filled)";
    let asked = cluster.superuser(cluster.node("ro1")).try_connect(&[]).ok();
    // It may be ended while it is asked.
    let answer = asked.and_then(|mut client| {
        client.try_send(&query(question)).ok()?;
        client.try_answer().ok()
    });
    answer.is_some_and(|answer| answer.rows.len() == 1)
}
