//! Real PostgreSQL servers for the tests: each in a folder and on a port of its own, ended when dropped.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use halyard_health::{ClusterView, Config, Health, NodeConfig, NodeView, Secret, spawn};
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// The limit of every wait for a server to do something.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder that the server's user owns, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/halyard-health-{}-{number}", std::process::id()));
        run(unprivileged("/bin/mkdir").args(["-m", "700"]).arg(&path));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program as a user that PostgreSQL agrees to run as, killed if the test's thread dies.
fn unprivileged(program: &str) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]);
    }
    command
        .args(["--pdeathsig", "KILL", program])
        .current_dir("/tmp")
        .stdin(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A PostgreSQL server. Its faults are verbs.
pub(crate) struct Server {
    name: &'static str,
    folder: Folder,
    pub(crate) port: u16,
    postmaster: Option<Child>,
}

impl Server {
    /// A new database system with the probe's role, started.
    pub(crate) async fn primary(name: &'static str) -> Self {
        let mut server = Self::empty(name);
        run(unprivileged(&format!("{BIN}/initdb"))
            .args(["-A", "trust", "-N", "-U", "postgres", "-D"])
            .arg(server.data()));
        server.configure();
        server.start().await;
        server
            .sql("CREATE ROLE halyard LOGIN IN ROLE pg_monitor; CREATE TABLE written (n bigint)")
            .await;
        server
    }

    /// A copy of `upstream` that streams from it, started.
    pub(crate) async fn standby_of(name: &'static str, upstream: &Self) -> Self {
        let mut server = Self::empty(name);
        server.copy(upstream);
        server.start().await;
        server
    }

    fn empty(name: &'static str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self {
            name,
            folder: Folder::new(),
            port,
            postmaster: None,
        }
    }

    fn copy(&self, upstream: &Self) {
        run(unprivileged(&format!("{BIN}/pg_basebackup"))
            .args([
                "-R",
                "-c",
                "fast",
                "-X",
                "stream",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
            ])
            .arg(upstream.port.to_string())
            .arg("-D")
            .arg(self.data()));
        self.configure();
    }

    /// Throws the data away and starts again as a standby of `upstream`.
    pub(crate) async fn rebuild_from(&mut self, upstream: &Self) {
        self.kill();
        fs::remove_dir_all(self.data()).unwrap();
        self.copy(upstream);
        self.start().await;
    }

    fn data(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    fn configure(&self) {
        let socket = self.folder.0.display();
        let port = self.port;
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .unwrap();
        write!(
            file,
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{socket}'\n\
             fsync = off\nshared_buffers = 16MB\nmax_connections = 20\nwal_retrieve_retry_interval = 200ms\n\
             autovacuum = off\n"
        )
        .unwrap();
    }

    /// Starts the server and waits until it accepts connections.
    pub(crate) async fn start(&mut self) {
        let log = fs::File::create(self.folder.0.join("log")).unwrap();
        let mut command = unprivileged(&format!("{BIN}/postgres"));
        command
            .arg("-D")
            .arg(self.data())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.postmaster = Some(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.connect().await {
            assert!(Instant::now() < deadline, "{} does not start: {error}", self.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn connect(&self) -> Result<(Client, AbortOnDropHandle<()>), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .dbname("postgres")
            .connect(NoTls)
            .await?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok((client, AbortOnDropHandle::new(driver)))
    }

    /// Runs statements as superuser, each in a transaction of its own.
    pub(crate) async fn sql(&self, statements: &str) {
        let (client, _driver) = self.connect().await.unwrap();
        for statement in statements.split(';') {
            client.batch_execute(statement).await.unwrap();
        }
    }

    /// One value of one row.
    pub(crate) async fn value(&self, query: &str) -> i64 {
        let (client, _driver) = self.connect().await.unwrap();
        client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Ends its streaming; it goes on answering.
    pub(crate) async fn cut_off(&self) {
        self.sql("ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()")
            .await;
    }

    /// Has it stream from `upstream`.
    pub(crate) async fn follow(&self, upstream: &Self) {
        let port = upstream.port;
        self.sql(&format!(
            "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={port} user=postgres'; SELECT pg_reload_conf()"
        ))
        .await;
    }

    /// Ends it at once, as a crash does.
    pub(crate) fn kill(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else {
            return;
        };
        self.signal_all(postmaster.id(), "CONT");
        // An immediate shutdown ends the children too; none of them writes anything more.
        signal(postmaster.id(), "QUIT");
        let deadline = Instant::now() + PATIENCE;
        while postmaster.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                self.signal_all(postmaster.id(), "KILL");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops every process of it where it stands: connections go on being accepted, nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal_all(self.postmaster.as_ref().unwrap().id(), "STOP");
    }

    /// Wakes it up again.
    pub(crate) fn thaw(&self) {
        self.signal_all(self.postmaster.as_ref().unwrap().id(), "CONT");
    }

    fn signal_all(&self, postmaster: u32, name: &str) {
        signal(postmaster, name);
        let children = fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            signal(child.parse().unwrap(), name);
        }
    }

    fn place(&self) -> NodeConfig {
        NodeConfig {
            name: self.name.to_owned(),
            host: "127.0.0.1".to_owned(),
            port: self.port,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(pid: u32, name: &str) {
    // A child that has just ended is no concern.
    let _ = Command::new("/bin/kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// The monitor under test, with quick limits.
pub(crate) fn watch(servers: &[&Server]) -> Watched {
    watch_with(servers, |_| {})
}

/// The monitor under test, with its configuration changed.
pub(crate) fn watch_with(servers: &[&Server], change: impl FnOnce(&mut Config)) -> Watched {
    let nodes = servers.iter().map(|server| server.place()).collect();
    let mut config = Config::new(nodes, "halyard", Secret::default(), "postgres");
    config.interval = Duration::from_millis(100);
    config.timeout = Duration::from_millis(500);
    config.connect_timeout = Duration::from_millis(500);
    config.stale_after = Duration::from_secs(3);
    change(&mut config);
    let shutdown = CancellationToken::new();
    Watched {
        health: spawn(config, shutdown.clone()),
        shutdown,
    }
}

pub(crate) struct Watched {
    pub(crate) health: Health,
    shutdown: CancellationToken,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Watched {
    pub(crate) fn now(&self) -> Arc<ClusterView> {
        Arc::clone(&self.health.view.borrow())
    }

    /// Waits for a view of which `condition` holds.
    pub(crate) async fn until(
        &self,
        what: &str,
        condition: impl Fn(&ClusterView) -> bool,
    ) -> Arc<ClusterView> {
        let mut view = self.health.view.clone();
        let found = tokio::time::timeout(PATIENCE, view.wait_for(|view| condition(view))).await;
        match found {
            Ok(found) => Arc::clone(&found.unwrap()),
            Err(_) => panic!("not seen in time: {what}; last view: {:#?}", self.now()),
        }
    }

    /// Waits until `node` is the primary and every other node a standby that serves reads.
    pub(crate) async fn until_healthy(&self, node: usize) -> Arc<ClusterView> {
        self.until("a healthy cluster", |view| {
            primary(view) == Some(node)
                && view
                    .nodes
                    .iter()
                    .all(|other| usize::from(other.id.0) == node || other.serves_reads)
        })
        .await
    }
}

/// The index of the primary.
pub(crate) fn primary(view: &ClusterView) -> Option<usize> {
    view.primary().map(|node: &NodeView| usize::from(node.id.0))
}
