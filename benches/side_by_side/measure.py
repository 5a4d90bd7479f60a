"""One measurement: pgbench for a few seconds, and what the proxy spent meanwhile."""

import contextlib
import dataclasses
import glob
import os
import re
import shutil
import tempfile

from servers import DATABASE, HOST, PG_BIN, USER, BenchError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

SCRIPTS = {
    "select": ["-b", "select-only"],
    "tpcb": ["-b", "tpcb-like"],
}
# 100 rows of 1 MiB, made by the server: the network's share is large and the server's small.
LARGE_RESULT = "SELECT repeat('halyard!', 131072) FROM generate_series(1, 100);\n"
LARGE_RESULT_BYTES = 100 * 131072 * 8


@dataclasses.dataclass(frozen=True)
class Load:
    """What pgbench does."""

    script: str
    protocol: str
    clients: int
    connect: bool = False
    rate: int = 0


@dataclasses.dataclass
class Usage:
    """What a process has spent since it began."""

    cpu_ns: int = 0
    user_ticks: int = 0
    system_ticks: int = 0
    switches: int = 0

    @classmethod
    def of(cls, pid):
        """Of all threads that live. Nanoseconds are the scheduler's own; only the split into user and system is
        sampled."""
        usage = cls()
        for task in glob.glob(f"/proc/{pid}/task/*"):
            # A thread may end while we look.
            with contextlib.suppress(OSError):
                usage.cpu_ns += int(read(f"{task}/schedstat").split()[0])
                for line in read(f"{task}/status").splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        usage.switches += int(line.split()[1])
        fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        usage.user_ticks, usage.system_ticks = int(fields[11]), int(fields[12])
        return usage

    def since(self, before):
        names = [field.name for field in dataclasses.fields(self)]
        return Usage(*(getattr(self, name) - getattr(before, name) for name in names))


@dataclasses.dataclass
class Sample:
    """What one run of pgbench gave."""

    transactions: int
    failed: int
    tps: float
    p50_us: float
    p99_us: float
    usage: Usage | None
    rss_kb: int

    @property
    def cpu_us(self):
        """Of the proxy, per transaction."""
        return self.usage.cpu_ns / 1000 / self.transactions


class NothingRan(BenchError):
    """pgbench ended before its first transaction did."""


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def rss_kb(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", read(f"/proc/{pid}/status"))[1])


def percentile(ordered, share):
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else float("nan")


@dataclasses.dataclass
class Target:
    """Where pgbench connects, and the process in between; `pid` is None where there is none."""

    name: str
    port: int
    pid: int | None
    host: str = HOST
    database: str = DATABASE
    user: str = USER
    password: str = ""


def run(folder, target, load, seconds):
    """Runs a load against a target once; again and longer, where all the time went into connecting.

    pgbench's clock starts before its clients connect, and on a busy machine 64 logins may take seconds.
    """
    try:
        return run_once(folder, target, load, seconds)
    except NothingRan:
        return run_once(folder, target, load, 3 * seconds)


def run_once(folder, target, load, seconds):
    logs = tempfile.mkdtemp(prefix="log-", dir=folder.path)
    if os.geteuid() == 0:
        shutil.chown(logs, folder.user, folder.user)
    command = [
        f"{PG_BIN}/pgbench", "-n", "-h", target.host, "-p", str(target.port), "-U", target.user,
        "-M", load.protocol, "-c", str(load.clients), "-j", str(min(load.clients, 2)), "-T", str(seconds),
    ]
    if load.script == "large":
        command += ["-f", folder.write("large.sql", LARGE_RESULT)]
    else:
        command += SCRIPTS[load.script]
    if load.connect:
        command.append("-C")
    if load.rate:
        command += ["-R", str(load.rate)]
    # Every transaction of the slow loads, a sample of the fast ones, so that pgbench has no more to do than it must.
    slow = load.connect or load.rate or load.script != "select"
    command += ["--log", f"--log-prefix={logs}/log", f"--sampling-rate={1 if slow else 0.2}", target.database]
    before = Usage.of(target.pid) if target.pid else None
    try:
        output = folder.run(*command, password=target.password, timeout=seconds + 120)
        usage = Usage.of(target.pid).since(before) if target.pid else None
        latencies = sorted(latencies_us(logs))
    finally:
        shutil.rmtree(logs, ignore_errors=True)
    transactions = number(r"actually processed: (\d+)", output)
    if not transactions:
        raise NothingRan(f"no transaction within {seconds} s, connecting included")
    return Sample(
        transactions=transactions,
        failed=number(r"failed transactions: (\d+)", output),
        tps=number(r"tps = ([\d.]+)", output),
        p50_us=percentile(latencies, 0.50),
        p99_us=percentile(latencies, 0.99),
        usage=usage,
        rss_kb=rss_kb(target.pid) if target.pid else 0,
    )


def fill(folder, target, scale):
    """Makes pgbench's tables through a target."""
    folder.run(
        f"{PG_BIN}/pgbench", "-i", "-q", "-s", str(scale), "-h", target.host, "-p", str(target.port),
        "-U", target.user, target.database, password=target.password,
    )


def latencies_us(logs):
    """The third column of every line of pgbench's logs, one file for each of its threads."""
    for path in glob.glob(f"{logs}/log*"):
        with open(path, encoding="ascii") as file:
            for line in file:
                yield int(line.split(" ", 3)[2])


def number(pattern, output):
    found = re.search(pattern, output)
    if not found:
        raise BenchError(f"pgbench said nothing like '{pattern}', but: {output[-400:]}")
    return float(found[1]) if "." in found[1] else int(found[1])
