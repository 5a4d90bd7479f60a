use super::*;
use crate::record::Users;

#[test]
fn no_password_is_in_a_statement() {
    let (engine, users) = (
        EngineSecrets::random().expect("random"),
        Users::random().expect("random"),
    );
    let statements = monitor_roles(&engine, &users.monitoring) + &node_roles(&engine, &users);
    let secrets = [
        &engine.autoctl_node,
        &engine.replicator,
        &users.app.password,
        &users.readonly.password,
    ];
    for secret in secrets
        .into_iter()
        .chain([&users.replicator.password, &users.monitoring.password])
    {
        assert!(!statements.contains(secret.expose()));
    }
    assert_eq!(statements.matches("PASSWORD 'SCRAM-SHA-256$").count(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up() {
    let silent = std::future::pending::<std::result::Result<(), tokio_postgres::Error>>();
    let answer = within(STATEMENT_TIMEOUT, Service::Node(2), silent).await;
    assert_eq!(
        answer.map_err(|error| error.to_string()),
        Err("node2: no answer within 20 s".to_owned())
    );
}
