//! pgbench, in every protocol at the same time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use crate::front::Front;
use crate::support::{Address, Cluster};

const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";
const SCALE: &str = "10";
/// Clients of TPC-B and of select-only, in each of the three protocols: 32 together.
const CLIENTS: [(&str, &str, usize); 6] = [
    ("tpcb-like", "simple", 6),
    ("tpcb-like", "extended", 5),
    ("tpcb-like", "prepared", 5),
    ("select-only", "simple", 6),
    ("select-only", "extended", 5),
    ("select-only", "prepared", 5),
];

/// What pgbench said, by what it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Errors, each with its number: by SQLSTATE, with its words where that alone does not tell, or by words that have none.
    pub(crate) errors: BTreeMap<String, usize>,
    /// Clients whose connection ended.
    pub(crate) disconnects: usize,
    /// Transactions that were acknowledged, as each run says at its end.
    pub(crate) processed: usize,
    /// Transactions a second in each progress line.
    pub(crate) tps: Vec<f64>,
    /// Statements that could not be prepared: their clients name them all the same.
    pub(crate) unprepared: usize,
}

/// Six of them at work.
pub(crate) struct Load {
    running: Vec<Running>,
}

struct Running {
    script: &'static str,
    child: Child,
    told: Arc<Mutex<Told>>,
    readers: [JoinHandle<()>; 2],
}

/// Creates and fills the tables, directly on the primary.
pub(crate) fn initialise(cluster: &Cluster) {
    let address = cluster.app(cluster.primary().port);
    let status = command(&address)
        .args(["--initialize", "--quiet", "--scale", SCALE])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "pgbench --initialize failed");
}

impl Load {
    /// Starts them. A transaction that is told 40001 is run again, `tries` times in all.
    pub(crate) fn start(front: &Front, tries: u32) -> Self {
        let ssl_mode = if front.is_encrypted() {
            "require"
        } else {
            "disable"
        };
        Self::start_on(&front.address, ssl_mode, tries, usize::MAX, 900)
    }

    /// Starts them on a proxy, with so many clients each at most, for so many seconds.
    pub(crate) fn start_on(proxy: &Address, ssl_mode: &str, tries: u32, most: usize, seconds: u32) -> Self {
        let running = CLIENTS
            .into_iter()
            .map(|(script, protocol, clients)| {
                let mut child = command(proxy)
                    .env("PGSSLMODE", ssl_mode)
                    .args(["--no-vacuum", "--verbose-errors", "--progress=1"])
                    .arg(format!("--time={seconds}"))
                    .args(["--builtin", script, "--protocol", protocol])
                    .arg(format!("--client={}", clients.min(most)))
                    .arg(format!("--max-tries={tries}"))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let told = Arc::<Mutex<Told>>::default();
                let readers = [
                    listen(child.stdout.take().unwrap(), &told),
                    listen(child.stderr.take().unwrap(), &told),
                ];
                Running {
                    script,
                    child,
                    told,
                    readers,
                }
            })
            .collect();
        Self { running }
    }

    /// Whether transactions went through in the last `lines` progress lines of everybody who has not ended.
    pub(crate) fn flows(&mut self, lines: usize) -> bool {
        self.running.iter_mut().all(|running| {
            let told = running.told.lock().unwrap();
            let last = told.tps.len().checked_sub(lines).map(|from| &told.tps[from..]);
            let ended = running.child.try_wait().unwrap().is_some();
            ended || last.is_some_and(|tps| tps.iter().all(|tps| *tps > 0.0))
        })
    }

    /// Forgets the progress so far, so that [`Load::flows`] is of what comes.
    pub(crate) fn mark(&self) {
        for running in &self.running {
            running.told.lock().unwrap().tps.clear();
        }
    }

    /// Whether all have ended by themselves.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut running = self.running.iter_mut();
        running.all(|running| running.child.try_wait().unwrap().is_some())
    }

    /// What each script was told since this was asked last.
    pub(crate) fn news(&self) -> Vec<(&'static str, Told)> {
        let told = self.running.iter().map(|running| {
            let mut told = running.told.lock().unwrap();
            let news = Told {
                errors: std::mem::take(&mut told.errors),
                disconnects: std::mem::take(&mut told.disconnects),
                processed: std::mem::take(&mut told.processed),
                tps: std::mem::take(&mut told.tps),
                unprepared: std::mem::take(&mut told.unprepared),
            };
            (running.script, news)
        });
        told.collect()
    }

    /// Ends them, and says what each script was told.
    pub(crate) fn stop(self) -> BTreeMap<&'static str, Told> {
        let mut by_script = BTreeMap::<_, Told>::new();
        for mut running in self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
            for reader in running.readers {
                reader.join().unwrap();
            }
            let told = running.told.lock().unwrap();
            let sum = by_script.entry(running.script).or_default();
            sum.disconnects += told.disconnects;
            sum.processed += told.processed;
            sum.unprepared += told.unprepared;
            for (message, count) in &told.errors {
                *sum.errors.entry(message.clone()).or_default() += count;
            }
        }
        by_script
    }
}

fn listen(said: impl Read + Send + 'static, told: &Arc<Mutex<Told>>) -> JoinHandle<()> {
    let told = Arc::clone(told);
    thread::spawn(move || {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            told.lock().unwrap().take(&line);
        }
    })
}

impl Told {
    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("progress: ") {
            let tps = rest.split(", ").nth(1).and_then(|part| part.strip_suffix(" tps"));
            self.tps.extend(tps.and_then(|tps| tps.parse::<f64>().ok()));
        } else if let Some(count) = line.strip_prefix("number of transactions actually processed: ") {
            self.processed += count.parse().unwrap_or(0);
        } else if line.contains(" got an error in ") || line.contains(" aborted in ") {
            let message = line.split_once("ERROR:").map_or(line, |(_, message)| message);
            let cut_off = [
                "perhaps the backend died",
                "closed the connection",
                "connection to server was lost",
            ];
            if cut_off.iter().any(|words| line.contains(words)) {
                self.disconnects += 1;
            } else {
                *self.errors.entry(sqlstate(message)).or_default() += 1;
            }
        } else if line.starts_with("pgbench: error: ") && !line.contains("Run was aborted") {
            // Of no client: what it was told to a Parse, after which it goes on as if there were nothing.
            self.unprepared += usize::from(line.contains("ERROR:"));
            let message = line.split_once("ERROR:").map_or(line, |(_, message)| message);
            *self.errors.entry(sqlstate(message)).or_default() += 1;
        }
    }
}

/// pgbench shows no SQLSTATE: those that Halyard and the engine give for a loss are known by their words.
///
/// A standby's replay gives one that a lost connection has as well: it keeps its words.
fn sqlstate(message: &str) -> String {
    let known = [
        (
            "the transaction was rolled back: its connection was lost",
            "40001",
        ),
        ("the outcome is unknown", "08007"),
        ("the node was lost in the middle of the answer", "57P01"),
        ("could not serialize access", "40001"),
        ("there is no primary", "57P03"),
        ("no standby ", "57P03"),
        ("transactions are paused", "57P03"),
        ("no backend became free in time", "53300"),
        ("the node was lost each time the statement ran", "57P02"),
        ("canceling statement due to user request", "57014"),
        (
            "canceling statement due to conflict with recovery",
            "40001 canceling statement due to conflict with recovery",
        ),
    ];
    match known.iter().find(|(words, _)| message.contains(words)) {
        Some((_, state)) => (*state).to_owned(),
        None => message.trim().to_owned(),
    }
}

fn command(address: &Address) -> Command {
    let mut command = Command::new(PGBENCH);
    command
        .env("PGPASSWORD", &address.password)
        .env("PGDATABASE", &address.database)
        .args(["--host", "127.0.0.1", "--username", &address.user])
        .args(["--port", &address.port.to_string()])
        .stdin(Stdio::null());
    command
}
