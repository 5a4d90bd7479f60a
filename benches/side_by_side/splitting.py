"""What splitting reads from writes costs, and what it takes off the primary. Called by benches/splitting.sh."""

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys

import measure
import steady
from measure import Load
from points import PROTOCOLS
from servers import BenchError, Cluster, Folder

CLIENTS = 16
MIXED_CLIENTS = 64
# Transactions a second of all clients together; 0 is as fast as they can.
RATES = (640, 2560, 0)
READ = "\\set aid random(1, 100000 * :scale)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
WRITE = (
    "\\set aid random(1, 100000 * :scale)\n"
    "UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
)
PRIMARY_ALONE = "-c halyard.route=primary"


def main():
    parser = argparse.ArgumentParser(prog="benches/splitting.sh", description=__doc__)
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=10, help="of each run [10]")
    parser.add_argument("--rounds", type=int, default=3, help="of each line [3]")
    parser.add_argument("--scale", type=int, default=20, help="of pgbench's tables [20]")
    parser.add_argument("--base-port", type=int, default=28000, help="where the cluster's ports begin [28000]")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lines = ["# What splitting costs and gives", "", "Written by `benches/splitting.sh`; not to be edited.", ""]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(Folder())
        binary = shutil.copy(given.binary, folder.inside("halyard"))
        os.chmod(binary, 0o755)
        cluster = stack.enter_context(Cluster(folder, binary, given.base_port))
        proxy = steady.Proxy(folder, cluster, binary)
        measure.fill(folder, proxy.target, given.scale)
        steady.cluster_settles(folder, cluster)
        lines += cost(folder, proxy, given) + [""] + mixed(folder, cluster, proxy, given)
    document = "\n".join(lines) + "\n"
    print(document)
    with open(os.path.join(os.path.dirname(__file__), os.pardir, "SPLITTING.md"), "w", encoding="utf-8") as file:
        file.write(document)


def cost(folder, proxy, given):
    """CPU per transaction with and without looking."""
    lines = [
        f"Select-only, {CLIENTS} clients; microseconds of Halyard's CPU per transaction, medians of {given.rounds} runs of "
        f"{given.seconds} s that took turns. *Fixed* is `halyard.route = primary`.", "",
        "| protocol | split over 3 standbys | fixed | ratio |", "|---|--:|--:|--:|",
    ]
    for protocol in PROTOCOLS:
        load = Load("select", protocol, CLIENTS)
        split, fixed = [], []
        for _ in range(given.rounds):
            split.append(measure.run(folder, proxy.target, load, given.seconds).cpu_us)
            os.environ["PGOPTIONS"] = PRIMARY_ALONE
            try:
                fixed.append(measure.run(folder, proxy.target, load, given.seconds).cpu_us)
            finally:
                del os.environ["PGOPTIONS"]
        split_us, fixed_us = statistics.median(split), statistics.median(fixed)
        lines.append(f"| {protocol} | {split_us:.1f} | {fixed_us:.1f} | {split_us / fixed_us:.2f} |")
        print(lines[-1], flush=True)
    return lines


def mixed(folder, cluster, proxy, given):
    """Who served the reads of a mixed load, by the nodes' own counts."""
    read, write = folder.write("read.sql", READ), folder.write("write.sql", WRITE)
    lines = [
        f"Nine reads for each write in the same {MIXED_CLIENTS} sessions, each of which reads what it wrote "
        "(`read_consistency = \"session\"`); reads as the nodes counted them.", "",
        "| transactions a second | reads on standbys | reads on the primary | off the primary |", "|--:|--:|--:|--:|",
    ]
    # What came before is counted by the nodes when their connections have been idle for a while.
    steady.time.sleep(steady.STATISTICS_DELAY_S)
    for rate in RATES:
        before = counts(folder, cluster)
        measure.SCRIPTS["mixed"] = ["-s", str(given.scale), "-f", f"{read}@9", "-f", f"{write}@1"]
        load = Load("mixed", "prepared", MIXED_CLIENTS, rate=rate)
        sample = measure.run(folder, proxy.target, load, given.seconds)
        if sample.failed:
            raise BenchError(f"{sample.failed} transactions failed")
        steady.time.sleep(steady.STATISTICS_DELAY_S)
        after = counts(folder, cluster)
        standbys = after["standby"] - before["standby"]
        # An UPDATE looks its row up as well.
        primary = after["primary"] - before["primary"] - (after["written"] - before["written"])
        share = standbys / (standbys + primary)
        speed = f"{sample.tps:,.0f}" + ("" if rate else " (all they can)")
        lines.append(f"| {speed} | {standbys:,} | {primary:,} | {share:.1%} |")
        print(lines[-1], flush=True)
    return lines


def counts(folder, cluster):
    """Rows looked up on the primary and on the standbys, and rows written."""
    found = {"primary": 0, "standby": 0, "written": 0}
    for node in cluster.record["nodes"]:
        kind = "primary" if node["role"] == "primary" else "standby"
        found[kind] += steady.scans(folder, cluster, node)
        if kind == "primary":
            found["written"] = steady.ask(
                folder, cluster, node, "SELECT n_tup_upd FROM pg_stat_user_tables WHERE relname = 'pgbench_accounts'"
            )
    return found


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"splitting: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
