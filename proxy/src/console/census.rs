//! Who is there: one look at sessions and pools, which most tables are made of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use halyard_health::NodeId;

use crate::app::App;
use crate::pool::Group;
use crate::session::{Doing, Inbox, PinReason, Presence, Registry, coarse_now};
use crate::startup::Peer;

/// A client that has logged in, at one moment.
pub(super) struct Client {
    pub(super) number: u64,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) application_name: String,
    pub(super) peer: Peer,
    pub(super) tls: bool,
    pub(super) connected: SystemTime,
    pub(super) doing: Doing,
    /// For how long it has done that.
    pub(super) doing_for: Duration,
    /// When its last request began to be served; none before the first.
    pub(super) requested: Option<SystemTime>,
    /// The backend that it has: the node, whether as the primary, its process ID, and when it was made.
    pub(super) backend: Option<(NodeId, bool, i32, SystemTime)>,
    /// Why it keeps that, and since when.
    pub(super) pin: Option<(PinReason, SystemTime)>,
}

impl Client {
    /// Whether it waits for a backend or for a node.
    pub(super) fn waits(&self) -> bool {
        matches!(self.doing, Doing::Waiting | Doing::Held)
    }

    /// In PgBouncer's words.
    pub(super) fn state(&self) -> &'static str {
        match self.doing {
            Doing::Waiting | Doing::Held => "waiting",
            Doing::Idle if self.backend.is_none() => "idle",
            Doing::Idle | Doing::Active | Doing::IdleInTransaction => "active",
        }
    }
}

/// When a second of the pools' clock was, or is.
pub(super) fn time_of(app: &App, seconds: u32) -> SystemTime {
    app.started_at() + Duration::from_secs(u64::from(seconds))
}

/// All clients that have logged in, by their numbers. Others run between one part of them and the next.
pub(super) async fn clients(app: &App) -> Vec<Client> {
    let mut clients = Vec::with_capacity(app.registry.len());
    for part in 0..Registry::PARTS {
        app.registry
            .each_of(part, |inbox| clients.extend(seen(app, inbox)));
        tokio::task::yield_now().await;
    }
    clients.sort_by_key(|client: &Client| client.number);
    clients
}

fn seen(app: &App, inbox: &Inbox) -> Option<Client> {
    let client = inbox.client()?;
    let Presence { doing, backend } = inbox.presence();
    let now = coarse_now();
    let ago = |then: u64| Duration::from_micros(now.saturating_sub(then));
    let requested = Some(inbox.tally.requested()).filter(|then| *then > 0);
    Some(Client {
        number: client.number,
        user: client.user.clone(),
        database: client.database.clone(),
        application_name: client.application_name.clone(),
        peer: client.peer,
        tls: client.tls,
        connected: client.connected,
        doing,
        doing_for: match inbox.tally.since() {
            0 => client.connected.elapsed().unwrap_or_default(),
            since => ago(since),
        },
        requested: requested.map(|then| SystemTime::now() - ago(then)),
        backend: backend.map(|(node, as_primary)| {
            let born = time_of(app, inbox.backend_born());
            (node, as_primary, inbox.backend_pid(), born)
        }),
        pin: inbox.pin().map(|(reason, since)| (reason, time_of(app, since))),
    })
}

/// The pools of each database and user, in their order.
pub(super) fn groups(app: &App) -> BTreeMap<(String, String), Arc<Group>> {
    let groups = app.groups.all().into_iter();
    let named = groups.map(|group| ((group.database.clone(), group.user.clone()), group));
    named.collect()
}
