//! From a client that has authenticated to a session: its settings are tried on a server once, and what that
//! server reports is what the client is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use halyard_health::Evidence;
use tokio::time::{Instant, sleep, timeout_at};

use super::examine::{REPLACEMENTS_MAX, has_used_temporary};
use super::inbox::ClientInfo;
use super::obtain::{after, ended_by};
use super::own::{check, check_timeline};
use super::part::{Leftovers, cleanse};
use super::replication::replicate;
use super::settings::Settings;
use super::turn::Session;
use crate::app::App;
use crate::classify::Settings as Reading;
use crate::config::{ListenerRole, PoolMode};
use crate::error::{Report, SqlState};
use crate::pool::{Checkout, Template, exchange};
use crate::relay::{ClientLeg, Memory};
use crate::startup::{Login, Peer};
use crate::wire::{self, FrameBuf, OutBuf, tagged};

/// The number of the next session; 0 is nobody's.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// How long a server may take to try a client's settings.
const TRY_LIMIT: Duration = Duration::from_secs(10);

/// How long a login waits that has lost a backend, before it borrows another: what its loss tells is found out meanwhile.
const LOST_PAUSE: Duration = Duration::from_millis(50);

/// Makes a session of a login. `None` when the client was turned away or is gone.
pub async fn greet(app: Arc<App>, mut login: Box<Login>, port: ListenerRole, peer: Peer) -> Option<Session> {
    let Some((registered, key)) = app.register(login.protocol) else {
        let report = Report::fatal(SqlState::INTERNAL_ERROR, "no random numbers could be had");
        login.refuse(&report).await;
        return None;
    };
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    registered.inbox.introduce(introduction(&login, number, peer));
    if login.replication.is_some() {
        replicate(app, login, registered, &key, port).await;
        return None;
    }
    let group = match app.open_group(&login.database, &login.user, login.credential.clone()) {
        Ok(group) => group,
        Err(report) => {
            login.refuse(&report).await;
            return None;
        }
    };
    if let Err(mut report) = login.settings.iter().try_for_each(|(name, value)| {
        check(name, value).and_then(|()| check_timeline(name, value, &app.consistency))
    }) {
        report.severity = crate::error::Severity::Fatal;
        login.refuse(&report).await;
        return None;
    }
    let wanted = Settings::new(std::mem::take(&mut login.settings));
    let known = group.template(wanted.pairs());
    let settings = known
        .as_ref()
        .map_or_else(|| Arc::new(wanted), |template| Arc::clone(&template.settings));
    let mut out = OutBuf::default();
    out.end().append(&mut login.pending);
    let leftover = std::mem::take(&mut login.leftover);
    let client = ClientLeg::new(login.stream, FrameBuf::with_leftover(&leftover), out);
    let memory = Memory::new(settings, group.id, number, group.mode == PoolMode::Session);
    let reading = Reading {
        max_len: app.relay_limits.statement_size_max,
        ..Reading::default()
    };
    let mut session = Session::new(
        Arc::clone(&app),
        group,
        client,
        memory,
        registered,
        reading,
        port,
        number,
    );
    session.show_pin();
    let template = match known {
        Some(template) => template,
        None => match session.learn_template().await {
            Ok(template) => template,
            Err(report) => {
                session.turn_away(report).await;
                return None;
            }
        },
    };
    session.group.catalog.first_read().await;
    session.memory.startup = Arc::clone(&template.settings);
    session.memory.settings = Arc::clone(&template.settings);
    session.memory.statements.scope = template.settings.scope().clone();
    app.consistency.begin(session.consistency());
    session.heed_fence();
    session.welcome(&template, &key);
    Some(session)
}

/// What is known of a client from its login on.
pub fn introduction(login: &Login, number: u64, peer: Peer) -> ClientInfo {
    let name = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("application_name");
    let application_name = login.settings.iter().find(name);
    ClientInfo {
        number,
        user: login.user.clone(),
        database: login.database.clone(),
        application_name: application_name.map_or_else(String::new, |(_, value)| value.clone()),
        peer,
        tls: login.stream.is_tls(),
        connected: SystemTime::now(),
    }
}

impl Session {
    /// Applies the client's settings to a backend and keeps what the server then reports.
    async fn learn_template(&mut self) -> Result<Arc<Template>, Option<Report>> {
        let settings = Arc::clone(&self.memory.settings);
        let mut backend = self.borrow_any().await?;
        let deadline = Instant::now() + self.app.config.failover.hold;
        let mut replacements = 0;
        while let Some(sql) = settings.statements_from(&backend.settings) {
            match exchange::ask(&mut backend, &sql, TRY_LIMIT).await {
                Ok(()) => backend.settings = Arc::clone(&settings),
                Err(report) if backend.settled().is_none() => {
                    backend = self.borrow_another(backend, report, deadline).await?;
                }
                Err(_)
                    if replacements < REPLACEMENTS_MAX
                        && settings.differ_in_temp_buffers(&backend.settings)
                        && has_used_temporary(&mut backend).await =>
                {
                    drop(backend);
                    replacements += 1;
                    backend = self.borrow_any().await?;
                }
                // Some of them may have been applied: the connection is closed rather than lent on.
                Err(report) => return Err(Some(report)),
            }
        }
        let template = Arc::new(Template {
            settings,
            told: Arc::new(backend.parameters.clone()),
        });
        self.group.remember(Arc::clone(&template));
        give_back(backend);
        Ok(template)
    }

    /// A backend in place of one that was lost while it tried the client's settings, by the deadline: nothing was asked
    /// that could not be asked again, so the login waits like any statement.
    async fn borrow_another(
        &mut self,
        lost: Checkout,
        report: Report,
        deadline: Instant,
    ) -> Result<Checkout, Option<Report>> {
        let node = lost.node().id;
        drop(lost);
        if self.app.routing.load().primary == Some(node) {
            self.app.signals.doubt(node, Evidence::ConnectionReset);
        } else {
            self.app.signals.raise(node, Evidence::ConnectionReset);
        }
        self.avoid(node);
        tracing::debug!(node = node.0, %report, "a backend was lost during a login");
        let again = async {
            tokio::select! {
                biased;
                meanwhile = self.meanwhile() => return Err(ended_by(after(meanwhile))),
                () = sleep(LOST_PAUSE) => {}
            }
            self.borrow_any().await
        };
        timeout_at(deadline, again).await.unwrap_or(Err(Some(report)))
    }

    /// Says what a server says after AuthenticationOk.
    fn welcome(&mut self, template: &Template, key: &[u8]) {
        let replica = self.role(false) == ListenerRole::Replica;
        let out = self.client.out.end();
        for (name, value) in template.told.iter() {
            let value = match (name.as_str(), replica) {
                ("in_hot_standby", true) => "on",
                ("default_transaction_read_only", false) if template.settings.read_only() => "on",
                ("in_hot_standby" | "default_transaction_read_only", false) => "off",
                _ => value,
            };
            wire::write_parameter_status(out, name, value);
        }
        tagged(out, wire::backend::BACKEND_KEY_DATA, |out| {
            out.extend_from_slice(key);
        });
        wire::ready_for_query(out, b'I');
        self.memory.told = Arc::clone(&template.told);
        self.read_as_told();
    }

    /// Reads texts as the server does: what the client was told of two settings decides it.
    pub(super) fn read_as_told(&mut self) {
        for (name, value) in self.memory.told.iter() {
            self.reading.heed(name, value);
        }
    }

    /// Tells a client that has authenticated why it cannot stay.
    async fn turn_away(mut self, report: Option<Report>) {
        if let Some(mut report) = report {
            report.severity = crate::error::Severity::Fatal;
            self.say_farewell(&report).await;
        }
    }
}

fn give_back(backend: Checkout) {
    if backend.settings.may_idle_out() {
        tokio::spawn(cleanse(backend, Leftovers::IdleTimeout));
    } else if let Some(settled) = backend.settled() {
        backend.release(settled);
    }
}
