//! Beside the data plane: following the cluster, keeping house, hearing signals.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use halyard_health::{
    ClusterView, EngineConfig, MaxLag, NodeId, PatroniConfig, PatroniMember, PgAutoFailoverConfig, Role,
    SystemIdentifier,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::known::Known;
use super::workers::Workers;
use super::{App, policy};
use crate::config::{Config, Engine, Secret};
use crate::metrics;
use crate::routing::{JUDGED_EVERY, RoutingTable, Standing, judge};
use crate::session::Message;
use crate::tls::TlsPolicy;

/// Between two rounds of housekeeping: the resolution of the pools' clock.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// While a node is expected to become the primary: between two looks at how many clients wait for it.
const PREPARE_EVERY: Duration = Duration::from_millis(50);
/// Rounds of housekeeping between two sweeps of the prepared statements.
const STATEMENT_SWEEP_ROUNDS: u32 = 60;

/// SIGTERM and SIGINT.
pub(super) struct Termination {
    term: Signal,
    int: Signal,
}

impl Termination {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for either. Cancel safe.
    pub(super) async fn recv(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Starts watching the nodes, over TLS where the sessions' connections have it.
pub(super) fn start_health(
    config: &Config,
    known: Option<Known>,
    tls: &TlsPolicy,
    shutdown: &CancellationToken,
) -> io::Result<halyard_health::Health> {
    let secret = |secret: &Option<Secret>| {
        halyard_health::Secret::new(
            secret
                .as_ref()
                .map(|secret| secret.reveal().to_owned())
                .unwrap_or_default(),
        )
    };
    let nodes = config
        .nodes
        .iter()
        .map(|node| halyard_health::NodeConfig {
            name: node.name.clone(),
            host: node.host.clone(),
            port: node.port,
        })
        .collect();
    let watched = &config.health;
    let mut health =
        halyard_health::Config::new(nodes, &watched.user, secret(&watched.password), &watched.database);
    health.ssl_mode = tls.ssl_mode();
    health.interval = watched.interval;
    health.timeout = watched.timeout;
    health.connect_timeout = watched.connect_timeout;
    health.failures_to_eject = watched.failures_to_eject;
    health.successes_to_readmit = watched.successes_to_readmit;
    health.stale_after = watched.stale_after;
    health.sample_interval = watched.sample_interval;
    let configured = watched.system_identifier.map(SystemIdentifier);
    if let (Some(configured), Some(known)) = (configured, known)
        && configured != known.system_identifier
    {
        return Err(io::Error::other(format!(
            "health.system_identifier is {configured}, and general.state_file is of {}: remove the file if the cluster was made anew",
            known.system_identifier
        )));
    }
    health.system_identifier = configured.or(known.map(|known| known.system_identifier));
    health.highest_timeline = known.map(|known| known.timeline);
    health.max_replica_lag = MaxLag {
        bytes: config.routing.max_replica_lag_bytes,
        time: config.routing.max_replica_lag,
    };
    health.engine = match &config.engine {
        Engine::Observed => EngineConfig::Observed,
        Engine::Patroni { members } => EngineConfig::Patroni(PatroniConfig {
            members: members
                .iter()
                .map(|(host, port)| PatroniMember {
                    host: host.clone(),
                    port: *port,
                })
                .collect(),
        }),
        Engine::PgAutoFailover {
            host,
            port,
            database,
            user,
            password,
            formation,
            group,
        } => EngineConfig::PgAutoFailover(PgAutoFailoverConfig {
            host: host.clone(),
            port: *port,
            user: user.clone(),
            password: secret(password),
            database: database.clone(),
            formation: formation.clone(),
            group: *group,
        }),
    };
    Ok(halyard_health::spawn_with_tls(
        health,
        tls.clone(),
        shutdown.clone(),
    ))
}

/// Turns each view of the cluster into a routing table and publishes it.
pub(super) async fn follow(app: Arc<App>, shutdown: CancellationToken) {
    let mut view = app.view.clone();
    let mut without_primary: Option<Instant> = None;
    let mut seen = Arc::clone(&view.borrow());
    let mut stored = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
            () = app.operations.drains_changed.notified() => {}
            () = tokio::time::sleep(PREPARE_EVERY), if seen.candidate.is_some() => {}
        }
        let policy = policy(&app.config, Some(&app.operations));
        let earlier = std::mem::replace(&mut seen, Arc::clone(&view.borrow_and_update()));
        app.history.compare(&earlier, &seen);
        let table = RoutingTable::derive(&seen, &policy);
        let before = Arc::clone(&app.routing.load());
        for node in &app.nodes {
            let is_read_on = table.readers.iter().any(|(reader, _)| *reader == node.id);
            node.coverage.spare(!is_read_on);
        }
        let news = app.routing.publish(table);
        if app.signals.settle(&seen) {
            // Who was held for the sake of a doubt looks again.
            app.routing.wake();
        }
        if Known::of(&seen) != stored {
            stored = Known::of(&seen);
            remember(&app);
        }
        if let Some(candidate) = seen.candidate {
            prepare(&app, &seen, candidate);
        }
        if !news {
            continue;
        }
        let now = Arc::clone(&app.routing.load());
        for (node, (was, is)) in app.nodes.iter().zip(before.standing.iter().zip(&now.standing)) {
            let stepped_down = *was == Standing::Primary && *is == Standing::Standby;
            // A node that does not answer keeps its connections: it may have been slow, and if it is gone they say so.
            let fenced = was != is && *is == Standing::Fenced;
            if stepped_down || fenced {
                node.generation.fetch_add(1, Ordering::AcqRel);
                for group in app.groups.all() {
                    group.pool(node.id).close_idle();
                }
            }
        }
        match (before.primary, now.primary) {
            (Some(_), None) => {
                tracing::warn!(epoch = now.epoch, reason = %now.no_primary, "there is no primary");
                without_primary = Some(Instant::now());
                if let Some(answered) = earlier.primary().and_then(|primary| primary.answered) {
                    metrics::observe_detection(answered.elapsed());
                }
            }
            (was, Some(primary)) if was != Some(primary) => {
                let name = &app.nodes[usize::from(primary.0)].name;
                tracing::info!(epoch = now.epoch, node = %name, "writes go to a new primary");
                if let Some(since) = without_primary.take() {
                    metrics::observe_failover(since.elapsed());
                }
            }
            _ => {}
        }
        if before.standing != now.standing || before.primary != now.primary {
            app.registry.ring_all(Message::TableChanged);
        }
    }
}

/// Writes down what is known of the cluster, beside this thread: a disk may be slow.
fn remember(app: &Arc<App>) {
    if app.config.general.state_file.is_none() {
        return;
    }
    let app = Arc::clone(app);
    tokio::task::spawn_blocking(move || {
        // One after another, and each what is known by then.
        let _alone = app.remembering.lock();
        let known = Known::of(&app.view.borrow());
        if let (Some(known), Some(path)) = (known, &app.config.general.state_file)
            && let Err(error) = known.store(path)
        {
            tracing::error!(%error, "what is known of the cluster could not be written down");
        }
    });
}

/// Has connections opened to the node that is expected to become the primary, one for each client that is held: so that
/// they need not log in when it does.
fn prepare(app: &App, view: &ClusterView, candidate: NodeId) {
    let answers = view
        .node(candidate)
        .is_some_and(|node| matches!(node.role, Role::Standby | Role::PromotingOrReadOnly));
    if answers {
        for group in app.groups.all() {
            group.pool(candidate).prepare_for(group.held.amount().clients);
        }
    }
}

/// Compares how fast the standbys answer that are asked for reads.
pub(super) async fn balance(app: Arc<App>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(JUDGED_EVERY);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let table = Arc::clone(&app.routing.load());
        judge(
            table
                .readers
                .iter()
                .map(|(reader, _)| &app.nodes[usize::from(reader.0)].load),
        );
    }
}

/// Advances the pools' clock, closes what is old, opens what is missing.
pub(super) async fn keep_house(app: Arc<App>, workers: Workers, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING);
    let mut round: u32 = 0;
    let mut scratch = vec![0; 1024];
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        round = round.wrapping_add(1);
        workers.balance();
        app.groups.sweep();
        let now = app.groups.tick();
        app.statistics.look(now, &app.registry);
        let standing = app.routing.load().standing.clone();
        for group in app.groups.all() {
            for pool in group.pools() {
                pool.sweep(now, &mut scratch);
                if matches!(
                    standing[usize::from(pool.node.id.0)],
                    Standing::Primary | Standing::Standby
                ) {
                    pool.warm_up();
                }
            }
        }
        if round.is_multiple_of(STATEMENT_SWEEP_ROUNDS) {
            app.statements.sweep();
            for group in app.groups.all() {
                group.forget_templates();
            }
        }
    }
}

#[cfg(test)]
mod tests;
