//! What an old primary was sent when there was another already, by its own log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::ledger::Written;
use crate::support::{Cluster, until};

/// How long what was sent to a running server may lie in a socket before the server reads it.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// Bytes with which a client that leaves a connection says goodbye (Terminate), and its FIN.
const GOODBYE: u64 = 6;

/// An old primary's log, and what lay in its sockets.
pub(crate) struct OldPrimary {
    log: PathBuf,
    /// Where in the log the incident begins.
    from: usize,
    port: u16,
    user: String,
    /// Bytes that nobody had read, by the other end's port, when there was another primary; for one that is frozen.
    unread: Option<BTreeMap<u16, u64>>,
    /// Ports of which there were more before it went on.
    grown: BTreeSet<u16>,
}

impl OldPrimary {
    /// Has the primary write every statement and every login to its log.
    pub(crate) fn listen(cluster: &Cluster, name: &str) -> Self {
        let node = cluster.node(name);
        let mut direct = cluster.superuser(node).connect();
        for setting in [
            "log_statement = 'all'",
            "log_connections = on",
            "log_line_prefix = '%m [%p] %q%u@%d %r '",
        ] {
            direct.run(&format!("ALTER SYSTEM SET {setting}"));
        }
        direct.run("SELECT pg_reload_conf()");
        until("the primary to log its statements", || {
            direct.value("SHOW log_statement") == "all"
        });
        let log = cluster.dir().join(format!("log/{name}.log"));
        Self {
            from: std::fs::read(&log).unwrap().len(),
            log,
            port: node.port,
            user: cluster.app(node.port).user,
            unread: None,
            grown: BTreeSet::new(),
        }
    }

    /// It is frozen, and there is another: what was sent before waits in its sockets.
    pub(crate) fn is_replaced(&mut self) {
        self.unread = Some(unread(self.port));
    }

    /// It is still frozen, and about to go on.
    pub(crate) fn goes_on(&mut self) {
        let before = self.unread.as_ref().unwrap();
        let now = unread(self.port);
        let grown = now
            .iter()
            .filter(|(port, bytes)| **bytes > before.get(port).unwrap_or(&0) + GOODBYE);
        self.grown = grown.map(|(port, _)| *port).collect();
    }

    /// Statements and logins of clients, whoever they were, that reached it when there was another primary, until it was
    /// stopped to become a standby. `swapped`: when Halyard had the other one, and that one took writes.
    pub(crate) fn strays(&self, swapped: Instant, clock: &Clock, written: &[Written]) -> usize {
        let log = std::fs::read(&self.log).unwrap();
        let log = String::from_utf8_lossy(&log[self.from..]).into_owned();
        let of_client = format!(" {}@", self.user);
        let lines: Vec<(&str, Instant)> = log
            .lines()
            .filter_map(|line| Some((line, of_line(clock, line)?)))
            .collect();
        let stops =
            |line: &str| line.contains(" shutdown request") || line.contains("LOG:  starting PostgreSQL");
        let after = lines.iter().skip_while(|(_, at)| *at <= swapped);
        let mut strays = 0;
        for (line, at) in after.take_while(|(line, _)| !stops(line)) {
            let runs = is_statement(line);
            let comes = line.contains("LOG:  connection authorized: ");
            if !line.contains(&of_client) || !(runs || comes) {
                continue;
            }
            let was_sent_before = match &self.unread {
                None => *at <= swapped + READ_WITHIN,
                Some(unread) => remote_port(line).is_some_and(|port| {
                    unread.get(&port).is_some_and(|bytes| *bytes > 0) && !self.grown.contains(&port)
                }),
            };
            strays += usize::from(!was_sent_before);
        }
        strays + self.later_of_ledger(&log, swapped, written)
    }

    /// Numbers of the ledger that stand in the log and were sent, or acknowledged, when another node took writes.
    fn later_of_ledger(&self, log: &str, swapped: Instant, written: &[Written]) -> usize {
        let sent = written.iter().flat_map(|written| &written.sent);
        let sent = sent.filter(|(_, at)| *at > swapped).map(|(n, _)| *n);
        let later: BTreeSet<u64> = sent.collect();
        // Simple statements have the number in them, the others among their parameters.
        let numbers = log
            .lines()
            .filter(|line| line.contains("drill_ledger") || line.contains("parameters: "))
            .filter_map(|line| {
                let digits = |c: char| !c.is_ascii_digit();
                line.split(digits).rfind(|part| !part.is_empty())?.parse().ok()
            });
        numbers.filter(|n: &u64| later.contains(n)).count()
    }
}

/// The instant of a line in the form `2026-11-22 10:15:00.123 UTC …`.
fn of_line(clock: &Clock, line: &str) -> Option<Instant> {
    let mut words = line.split(' ');
    let (date, time) = (words.next()?, words.next()?);
    clock.of_line(&format!("{date}T{time}Z"))
}

fn is_statement(line: &str) -> bool {
    line.contains("LOG:  statement: ") || line.contains("LOG:  execute ")
}

/// The other end's port in a line with `127.0.0.1(54321)`.
fn remote_port(line: &str) -> Option<u16> {
    let (_, rest) = line.split_once(" 127.0.0.1(")?;
    rest.split_once(')')?.0.parse().ok()
}

/// Bytes that lie unread in the sockets of the server on a port, by the other end's port (proc(5), `/proc/net/tcp`).
fn unread(server: u16) -> BTreeMap<u16, u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let sockets = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (fields.next()?, fields.next()?);
        let queues = fields.nth(1)?;
        let port = |address: &str| hexadecimal(address.split_once(':')?.1);
        let unread = hexadecimal(queues.split_once(':')?.1)?;
        (port(local)? == u64::from(server)).then_some((u16::try_from(port(remote)?).ok()?, unread))
    });
    sockets.collect()
}
