//! What no setting says alone: names and addresses that clash, and combinations that cannot be meant.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::errors::Findings;
use super::raw::Span;
use super::read::Placed;
use super::*;

/// Connections to one node from which on a hint is given: PostgreSQL's default `max_connections` is 100.
const BACKENDS_PER_NODE_NOTED: u64 = 500;

/// What the shipped profile of pg_auto_failover needs from the loss of a primary to the next write.
const FAILOVER_USUAL: Duration = Duration::from_secs(26);

/// Adds what is wrong between the settings of a configuration.
pub(super) fn check(placed: &Placed, findings: &mut Findings<'_>) {
    let config = &placed.config;
    duplicates(
        &config.nodes,
        &placed.nodes,
        |node| format!("the name \"{}\"", node.name),
        findings,
    );
    duplicates(
        &config.nodes,
        &placed.nodes,
        |node| format!("the address {}:{}", node.host, node.port),
        findings,
    );
    duplicates(
        &config.auth.users,
        &placed.users,
        |user| format!("the user \"{}\"", user.name),
        findings,
    );
    duplicates(
        &config.databases,
        &placed.databases,
        |database| format!("the database \"{}\"", database.name),
        findings,
    );
    addresses(placed, findings);
    administrators(placed, findings);
    zones(placed, findings);
    reads(placed, findings);
    authentication(placed, findings);
    times_and_sizes(placed, findings);
}

/// Notes each item whose `key` an earlier one has already. Keys of items without a value are told elsewhere.
fn duplicates<T>(items: &[T], places: &[Span], key: impl Fn(&T) -> String, findings: &mut Findings<'_>) {
    let mut seen = HashMap::new();
    for (item, place) in items.iter().zip(places) {
        let key = key(item);
        if key.ends_with("\"\"") || key.starts_with("the address :") {
            continue;
        }
        if let Some(first) = seen.get(&key) {
            let line = findings.line_of(first);
            findings.error(
                Some(place.clone()),
                format!("{key} is taken already by the section at line {line}"),
            );
        } else {
            seen.insert(key, place.clone());
        }
    }
}

/// Listeners and HTTP that want the same address.
fn addresses(placed: &Placed, findings: &mut Findings<'_>) {
    let config = &placed.config;
    let mut bound: Vec<(ListenAddress, Option<Span>)> = Vec::new();
    let listeners = config.listeners.iter().enumerate();
    let listeners =
        listeners.map(|(index, listener)| (listener.address.clone(), placed.listeners.get(index).cloned()));
    let http = config
        .http
        .map(|address| (ListenAddress::Tcp(address), placed.http.clone()));
    for (address, place) in listeners.chain(http) {
        if bound.iter().any(|(other, _)| clash(other, &address)) {
            let shown = match &address {
                ListenAddress::Tcp(address) => address.to_string(),
                ListenAddress::Unix(path) => path.display().to_string(),
            };
            findings.error(
                place.clone(),
                format!("the address {shown} clashes with that of an earlier section"),
            );
        }
        bound.push((address, place));
    }
}

/// Whether two sockets cannot be bound side by side. Port 0 takes any free port and clashes with nothing.
fn clash(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Unix(one), ListenAddress::Unix(other)) => one == other,
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            let wildcard = |address: &SocketAddr| address.ip().is_unspecified();
            let same_family = one.is_ipv4() == other.is_ipv4();
            one.port() == other.port()
                && one.port() != 0
                && (one.ip() == other.ip() || (same_family && (wildcard(one) || wildcard(other))))
        }
        _ => false,
    }
}

/// Users of the console that nobody can be.
fn administrators(placed: &Placed, findings: &mut Findings<'_>) {
    let Config { admin, auth, .. } = &placed.config;
    let trusts = auth.rules.iter().any(|rule| rule.method == AuthMethod::Trust);
    for name in admin.users.iter().chain(&admin.stats_users) {
        if !trusts && !auth.users.iter().any(|user| user.name == *name) {
            let message =
                format!("there is no section [[user]] for \"{name}\", who cannot log in to the console");
            findings.warning(placed.admin.clone(), message);
        }
    }
}

/// Zones that change nothing.
fn zones(placed: &Placed, findings: &mut Findings<'_>) {
    let Config { general, nodes, .. } = &placed.config;
    let Some(own) = &general.zone else {
        if let Some(at) = nodes.iter().position(|node| node.zone.is_some()) {
            let message = "a node's zone means nothing while general.zone does not say where Halyard stands";
            findings.warning(placed.nodes.get(at).cloned(), message);
        }
        return;
    };
    if !nodes.iter().any(|node| node.zone.as_ref() == Some(own)) {
        findings.warning(None, format!("general.zone is \"{own}\", and no node is there"));
    }
}

/// Reads that no node may serve.
fn reads(placed: &Placed, findings: &mut Findings<'_>) {
    let config = &placed.config;
    let serves = |node: &Node| node.reads != Reads::Never && node.weight > 0;
    if config.nodes.is_empty() || config.nodes.iter().any(serves) {
        return;
    }
    match config.routing.read_fallback {
        ReadFallback::Primary | ReadFallback::Wait => {
            findings.warning(None, "no node serves reads as a standby: all go to the primary");
        }
        ReadFallback::Error => findings.error(
            placed.routing.clone(),
            "no node serves reads as a standby and routing.read_fallback is \"error\": every read would fail",
        ),
    }
}

/// Rules and users that do not fit each other or the listeners.
fn authentication(placed: &Placed, findings: &mut Findings<'_>) {
    let config = &placed.config;
    let exposed = config
        .listeners
        .iter()
        .find_map(|listener| match listener.address {
            ListenAddress::Tcp(address) if !address.ip().is_loopback() => Some(address),
            _ => None,
        });
    for (rule, place) in config.auth.rules.iter().zip(&placed.rules) {
        let from_network = rule.connection != ConnectionKind::Local
            && (rule.addresses.is_empty()
                || rule.addresses.iter().any(|(address, _)| !address.is_loopback()));
        if let (AuthMethod::Trust, true, Some(address)) = (rule.method, from_network, exposed) {
            let message = format!("method \"trust\" lets anybody in who reaches {address} from the network");
            findings.warning(Some(place.clone()), message);
        }
        if rule.connection == ConnectionKind::HostSsl && config.client_tls.is_none() {
            findings.warning(
                Some(place.clone()),
                "a rule for hostssl matches nothing without [client_tls]",
            );
        }
    }
    let asks = |rule: &AuthRule| matches!(rule.method, AuthMethod::ScramSha256 | AuthMethod::Md5);
    let passwords_asked = config.auth.rules.iter().all(asks);
    if passwords_asked && config.auth.users.is_empty() {
        findings.warning(None, "without a section [[user]] nobody can log in");
    }
    for (user, place) in config.auth.users.iter().zip(&placed.users) {
        if passwords_asked && user.password.is_none() {
            let message = format!(
                "user \"{}\" has no password and cannot log in: every rule asks for one",
                user.name
            );
            findings.warning(Some(place.clone()), message);
        }
    }
}

/// Limits that contradict each other.
fn times_and_sizes(placed: &Placed, findings: &mut Findings<'_>) {
    let Config {
        health,
        pool,
        failover,
        limits,
        auth,
        engine,
        ..
    } = &placed.config;
    let show = units::show_duration;
    let at = |span: &Option<Span>| span.clone();

    let least = health.interval + health.timeout;
    if health.stale_after < least {
        let (stale, least) = (show(health.stale_after), show(least));
        let message = format!("health.stale_after ({stale}) must be at least interval + timeout ({least})");
        findings.error(at(&placed.health), message);
    } else if health.stale_after < least * health.failures_to_eject {
        let message = "health.stale_after is less than failures_to_eject * (interval + timeout): a slow node leaves by age \
                       before it leaves by count";
        findings.warning(at(&placed.health), message);
    }

    if pool.min_size > pool.size {
        let message = format!(
            "pool.min_size ({}) is more than pool.size ({})",
            pool.min_size, pool.size
        );
        findings.error(at(&placed.pool), message);
    }
    let backends: u64 = auth
        .users
        .iter()
        .map(|user| u64::from(user.pool_size.unwrap_or(pool.size)))
        .sum();
    if backends > BACKENDS_PER_NODE_NOTED {
        let message = format!(
            "the pools of all users come to {backends} connections a node for each database: compare max_connections there"
        );
        findings.warning(at(&placed.pool), message);
    }
    if limits.unauthenticated_max > limits.client_connections_max {
        let message =
            "limits.unauthenticated_max is more than limits.client_connections_max and bounds nothing";
        findings.warning(at(&placed.limits), message);
    }
    if matches!(engine, Engine::PgAutoFailover { .. }) && failover.hold < FAILOVER_USUAL {
        let message = format!(
            "failover.hold ({}) is less than a failover by pg_auto_failover usually takes ({})",
            show(failover.hold),
            show(FAILOVER_USUAL)
        );
        findings.warning(at(&placed.failover), message);
    }
}
