//! One PostgreSQL server without standbys, for what needs no cluster: it is up within a second or two.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::guardian::{self, HALYARD};
use crate::support::{Address, PATIENCE, get, ports, until_within};

const BIN: &str = "/usr/lib/postgresql/15/bin";
/// Its superuser.
const SUPERUSER: &str = "postgres";

/// A running server that lets everybody in by TCP on the loopback interface. It ends with the tests.
pub(crate) struct Server {
    /// Where it listens.
    pub(crate) port: u16,
}

impl Server {
    /// A new server that holds nothing but what `initdb` makes, `settings` in `postgresql.conf`'s syntax added.
    #[track_caller]
    pub(crate) fn start(name: &str, settings: &str) -> Self {
        let folder = guardian::folder().join(name);
        std::fs::create_dir(&folder).unwrap();
        give_to_postgres(&folder);
        let data = folder.join("data");
        guardian::note(&format!("server {}", data.display()));
        let status = command("initdb", &folder)
            .args([
                "--no-sync",
                "-A",
                "trust",
                "-U",
                SUPERUSER,
                "-E",
                "UTF8",
                "--no-locale",
                "-D",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "initdb fails");
        let port = ports::single();
        let configuration = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nfsync = off\n\
             shared_buffers = 32MB\nlog_min_messages = panic\n{settings}\n"
        );
        std::fs::write(data.join("postgresql.auto.conf"), configuration).unwrap();
        give_to_postgres(&data.join("postgresql.auto.conf"));
        // It is ended by way of its postmaster.pid.
        drop(
            command("postgres", &folder)
                .arg("-D")
                .arg(&data)
                .stdout(Stdio::null())
                .stderr(File::create(folder.join("log")).unwrap())
                .spawn()
                .unwrap(),
        );
        let server = Self { port };
        until_within(PATIENCE, "the server to take connections", || {
            server.superuser("postgres").try_connect(&[]).ok()
        });
        server
    }

    /// The superuser in one of its databases.
    pub(crate) fn superuser(&self, database: &str) -> Address {
        self.user(SUPERUSER, database)
    }

    /// Some role in one of its databases.
    pub(crate) fn user(&self, user: &str, database: &str) -> Address {
        Address {
            port: self.port,
            user: user.to_owned(),
            password: String::new(),
            database: database.to_owned(),
        }
    }
}

/// A program of PostgreSQL's, run by a user whom it accepts: it refuses root.
pub(crate) fn command(program: &str, folder: &Path) -> Command {
    let program = Path::new(BIN).join(program);
    let mut command = if is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(program);
        setpriv
    } else {
        Command::new(program)
    };
    command
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

pub(crate) fn give_to_postgres(path: &PathBuf) {
    if !is_root() {
        return;
    }
    let id = |what: &str| -> u32 {
        let output = Command::new("id").args([what, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    chown(path, Some(id("-u")), Some(id("-g"))).unwrap();
    let mode = if path.is_dir() { 0o755 } else { 0o600 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Halyard in front of a single server, letting everybody in as the server does. It ends with this value.
pub(crate) struct Front {
    /// Where it listens.
    pub(crate) port: u16,
    process: Child,
    log: PathBuf,
}

impl Front {
    /// Starts it with `pools` backends for each of the named users, whose clients have one each if they are `in_sessions`, and
    /// waits until it serves.
    #[track_caller]
    pub(crate) fn start(
        server: &Server,
        name: &str,
        pools: &[(&str, u16)],
        in_sessions: &[&str],
        settings: &str,
    ) -> Self {
        let (port, http) = (ports::single(), ports::single());
        let mut config = format!(
            "{settings}\n[http]\naddress = '127.0.0.1:{http}'\n[[listener]]\naddress = '127.0.0.1:{port}'\n\
             [[node]]\nname = 'node1'\nhost = '127.0.0.1'\nport = {}\n\
             [health]\nuser = '{SUPERUSER}'\npassword = 'unused'\n[[auth.rule]]\nmethod = 'trust'\n",
            server.port
        );
        if !settings.contains("[server_tls]") {
            config.push_str("[server_tls]\nmode = 'disable'\n");
        }
        for (user, size) in pools {
            let mode = if in_sessions.contains(user) {
                "session"
            } else {
                "transaction"
            };
            config.push_str(&format!(
                "[[user]]\nname = '{user}'\npassword = 'unused'\npool_size = {size}\npool_mode = '{mode}'\n"
            ));
        }
        let path = guardian::folder().join(format!("{name}.toml"));
        std::fs::write(&path, config).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let log = path.with_extension("log");
        let process = Command::new(HALYARD)
            .args(["serve", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        guardian::guard_proxy(process.id(), &path);
        let mut front = Self { port, process, log };
        until_within(PATIENCE, "Halyard to see its node", || {
            if let Some(status) = front.process.try_wait().unwrap() {
                panic!("it ended with {status}:\n{}", front.log());
            }
            let (status, _) = get(http, "/readyz")?;
            (status == 200).then_some(())
        });
        front
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
