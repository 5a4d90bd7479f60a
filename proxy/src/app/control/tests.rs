#![allow(clippy::unwrap_used)]

use std::path::Path;

use halyard_health::{AuthorityView, ClusterView, FailureKind, NodeId, Reason, Role};

use super::*;
use crate::config::{ServerTls, SslMode, parse};
use crate::login::tests::postgres::{HOST_IN_CERTIFICATE, Postgres};

/// Every wait in these tests ends after this, with a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the engine's adapter asks of a pg_auto_failover monitor, answered for one node.
const MONITOR: &str = "\
CREATE SCHEMA pgautofailover;
GRANT USAGE ON SCHEMA pgautofailover TO tls_user;
CREATE FUNCTION pgautofailover.current_state(formation text, group_id int,
    OUT nodename text, OUT nodehost text, OUT nodeport int,
    OUT current_group_state text, OUT assigned_group_state text)
RETURNS SETOF record LANGUAGE sql AS $$ VALUES ('node1', 'elsewhere', 5432, 'single', 'single') $$;
";

/// Watches one node, and the monitor in the same server, as `tls_user`, whom a `hostssl` line alone lets in.
fn watch(host: &str, port: u16, server_tls: &ServerTls) -> (halyard_health::Health, CancellationToken) {
    let text = format!(
        "[[node]]\nname = \"node1\"\nhost = \"{host}\"\nport = {port}\n\
         [health]\nuser = \"tls_user\"\npassword = \"secret\"\ndatabase = \"postgres\"\n"
    );
    let mut config = parse(&text, Path::new("halyard.toml"), &|_| None).unwrap().config;
    config.engine = Engine::PgAutoFailover {
        host: host.to_owned(),
        port,
        database: "postgres".to_owned(),
        user: "tls_user".to_owned(),
        password: Some(Secret::new("secret")),
        formation: "default".to_owned(),
        group: 0,
    };
    let shutdown = CancellationToken::new();
    let health = start_health(&config, None, &TlsPolicy::new(server_tls).unwrap(), &shutdown).unwrap();
    (health, shutdown)
}

/// The first view for which this holds.
async fn until(
    health: &mut halyard_health::Health,
    holds: impl FnMut(&Arc<ClusterView>) -> bool,
) -> Arc<ClusterView> {
    let seen = tokio::time::timeout(DEADLINE, health.view.wait_for(holds)).await;
    Arc::clone(&seen.expect("seen in time").unwrap())
}

#[tokio::test]
async fn a_state_of_another_cluster_than_the_configured_one_is_refused() {
    let text =
        "[[node]]\nname = \"n\"\nhost = \"127.0.0.1\"\n[health]\nuser = \"u\"\nsystem_identifier = \"7\"\n";
    let config = parse(text, Path::new("halyard.toml"), &|_| None).unwrap().config;
    let known = |number| {
        Some(Known {
            system_identifier: SystemIdentifier(number),
            timeline: halyard_health::TimelineId(3),
        })
    };
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let error = start_health(&config, known(8), &TlsPolicy::Never, &shutdown).unwrap_err();
    assert!(
        error.to_string().contains("general.state_file is of 8"),
        "{error}"
    );
    let health = start_health(&config, known(7), &TlsPolicy::Never, &shutdown).unwrap();
    let view = Arc::clone(&health.view.borrow());
    assert_eq!(view.system_identifier, Some(SystemIdentifier(7)));
    assert_eq!(view.highest_timeline, Some(halyard_health::TimelineId(3)));
}

#[tokio::test]
async fn probes_and_the_engine_are_asked_over_tls() {
    let postgres = Postgres::start();
    postgres.sql(MONITOR);
    for (host, mode) in [
        (HOST_IN_CERTIFICATE, SslMode::Prefer),
        (HOST_IN_CERTIFICATE, SslMode::Require),
        (HOST_IN_CERTIFICATE, SslMode::VerifyFull),
        (postgres.socket_directory(), SslMode::VerifyFull),
    ] {
        let server_tls = ServerTls {
            mode,
            root_certificate: Some(postgres.root_certificate()),
        };
        let (mut health, shutdown) = watch(host, postgres.port, &server_tls);
        until(&mut health, |view| {
            let named = matches!(&view.authority, AuthorityView::Answers(answer) if answer.primary == Some(NodeId(0)));
            named && view.primary().is_some()
        })
        .await;
        shutdown.cancel();
        health.stopped().await;
    }
}

#[tokio::test]
async fn neither_is_asked_where_tls_does_not_hold_what_it_should() {
    let postgres = Postgres::start();
    postgres.sql(MONITOR);
    for (mode, root_certificate, word) in [
        (SslMode::Disable, postgres.root_certificate(), "db error"),
        (
            SslMode::VerifyFull,
            postgres.foreign_root_certificate(),
            "TLS handshake",
        ),
    ] {
        let server_tls = ServerTls {
            mode,
            root_certificate: Some(root_certificate),
        };
        let (mut health, shutdown) = watch("127.0.0.1", postgres.port, &server_tls);
        let view = until(&mut health, |view| {
            view.nodes[0].role == Role::Unreachable && matches!(view.authority, AuthorityView::Silent { .. })
        })
        .await;
        // Not a connection that was lost: the node is well, and what it shows or asks for is refused.
        assert_eq!(
            view.nodes[0].reason,
            Some(Reason::Unreachable(FailureKind::Rejected)),
            "{mode:?}"
        );
        let AuthorityView::Silent { error, .. } = &view.authority else {
            unreachable!("waited for")
        };
        assert!(error.contains(word), "{mode:?}: {error}");
        shutdown.cancel();
        health.stopped().await;
    }
}
