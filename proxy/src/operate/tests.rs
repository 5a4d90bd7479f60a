use std::sync::Arc;
use std::time::{Duration, SystemTime};

use halyard_health::NodeId;

use super::*;
use crate::routing::RoutingTable;
use crate::session::{ClientInfo, Doing, Message, Presence, Registered, Registry};
use crate::startup::{Peer, ProtocolVersion};

const SHORT: Duration = Duration::from_millis(30);
const LONG: Duration = Duration::from_secs(10);

pub(super) fn operations() -> (Operations, Arc<Registry>) {
    let routing = Arc::new(Routing::new(RoutingTable::empty()));
    let registry = Arc::<Registry>::default();
    (Operations::new(2, routing, Arc::clone(&registry)), registry)
}

/// A session that works on a backend in this database.
pub(super) fn working(registry: &Arc<Registry>, database: &str, as_primary: bool) -> Registered {
    let (session, _) = registry.register(ProtocolVersion::V3_0).unwrap();
    session.inbox.introduce(ClientInfo {
        number: 1,
        user: "app".to_owned(),
        database: database.to_owned(),
        application_name: String::new(),
        peer: Peer::Unix,
        tls: false,
        connected: SystemTime::now(),
    });
    session.inbox.set_presence(Presence {
        doing: Doing::Active,
        backend: Some((NodeId(1), as_primary)),
    });
    session
}

#[test]
fn a_scope_holds_what_it_names() {
    for (scope, database, as_primary, held) in [
        (Scope::All, "a", false, true),
        (Scope::Database("a".to_owned()), "a", false, true),
        (Scope::Database("a".to_owned()), "b", true, false),
        (Scope::Primary, "a", true, true),
        (Scope::Primary, "a", false, false),
    ] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (operations, _registry) = operations();
        assert!(!operations.pauses.hold(database, as_primary));
        runtime.block_on(operations.pause(scope.clone(), SHORT)).unwrap();
        assert_eq!(operations.pauses.hold(database, as_primary), held, "{scope}");
        operations.resume(Some(&scope)).unwrap();
        assert!(!operations.pauses.hold(database, as_primary), "{scope}");
        assert_eq!(operations.resume(None), Err(NotPaused));
    }
}

#[tokio::test]
async fn a_pause_waits_for_open_transactions_and_for_no_others() {
    let (operations, registry) = operations();
    let other = working(&registry, "other", true);
    let reader = working(&registry, "app", false);
    let scope = Scope::Database("app".to_owned());
    let failed = operations.pause(scope.clone(), SHORT).await.unwrap_err();
    assert_eq!(failed.open, 1);
    assert!(
        !operations.pauses.hold("app", true),
        "a pause that failed holds nobody"
    );

    operations.pause(Scope::Primary, SHORT).await.unwrap_err();
    other.inbox.set_doing(Doing::Idle);
    operations.pause(Scope::Primary, SHORT).await.unwrap();
    assert!(!operations.pauses.hold("app", false), "reads on standbys go on");

    // It keeps its backend, and is between two transactions.
    reader.inbox.set_presence(Presence {
        doing: Doing::Idle,
        backend: Some((NodeId(1), false)),
    });
    operations.pause(scope, LONG).await.unwrap();
    assert!(operations.pauses.hold("app", false));
}

#[tokio::test]
async fn whoever_waits_hears_of_the_pause_and_of_its_end() {
    let (operations, registry) = operations();
    let session = working(&registry, "app", true);
    session.inbox.set_doing(Doing::Held);
    let paused = operations.pauses.pause(Scope::All, SHORT).await.unwrap();
    assert!(session.inbox.take().has(Message::TableChanged));
    drop(paused);
    assert!(session.inbox.take().has(Message::TableChanged));
    assert!(!operations.pauses.hold("app", true));
}

#[test]
fn a_node_is_drained_once() {
    let (operations, _) = operations();
    assert!(operations.set_drained(NodeId(1), true));
    assert!(!operations.set_drained(NodeId(1), true));
    assert!(operations.is_drained(NodeId(1)) && !operations.is_drained(NodeId(0)));
    assert!(operations.set_drained(NodeId(1), false));
}
