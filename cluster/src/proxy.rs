//! Halyard in front of the cluster: started as a process like the servers, and believed only when a write and a
//! read have gone through it.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::layout::{DATABASE, Service};
use crate::proxy_config;
use crate::record::Record;
use crate::site::Site;
use crate::sql::Session;

/// From start to the first write and read: the proxy looks at every node first.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a read that a replica should serve may still be served by another node: the proxy trusts a replica
/// after a few good answers. Later, whoever serves will do.
const REPLICA_PATIENCE: Duration = Duration::from_secs(10);
/// One attempt at a write and a read. While the proxy sees no primary it holds statements, so an attempt ends
/// by this and not by an error.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);

/// Starts the proxy and returns once it has served a write and a read: the names of the nodes that did.
pub(crate) async fn start(site: &Site, record: &Record) -> Result<(String, String)> {
    site.make_home(Service::Proxy)?;
    site.owner.write(
        &site.layout.proxy_config(),
        &proxy_config::render(&site.layout, record),
    )?;
    let mut command = site.command(Service::Proxy, &site.own_program()?);
    command
        .arg("serve")
        .arg("--config")
        .arg(site.layout.proxy_config());
    if let Some(filter) = std::env::var_os("RUST_LOG") {
        command.env("RUST_LOG", filter);
    }
    let mut started = site.spawn(Service::Proxy, command)?;
    let began = Instant::now();
    started
        .wait("serving a write and a read", READY_LIMIT, async || {
            let (writer, reader) = serve_both(record).await?;
            let by_replica = matches!(reader.parse(), Ok(Service::Ro(_)));
            let hopeless = record.ports().ro_count() == 0 || began.elapsed() > REPLICA_PATIENCE;
            Ok((by_replica || hopeless).then_some((writer, reader)))
        })
        .await
}

/// Writes and reads through the proxy once. The write is a table and a row in a transaction that is rolled back:
/// it leaves nothing.
pub(crate) async fn serve_both(record: &Record) -> Result<(String, String)> {
    let ports = record.ports();
    let session = Session::open_within(ATTEMPT_LIMIT, &ports, Service::Proxy, &record.users.app, DATABASE)
        .await?
        .with_timeout(ATTEMPT_LIMIT);
    session
        .execute(
            "BEGIN; CREATE TABLE halyard_is_up (at timestamptz); INSERT INTO halyard_is_up VALUES (now())",
        )
        .await?;
    let writer = session.text("SELECT inet_server_port()").await?;
    session.execute("ROLLBACK").await?;
    // A session of its own: one that has written may read from the primary until the replicas have caught up.
    let reading =
        Session::open_within(ATTEMPT_LIMIT, &ports, Service::Proxy, &record.users.app, DATABASE).await?;
    let rows = reading.rows("SELECT inet_server_port()").await?;
    let reader = rows
        .first()
        .and_then(|row| row.get::<_, Option<i32>>(0))
        .map(|port| port.to_string());
    Ok((node_on(record, writer), node_on(record, reader)))
}

/// The name of the node on a port that a server told.
fn node_on(record: &Record, port: Option<String>) -> String {
    let port = port.unwrap_or_default();
    let node = record.nodes.iter().find(|node| node.port.to_string() == port);
    node.map_or_else(
        || format!("an unknown server on port {port:?}"),
        |node| node.name.clone(),
    )
}
