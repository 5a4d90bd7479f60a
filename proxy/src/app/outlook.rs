//! What is shown of the process from outside.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use halyard_health::Role as Seen;

use super::{App, Event};
use crate::http::Outlook;
use crate::session::Doing;
use crate::status::{ClientsStatus, NodeStatus, NotificationsStatus, PoolStatus, Role, Status};

/// The process as operators see it.
pub(super) struct AppOutlook(pub(super) Arc<App>);

impl Outlook for AppOutlook {
    fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        if self.0.draining.load(Ordering::Relaxed) {
            reasons.push("draining".to_owned());
        }
        let table = self.0.routing.load();
        if table.primary.is_none() && table.readers.is_empty() {
            reasons.push(format!("no node can serve: {}", table.no_primary));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn status(&self) -> Status {
        let app = &self.0;
        let view = Arc::clone(&app.view.borrow());
        let nodes = view
            .nodes
            .iter()
            .zip(&app.config.nodes)
            .map(|(node, config)| NodeStatus {
                name: config.name.clone(),
                address: format!("{}:{}", config.host, config.port),
                role: role(node.role),
                up: !matches!(node.role, Seen::Unreachable | Seen::Unknown),
                serves_reads: node.serves_reads,
                timeline: node.timeline.map(|timeline| timeline.0),
                lag_bytes: node.lag.bytes,
                lag_seconds: node.lag.time.map(|time| time.as_secs_f64()),
                reason: node
                    .reason
                    .as_ref()
                    .map(|reason| format!("{}: {reason}", node.role)),
            })
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: app.started.elapsed().as_secs(),
            draining: app.draining.load(Ordering::Relaxed),
            epoch: app.routing.load().epoch,
            topology: view.topology.to_string(),
            nodes,
            pools: self.pools(),
            clients: self.clients(),
            notifications: self.notifications(),
        }
    }

    fn events(&self) -> Vec<Event> {
        self.0.history.events()
    }

    fn publish_metrics(&self) {
        self.0.metrics.publish();
    }
}

impl AppOutlook {
    fn pools(&self) -> Vec<PoolStatus> {
        let mut pools = Vec::new();
        for group in self.0.groups.all() {
            for pool in group.pools() {
                let usage = pool.usage();
                pools.push(PoolStatus {
                    node: pool.node.name.clone(),
                    database: group.database.clone(),
                    user: group.user.clone(),
                    active: u64::from(usage.active),
                    idle: u64::from(usage.idle),
                    connecting: u64::from(usage.connecting),
                    waiting: u64::from(usage.waiting),
                    size: u64::from(pool.limits().size),
                });
            }
        }
        pools
    }

    fn notifications(&self) -> NotificationsStatus {
        let usage = self.0.hubs.usage();
        NotificationsStatus {
            clients: usage.clients as u64,
            channels: usage.channels as u64,
            connections: usage.connections as u64,
        }
    }

    fn clients(&self) -> ClientsStatus {
        let limits = &self.0.config.limits;
        let authenticating = limits.unauthenticated_max - self.0.unauthenticated.available_permits();
        let mut clients = ClientsStatus {
            authenticating: authenticating as u64,
            held_bytes: self.0.held().bytes as u64,
            connections_max: limits.client_connections_max as u64,
            ..ClientsStatus::default()
        };
        self.0.registry.each(|inbox| match inbox.presence().doing {
            Doing::Idle => clients.idle += 1,
            Doing::Active => clients.active += 1,
            Doing::IdleInTransaction => clients.idle_in_transaction += 1,
            Doing::Waiting => clients.waiting += 1,
            Doing::Held => clients.held += 1,
        });
        clients
    }
}

fn role(seen: Seen) -> Role {
    match seen {
        Seen::Primary => Role::Primary,
        Seen::Standby => Role::Standby,
        Seen::PromotingOrReadOnly | Seen::Fenced | Seen::Unreachable | Seen::Foreign | Seen::Unknown => {
            Role::Unknown
        }
    }
}
