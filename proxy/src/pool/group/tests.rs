#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::auth::Credential;
use crate::catalog::Catalogs;
use crate::config::{Config, PoolMode, ReadConsistency, RoutePolicy, RouteSetting, parse};
use crate::login::tests::postgres::Postgres;
use crate::login::{LoginLimits, Target};
use crate::routing::{Policy, Routing, RoutingTable};
use crate::tls::TlsPolicy;
use halyard_health::Health;
use tokio_util::sync::CancellationToken;

/// Every wait in these tests ends after this, with a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// The groups of a cluster of one node, and what they are made from.
struct House {
    groups: Groups,
    catalogs: Catalogs,
    limits: PoolLimits,
    _health: Health,
}

impl House {
    /// With a node at this port of 127.0.0.1. Nobody watches it, so its catalogues are never read.
    fn with_node_at(port: u16) -> Self {
        let text = format!(
            "[[node]]\nname = \"node1\"\nhost = \"127.0.0.1\"\nport = {port}\n[health]\nuser = \"halyard_health\"\n"
        );
        let config: Arc<Config> =
            Arc::new(parse(&text, Path::new("halyard.toml"), &|_| None).unwrap().config);
        let nobody =
            halyard_health::Config::new(vec![], "nobody", halyard_health::Secret::default(), "postgres");
        let health = halyard_health::spawn(nobody, CancellationToken::new());
        let policy = Policy {
            nodes: vec![],
            read_fallback: config.routing.read_fallback,
        };
        let routing = Arc::new(Routing::new(RoutingTable::derive(&health.view.borrow(), &policy)));
        let node = Arc::new(Node {
            counters: Arc::default(),
            id: NodeId(0),
            name: "node1".to_owned(),
            target: Target {
                name: "node1".to_owned(),
                host: "127.0.0.1".to_owned(),
                port,
                tls: TlsPolicy::Never,
            },
            load: crate::routing::Load::default(),
            coverage: Arc::default(),
            generation: 0.into(),
        });
        let limits = PoolLimits {
            size: 1,
            min_size: 1,
            waiters_max: 1,
            connects_max: 1,
            login: LoginLimits::new(&config),
            lifetime: config.pool.lifetime,
            idle_timeout: config.pool.idle_timeout,
            prepared_statements_max: 1,
            reserves: false,
        };
        Self {
            groups: Groups::new(vec![node], health.signals.clone(), Arc::default()),
            catalogs: Catalogs::new(config, routing, TlsPolicy::Never, CancellationToken::new()),
            limits,
            _health: health,
        }
    }

    fn open(&self, database: &str, user: &str) -> Result<Arc<Group>, Report> {
        let catalog = || self.catalogs.open(database);
        self.groups.open(
            database,
            user,
            Credential::None,
            Terms {
                mode: PoolMode::Transaction,
                policy: RoutePolicy {
                    route: RouteSetting::Auto,
                    consistency: ReadConsistency::Session,
                },
            },
            &self.limits,
            catalog,
        )
    }

    fn len(&self) -> usize {
        self.groups.all().len()
    }
}

/// Every name that a client tried used to leave a group, its pools and a catalogue's task for ever.
#[tokio::test]
async fn a_group_goes_with_its_last_session_and_the_catalogue_with_its_last_group() {
    let house = House::with_node_at(1);
    let alices = house.open("app", "alice").unwrap();
    let bobs = house.open("app", "bob").unwrap();
    assert!(Arc::ptr_eq(&alices.catalog, &bobs.catalog));
    let catalog = Arc::downgrade(&alices.catalog);
    let alices_id = alices.id;

    house.groups.sweep();
    assert_eq!(house.len(), 2, "sessions hold them");
    drop(alices);
    house.groups.sweep();
    assert_eq!(house.len(), 1);
    assert!(catalog.upgrade().is_some());
    drop(bobs);
    house.groups.sweep();
    assert_eq!(house.len(), 0);
    assert!(catalog.upgrade().is_none());

    let again = house.open("app", "alice").unwrap();
    assert!(again.id > alices_id, "a number is not given twice");
}

#[tokio::test]
async fn names_without_end_make_no_groups_without_end() {
    let house = House::with_node_at(1);
    let mut held: Vec<_> = (0..GROUPS_MAX)
        .map(|number| house.open(&format!("app{number}"), "mallory").unwrap())
        .collect();
    let Err(report) = house.open("one_more", "mallory") else {
        panic!("there is no room")
    };
    assert_eq!(report.sqlstate, SqlState::TOO_MANY_CONNECTIONS);
    assert_eq!(report.severity, crate::error::Severity::Fatal);
    assert!(report.detail.unwrap().contains("1000"));
    assert_eq!(house.len(), GROUPS_MAX);

    // Those who are in are not turned away, and the first that leaves makes room at once.
    assert!(Arc::ptr_eq(&house.open("app7", "mallory").unwrap(), &held[7]));
    held.pop();
    house.open("one_more", "mallory").unwrap();

    drop(held);
    for number in 0..3 * GROUPS_MAX {
        house.open(&format!("tried{number}"), "mallory").unwrap();
    }
    assert!(house.len() <= GROUPS_MAX);
}

#[tokio::test]
async fn a_group_stays_for_as_long_as_it_has_a_connection() {
    let postgres = Postgres::start();
    let house = House::with_node_at(postgres.port);
    let group = house.open("postgres", "trust_user").unwrap();
    let pool = Arc::clone(&group.pools()[0]);
    pool.warm_up();
    drop(group);
    house.groups.sweep();
    assert_eq!(
        (house.len(), pool.usage().connecting),
        (1, 1),
        "it is being opened"
    );

    let began = Instant::now();
    while pool.usage().idle == 0 {
        assert!(began.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    house.groups.sweep();
    assert_eq!(house.len(), 1);
    pool.close_idle();
    house.groups.sweep();
    assert_eq!(house.len(), 0);
}

#[test]
fn of_several_defaults_the_longest_counts() {
    let longest = |known: &[u32]| longest_timeout(known.iter().copied()).map(|limit| limit.as_millis());
    for (known, expected) in [
        (&[][..], None),
        (&[UNTOLD, UNTOLD], None),
        (&[UNTOLD, 300, UNTOLD], Some(300)),
        (&[300, 500, 400], Some(500)),
        (&[300, 0], None),
        (&[0, 300, UNTOLD], None),
    ] {
        assert_eq!(longest(known), expected, "{known:?}");
    }
}
