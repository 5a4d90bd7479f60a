"""Runs pgbench in every mode through a real cluster's port and checks that nothing failed and nobody served what was not his.

Called by benches/steady.sh. What the nodes served is asked of the nodes themselves (pg_stat_user_tables), not of Halyard.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import time
import urllib.request

import measure
from measure import Load, Target
from points import PROTOCOLS
from servers import HOST, PG_BIN, BenchError, Cluster, Folder, free_port, wait_for_port

CLIENTS = 64
POOL_SIZE = 16
# PostgreSQL: pgstat.c, PGSTAT_IDLE_INTERVAL: an idle backend publishes what it counted within 10 seconds.
STATISTICS_DELAY_S = 12


def main():
    parser = argparse.ArgumentParser(prog="benches/steady.sh", description=__doc__)
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=60, help="of each run [60]")
    parser.add_argument("--scale", type=int, default=20, help="of pgbench's tables [20]")
    parser.add_argument("--base-port", type=int, default=28000, help="where the cluster's ports begin [28000]")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wrong = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(Folder())
        binary = shutil.copy(given.binary, folder.inside("halyard"))
        os.chmod(binary, 0o755)
        cluster = stack.enter_context(Cluster(folder, binary, given.base_port))
        proxy = Proxy(folder, cluster, binary)
        print(f"cluster is up; pgbench -i -s {given.scale}", flush=True)
        measure.fill(folder, proxy.target, given.scale)
        cluster_settles(folder, cluster)
        print("\n| load | protocol | TPS | failed | reads on standbys | reads on the primary | writes sent to a standby |")
        print("|---|---|--:|--:|--:|--:|--:|", flush=True)
        for script in ("select", "tpcb"):
            for protocol in PROTOCOLS:
                wrong += one_run(folder, cluster, proxy, Load(script, protocol, CLIENTS), given.seconds)
    if wrong:
        raise BenchError("; ".join(wrong))
    print("\nnothing failed")


class Proxy:
    """A Halyard of our own before the cluster: with its file, and 16 connections to a node."""

    def __init__(self, folder, cluster, binary):
        with open(os.path.join(cluster.dir, "halyard.toml"), encoding="utf-8") as file:
            text = file.read()
        # The socket is the cluster's own Halyard's.
        text = re.sub(r"(?m)^control_socket = .*\n", "", text)
        self.port, self.http_port = free_port(), free_port()
        for was, now in (("port", self.port), ("http_port", self.http_port)):
            text = text.replace(f"{HOST}:{cluster.record['proxy'][was]}", f"{HOST}:{now}")
        config = folder.write("steady.toml", f"{text}\n[pool]\nsize = {POOL_SIZE}\n")
        self.process = folder.start("steady.log", binary, "serve", "--config", config)
        wait_for_port(self.process, self.port, "Halyard")
        self.target = Target(
            "Halyard", self.port, self.process.pid,
            database=cluster.database, user=cluster.user, password=cluster.password,
        )
        deadline = time.monotonic() + 30
        while self.metric("halyard_node_serves_reads") < 6 and time.monotonic() < deadline:
            time.sleep(0.2)

    def metric(self, name):
        """The sum of a metric's series."""
        with urllib.request.urlopen(f"http://{HOST}:{self.http_port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))


def one_run(folder, cluster, proxy, load, seconds):
    """Drives one load, prints its line and returns what was wrong with it."""
    before = [scans(folder, cluster, node) for node in cluster.record["nodes"]]
    sample = measure.run(folder, proxy.target, load, seconds)
    time.sleep(STATISTICS_DELAY_S)
    after = [scans(folder, cluster, node) for node in cluster.record["nodes"]]
    served = {"primary": 0, "standby": 0}
    for node, was, now in zip(cluster.record["nodes"], before, after):
        served["primary" if node["role"] == "primary" else "standby"] += now - was
    stray, errors = (proxy.metric(f"halyard_{name}_total") for name in ("writes_sent_to_standby", "errors_sent"))
    name = {"select": "select-only", "tpcb": "TPC-B"}[load.script]
    print(
        f"| {name} | {load.protocol} | {sample.tps:,.0f} | {sample.failed} | {served['standby']:,} | "
        f"{served['primary']:,} | {stray:.0f} |", flush=True,
    )
    what = f"{name}, {load.protocol}: "
    wrong = [f"{what}{sample.failed} transactions failed"] if sample.failed else []
    if load.script == "select":
        if served["primary"]:
            wrong.append(f"{what}the primary served {served['primary']} reads")
        if served["standby"] < sample.transactions:
            wrong.append(f"{what}standbys served {served['standby']} of {sample.transactions} reads")
    if stray:
        wrong.append(f"{what}{stray:.0f} writes were sent to a standby")
    if errors:
        wrong.append(f"{what}Halyard sent {errors:.0f} errors")
    return wrong


def scans(folder, cluster, node):
    """How often a node has looked rows of pgbench_accounts up by their key."""
    return ask(folder, cluster, node, "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'pgbench_accounts'")


def ask(folder, cluster, node, sql):
    """The number that a node answers to its superuser, 0 for none."""
    superuser = cluster.record["users"]["superuser"]
    return int(folder.run(
        f"{PG_BIN}/psql", "-XAtq", "-h", node["host"], "-p", str(node["port"]), "-U", superuser["name"], "-d",
        cluster.database, "-c", sql, password=superuser["password"],
    ).strip() or 0)


def cluster_settles(folder, cluster):
    """Waits until every node has the tables."""
    deadline = time.monotonic() + 60
    for node in cluster.record["nodes"]:
        while True:
            try:
                scans(folder, cluster, node)
                break
            except (BenchError, ValueError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
    time.sleep(STATISTICS_DELAY_S)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"steady: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
