"""The servers of one run, as plain processes in a temporary folder: PostgreSQL, and Halyard before it."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HOST = "127.0.0.1"
USER = "postgres"
START_LIMIT_S = 60
STOP_LIMIT_S = 20

HALYARD_TOML = """\
[[listener]]
address = "{host}:{port}"
[http]
address = "off"
[[node]]
name = "node1"
host = "{host}"
port = {node_port}
[health]
user = "{user}"
password = "{password}"
[pool]
mode = "transaction"
size = {pool_size}
[[user]]
name = "{user}"
password = "{password}"
"""

# What `make check` gives its server (src/test/regress/pg_regress.c), and no waiting for the disk.
POSTGRESQL_CONF = """\
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_prepared_transactions = 2
fsync = off
"""


class RegressError(Exception):
    """Something that a person has to put right; its text is the whole message."""


class Folder:
    """A temporary folder, the user who owns it, and what is installed in it: everything that a run touches."""

    def __init__(self, inputs, binary):
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        self.password = secrets.token_hex(16)
        self.path = tempfile.mkdtemp(prefix="halyard-regress-")
        self.processes = []
        try:
            # Copies that the folder's user may read, and that no build replaces meanwhile.
            shutil.copytree(inputs, self.inside("inputs"), symlinks=True)
            shutil.copy(binary, self.inside("halyard"))
            self.make("home")
            if os.geteuid() == 0:
                shutil.chown(self.path, self.user, self.user)
        except BaseException:
            shutil.rmtree(self.path)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            end(process)
        shutil.rmtree(self.path, ignore_errors=True)

    def inside(self, *names):
        return os.path.join(self.path, *names)

    def program(self, name):
        """A program of PostgreSQL's, of the suite's version."""
        return self.inside("inputs/usr/lib/postgresql/15/bin", name)

    def make(self, name):
        """Makes a folder that the user may write to."""
        os.makedirs(self.inside(name), mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(self.inside(name), self.user, self.user)
        return self.inside(name)

    def write(self, name, text):
        """Writes a file that nobody but the user may read."""
        path = self.inside(name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        if os.geteuid() == 0:
            shutil.chown(path, self.user, self.user)
        return path

    def surroundings(self):
        """What a child of ours is run in. Nothing of the caller's environment, which libpq and psql would obey."""
        return {
            "cwd": self.inside("home"), "stdin": subprocess.DEVNULL, "start_new_session": True,
            "env": {
                "PATH": self.program("") + ":/usr/bin:/bin", "HOME": self.inside("home"), "PGPASSWORD": self.password,
                "LD_LIBRARY_PATH": self.inside("inputs/lib"),
            },
            **({"user": self.user, "group": self.user, "extra_groups": []} if os.geteuid() == 0 else {}),
        }

    def run(self, *command, limit_s):
        """Runs a command to its end: its exit status, and all that it printed."""
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **self.surroundings(),
        )
        try:
            printed, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            # With its children, which are its process group.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RegressError(f"{os.path.basename(command[0])} was not done after {limit_s} s") from None
            raise
        return process.returncode, printed

    def start(self, log, *command, stop_by=signal.SIGTERM):
        """Starts a server that stays in the foreground."""
        with open(self.inside(log), "ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, **self.surroundings())
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


def wait_for_answer(folder, process, port, what):
    """Until the port serves queries."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        status, _ = folder.run(
            folder.program("psql"), "-XAtqw", "-h", HOST, "-p", str(port), "-U", USER, "-d", "postgres", "-c", "SELECT 1",
            limit_s=START_LIMIT_S,
        )
        if status == 0:
            return
        time.sleep(0.1)
    with open(process.log, encoding="utf-8", errors="replace") as log:
        raise RegressError(f"{what} does not answer on port {port}:\n{log.read()[-800:]}")


@contextlib.contextmanager
def postgres(folder, name):
    """A new server; gives its port."""
    data, port = folder.inside(f"{name}.data"), free_port()
    password_file = folder.write(f"{name}.password", folder.password + "\n")
    status, printed = folder.run(
        folder.program("initdb"), "-D", data, "-U", USER, "-A", "scram-sha-256", f"--pwfile={password_file}",
        "--no-locale", "-E", "UTF8", "--no-sync", limit_s=START_LIMIT_S,
    )
    if status:
        raise RegressError(f"initdb failed: {printed.strip()[-800:]}")
    with open(f"{data}/postgresql.conf", "a", encoding="utf-8") as file:
        file.write(POSTGRESQL_CONF.format(host=HOST, port=port))
    # SIGINT is a fast shutdown; SIGTERM would wait for clients.
    process = folder.start(f"{name}.log", folder.program("postgres"), "-D", data, stop_by=signal.SIGINT)
    try:
        wait_for_answer(folder, process, port, "PostgreSQL")
        yield port
    finally:
        end(process)
        shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def halyard(folder, node_port, pool_size):
    """Halyard before one node, in transaction pooling; gives its port."""
    port = free_port()
    config = folder.write("halyard.toml", HALYARD_TOML.format(
        host=HOST, port=port, node_port=node_port, user=USER, password=folder.password, pool_size=pool_size,
    ))
    process = folder.start("halyard.log", folder.inside("halyard"), "serve", "--config", config)
    try:
        wait_for_answer(folder, process, port, "Halyard")
        yield port
    finally:
        end(process)
