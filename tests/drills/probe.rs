//! When each node took writes, asked of the nodes themselves every few milliseconds and not through the proxy.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::message::query;
use crate::support::{Client, Cluster};

const INTERVAL: Duration = Duration::from_millis(10);
/// A frozen node does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
const WRITABLE: &str =
    "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'";

/// The table that [`ACKNOWLEDGED`] writes to.
pub(crate) const TABLE: &str = "CREATE TABLE IF NOT EXISTS drill_probe (at timestamptz)";
/// A promoted node may say that it takes writes and acknowledge none yet: it still waits for standbys that its
/// predecessor had. So one has to come back.
const ACKNOWLEDGED: &str = "INSERT INTO drill_probe VALUES (now())";
const ACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);

/// A node began or ceased to take writes.
#[derive(Clone, Debug)]
struct Change {
    node: String,
    writable: bool,
    at: Instant,
}

/// The probes. They run until the process ends.
pub(crate) struct Probes {
    changes: Arc<Mutex<Vec<Change>>>,
}

impl Probes {
    pub(crate) fn start(cluster: &'static Cluster) -> Self {
        let changes = Arc::<Mutex<Vec<Change>>>::default();
        for node in cluster
            .nodes()
            .iter()
            .filter(|node| node.name.starts_with("node"))
        {
            let changes = Arc::clone(&changes);
            thread::spawn(move || probe(cluster, &node.name, &changes));
        }
        Self { changes }
    }

    /// When `node` was seen to take no writes any more, after `since`.
    pub(crate) fn ceased(&self, node: &str, since: Instant) -> Option<Instant> {
        self.first(since, |change| change.node == node && !change.writable)
    }

    /// When a node other than `old` was seen to take writes, after `since`.
    pub(crate) fn replaced(&self, old: &str, since: Instant) -> Option<Instant> {
        self.first(since, |change| change.node != old && change.writable)
    }

    fn first(&self, since: Instant, wanted: impl Fn(&Change) -> bool) -> Option<Instant> {
        let changes = self.changes.lock().unwrap();
        let mut found = changes.iter().filter(|change| change.at >= since);
        found.find(|change| wanted(change)).map(|change| change.at)
    }
}

fn probe(cluster: &Cluster, node: &str, changes: &Mutex<Vec<Change>>) {
    let mut client: Option<Client> = None;
    let mut was = false;
    loop {
        // What is seen is so at the latest when the question was asked.
        let mut at = Instant::now();
        client = client.or_else(|| cluster.superuser(cluster.node(node)).try_connect(&[]).ok());
        let ask = |client: &mut Client, sql, limit| {
            client.stream().set_read_timeout(Some(limit)).ok()?;
            client.try_send(&query(sql)).ok()?;
            client.try_answer().ok()
        };
        let mut answer = client
            .as_mut()
            .and_then(|client| ask(client, WRITABLE, ANSWER_LIMIT));
        if answer.is_none() {
            client = None;
        }
        let mut writable = answer
            .take()
            .is_some_and(|answer| answer.rows == [[Some("t".to_owned())]]);
        if writable && !was {
            let written = client
                .as_mut()
                .and_then(|client| ask(client, ACKNOWLEDGED, ACKNOWLEDGED_LIMIT));
            writable = written.is_some_and(|written| written.error.is_none());
            at = Instant::now();
        }
        if writable != was {
            was = writable;
            let node = node.to_owned();
            changes.lock().unwrap().push(Change { node, writable, at });
        }
        thread::sleep(INTERVAL);
    }
}
