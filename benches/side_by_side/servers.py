"""The servers that are compared, as plain processes in a folder of their own.

Everything runs on the loopback address under one unprivileged user. Whoever starts a server ends it: each is a context
manager, and `Folder` ends what is left when anything goes wrong.
"""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time

PG_BIN = "/usr/lib/postgresql/15/bin"
PGBOUNCER = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
HOST = "127.0.0.1"
DATABASE = "bench"
USER = "appuser"
START_LIMIT_S = 60
STOP_LIMIT_S = 20


class BenchError(Exception):
    """Something that a person has to put right; its text is the whole message."""


class Folder:
    """A temporary folder and the user that owns it."""

    def __init__(self):
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.path = tempfile.mkdtemp(prefix="halyard-bench-")
        self.secrets = {name: secrets.token_hex(16) for name in (USER, "halyard_health", "postgres")}
        if os.geteuid() == 0:
            shutil.chown(self.path, self.user, self.user)
        self.processes = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            end(process)
        shutil.rmtree(self.path, ignore_errors=True)

    def inside(self, *names):
        return os.path.join(self.path, *names)

    def write(self, name, text):
        path = self.inside(name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        if os.geteuid() == 0:
            shutil.chown(path, self.user, self.user)
        return path

    def as_user(self):
        """What makes `subprocess` run a command as the folder's user."""
        return {"user": self.user, "group": self.user, "extra_groups": []} if os.geteuid() == 0 else {}

    def run(self, *command, password=None, **options):
        """Runs a command to its end and returns what it printed; its errors become ours."""
        environment = {**os.environ, "PATH": f"{PG_BIN}:{os.environ.get('PATH', '')}", "LC_ALL": "C"}
        if password:
            environment["PGPASSWORD"] = password
        done = subprocess.run(
            command, env=environment, cwd=self.path, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **self.as_user(), **options,
        )
        if done.returncode:
            raise BenchError(f"{command[0]} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-800:]}")
        return done.stdout

    def start(self, log, *command, stop_by=signal.SIGTERM):
        """Starts a server that stays in the foreground."""
        with open(self.inside(log), "ab") as out:
            process = subprocess.Popen(
                command, cwd=self.path, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                **self.as_user(),
            )
        process.log, process.stop_by = self.inside(log), stop_by
        self.processes.append(process)
        return process


def end(process):
    """Ends a process that we started, politely first."""
    if process.poll() is not None:
        return
    process.send_signal(process.stop_by)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def wait_for_port(process, port, what):
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    with open(process.log, encoding="utf-8", errors="replace") as log:
        raise BenchError(f"{what} does not listen on port {port}:\n{log.read()[-800:]}")


class Postgres:
    """One primary without standbys, with data for pgbench, that does not wait for the disk."""

    name = "direct"

    def __init__(self, folder, scale):
        self.folder, self.port, self.data = folder, free_port(), folder.inside("data")
        password_file = folder.write("superuser.password", folder.secrets["postgres"] + "\n")
        folder.run(
            f"{PG_BIN}/initdb", "-D", self.data, "-U", "postgres", "-A", "scram-sha-256",
            f"--pwfile={password_file}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
        )
        settings = {
            "listen_addresses": HOST, "port": self.port, "unix_socket_directories": folder.path,
            "max_connections": 400, "shared_buffers": "256MB", "fsync": "off", "synchronous_commit": "off",
            "full_page_writes": "off", "autovacuum": "off", "max_wal_size": "4GB", "log_checkpoints": "off",
            "checkpoint_timeout": "1h",
        }
        with open(f"{self.data}/postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        # SIGINT is a fast shutdown; SIGTERM would wait for clients.
        command = (f"{PG_BIN}/postgres", "-D", self.data)
        self.process = folder.start("postgres.log", *command, stop_by=signal.SIGINT)
        wait_for_port(self.process, self.port, "PostgreSQL")
        self._fill(scale)

    def _fill(self, scale):
        role = "CREATE ROLE {} LOGIN {} PASSWORD '{}'"
        self.superuser("postgres", role.format(USER, "", self.folder.secrets[USER]))
        self.superuser("postgres", role.format("halyard_health", "IN ROLE pg_monitor", self.folder.secrets["halyard_health"]))
        self.superuser("postgres", f"CREATE DATABASE {DATABASE} OWNER {USER}")
        self.folder.run(
            f"{PG_BIN}/pgbench", "-i", "-q", "-s", str(scale), "-h", HOST, "-p", str(self.port), "-U", USER, DATABASE,
            password=self.folder.secrets[USER],
        )
        self.superuser(DATABASE, "CHECKPOINT")

    def superuser(self, database, sql):
        """Runs one statement as the superuser; what it returned, unaligned."""
        return self.folder.run(
            f"{PG_BIN}/psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", self.folder.path, "-p", str(self.port), "-U",
            "postgres", "-d", database, "-c", sql, password=self.folder.secrets["postgres"],
        ).strip()

    def verifier(self):
        """The SCRAM verifier of the application's role: what both proxies are given."""
        return self.superuser("postgres", f"SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'")

    def version(self):
        return "PostgreSQL " + self.superuser("postgres", "SHOW server_version")


class PgBouncer:
    """Debian's PgBouncer, knowing the user by its SCRAM verifier alone, as Halyard does."""

    def __init__(self, folder, postgres, name, pool_mode, pool_size, host=HOST, under=()):
        self.name, self.port = name, free_port()
        users = folder.write(f"{name}.users", f'"{USER}" "{postgres.verifier()}"\n')
        config = folder.write(f"{name}.ini", "\n".join([
            "[databases]",
            f"{DATABASE} = host={host} port={postgres.port} dbname={DATABASE}",
            "[pgbouncer]",
            f"listen_addr = {HOST}", f"listen_port = {self.port}", "unix_socket_dir =",
            "auth_type = scram-sha-256", f"auth_file = {users}", f"pool_mode = {pool_mode}",
            f"default_pool_size = {pool_size}", "max_client_conn = 2000",
            "log_connections = 0", "log_disconnections = 0", "",
        ]))
        self.process = folder.start(f"{name}.log", *under, PGBOUNCER, config)
        wait_for_port(self.process, self.port, "PgBouncer")

    @staticmethod
    def version(folder):
        return folder.run(PGBOUNCER, "--version").splitlines()[0]


class Halyard:
    """A release build of Halyard before one node, with everything as it is by default but what `general` says."""

    def __init__(self, folder, postgres, binary, name, pool_size, general=None, health=None, host=HOST, under=()):
        self.name, self.port = name, free_port()
        config = folder.write(f"{name}.toml", toml({
            "general": general or {},
            "[listener]": {"address": f"{HOST}:{self.port}"},
            "http": {"address": f"{HOST}:{free_port()}"},
            "[node]": {"name": "node1", "host": host, "port": postgres.port},
            "health": {
                "user": "halyard_health", "password": folder.secrets["halyard_health"], "database": DATABASE,
                **(health or {}),
            },
            "pool": {"size": pool_size},
            "[user]": {"name": USER, "password": postgres.verifier()},
        }))
        self.process = folder.start(f"{name}.log", *under, binary, "serve", "--config", config)
        wait_for_port(self.process, self.port, "Halyard")


class Cluster:
    """A real cluster with its own Halyard in front, made and ended by `halyard cluster`."""

    name = "halyard-split"

    def __init__(self, folder, binary, base_port):
        self.folder, self.binary, self.dir = folder, binary, folder.inside("cluster")
        try:
            self._command("up", "--base-port", str(base_port), "--no-fsync")
        except BaseException:
            # Interrupted, it leaves servers behind that nobody else would end.
            self._command("down", "--purge")
            raise
        with open(os.path.join(self.dir, "cluster.json"), encoding="utf-8") as file:
            self.record = json.load(file)
        self.port = self.record["proxy"]["port"]
        self.pid = self.record["proxy"]["pid"]
        self.database = self.record["database"]
        self.user, self.password = (self.record["users"]["app"][key] for key in ("name", "password"))

    def _command(self, *words):
        self.folder.run(self.binary, "cluster", *words, "--dir", self.dir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._command("down", "--purge")


def toml(tables):
    """A TOML document of flat tables; a name in brackets is one element of an array of tables."""
    lines = []
    for name, settings in tables.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"
