//! Statements to the cluster's own servers, each with a deadline: a frozen server accepts connections (the
//! kernel does) and never answers.

use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::{Client, Config, NoTls, Row, SimpleQueryMessage};

use crate::error::{ClusterError, Result};
use crate::layout::{DATABASE, HOST, MONITOR_DATABASE, Ports, Service};
use crate::record::User;
use crate::secrets::EngineSecrets;

/// How long a connection may take, authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to one server. Dropping it closes it.
pub(crate) struct Session {
    client: Client,
    /// Closed with the connection.
    alive: watch::Receiver<()>,
    service: Service,
    timeout: Duration,
}

impl Session {
    /// Logs in to a server's database as `user`.
    pub(crate) async fn open(
        ports: &Ports,
        service: Service,
        user: &User,
        database: &str,
    ) -> Result<Session> {
        Session::open_within(CONNECT_TIMEOUT, ports, service, user, database).await
    }

    /// Logs in as [`Session::open`] does, and gives up after `timeout`; statements get the same limit.
    pub(crate) async fn open_within(
        timeout: Duration,
        ports: &Ports,
        service: Service,
        user: &User,
        database: &str,
    ) -> Result<Session> {
        let mut config = Config::new();
        config
            .host(HOST)
            .port(ports.of(service))
            .user(&user.name)
            .password(user.password.expose())
            .dbname(database)
            .application_name("halyard cluster");
        let (client, connection) = within(timeout, service, config.connect(NoTls)).await?;
        // It ends with the client. What it may fail with, the client's next statement reports.
        let (living, alive) = watch::channel(());
        tokio::spawn(async move {
            let _living = living;
            drop(connection.await);
        });
        Ok(Session {
            client,
            alive,
            service,
            timeout: timeout.max(STATEMENT_TIMEOUT),
        })
    }

    /// Gives every statement of this session another limit.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> Session {
        self.timeout = timeout;
        self
    }

    /// Whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.alive.has_changed().is_err()
    }

    /// Returns when the server has ended the connection, or the connection broke. Cancel safe.
    pub(crate) async fn ended(&self) {
        // Nothing is ever sent: this ends with the sender.
        let _ = self.alive.clone().changed().await;
    }

    /// Runs statements separated by semicolons, for their effect.
    pub(crate) async fn execute(&self, statements: &str) -> Result<()> {
        within(self.timeout, self.service, self.client.batch_execute(statements)).await
    }

    /// Runs one statement by the extended protocol and returns its rows.
    pub(crate) async fn rows(&self, statement: &str) -> Result<Vec<Row>> {
        within(self.timeout, self.service, self.client.query(statement, &[])).await
    }

    /// The first column of the first row of the last of the statements that returned any, as text, by the
    /// simple protocol.
    pub(crate) async fn text(&self, statements: &str) -> Result<Option<String>> {
        let messages = within(self.timeout, self.service, self.client.simple_query(statements)).await?;
        let values = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(values.last())
    }
}

async fn within<T>(
    timeout: Duration,
    service: Service,
    answer: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer.map_err(ClusterError::sql(service)),
        Err(_) => Err(ClusterError::Sql {
            server: service.to_string(),
            reason: format!("no answer within {} s", timeout.as_secs_f32()),
            state: None,
        }),
    }
}

/// Keeps what follows out of the server's log, whatever its settings: verifiers are in it.
const QUIET: &str = "SET log_statement = 'none'; SET log_min_duration_statement = -1; \
                     SET log_min_error_statement = 'panic';";

/// On the monitor: the keepers' password, and a role for Halyard that may read the engine's state and listen to
/// its changes.
///
/// pg_auto_failover grants its functions to PUBLIC, and those that change the cluster run as their owner: USAGE
/// on the schema alone would let the role start a failover. So PUBLIC loses them and the keepers' role, which
/// has some of them through PUBLIC only, gets them by name. Of those that change the cluster the monitoring role has the one
/// that SWITCHOVER on Halyard's console needs: a planned promotion.
pub(crate) fn monitor_roles(engine: &EngineSecrets, monitoring: &User) -> String {
    format!(
        "{QUIET}
        ALTER ROLE autoctl_node PASSWORD '{node}';
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgautofailover TO autoctl_node;
        REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA pgautofailover FROM PUBLIC;
        REVOKE ALL ON DATABASE {MONITOR_DATABASE} FROM PUBLIC;
        GRANT CONNECT ON DATABASE {MONITOR_DATABASE} TO autoctl_node;
        CREATE ROLE {name} LOGIN PASSWORD '{password}';
        GRANT CONNECT ON DATABASE {MONITOR_DATABASE} TO {name};
        GRANT USAGE ON SCHEMA pgautofailover TO {name};
        GRANT SELECT ON pgautofailover.formation, pgautofailover.node, pgautofailover.event TO {name};
        GRANT EXECUTE ON FUNCTION pgautofailover.get_primary(text, integer),
            pgautofailover.get_nodes(text, integer),
            pgautofailover.current_state(text), pgautofailover.current_state(text, integer),
            pgautofailover.last_events(integer), pgautofailover.last_events(text, integer),
            pgautofailover.last_events(text, integer, integer),
            pgautofailover.perform_promotion(text, text) TO {name};",
        node = engine.autoctl_node.verifier(),
        name = monitoring.name,
        password = monitoring.password.verifier(),
    )
}

/// On the monitor: whoever has the most is promoted, and nobody fetches from itself. Two faults of pg_auto_failover 2.0,
/// both about a node that was chosen for its priority and has first to fetch what it lacks (`fast_forward`):
///
/// - Its keeper restarts the server with a `recovery_target_lsn` that is the end of what there is. No record begins
///   there, so promotion fails since PostgreSQL 13 ("recovery ended before configured recovery target was reached"), and
///   the server comes back by crash recovery: a primary on the timeline of the one it replaces. Nobody can tell the two
///   histories apart then, and the old primary never rejoins: pg_rewind finds one timeline and nothing to do. So the one
///   that has everything is promoted instead, where there is one that nobody is ahead of by timeline or by position.
/// - The monitor calls those the most advanced that come first by timeline and then by position
///   (`ListMostAdvancedStandbyNodes` in node_metadata.c), and the function by which the keeper asks where to fetch from goes
///   by position alone. A primary whose postmaster crashed, and that is ahead of both standbys by what nobody
///   had acknowledged, was named to itself: it stopped its server to set it up anew, and tried to reach it for ever. So
///   the function has the same order, and never names the one that fetches.
pub(crate) const ELECTIONS: &str = "
    CREATE OR REPLACE FUNCTION pgautofailover.get_most_advanced_standby(
        IN formationid text DEFAULT 'default', IN groupid int DEFAULT 0,
        OUT node_id bigint, OUT node_name text, OUT node_host text, OUT node_port int,
        OUT node_lsn pg_lsn, OUT node_is_primary bool)
    RETURNS SETOF record LANGUAGE SQL STRICT AS $$
        SELECT nodeid, nodename, nodehost, nodeport, reportedlsn, false
        FROM pgautofailover.node
        WHERE formationid = $1 AND groupid = $2
            AND reportedstate = 'report_lsn' AND goalstate <> 'fast_forward'
        ORDER BY reportedtli DESC, reportedlsn DESC, health DESC
        LIMIT 1
    $$;
    CREATE SCHEMA IF NOT EXISTS halyard;
    CREATE OR REPLACE FUNCTION halyard.promote_the_most_advanced() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
    BEGIN
        UPDATE pgautofailover.node better SET goalstate = 'prepare_promotion'
        WHERE nodeid = (
                SELECT nodeid FROM pgautofailover.node
                WHERE formationid = NEW.formationid AND groupid = NEW.groupid AND nodeid <> NEW.nodeid
                    AND reportedstate = 'report_lsn' AND goalstate = 'report_lsn' AND candidatepriority > 0
                    AND reportedpgisrunning AND (health = 1 OR reporttime > healthchecktime)
                ORDER BY reportedtli DESC, reportedlsn DESC, candidatepriority DESC
                LIMIT 1)
            AND better.reportedtli >= NEW.reportedtli AND better.reportedlsn >= NEW.reportedlsn
            AND NOT EXISTS (
                SELECT FROM pgautofailover.node other
                WHERE other.formationid = NEW.formationid AND other.groupid = NEW.groupid
                    AND other.reportedstate = 'report_lsn'
                    AND (other.reportedtli > better.reportedtli OR other.reportedlsn > better.reportedlsn));
        IF FOUND THEN
            NEW.goalstate := 'report_lsn';
        END IF;
        RETURN NEW;
    END $$;
    CREATE OR REPLACE TRIGGER promote_the_most_advanced BEFORE UPDATE OF goalstate ON pgautofailover.node
        FOR EACH ROW WHEN (NEW.goalstate = 'fast_forward' AND OLD.goalstate = 'report_lsn')
        EXECUTE FUNCTION halyard.promote_the_most_advanced();";

/// On the first node: the engine's replication password, the application's database and everybody's roles.
pub(crate) fn node_roles(engine: &EngineSecrets, users: &crate::record::Users) -> String {
    let (app, readonly, replicator, monitoring) =
        (&users.app, &users.readonly, &users.replicator, &users.monitoring);
    format!(
        "{QUIET}
        ALTER ROLE pgautofailover_replicator PASSWORD '{engine_replicator}';
        CREATE ROLE {app_name} LOGIN PASSWORD '{app_password}';
        CREATE ROLE {readonly_name} LOGIN PASSWORD '{readonly_password}';
        GRANT pg_read_all_data TO {readonly_name};
        CREATE ROLE {replicator_name} LOGIN REPLICATION PASSWORD '{replicator_password}';
        CREATE ROLE {monitoring_name} LOGIN PASSWORD '{monitoring_password}';
        GRANT pg_monitor TO {monitoring_name};
        ALTER DATABASE {DATABASE} OWNER TO {app_name};
        REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;
        GRANT CONNECT ON DATABASE {DATABASE} TO {readonly_name}, {monitoring_name};",
        engine_replicator = engine.replicator.verifier(),
        app_name = app.name,
        app_password = app.password.verifier(),
        readonly_name = readonly.name,
        readonly_password = readonly.password.verifier(),
        replicator_name = replicator.name,
        replicator_password = replicator.password.verifier(),
        monitoring_name = monitoring.name,
        monitoring_password = monitoring.password.verifier(),
    )
}

#[cfg(test)]
mod tests;
