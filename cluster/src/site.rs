//! One cluster's place on this machine: its folder, its user, its programs, and how its processes are started.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use crate::error::{ClusterError, LogTail, Result};
use crate::layout::{Layout, Ports, Service};
use crate::owner::Owner;
use crate::process::{self, CLUSTER_MARK, SERVICE_MARK};

/// How often a condition is looked at while something starts.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Major versions looked for, in this order. 15 is Debian 12's, for which pg_auto_failover is packaged there.
const POSTGRESQL_VERSIONS: [u8; 4] = [15, 16, 17, 14];

/// The installed programs that a cluster is made of.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Where initdb, postgres, pg_basebackup and pgbench of one version are.
    pub(crate) bin: PathBuf,
}

impl Programs {
    /// Finds a PostgreSQL that has pg_auto_failover's extension, and pg_autoctl.
    pub(crate) fn find() -> Result<Programs> {
        let missing = |what: &str| ClusterError::Missing {
            what: what.to_owned(),
        };
        let mut bin = None;
        let mut extension_missing = false;
        for version in POSTGRESQL_VERSIONS {
            let candidate = PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"));
            if !candidate.join("postgres").exists() {
                continue;
            }
            if Path::new(&format!("/usr/lib/postgresql/{version}/lib/pgautofailover.so")).exists() {
                bin = Some(candidate);
                break;
            }
            extension_missing = true;
        }
        let bin = bin.ok_or_else(|| match extension_missing {
            true => missing("the extension pgautofailover (package postgresql-15-auto-failover)"),
            false => missing("PostgreSQL (package postgresql-15)"),
        })?;
        if !Path::new("/usr/bin/pg_autoctl").exists() {
            return Err(missing("pg_autoctl (package pg-auto-failover-cli)"));
        }
        Ok(Programs { bin })
    }
}

/// A cluster's folder with everything needed to act on it.
#[derive(Debug)]
pub(crate) struct Site {
    /// Its paths.
    pub(crate) layout: Layout,
    /// Who runs its servers.
    pub(crate) owner: Owner,
    /// What is installed.
    pub(crate) programs: Programs,
}

impl Site {
    /// The path of a program of PostgreSQL's.
    pub(crate) fn postgresql(&self, program: &str) -> PathBuf {
        self.programs.bin.join(program)
    }

    /// A command for one service: as the servers' user, in its own session so that no terminal's signal reaches
    /// it, with nothing of the caller's environment.
    ///
    /// pg_autoctl keeps its configuration, state and pid file under the XDG folders, so each service has its
    /// own. PG_REGRESS_SOCK_DIR is how pg_autoctl is told where the unix sockets go.
    pub(crate) fn command(&self, service: Service, program: &Path) -> Command {
        let home = self.layout.home(service);
        let mut path = self.programs.bin.clone().into_os_string();
        path.push(":/usr/bin:/bin");
        let mut command = Command::new("/usr/bin/setsid");
        command
            .arg(program)
            .current_dir(self.layout.dir())
            .env_clear()
            .env("PATH", path)
            .env("LANG", "C.UTF-8")
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("state"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("TMPDIR", home.join("tmp"))
            .env("PG_REGRESS_SOCK_DIR", self.layout.run())
            .env("PGHOST", self.layout.run())
            .env("PGUSER", "postgres")
            .env("PGPASSFILE", self.layout.server_pgpass())
            .env(CLUSTER_MARK, self.layout.dir())
            .env(SERVICE_MARK, service.to_string())
            .stdin(Stdio::null());
        self.owner.apply(&mut command);
        command
    }

    /// This program for a service to run: itself, or a copy of it where the servers' user cannot reach it, as when it
    /// was built in root's home folder.
    pub(crate) fn own_program(&self) -> Result<PathBuf> {
        let own = std::env::current_exe().map_err(ClusterError::io("find", Path::new("this program")))?;
        if self.owner.may("-x", &own) {
            return Ok(own);
        }
        let copy = self.layout.program_copy();
        if let Some(folder) = copy.parent() {
            self.owner.make_dir(folder)?;
        }
        let _ = std::fs::remove_file(&copy);
        std::fs::copy(&own, &copy).map_err(ClusterError::io("write", &copy))?;
        self.owner.give(&copy, 0o500)?;
        Ok(copy)
    }

    /// Makes a service's own folders.
    pub(crate) fn make_home(&self, service: Service) -> Result<()> {
        let home = self.layout.home(service);
        self.owner.make_dir(&home)?;
        for folder in ["config", "state", "run", "tmp"] {
            self.owner.make_dir(&home.join(folder))?;
        }
        Ok(())
    }

    /// Runs a command to its end within `limit`; `what` says it in a sentence for the error. Its output goes to
    /// the service's log, and its end into the error.
    pub(crate) async fn run(
        &self,
        service: Service,
        what: &str,
        mut command: Command,
        limit: Duration,
    ) -> Result<()> {
        let path = self.layout.output(service);
        let log = self.owner.open_log(&path)?;
        let before = log.metadata().map_err(ClusterError::io("read", &path))?.len();
        let errors = log.try_clone().map_err(ClusterError::io("open", &path))?;
        command.stdout(log).stderr(errors).kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(ClusterError::io("start", Path::new(what)))?;
        let problem = match tokio::time::timeout(limit, child.wait()).await {
            Ok(Ok(status)) if status.success() => return Ok(()),
            Ok(Ok(status)) => format!("failed ({status})"),
            Ok(Err(error)) => format!("failed ({error})"),
            Err(_) => format!("did not end within {} s", limit.as_secs()),
        };
        let written = std::fs::read(&path).unwrap_or_default();
        let own = written
            .get(usize::try_from(before).unwrap_or(0)..)
            .unwrap_or_default();
        let log = LogTail::of(&String::from_utf8_lossy(own));
        Err(ClusterError::Step {
            what: format!("{service}: {what} {problem}"),
            log,
        })
    }

    /// What a command prints that ends well within `limit`; `what` says it in a sentence for the error.
    pub(crate) async fn output(&self, what: &str, mut command: Command, limit: Duration) -> Result<String> {
        let failed = |log| ClusterError::Step {
            what: format!("{what} failed"),
            log: LogTail::of(log),
        };
        match tokio::time::timeout(limit, command.kill_on_drop(true).output()).await {
            Ok(Ok(output)) if output.status.success() => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            Ok(Ok(output)) => Err(failed(&String::from_utf8_lossy(&output.stderr))),
            Ok(Err(error)) => Err(ClusterError::io("start", Path::new(what))(error)),
            Err(_) => Err(failed("It did not end in time.")),
        }
    }

    /// Starts a service that goes on after this command has ended.
    pub(crate) fn spawn(&self, service: Service, mut command: Command) -> Result<Started> {
        let path = self.layout.output(service);
        let log = self.owner.open_log(&path)?;
        let errors = log.try_clone().map_err(ClusterError::io("open", &path))?;
        command.stdout(log).stderr(errors);
        let child = command
            .spawn()
            .map_err(ClusterError::io("start", Path::new(&service.to_string())))?;
        Ok(Started {
            service,
            child,
            logs: self.layout.all_logs(service),
        })
    }

    /// Removes what a killed service left behind and a start would stumble over: its pid files and the lock of
    /// its socket hold numbers that another process may have by now. Does nothing while any of it runs.
    pub(crate) fn sweep(&self, service: Service, ports: &Ports) {
        if !process::members_of(&self.layout, service).is_empty() {
            return;
        }
        let socket = |suffix| {
            self.layout
                .run()
                .join(format!(".s.PGSQL.{}{suffix}", ports.of(service)))
        };
        let data = self.layout.data(service);
        for stale in [data.join("postmaster.pid"), socket(".lock"), socket("")] {
            // Absent is what it should be.
            let _ = std::fs::remove_file(stale);
        }
        let keeper = self.layout.home(service).join("run/pg_autoctl");
        let relative = data.strip_prefix("/").unwrap_or(&data).to_path_buf();
        for stale in [
            "pg_autoctl.pid",
            "pg_autoctl_postgres.pid",
            "pg_autoctl_node_active.pid",
            "pg_autoctl_listener.pid",
        ] {
            let _ = std::fs::remove_file(keeper.join(&relative).join(stale));
        }
    }
}

/// A service that this command has started. Dropping it lets the service run on.
pub(crate) struct Started {
    service: Service,
    child: Child,
    logs: Vec<PathBuf>,
}

impl Started {
    /// Waits until `ready` answers, and fails at once when the service ends before. An error of `ready` means
    /// not yet; the last one is told when `limit` is over.
    pub(crate) async fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl AsyncFnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let (child, service, logs) = (&mut self.child, self.service, &self.logs);
        let what = format!("{service}: {what}");
        let answer = wait_for(&what, limit, async || {
            if let Ok(Some(status)) = child.try_wait() {
                let what = format!("{service} ended by itself ({status})");
                return Err(Waiting::Never(ClusterError::Step {
                    what,
                    log: LogTail::of_files(logs),
                }));
            }
            ready().await.map_err(Waiting::NotYet)
        });
        answer.await.map_err(|error| match error {
            ClusterError::Step { what, log } if log.is_empty() => ClusterError::Step {
                what,
                log: LogTail::of_files(logs),
            },
            other => other,
        })
    }
}

/// Why a condition does not hold.
pub(crate) enum Waiting {
    /// It may hold later.
    NotYet(ClusterError),
    /// It cannot hold any more.
    Never(ClusterError),
}

/// Asks `ready` until it answers, for at most `limit`.
pub(crate) async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl AsyncFnMut() -> Result<Option<T>, Waiting>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut reason = String::new();
    loop {
        match ready().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(Waiting::Never(error)) => return Err(error),
            Err(Waiting::NotYet(error)) => reason = format!(" ({error})"),
        }
        if Instant::now() >= deadline {
            let what = format!("{what}: not within {} s{reason}", limit.as_secs());
            return Err(ClusterError::Step {
                what,
                log: LogTail::default(),
            });
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
