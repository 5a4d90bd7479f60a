//! The task that owns the cluster's state, and everything it starts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{NoTls, Socket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Cluster, Report};
use crate::config::{Config, EngineConfig};
use crate::engines::{AuthorityView, patroni, pg_auto_failover};
use crate::events::log_changes;
use crate::node::NodeId;
use crate::probe::{Cadence, Prober, Shared};
use crate::samples::{Coverage, Fences, Sample, SampleNumber};
use crate::signals::{Bell, Signals};
use crate::view::{ClusterView, NodeView};

/// The time between two probes of a node while there is no primary, or while the primary has just failed to answer.
pub const SEARCH_INTERVAL: Duration = Duration::from_millis(50);

/// The time between two probes of the node that is expected to become the primary. Whoever is held waits for it alone.
pub const CANDIDATE_INTERVAL: Duration = Duration::from_millis(10);

/// How long the search goes on at that pace; then the configured interval returns.
pub const SEARCH_LIMIT: Duration = Duration::from_secs(120);

/// A view is published at least this often, changed or not, so that its age means something.
pub const PUBLISH_AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// How long a standby that does not catch up, or does not answer, keeps the fast sampling on after the last fence wanted.
pub const SAMPLING_LIMIT: Duration = Duration::from_secs(2);

/// Reports that may wait for the monitor, per node; a prober waits beyond that.
const REPORTS_WAITING_PER_NODE: usize = 2;

/// The running control plane. Dropping it stops nothing; the token given to [`spawn`] does.
#[derive(Debug)]
pub struct Health {
    /// The latest view. There is always one; the first says that nothing is known yet.
    pub view: watch::Receiver<Arc<ClusterView>>,
    /// Where the data plane tells what it saw.
    pub signals: Signals,
    /// Where a session that has written gets its fence.
    pub fences: Fences,
    /// The newest sample of the primary's position, published view or not; `None` before the first.
    pub samples: watch::Receiver<Option<Sample>>,
    /// What each node has replayed, by index of its id: as new as its last answer, published view or not.
    pub coverage: Vec<Arc<Coverage>>,
    tasks: TaskTracker,
}

impl Health {
    /// Waits until every task has ended after a shutdown.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// Starts the tasks on the current runtime, with connections in plain text, until `shutdown`.
///
/// Nodes beyond the 65536th are ignored; durations of zero are taken as one millisecond.
pub fn spawn(config: Config, shutdown: CancellationToken) -> Health {
    spawn_with_tls(config, NoTls, shutdown)
}

/// Starts the tasks with this TLS connector for the probes and the engine; `config.ssl_mode` says whether to ask
/// for TLS.
pub fn spawn_with_tls<T>(config: Config, tls: T, shutdown: CancellationToken) -> Health
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let config = Arc::new(config);
    let tasks = TaskTracker::new();
    let bells: Arc<[Bell]> = config.nodes.iter().map(|_| Bell::default()).collect();
    let look = Arc::new(Notify::new());
    let signals = Signals::new(Arc::clone(&bells), Arc::clone(&look));
    let fences = Fences::default();
    let (reports_sender, reports) = mpsc::channel((config.nodes.len() * REPORTS_WAITING_PER_NODE).max(1));
    let coverage: Vec<_> = config
        .nodes
        .iter()
        .map(|_| Arc::new(Coverage::new(fences.begun())))
        .collect();
    let (cadence, cadence_receiver) = watch::channel(Cadence {
        probes: SEARCH_INTERVAL.min(config.interval),
        candidate: None,
        positions: None,
        primary: None,
    });

    let shared = Arc::new(Shared {
        config: Arc::clone(&config),
        begun: fences.begun(),
        fences: fences.clone(),
        reports: reports_sender,
        cadence: cadence_receiver,
    });
    for (node, place) in (0..=u16::MAX).map(NodeId).zip(&config.nodes) {
        let prober = Prober {
            node,
            place: place.clone(),
            bells: Arc::clone(&bells),
            shared: Arc::clone(&shared),
            coverage: Arc::clone(&coverage[usize::from(node.0)]),
            tls: tls.clone(),
        };
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(prober.run()));
    }
    let authority = match &config.engine {
        EngineConfig::Observed => watch::channel(AuthorityView::Absent).1,
        EngineConfig::PgAutoFailover(engine) => {
            let (view, authority) = watch::channel(AuthorityView::Pending);
            let engine = engine.clone();
            let adapter = pg_auto_failover::Adapter {
                engine,
                config: Arc::clone(&config),
                look,
                view,
                tls,
            };
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(adapter.run()));
            authority
        }
        EngineConfig::Patroni(engine) => {
            let (view, authority) = watch::channel(AuthorityView::Pending);
            let adapter = patroni::Adapter {
                engine: engine.clone(),
                config: Arc::clone(&config),
                look,
                view,
            };
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(adapter.run()));
            authority
        }
    };

    let (latest, samples) = watch::channel(None);
    let links = Links {
        latest,
        reports,
        authority,
        cadence,
        signals: signals.clone(),
        fences: fences.clone(),
        coverage: coverage.clone(),
    };
    let (monitor, view) = Monitor::new(config, links);
    tasks.spawn(shutdown.run_until_cancelled_owned(monitor.run()));
    tasks.close();
    Health {
        view,
        signals,
        fences,
        samples,
        coverage,
        tasks,
    }
}

/// What connects the monitor with the other tasks.
struct Links {
    latest: watch::Sender<Option<Sample>>,
    reports: mpsc::Receiver<Report>,
    authority: watch::Receiver<AuthorityView>,
    cadence: watch::Sender<Cadence>,
    signals: Signals,
    fences: Fences,
    coverage: Vec<Arc<Coverage>>,
}

struct Monitor {
    config: Arc<Config>,
    links: Links,
    cluster: Cluster,
    publisher: watch::Sender<Arc<ClusterView>>,
    /// Since when there is no primary that answers.
    search: Option<Instant>,
    demand: Demand,
}

/// Somebody waits for the standbys to cover `wanted`, which is what was wanted `since`.
#[derive(Clone, Copy, Debug)]
struct Demand {
    wanted: SampleNumber,
    since: Instant,
}

impl Monitor {
    /// A monitor that has published its first view: nothing is known yet.
    fn new(config: Arc<Config>, links: Links) -> (Self, watch::Receiver<Arc<ClusterView>>) {
        let now = Instant::now();
        let mut cluster = Cluster::new(Arc::clone(&config), links.authority.borrow().clone(), now);
        let first = cluster.evaluate(now);
        let (publisher, view) = watch::channel(Arc::new(first));
        let demand = Demand {
            wanted: SampleNumber(0),
            since: now,
        };
        (
            Self {
                config,
                links,
                cluster,
                publisher,
                search: None,
                demand,
            },
            view,
        )
    }

    async fn run(mut self) {
        let mut tick = interval(self.config.interval.max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // An engine that nobody asks has no sender, and nothing to say.
        let mut engine_speaks = true;
        loop {
            tokio::select! {
                report = self.links.reports.recv() => match report {
                    Some(report) => self.cluster.absorb(report),
                    None => return,
                },
                changed = self.links.authority.changed(), if engine_speaks => engine_speaks = changed.is_ok(),
                () = self.links.fences.demanded() => {}
                _ = tick.tick() => {}
            }
            while let Ok(report) = self.links.reports.try_recv() {
                self.cluster.absorb(report);
            }
            self.hear();
            self.step(Instant::now());
        }
    }

    /// Takes in the engine's word. A new name there has the nodes looked at at once: the engine opens a primary
    /// for writes some hundred milliseconds after it has named it.
    fn hear(&mut self) {
        let authority = self.links.authority.borrow_and_update().clone();
        if authority.names_another_than(self.cluster.authority()) {
            self.links.signals.look_everywhere();
        }
        self.cluster.hear(authority);
    }

    /// Evaluates, publishes what changed, and sets the pace.
    fn step(&mut self, now: Instant) {
        let view = self.cluster.evaluate(now);
        self.links.fences.set_sampled(view.newest_sample);
        if self.cluster.tell_coverage(&view, &self.links.coverage) {
            self.links.fences.tell_covered();
        }
        let latest = self.cluster.latest_sample();
        if latest.is_some() {
            let changes = |known: &mut Option<Sample>| std::mem::replace(known, latest) != latest;
            self.links.latest.send_if_modified(changes);
        }
        let wanted = self.links.fences.wanted();
        let earlier = Arc::clone(&self.publisher.borrow());
        self.pace(&view, wanted, now);
        if view.differs_from(&earlier)
            || now.saturating_duration_since(earlier.at) >= PUBLISH_AT_LEAST_EVERY
            || earlier.sequence == 0
        {
            log_changes(&earlier, &view);
            self.publisher.send_replace(self.cluster.publish(view));
        }
    }

    /// The probes' cadence: fast while a primary is sought or a write is waited for.
    fn pace(&mut self, view: &ClusterView, wanted: SampleNumber, now: Instant) {
        let healthy = view.primary().is_some_and(|primary| primary.failures == 0);
        match self.search {
            None if !healthy => {
                self.search = Some(now);
                self.links.signals.look_everywhere();
            }
            Some(_) if healthy => self.search = None,
            _ => {}
        }
        let searching = self
            .search
            .is_some_and(|since| now.saturating_duration_since(since) < SEARCH_LIMIT);
        let sampling = self.is_waited_for(view, wanted, now);
        // Where nobody serves reads nobody waits: who asks for a fence need not wake this task for it.
        let nobody_waits = !self.read_on(view).any(|_| true);
        self.links.fences.set_sampling(sampling || nobody_waits);
        let interval = self.config.interval;
        let at_least = |apart: Duration| apart.max(Duration::from_millis(1));
        let cadence = Cadence {
            probes: at_least(if searching {
                SEARCH_INTERVAL.min(interval)
            } else {
                interval
            }),
            candidate: view.candidate.filter(|_| searching),
            positions: sampling.then(|| at_least(self.config.sample_interval)),
            primary: view.topology.primary().map(|(node, _)| node),
        };
        self.links
            .cadence
            .send_if_modified(|current| std::mem::replace(current, cadence) != cadence);
    }

    fn is_waited_for(&mut self, view: &ClusterView, wanted: SampleNumber, now: Instant) -> bool {
        if wanted != self.demand.wanted {
            self.demand = Demand { wanted, since: now };
        }
        now.saturating_duration_since(self.demand.since) < SAMPLING_LIMIT
            && self
                .read_on(view)
                .any(|(node, coverage)| node.covered < wanted || coverage.is_asked())
    }

    /// The standbys that reads may go to.
    fn read_on<'a>(&'a self, view: &'a ClusterView) -> impl Iterator<Item = (&'a NodeView, &'a Coverage)> {
        let nodes = view.nodes.iter().zip(self.links.coverage.iter().map(Arc::as_ref));
        nodes.filter(|(node, coverage)| node.serves_reads && !coverage.is_spared())
    }
}
