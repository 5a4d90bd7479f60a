//! Where the statements come from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::server::{command, give_to_postgres};
use crate::stage::Stage;
use crate::support::{Address, guardian, python};

/// Files of PostgreSQL's suite that an ordinary run takes: those that make what the others read, and those with most
/// ways to write a query.
const ORDINARY: &[&str] = &[
    "test_setup",
    "boolean",
    "strings",
    "numeric",
    "timestamptz",
    "create_index",
    "create_view",
    "create_aggregate",
    "create_function_sql",
    "create_cast",
    "select",
    "subselect",
    "union",
    "case",
    "join",
    "aggregates",
    "sequence",
    "arrays",
    "rowsecurity",
    "groupingsets",
    "jsonb",
    "window",
    "with",
    "domain",
    "limit",
    "rules",
];

/// What `tests/regress/inputs.sh` fetches from Debian's archive and builds.
pub(crate) struct Inputs(PathBuf);

impl Inputs {
    /// Fetches it, unless it is there.
    ///
    /// # Errors
    /// Why it cannot be had, in the script's words.
    pub(crate) fn fetch() -> Result<Self, String> {
        // Both tests want it, and one fetches.
        static FETCHED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        FETCHED.get_or_init(fetch).clone().map(Self)
    }

    /// PostgreSQL's scanner as a program.
    pub(crate) fn scanner(&self) -> PathBuf {
        self.0.join("scanner")
    }

    /// All SQL of the suite.
    pub(crate) fn sources(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(self.0.join("regress/sql"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
            .collect();
        files.sort();
        files
    }

    /// The regression suite, made ready for psql.
    pub(crate) fn suite(&self, full: bool) -> Suite {
        // The server reads files of it, as its own user.
        let folder = guardian::folder().join("suite");
        std::fs::create_dir(&folder).unwrap();
        for part in ["regress", "lib"] {
            let copied = Command::new("cp")
                .arg("-R")
                .arg(self.0.join(part))
                .arg(&folder)
                .status();
            assert!(copied.unwrap().success(), "the suite cannot be copied");
        }
        let results = folder.join("results");
        std::fs::create_dir(&results).unwrap();
        give_to_postgres(&folder);
        give_to_postgres(&results);
        let schedule = std::fs::read_to_string(folder.join("regress/parallel_schedule")).unwrap();
        let files = schedule
            .lines()
            .filter_map(|line| line.strip_prefix("test:"))
            .flat_map(str::split_whitespace)
            .filter(|file| full || ORDINARY.contains(file))
            .map(str::to_owned);
        Suite {
            files: files.collect(),
            folder,
        }
    }
}

fn fetch() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let inputs = target.join("regress");
    let fetched = Command::new(root.join("tests/regress/inputs.sh"))
        .arg(&inputs)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if fetched.status.success() {
        Ok(inputs)
    } else {
        Err(String::from_utf8_lossy(&fetched.stderr).into_owned())
    }
}

/// PostgreSQL's regression suite.
pub(crate) struct Suite {
    folder: PathBuf,
    /// Names of its files, in the schedule's order.
    pub(crate) files: Vec<String>,
}

impl Suite {
    /// Has psql run one file as `pg_regress` would. What it prints is nobody's business here.
    pub(crate) fn run(&self, file: &str, port: u16) {
        let mut psql = command("psql", &self.folder);
        psql.args([
            "-X",
            "-q",
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-d",
            "regression",
            "-p",
            &port.to_string(),
        ])
        .args(["-v", "HIDE_TABLEAM=on", "-v", "HIDE_TOAST_COMPRESSION=on", "-f"])
        .arg(self.folder.join(format!("regress/sql/{file}.sql")))
        .env("PG_ABS_SRCDIR", self.folder.join("regress"))
        .env("PG_ABS_BUILDDIR", &self.folder)
        .env("PG_LIBDIR", self.folder.join("lib"))
        .env("PG_DLSUFFIX", ".so")
        .env("PGTZ", "PST8PDT")
        .env("PGDATESTYLE", "Postgres, MDY")
        .env("PGOPTIONS", "-c intervalstyle=postgres_verbose")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
        let status = psql.status().unwrap();
        // 2 is a lost connection, 3 a script that ON_ERROR_STOP ended: both would hide the rest of the file.
        assert!(
            status.code().is_some_and(|code| code < 2),
            "psql ends {file} with {status}"
        );
    }
}

/// The database that the suite is run in, as `pg_regress` makes it.
pub(crate) const MAKE_DATABASE: &[&str] = &[
    "CREATE DATABASE regression TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'",
    "ALTER DATABASE regression SET lc_messages TO 'C'",
    "ALTER DATABASE regression SET lc_monetary TO 'C'",
    "ALTER DATABASE regression SET lc_numeric TO 'C'",
    "ALTER DATABASE regression SET lc_time TO 'C'",
    "ALTER DATABASE regression SET bytea_output TO 'hex'",
    "ALTER DATABASE regression SET timezone_abbreviations TO 'Default'",
];

/// Runs pgbench's three scripts, initialisation, TPC-B and select-only, in each protocol.
pub(crate) fn pgbench(port: u16) {
    let mut runs: Vec<Vec<&str>> = vec![vec!["-i", "-q", "-s", "1"]];
    for protocol in ["simple", "extended", "prepared"] {
        for (script, transactions) in [
            ("tpcb-like", "20"),
            ("simple-update", "20"),
            ("select-only", "50"),
        ] {
            runs.push(vec!["-n", "-M", protocol, "-t", transactions, "-b", script]);
        }
    }
    for arguments in runs {
        let status = command("pgbench", guardian::folder())
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
            .args(&arguments)
            .arg("postgres")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "pgbench {arguments:?} ends with {status}");
    }
}

/// Runs what drivers and ORMs are tested with, so that their own statements are tried: the catalogue queries with which
/// they find out what there is, those that they make, and those that they prepare.
pub(crate) fn drivers(stage: &Stage, port: u16) {
    const DATABASE: &str = "drivers";
    let direct = stage.primary.superuser("postgres");
    direct.connect().run(&format!("CREATE DATABASE {DATABASE}"));
    let address = Address {
        port,
        ..stage.primary.superuser(DATABASE)
    };
    for script in ["django_orm", "sqlalchemy_orm", "psycopg3", "asyncpg_driver"] {
        let mut direct = stage.primary.superuser(DATABASE).connect();
        direct.run(&format!("CREATE SCHEMA {script}"));
        let program = python(&format!("{script}.py"), &address).env("SCHEMA", script);
        eprintln!("oracle: {script}");
        assert_eq!(program.succeed(), "");
    }
}
