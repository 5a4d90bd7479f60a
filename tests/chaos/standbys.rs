//! Which servers are standbys, as they say themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::message::query;
use crate::support::{Client, Cluster};

/// Between two questions to a server. It changes its role by minutes.
const INTERVAL: Duration = Duration::from_millis(50);
/// A frozen server does not answer; what it said last stands.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// By port, whether a server was in recovery when it was asked last. It is asked until the process ends.
#[derive(Clone)]
pub(crate) struct Standbys(Arc<BTreeMap<u16, AtomicBool>>);

impl Standbys {
    pub(crate) fn watch(cluster: &'static Cluster) -> Self {
        let ports = cluster
            .nodes()
            .iter()
            .map(|node| (node.port, AtomicBool::new(false)));
        let standbys = Self(Arc::new(ports.collect()));
        for node in cluster.nodes() {
            let told = standbys.clone();
            thread::spawn(move || {
                let mut client: Option<Client> = None;
                loop {
                    client = client.or_else(|| cluster.superuser(node).try_connect(&[]).ok());
                    match client.as_mut().and_then(in_recovery) {
                        Some(standby) => told.0[&node.port].store(standby, Ordering::Relaxed),
                        None => client = None,
                    }
                    thread::sleep(INTERVAL);
                }
            });
        }
        standbys
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0[&port].load(Ordering::Relaxed)
    }
}

fn in_recovery(client: &mut Client) -> Option<bool> {
    client.stream().set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
    client.try_send(&query("SELECT pg_is_in_recovery()")).ok()?;
    let answer = client.try_answer().ok()?;
    Some(answer.rows == [[Some("t".to_owned())]])
}
