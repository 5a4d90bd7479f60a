//! `demo`: the whole way in words. Every step checks what it tells, and the first that did not happen ends it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{ClusterError, Result};
use crate::faults;
use crate::layout::{DATABASE, Layout, Service};
use crate::pgbench::{self, Pgbench};
use crate::record::Record;
use crate::rewind;
use crate::say::outln;
use crate::site::{Site, Waiting, wait_for};
use crate::sql::Session;
use crate::status;
use crate::up::{self, Progress, Wanted};

/// Reads that are spread; with 300 over three replicas, each gets about a hundred.
const READS: usize = 300;
/// Connections that read: each stays with a replica while nobody knows whether another has as much as it has seen.
const READERS: usize = 100;
/// A replica that got less than this part of its even share, in percent, was left out.
const SHARE_MIN_PERCENT: usize = 30;
/// Until a row written on the primary is read from a replica.
const VISIBLE_LIMIT: Duration = Duration::from_secs(10);
/// Seconds of pgbench before the primary is killed.
const WARM_UP_S: f64 = 5.0;
/// Until pgbench writes again after the kill. The engine takes 25 s with the shipped profile.
const FAILOVER_LIMIT: Duration = Duration::from_secs(120);
/// Between two lines that say that the failover is still going on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two reads while there is no primary.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// Until the replicas have everything after pgbench has stopped.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// What the steps share.
struct Demo {
    site: Site,
    record: Record,
    progress: Progress,
}

/// Shows everything on the cluster in `dir`, which is brought up first and left running.
pub(crate) async fn run(dir: &Path, wanted: &Wanted) -> Result<()> {
    if wanted.ro == Some(0) {
        return Err(ClusterError::Refused(
            "the demonstration spreads reads: it needs --ro 1 or more".into(),
        ));
    }
    if !wanted.with_proxy {
        return Err(ClusterError::Refused(
            "the demonstration goes through Halyard: leave out --no-proxy".into(),
        ));
    }
    let progress = Progress::start();
    outln!("A PostgreSQL cluster with Halyard in front. It takes about two minutes.\n");
    let up = Box::pin(up::up(dir, wanted, progress)).await?;
    let demo = Demo {
        site: up.site,
        record: up.record,
        progress,
    };
    rewind::or_interrupted(Box::pin(async {
        demo.write_then_read().await?;
        demo.spread_reads().await?;
        demo.survive_the_primary().await?;
        demo.close().await
    }))
    .await
}

fn headline(text: &str) {
    outln!("\n== {text}");
}

/// The failure of a step: what should have been seen, and was not.
fn missed(what: &str) -> ClusterError {
    ClusterError::Refused(format!("the demonstration failed: {what}"))
}

impl Demo {
    async fn through_the_port(&self) -> Result<Session> {
        Session::open(
            &self.record.ports(),
            Service::Proxy,
            &self.record.users.app,
            DATABASE,
        )
        .await
    }

    async fn primary(&self) -> Result<Service> {
        let found = status::primary(&self.record).await;
        found.ok_or_else(|| missed("there is no single primary"))
    }

    fn name_of(&self, port: &str) -> Option<&str> {
        let node = self
            .record
            .nodes
            .iter()
            .find(|node| node.port.to_string() == port);
        node.map(|node| node.name.as_str())
    }

    async fn write_then_read(&self) -> Result<()> {
        let port = self.record.proxy.port;
        headline(&format!("A write through port {port} reaches the primary"));
        let session = self.through_the_port().await?;
        let create = "CREATE TABLE IF NOT EXISTS halyard_demo (id bigserial PRIMARY KEY, said text, said_at timestamptz DEFAULT now())";
        session.execute(create).await?;
        let insert =
            "INSERT INTO halyard_demo (said) VALUES ('hello') RETURNING inet_server_port() || ' ' || id";
        let answer = session.text(insert).await?.unwrap_or_default();
        let (written_on, id) = answer.split_once(' ').unwrap_or_default();
        let primary = self.primary().await?.to_string();
        outln!(
            "   INSERT … RETURNING inet_server_port()  answers {written_on}: that is {primary}, the primary"
        );
        if self.name_of(written_on) != Some(&primary) {
            return Err(missed(&format!(
                "the write was served on port {written_on}, and the primary is {primary}"
            )));
        }
        let select = format!("SELECT inet_server_port() FROM halyard_demo WHERE id = {id}");
        // Another session: one that has written may be served by the primary until the replicas have caught up.
        let reader = self.through_the_port().await?;
        let read_on = wait_for("the row on a replica", VISIBLE_LIMIT, async || {
            reader.text(&select).await.map_err(Waiting::NotYet)
        })
        .await?;
        let reader = self.name_of(&read_on).unwrap_or("nobody known").to_owned();
        outln!("   SELECT … of that row                   is answered by {read_on}: {reader}");
        Ok(())
    }

    async fn spread_reads(&self) -> Result<()> {
        headline(&format!(
            "{READS} reads by {READERS} connections to the same port are spread over the read-only replicas"
        ));
        let mut served: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..READERS {
            let session = self.through_the_port().await?;
            for _ in 0..READS / READERS {
                let port = session
                    .text("SELECT inet_server_port()")
                    .await?
                    .unwrap_or_default();
                *served.entry(port).or_default() += 1;
            }
        }
        for (port, count) in &served {
            let name = self.name_of(port).unwrap_or("unknown");
            outln!(
                "   {name:<6} port {port}  {count:>4} reads  {}",
                "#".repeat(count / 5)
            );
        }
        let replicas: Vec<String> = self
            .record
            .nodes
            .iter()
            .filter(|node| node.priority.is_none())
            .map(|node| node.port.to_string())
            .collect();
        judge_spread(&served, &replicas).map_err(|why| missed(&why))
    }

    async fn survive_the_primary(&self) -> Result<()> {
        headline(&format!(
            "pgbench writes through the port, {} clients, TPC-B",
            pgbench::CLIENTS
        ));
        self.progress.say("filling pgbench's tables");
        Pgbench::initialise(&self.site, &self.record).await?;
        let mut bench = Pgbench::start(&self.site, &self.record)?;
        let before = warm_up(&mut bench).await?;
        let victim = self.primary().await?;
        outln!("   {before:.0} transactions a second, all on {victim}");

        headline(&format!(
            "kill -9 of {victim}, the primary, with everything that runs there"
        ));
        let killed = faults::hold(self.site.layout.dir()).await?.kill(victim).await?;
        let at = Instant::now();
        outln!(
            "   {killed} processes are gone; the engine notices and promotes another, while Halyard holds the clients"
        );
        let reads = Reads::default();
        let (successor, after) = tokio::select! {
            resumed = self.wait_for_writes(&mut bench, victim, at) => resumed?,
            never = self.read_on(&reads) => match never {},
        };
        let outage_s = at.elapsed().as_secs_f32();
        outln!(
            "   {outage_s:.1} s later the same pgbench writes on {successor}: {after:.0} transactions a second"
        );
        let (retried, gave_up) = bench.losses();
        outln!("   its clients: {retried} transactions were certainly rolled back, and run again;");
        outln!(
            "     {gave_up} had a COMMIT on its way, whose fate nobody knows: told so, pgbench lets them go"
        );
        outln!(
            "   reads meanwhile: {} answered, {} failed",
            reads.answered.get(),
            reads.failed.get()
        );

        headline(&format!("{victim} comes back as a standby of {successor}"));
        self.progress
            .say(format_args!("starting {victim}; the engine rewinds it"));
        let mut held = faults::hold(self.site.layout.dir()).await?;
        let told = held.start(victim).await?;
        held.save().await?;
        self.check_standby(victim, successor).await?;
        outln!("   {told} from {successor}");
        let still = bench.next().await?;
        if !self.history_grows(successor).await? {
            return Err(missed("pgbench does not write any more"));
        }
        bench.stop().await;
        outln!(
            "   the same pgbench still writes, {:.0} s after its start; it is stopped now",
            still.at_s
        );
        self.check_books().await
    }

    /// Watches pgbench until it writes on another primary. Returns that and the rate.
    async fn wait_for_writes(
        &self,
        bench: &mut Pgbench,
        victim: Service,
        at: Instant,
    ) -> Result<(Service, f64)> {
        let mut told = at;
        while at.elapsed() < FAILOVER_LIMIT {
            let second = bench.next().await?;
            // The first second after the kill may still hold transactions of before.
            if second.tps > 0.0 {
                match status::primary(&self.record).await {
                    Some(primary) if primary != victim => return Ok((primary, second.tps)),
                    _ => {}
                }
            }
            if told.elapsed() > PATIENCE {
                told = Instant::now();
                let waited = at.elapsed().as_secs();
                self.progress.say(format_args!(
                    "{waited} s without a primary; pgbench: {:.0} tps",
                    second.tps
                ));
            }
        }
        Err(missed(&format!(
            "pgbench did not write again within {} s",
            FAILOVER_LIMIT.as_secs()
        )))
    }

    /// Whether pgbench's transactions arrive on a node, asked of the node itself.
    async fn history_grows(&self, node: Service) -> Result<bool> {
        let ports = self.record.ports();
        let session = Session::open(&ports, node, &self.record.users.app, DATABASE).await?;
        let count = "SELECT count(*) FROM pgbench_history";
        let before = session.text(count).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(session.text(count).await? != before)
    }

    /// Reads through the port for as long as it is let.
    async fn read_on(&self, reads: &Reads) -> std::convert::Infallible {
        let mut session = None;
        loop {
            if session.is_none() {
                session = self.through_the_port().await.ok();
            }
            let answered = match &session {
                Some(session) => session.text("SELECT count(*) FROM halyard_demo").await.is_ok(),
                None => false,
            };
            let counter = if answered { &reads.answered } else { &reads.failed };
            counter.set(counter.get() + 1);
            session = session.filter(|_| answered);
            tokio::time::sleep(READ_INTERVAL).await;
        }
    }

    async fn check_standby(&self, node: Service, primary: Service) -> Result<()> {
        let seen = status::inspect(&self.site.layout, &self.record).await;
        let back = seen.nodes.iter().find(|status| status.name == node.to_string());
        let follows =
            back.is_some_and(|back| back.role == "standby" && back.upstream == Some(primary.to_string()));
        if follows {
            Ok(())
        } else {
            Err(missed(&format!("{node} is no standby of {primary}")))
        }
    }

    /// TPC-B's own invariant: what every account, teller and branch gained is what the history tells.
    async fn check_books(&self) -> Result<()> {
        let session = self.through_the_port().await?;
        let sums = "BEGIN;
            SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers)
                || ' ' || (SELECT sum(bbalance) FROM pgbench_branches) || ' ' || (SELECT sum(delta) FROM pgbench_history)";
        let answer = session.text(sums).await?.unwrap_or_default();
        session.execute("COMMIT").await?;
        let mut sums: Vec<&str> = answer.split(' ').collect();
        sums.dedup();
        match sums.as_slice() {
            [sum] if !sum.is_empty() => {
                outln!("   the books balance: accounts, tellers, branches and history all sum to {sum}");
                Ok(())
            }
            _ => Err(missed(&format!("the books do not balance: {answer}"))),
        }
    }

    async fn close(self) -> Result<()> {
        headline("How it is now");
        let layout: &Layout = &self.site.layout;
        wait_for("every server following the primary", SETTLE_LIMIT, async || {
            let seen = status::inspect(layout, &self.record).await;
            match seen.healthy {
                true => Ok(Some(())),
                false => Err(Waiting::NotYet(ClusterError::Refused(seen.problems.join("; ")))),
            }
        })
        .await?;
        crate::say::out(format_args!(
            "{}",
            status::inspect(layout, &self.record).await.table()
        ));
        let record = Record::load(layout)?.unwrap_or(self.record);
        crate::say::out(format_args!("{}", crate::cli::listing(layout, &record)));
        outln!(
            "\nEverything above was checked as it was told. The cluster goes on running; `make down` ends it."
        );
        Ok(())
    }
}

/// What happened to reads while there was no primary.
#[derive(Default)]
struct Reads {
    answered: Cell<usize>,
    failed: Cell<usize>,
}

/// Runs pgbench until it is warm. Returns its last rate.
async fn warm_up(bench: &mut Pgbench) -> Result<f64> {
    loop {
        let second = bench.next().await?;
        if second.at_s >= WARM_UP_S {
            if second.tps <= 0.0 {
                return Err(missed("pgbench does not get a transaction through"));
            }
            return Ok(second.tps);
        }
    }
}

/// Whether every replica got its share of the reads, and nobody else any. Says what is wrong.
fn judge_spread(served: &BTreeMap<String, usize>, replicas: &[String]) -> std::result::Result<(), String> {
    let total: usize = served.values().sum();
    if let Some((port, count)) = served.iter().find(|(port, _)| !replicas.contains(port)) {
        return Err(format!(
            "{count} reads were served on port {port}, which is no read-only replica"
        ));
    }
    let share = |port: &String| served.get(port).copied().unwrap_or(0);
    let least = total * SHARE_MIN_PERCENT / 100 / replicas.len().max(1);
    match replicas.iter().find(|port| share(port) < least.max(1)) {
        Some(port) => Err(format!(
            "the replica on port {port} got {} of {total} reads",
            share(port)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
