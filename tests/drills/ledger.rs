//! Clients that write numbers, and know of each whether the database has acknowledged it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::message::{bind, execute, parse, query, sync, unnamed};
use crate::support::{Address, Client, LONG_PATIENCE, Refusal};

/// Between two writes of one client.
const PACE: Duration = Duration::from_millis(3);

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(200);

/// What one client knows.
#[derive(Clone, Default)]
pub(crate) struct Written {
    /// Acknowledged, and when.
    pub(crate) acknowledged: Vec<(u64, Instant)>,
    /// Told that the outcome is unknown (08007), or cut off.
    pub(crate) unknown: Vec<u64>,
    /// When each number was sent.
    pub(crate) sent: Vec<(u64, Instant)>,
    /// Errors by SQLSTATE.
    pub(crate) errors: BTreeMap<String, usize>,
    /// Each of them, in order.
    pub(crate) failures: Vec<Failure>,
    /// Connections that ended.
    pub(crate) disconnects: usize,
}

impl Written {
    fn fail(&mut self, sqlstate: String, message: String, asked: Instant) {
        *self.errors.entry(sqlstate.clone()).or_default() += 1;
        self.failures.push(Failure {
            sqlstate,
            message,
            asked,
            told: Instant::now(),
        });
    }
}

/// An error that a client was told.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) sqlstate: String,
    pub(crate) message: String,
    pub(crate) asked: Instant,
    pub(crate) told: Instant,
}

/// The clients at work.
pub(crate) struct Ledger {
    over: Arc<AtomicBool>,
    /// Acknowledged so far, of each client.
    progress: Vec<Arc<AtomicU64>>,
    clients: Vec<JoinHandle<Written>>,
}

/// A client's numbers begin at a multiple of this: no number of pgbench's is as large.
const STEP: u64 = 1_000_000_000;

impl Ledger {
    /// The table has no key: a number that is written twice has to show.
    pub(crate) const TABLE: &str = "CREATE TABLE IF NOT EXISTS drill_ledger (run bigint, n bigint)";

    /// Starts `count` clients, a third in each protocol: simple, extended, prepared.
    pub(crate) fn start(address: &Address, run: u64, count: u64) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut progress = Vec::new();
        let clients = (0..count)
            .map(|client| {
                let done = Arc::new(AtomicU64::new(0));
                progress.push(Arc::clone(&done));
                let (address, over) = (address.clone(), Arc::clone(&over));
                thread::spawn(move || write(&address, run, client, &over, &done))
            })
            .collect();
        Self {
            over,
            progress,
            clients,
        }
    }

    /// How many writes each client has had acknowledged.
    pub(crate) fn progress(&self) -> Vec<u64> {
        self.progress
            .iter()
            .map(|done| done.load(Ordering::Relaxed))
            .collect()
    }

    /// Ends the clients.
    pub(crate) fn stop(self) -> Vec<Written> {
        self.over.store(true, Ordering::Relaxed);
        self.clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    }
}

fn write(address: &Address, run: u64, number: u64, over: &AtomicBool, done: &AtomicU64) -> Written {
    let mut written = Written::default();
    let mut connected = None;
    for n in (number + 1) * STEP.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let asked = Instant::now();
        let mut client = match connected.take().map_or_else(|| connect(address, number), Ok) {
            Ok(client) => client,
            Err(refusal) => {
                written.fail(refusal.sqlstate(), "(while connecting)".to_owned(), asked);
                thread::sleep(RETRY);
                continue;
            }
        };
        written.sent.push((n, asked));
        let answer = client
            .try_send(&insert(number, run, n))
            .and_then(|()| client.try_answer());
        match answer.map(|answer| answer.error) {
            Ok(None) => {
                connected = Some(client);
                written.acknowledged.push((n, Instant::now()));
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Some(error)) => {
                let sqlstate = error.field(b'C');
                if sqlstate == "08007" {
                    written.unknown.push(n);
                }
                written.fail(sqlstate, error.field(b'M'), asked);
                connected = Some(client);
            }
            Err(_) => {
                written.unknown.push(n);
                written.disconnects += 1;
            }
        }
        thread::sleep(PACE);
    }
    written
}

fn connect(address: &Address, number: u64) -> Result<Client, Refusal> {
    let mut client = address.try_connect(&[])?;
    client.stream().set_read_timeout(Some(LONG_PATIENCE))?;
    if number % 3 == 2 {
        client.try_send(&[parse("add", "INSERT INTO drill_ledger VALUES ($1, $2)"), sync()].concat())?;
        if let Some(error) = client.try_answer()?.error {
            return Err(Refusal::Said(error));
        }
    }
    Ok(client)
}

fn insert(client: u64, run: u64, n: u64) -> Vec<u8> {
    let (run, n) = (run.to_string(), n.to_string());
    let values = [Some(run.as_str()), Some(n.as_str())];
    match client % 3 {
        0 => query(&format!("INSERT INTO drill_ledger VALUES ({run}, {n})")),
        1 => [
            unnamed("INSERT INTO drill_ledger VALUES ($1, $2)", &values),
            sync(),
        ]
        .concat(),
        _ => [bind("", "add", &values), execute("", 0), sync()].concat(),
    }
}
