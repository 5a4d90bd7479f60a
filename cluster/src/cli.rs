//! `halyard cluster …`: what a person types, and what they are told.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::error::{ClusterError, Result};
use crate::faults;
use crate::layout::{RO_MAX, Service};
use crate::owner::Owner;
use crate::record::Record;
use crate::say::{errln, outln};
use crate::server_config::{Durability, Profile};
use crate::site::{Waiting, wait_for};
use crate::status;
use crate::up::{self, Progress, Wanted};

/// Until a cluster that is being made is written down.
const RECORD_LIMIT: Duration = Duration::from_secs(300);

/// Local PostgreSQL HA clusters: one primary, two backups and read-only replicas behind Halyard.
///
/// Everything runs as plain processes on the loopback address, as the user postgres when root starts them. Each
/// cluster has a folder; several live side by side with different folders and --base-port.
#[derive(Debug, clap::Args)]
pub struct ClusterCommand {
    /// The cluster's folder [default: /var/lib/halyard/cluster for root, else ~/.local/state/halyard/cluster]
    #[arg(long, global = true, env = "HALYARD_CLUSTER_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Bring a cluster up, or start what is missing of one; returns when it serves
    Up(UpOptions),
    /// Show how every server is; exit code 1 unless one primary is writable and all others stream from it
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Stop everything; the data stays for the next `up`
    Down {
        /// Remove the data, the logs and the configuration too
        #[arg(long)]
        purge: bool,
    },
    /// End a server as a power cut would: SIGKILL to its keeper and every process of it
    Kill(Target),
    /// Stop a server cleanly
    Stop(Target),
    /// Bring a server back after kill or stop, rejoining or copying it anew as needed
    Start(Target),
    /// Stop every process of a server where it stands (SIGSTOP), as a hung machine would
    Freeze(Target),
    /// Let a frozen server go on (SIGCONT)
    Thaw(Target),
    /// Make another node the primary without an error for anybody: transactions are held meanwhile
    Switchover {
        /// node1-3 [default: the backup of the highest priority]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Seconds that open transactions get to end; when some do not, nothing is switched
        #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(0..=600))]
        wait: u64,
    },
    /// See to it that a read-only replica does not keep the engine from working; started beside each of them
    #[command(hide = true)]
    Tend(Target),
    /// Show the whole way in words: a write, balanced reads, the primary killed under pgbench, its return
    Demo(UpOptions),
}

#[derive(Debug, clap::Args)]
struct UpOptions {
    /// Take consecutive ports from P on: monitor, node1-3, read-only replicas, proxy, its HTTP
    /// [default: monitor 5431, nodes 5432-5434, replicas from 5440, proxy 6432, HTTP 9432]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1024..))]
    base_port: Option<u16>,
    /// How many read-only replicas [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=i64::from(RO_MAX)))]
    ro: Option<u8>,
    /// How soon the engine replaces a dead primary [default: seed]
    #[arg(long)]
    profile: Option<Profile>,
    /// Do not start Halyard in front
    #[arg(long)]
    no_proxy: bool,
    /// Do not wait for the disk: for tests, a crash of the machine destroys the data
    #[arg(long)]
    no_fsync: bool,
    /// Print what runs where as JSON, without passwords
    #[arg(long)]
    json: bool,
}

impl UpOptions {
    fn wanted(&self) -> Wanted {
        Wanted {
            base_port: self.base_port,
            ro: self.ro,
            profile: self.profile,
            durability: if self.no_fsync {
                Durability::NoFsync
            } else {
                Durability::Fsync
            },
            with_proxy: !self.no_proxy,
        }
    }
}

#[derive(Debug, clap::Args)]
struct Target {
    /// node1-3, ro1-9, monitor, proxy, or primary for whichever node is it now
    #[arg(value_name = "NODE")]
    name: String,
}

/// Carries a command out and says on standard error what went wrong. The exit code is 0 when it did what was
/// asked, 1 when it did not.
#[must_use]
pub fn run(command: ClusterCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(|source| ClusterError::Io {
            what: "cannot start".to_owned(),
            source,
        })
        .and_then(|runtime| runtime.block_on(Box::pin(carry_out(command))));
    match done {
        Ok(code) => code,
        Err(error) => {
            errln!("halyard cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(command: ClusterCommand) -> Result<ExitCode> {
    let dir = match command.dir {
        Some(dir) => dir,
        None => Owner::current()?.default_dir()?,
    };
    match command.action {
        Action::Up(options) => bring_up(&dir, &options).await?,
        Action::Status { json } => return show_status(&dir, json).await,
        Action::Down { purge } => take_down(&dir, purge).await?,
        Action::Demo(options) => crate::demo::run(&dir, &options.wanted()).await?,
        Action::Kill(target) => {
            let held = faults::hold(&dir).await?;
            let service = held.resolve(&target.name).await?;
            let count = held.kill(service).await?;
            outln!("{service}: {count} processes killed");
            held.save().await?;
        }
        Action::Stop(target) => {
            let held = faults::hold(&dir).await?;
            let service = held.resolve(&target.name).await?;
            let forced = !held.stop(&[service]).await?.is_empty();
            outln!(
                "{service} is stopped{}",
                if forced {
                    ", by SIGKILL since it did not end in time"
                } else {
                    ""
                }
            );
            held.save().await?;
        }
        Action::Start(target) => {
            let mut held = faults::hold(&dir).await?;
            let service = held.resolve(&target.name).await?;
            outln!("{}", held.start(service).await?);
            held.save().await?;
        }
        Action::Freeze(target) => {
            let held = faults::hold(&dir).await?;
            let service = held.resolve(&target.name).await?;
            outln!("{service}: {} processes frozen", held.freeze(service).await?);
        }
        Action::Switchover { to, wait } => {
            let held = faults::hold(&dir).await?;
            outln!(
                "{}",
                switch_over(&held, to.as_deref(), Duration::from_secs(wait)).await?
            );
            held.save().await?;
        }
        Action::Tend(target) => return tend(&dir, &target.name).await.map(|()| ExitCode::SUCCESS),
        Action::Thaw(target) => {
            let held = faults::hold(&dir).await?;
            let service = held.resolve(&target.name).await?;
            outln!("{service}: {} processes go on", held.thaw(service)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn switch_over(held: &faults::Held, to: Option<&str>, wait: Duration) -> Result<String> {
    let to = match to {
        Some(name) => Some(held.resolve(name).await?),
        None => None,
    };
    let (site, record) = held.site()?;
    let done = Box::pin(crate::switchover::run(&site, record, to, wait)).await?;
    let held = match done.held {
        Some(held) => format!("transactions were held for at most {} ms", held.as_millis()),
        None => "no proxy runs that would have held transactions".to_owned(),
    };
    Ok(format!(
        "{} is the primary, {} a standby of it; {held}",
        done.to, done.from
    ))
}

async fn tend(dir: &std::path::Path, name: &str) -> Result<()> {
    let layout = crate::preflight::existing_folder(dir)?;
    // It is started while the cluster is made: the record is not there yet.
    let record = wait_for("cluster.json", RECORD_LIMIT, async || {
        Record::load(&layout).map_err(Waiting::NotYet)
    })
    .await?;
    let service: Service = name.parse().map_err(ClusterError::Refused)?;
    if !matches!(service, Service::Ro(_)) {
        return Err(ClusterError::Refused(format!(
            "{service} is no read-only replica"
        )));
    }
    Box::pin(crate::tend::run(layout, record, service)).await
}

async fn bring_up(dir: &std::path::Path, options: &UpOptions) -> Result<()> {
    let progress = Progress::start();
    let up = Box::pin(up::up(dir, &options.wanted(), progress)).await?;
    progress.say(if up.was_up {
        "the cluster is up already"
    } else {
        "the cluster is up"
    });
    let layout = &up.site.layout;
    if options.json {
        let mut json = serde_json::to_value(&up.record).expect("strings and numbers always serialise");
        for user in json["users"]
            .as_object_mut()
            .into_iter()
            .flat_map(serde_json::Map::values_mut)
        {
            user.as_object_mut().and_then(|user| user.remove("password"));
        }
        json["record"] = layout.record().to_string_lossy().into();
        outln!("{json:#}");
    } else {
        crate::say::out(format_args!("{}", listing(layout, &up.record)));
    }
    Ok(())
}

/// Who listens where.
fn servers(record: &Record) -> String {
    let mut lines: Vec<[String; 3]> = vec![["", "port", ""].map(str::to_owned)];
    if record.proxy.wanted {
        lines.push([
            "halyard".into(),
            record.proxy.port.to_string(),
            "the one port for applications".into(),
        ]);
        lines.push([
            "".into(),
            record.proxy.http_port.to_string(),
            "/metrics /livez /readyz".into(),
        ]);
    }
    for node in &record.nodes {
        let what = match node.priority {
            Some(priority) => format!("{}, candidate priority {priority}", node.role),
            None => "read-only replica".to_owned(),
        };
        lines.push([node.name.clone(), node.port.to_string(), what]);
    }
    lines.push([
        "monitor".into(),
        record.monitor.port.to_string(),
        "pg_auto_failover".into(),
    ]);
    status::columns(&lines)
}

/// Who listens where, how to get in, and what to look at.
pub(crate) fn listing(layout: &crate::layout::Layout, record: &Record) -> String {
    let port = if record.proxy.wanted {
        record.proxy.port
    } else {
        record.ports().of(Service::Node(1))
    };
    let host = crate::layout::HOST;
    // As this command was typed, so that it can be typed again.
    let program = std::env::args().next().unwrap_or_else(|| "halyard".to_owned());
    let dir = layout.dir();
    let default = Owner::current().and_then(|owner| owner.default_dir());
    let own_dir = match default.is_ok_and(|default| default == dir) {
        true => String::new(),
        false => format!(" --dir {}", dir.display()),
    };
    let mut hints = vec![[
        "connect".to_owned(),
        format!(
            "PGPASSFILE={} psql 'postgresql://{}@{host}:{port}/{}'",
            layout.pgpass().display(),
            record.users.app.name,
            record.database
        ),
    ]];
    let mut hint = |what: &str, how: String| hints.push([what.to_owned(), how]);
    hint("look around", format!("{program} cluster status{own_dir}"));
    if record.proxy.wanted {
        hint(
            "",
            format!("{program} status --config {}", layout.proxy_config().display()),
        );
        hint(
            "",
            format!("curl http://{host}:{}/metrics", record.proxy.http_port),
        );
    }
    hint(
        "",
        format!(
            "logs in {}, the whole plan with passwords in {}",
            layout.logs().display(),
            layout.record().display()
        ),
    );
    hint(
        "break it",
        format!("{program} cluster kill primary{own_dir}, then cluster start NODE"),
    );
    hint("stop it", format!("{program} cluster down{own_dir}"));
    format!("\n{}\n{}", servers(record), status::columns(&hints))
}

async fn show_status(dir: &std::path::Path, json: bool) -> Result<ExitCode> {
    let layout = crate::preflight::existing_folder(dir)?;
    let none = || ClusterError::NoCluster {
        path: dir.to_path_buf(),
    };
    let record = Record::load(&layout)?.ok_or_else(none)?;
    let status = status::inspect(&layout, &record).await;
    if json {
        let text = serde_json::to_string_pretty(&status).expect("strings and numbers always serialise");
        outln!("{text}");
    } else {
        crate::say::out(format_args!("{}", status.table()));
        match status.problems.as_slice() {
            [] => outln!(
                "\nhealthy: every server follows {}",
                status.primary.as_deref().unwrap_or("nobody")
            ),
            problems => outln!("\nnot healthy: {}", problems.join("; ")),
        }
    }
    Ok(if status.healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn take_down(dir: &std::path::Path, purge: bool) -> Result<()> {
    let held = match faults::hold(dir).await {
        Err(ClusterError::NoCluster { path }) => {
            match faults::end_orphans(&path).await? {
                0 => outln!("there is no cluster in {}: nothing runs", path.display()),
                count => outln!(
                    "the folder {} is gone; {count} processes of it ended",
                    path.display()
                ),
            }
            return Ok(());
        }
        held => held?,
    };
    let half_made = held.record.is_none();
    let down = faults::down(&held).await?;
    for service in &down.killed {
        outln!("{service} did not end in time and was killed");
    }
    let folder = held.layout.dir().display().to_string();
    if purge || half_made {
        up::purge(&held.layout);
        let left = if held.layout.dir().exists() {
            "emptied of all but what others put there"
        } else {
            "removed"
        };
        outln!("{} processes ended, {folder} is {left}", down.processes);
    } else {
        outln!("{} processes ended, the data stays in {folder}", down.processes);
        held.save().await?;
    }
    Ok(())
}
