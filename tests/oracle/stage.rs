//! A primary and its hot standby, and what is known of each database's functions.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, OnceLock};

use halyard::classify::{CatalogPart, CatalogRow, FunctionCatalog, FunctionOverrides};

use crate::report::Report;
use crate::server::{Server, command, give_to_postgres};
use crate::support::{Address, PATIENCE, guardian, ports, until_within};

/// Nothing may conflict with replay for ever, nothing may be cancelled by it, and nobody but the corpus may write.
const PRIMARY_SETTINGS: &str = "wal_level = replica\nmax_wal_senders = 4\nautovacuum = off\nhot_standby_feedback = on\n\
     max_standby_streaming_delay = -1\nmax_prepared_transactions = 2\nwal_retrieve_retry_interval = '100ms'\n\
     wal_receiver_status_interval = '1s'\ncheckpoint_timeout = '1h'\nmax_wal_size = '8GB'";

/// The two servers, and what trials on them have found.
pub(crate) struct Stage {
    pub(crate) primary: Server,
    pub(crate) standby: Server,
    catalogs: Mutex<HashMap<String, Arc<FunctionCatalog>>>,
    /// What an operator would allow. Nothing, but where the oracle is to be seen to fail.
    overrides: Mutex<FunctionOverrides>,
    pub(crate) report: Mutex<Report>,
}

impl Stage {
    /// Starts both.
    pub(crate) fn start() -> Self {
        let primary = Server::start("oracle_primary", PRIMARY_SETTINGS);
        let standby = standby_of(&primary, "oracle_standby");
        Self {
            primary,
            standby,
            catalogs: Mutex::default(),
            overrides: Mutex::default(),
            report: Mutex::default(),
        }
    }

    /// Takes functions for harmless from now on.
    pub(crate) fn allow(&self, functions: &[&str]) {
        self.overrides.lock().unwrap().allow = functions.iter().map(|&name| name.to_owned()).collect();
        self.catalogs.lock().unwrap().clear();
    }

    /// What the functions of a database do. Read again when `changed`, as Halyard does after DDL.
    pub(crate) fn catalog(&self, database: &str, changed: bool) -> Arc<FunctionCatalog> {
        let mut catalogs = self.catalogs.lock().unwrap();
        if let Some(known) = catalogs.get(database).filter(|_| !changed) {
            return Arc::clone(known);
        }
        let overrides = self.overrides.lock().unwrap();
        let read = Arc::new(read_catalog(&self.primary.superuser(database), &overrides));
        catalogs.insert(database.to_owned(), Arc::clone(&read));
        read
    }
}

/// A row of a catalogue: kind, name, detail, system.
type Row = Vec<Option<String>>;

fn read_catalog(address: &Address, overrides: &FunctionOverrides) -> FunctionCatalog {
    // PostgreSQL's own objects are the same in all databases, and for as long as the tests run.
    static BUILTINS: OnceLock<Vec<Row>> = OnceLock::new();
    let mut client = address.connect_with(&[("options", "-c jit=off")]);
    let builtins = BUILTINS.get_or_init(|| client.run(&CatalogPart::Builtins.query()).rows);
    let objects = client.run(&CatalogPart::Objects.query()).rows;
    let rows = builtins.iter().chain(&objects).map(|row| {
        let column = |at: usize| row[at].as_deref().unwrap_or_default().as_bytes();
        CatalogRow {
            kind: column(0)[0],
            name: column(1),
            detail: column(2),
            system: column(3) == b"t",
        }
    });
    FunctionCatalog::from_rows(rows, overrides).unwrap()
}

/// A standby that streams from a server.
fn standby_of(primary: &Server, name: &str) -> Server {
    let folder: PathBuf = guardian::folder().join(name);
    std::fs::create_dir(&folder).unwrap();
    give_to_postgres(&folder);
    let data = folder.join("data");
    guardian::note(&format!("server {}", data.display()));
    let status = command("pg_basebackup", &folder)
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ])
        .args(["-p", &primary.port.to_string(), "-D"])
        .arg(&data)
        .status()
        .unwrap();
    assert!(status.success(), "pg_basebackup fails");
    let port = ports::single();
    let path = data.join("postgresql.auto.conf");
    let settings = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{settings}\nport = {port}\n")).unwrap();
    drop(
        command("postgres", &folder)
            .arg("-D")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap(),
    );
    let server = Server { port };
    until_within(PATIENCE, "the standby to take connections", || {
        server.superuser("postgres").try_connect(&[]).ok()
    });
    server
}
