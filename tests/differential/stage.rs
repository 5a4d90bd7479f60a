//! Two equal servers, Halyard before one of them, and on both a database for each theme.

use std::sync::OnceLock;
use std::time::Duration;

use crate::support::{Address, Client, PATIENCE, until, until_within};

use super::language::Exchange;
use super::player::{Player, Stranger};
use super::server::{Front, Server};
use super::transcript::{Difference, difference};

/// The role of the clients.
const APP: &str = "app";
/// A superuser.
const BOSS: &str = "boss";
/// A role with settings of its own.
const TUNED: &str = "tuned";
/// Backends for each role: two that clients may hold at a time, and one for the [`Stranger`].
const BACKENDS: u16 = 3;
/// The role of the clients of generated exchanges, six and the [`Stranger`]: a backend for each of the two that may hold one,
/// one for the stranger, and one for all the others.
const CROWD: &str = "crowd";
const CROWD_BACKENDS: u16 = 4;
/// The role of clients that ask `currval` and `lastval`, which keeps its backend: one for each of four of them, and one for
/// the [`Stranger`].
const DRAWERS: &str = "drawers";
const DRAWERS_BACKENDS: u16 = 5;

/// The role of clients with a backend each: as many as an exchange has, and one for the [`Stranger`].
const KEEPERS: &str = "keepers";
const KEEPERS_BACKENDS: u16 = 8;

const ROLES: &str = "\
    CREATE ROLE app LOGIN; CREATE ROLE crowd LOGIN; CREATE ROLE boss LOGIN SUPERUSER; \
    CREATE ROLE drawers LOGIN; CREATE ROLE keepers LOGIN; CREATE ROLE reader; CREATE ROLE stranger; \
    GRANT reader TO app, crowd, drawers, keepers; GRANT app TO crowd, drawers, keepers; \
    CREATE ROLE tuned LOGIN; ALTER ROLE tuned SET work_mem = '5MB'; ALTER ROLE tuned SET app.tenant = 'role'; \
    GRANT app TO tuned";

/// Servers' settings that make what they do quicker and no different.
const SETTINGS: &str =
    "max_connections = 300\nautovacuum = off\nsynchronous_commit = off\ndeadlock_timeout = 200ms\njit = off";

/// A client that waits for a backend in vain shall not hold up the tests. With one thread, which backend a client gets
/// depends on nothing but the exchange.
const HALYARD_SETTINGS: &str = "[pool]\nwait_timeout = '800ms'\n[general]\nworkers = 1";

const FIXTURE: &str = include_str!("fixture.sql");
/// With code that runs without being named.
const HIDDEN_FIXTURE: &str = concat!(include_str!("fixture.sql"), include_str!("hidden.sql"));
const LIGHT_FIXTURE: &str = "DELETE FROM log; \
    SELECT setval('log_n_seq', 1, false), setval('s', 1, false), setval('s2', 100, false)";

/// What a client could find on its backend that is not its own, one text a row.
const INSPECTION: &str = "\
    SELECT 'settings ' || md5(string_agg(name || setting, ' ' ORDER BY name)) FROM pg_settings \
        WHERE name !~ '^(transaction_|plpgsql\\.)' \
    UNION ALL SELECT 'current_user = ' || current_user || ', session_user = ' || session_user \
    UNION ALL SELECT 'app.' || n || ' = ' || coalesce(nullif(current_setting('app.' || n, true), ''), '(none)') \
        FROM unnest('{x,y,tenant}'::text[]) n \
    UNION ALL SELECT 'SQL statement ' || name FROM pg_prepared_statements WHERE from_sql \
    UNION ALL SELECT 'cursor ' || name FROM pg_cursors \
    UNION ALL SELECT 'channel ' || c FROM pg_listening_channels() c \
    UNION ALL SELECT 'advisory lock ' || objid FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory' \
    UNION ALL SELECT 'temporary ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema() \
    UNION ALL SELECT 'temporary function ' || proname FROM pg_proc WHERE pronamespace = pg_my_temp_schema()";

/// Its settings one by one.
const SETTINGS_HELD: &str =
    "SELECT name || ' = ' || setting FROM pg_settings WHERE name !~ '^(transaction_|plpgsql\\.)'";

/// Backends of clients that do something or hold something, seen by the superuser.
const BUSY: &str = "\
    SELECT count(*) FROM pg_stat_activity a WHERE datname = current_database() AND pid <> pg_backend_pid() \
    AND backend_type = 'client backend' AND usename <> 'postgres' \
    AND (state <> 'idle' OR EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'advisory'))";
const CONNECTED: &str = "\
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
    AND backend_type = 'client backend'";

const END_BACKENDS: &str = "\
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() \
    AND backend_type = 'client backend' AND usename <> 'postgres'";

struct House {
    direct: Server,
    behind: Server,
    front: Front,
}

fn house() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        let direct = Server::start("direct", SETTINGS);
        let behind = Server::start("behind", SETTINGS);
        for server in [&direct, &behind] {
            server.superuser("postgres").connect().run(ROLES);
        }
        let pools = [
            (APP, BACKENDS),
            (BOSS, BACKENDS),
            (TUNED, BACKENDS),
            (CROWD, CROWD_BACKENDS),
            (DRAWERS, DRAWERS_BACKENDS),
            (KEEPERS, KEEPERS_BACKENDS),
        ];
        let in_sessions = [KEEPERS];
        let front = Front::start(&behind, "differential", &pools, &in_sessions, HALYARD_SETTINGS);
        House {
            direct,
            behind,
            front,
        }
    })
}

/// A database on both servers that one theme has for itself.
pub(crate) struct Stage {
    direct: Address,
    through: Address,
    /// The server behind Halyard, without it.
    behind: Address,
    direct_admin: Client,
    behind_admin: Client,
    fixture: &'static str,
    backends: u16,
    /// What a new backend has.
    untouched: Option<Vec<String>>,
    /// Whether the first client of the role is still to ask `lastval`, so that Halyard knows that its clients do.
    teaches: bool,
}

impl Stage {
    /// The stage of a theme.
    pub(crate) fn new(theme: &str) -> Self {
        match theme {
            "sequences" => Self::of(theme, DRAWERS, DRAWERS_BACKENDS, fixture_of(theme)),
            _ => Self::of(theme, APP, BACKENDS, fixture_of(theme)),
        }
    }

    /// The stage of a theme whose clients have a backend each.
    pub(crate) fn in_sessions(theme: &str) -> Self {
        let fixture = fixture_of(theme);
        Self::of(
            &format!("{theme}_in_sessions"),
            KEEPERS,
            KEEPERS_BACKENDS,
            fixture,
        )
    }

    /// The stage of generated exchanges, which change nothing of the schema.
    pub(crate) fn crowded(theme: &str) -> Self {
        Self::light(theme, CROWD, CROWD_BACKENDS)
    }

    /// The stage of generated exchanges whose clients ask for what they have drawn.
    pub(crate) fn drawing(theme: &str) -> Self {
        Self::light(theme, DRAWERS, DRAWERS_BACKENDS)
    }

    fn light(theme: &str, user: &str, backends: u16) -> Self {
        let mut stage = Self::of(theme, user, backends, LIGHT_FIXTURE);
        for admin in [&mut stage.direct_admin, &mut stage.behind_admin] {
            admin.run(FIXTURE);
        }
        stage
    }

    fn of(theme: &str, user: &str, backends: u16, fixture: &'static str) -> Self {
        let house = house();
        for server in [&house.direct, &house.behind] {
            let mut admin = server.superuser("postgres").connect();
            admin.run(&format!("CREATE DATABASE {theme}"));
        }
        let through = Address {
            port: house.front.port,
            ..house.behind.user(user, theme)
        };
        Self {
            direct: house.direct.user(user, theme),
            behind: house.behind.user(user, theme),
            direct_admin: house.direct.superuser(theme).connect(),
            behind_admin: house.behind.superuser(theme).connect(),
            through,
            fixture,
            backends,
            untouched: None,
            teaches: user == DRAWERS,
        }
    }

    /// Plays an exchange on both sides. The report of the first difference, if there is one.
    pub(crate) fn compare(&mut self, exchange: &Exchange) -> Option<Difference> {
        let direct = {
            quiet(&mut self.direct_admin, CONNECTED);
            self.direct_admin.run(self.fixture);
            Player::new(&self.direct, &mut self.direct_admin).play(exchange)
        };
        quiet(&mut self.behind_admin, BUSY);
        self.behind_admin.run(self.fixture);
        if std::mem::take(&mut self.teaches) {
            let mut first = self.through.connect();
            first.query("SELECT lastval()");
            first.leave();
        }
        let stranger = Stranger(self.through.connect());
        let mut through = Player::new(&self.through, &mut self.behind_admin)
            .among(stranger, &direct)
            .play(exchange);
        through.left = self.left_behind();
        let difference = difference(exchange, &direct, &through);
        if difference.is_some() {
            self.renew_backends();
        }
        difference
    }

    /// Gives Halyard new backends, so that what went wrong in one exchange does not meet the next.
    fn renew_backends(&mut self) {
        self.behind_admin.run(END_BACKENDS);
        until("backends to be new", || {
            let mut clients: Vec<Client> = (0..self.backends).map(|_| self.through.connect()).collect();
            let begun = clients
                .iter_mut()
                .all(|client| client.query("BEGIN").error.is_none());
            clients.into_iter().for_each(Client::leave);
            begun
        });
    }

    /// What the next clients find on the backends, other than what a new backend has.
    fn left_behind(&mut self) -> Vec<String> {
        if !is_quiet(&mut self.behind_admin, BUSY) {
            return vec!["a transaction or a lock of a client that has left".to_owned()];
        }
        let expected = self
            .untouched
            .get_or_insert_with(|| texts(&mut self.behind.connect(), INSPECTION));
        // All at once, in blocks, so that each has another backend.
        let mut inspectors: Vec<Client> = (0..self.backends).map(|_| self.through.connect()).collect();
        let mut left = Vec::new();
        for inspector in &mut inspectors {
            let begun = inspector.query("BEGIN");
            if let Some(error) = begun.error {
                left.push(format!("a backend that is not free: {error}"));
                continue;
            }
            let found = texts(inspector, INSPECTION);
            left.extend(found.into_iter().filter(|line| !expected.contains(line)));
            if left.iter().any(|line| line.starts_with("settings ")) {
                let expected = texts(&mut self.behind.connect(), SETTINGS_HELD);
                let found = texts(inspector, SETTINGS_HELD);
                left.extend(found.into_iter().filter(|line| !expected.contains(line)));
            }
        }
        for mut inspector in inspectors {
            inspector.query("COMMIT");
            inspector.leave();
        }
        left.dedup();
        left
    }
}

fn fixture_of(theme: &str) -> &'static str {
    match theme {
        "hidden" => HIDDEN_FIXTURE,
        _ => FIXTURE,
    }
}

fn texts(client: &mut Client, sql: &str) -> Vec<String> {
    let answer = client.run(sql);
    answer
        .rows
        .into_iter()
        .filter_map(|mut row| row.pop().flatten())
        .collect()
}

fn is_quiet(admin: &mut Client, count: &str) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while admin.value(count) != "0" {
        if std::time::Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Waits until the clients of the exchange before are gone.
#[track_caller]
fn quiet(admin: &mut Client, count: &str) {
    until_within(PATIENCE, "the last clients to be gone", || {
        is_quiet(admin, count).then_some(())
    });
}
