"""What splitting reads from writes costs, and what it takes off the primary. Called by benches/splitting.sh."""

import argparse
import contextlib
import os
import shutil
import signal
import statistics
import sys
import time

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
MIXED_SECONDS = 10
SPLITTING = os.path.join(os.path.dirname(__file__), os.pardir, "SPLITTING.md")
PRIMARY_ALONE = "-c halyard.route=primary"


def main():
    parser = argparse.ArgumentParser(prog="benches/splitting.sh", description=__doc__)
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=5, help="of each run [5]")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of runs of each protocol [8]")
    parser.add_argument("--output", default=SPLITTING, help="the document [benches/SPLITTING.md]")
    parser.add_argument("--scale", type=int, default=20, help="of pgbench's tables [20]")
    parser.add_argument("--base-port", type=int, default=28000, help="where the cluster's ports begin [28000]")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(Folder())
        binary = shutil.copy(given.binary, folder.inside("halyard"))
        os.chmod(binary, 0o755)
        cluster = stack.enter_context(Cluster(folder, binary, given.base_port))
        proxy = steady.Proxy(folder, cluster, binary)
        measure.fill(folder, proxy.target, given.scale)
        steady.cluster_settles(folder, cluster)
        rows = cost(folder, proxy, given) + mixed(folder, cluster, proxy, given)
    command = f"benches/splitting.sh --seconds {given.seconds} --rounds {given.rounds}"
    took_min = (time.monotonic() - began) / 60
    head = [
        "# What splitting costs and gives", "",
        f"Written by `{command}` in {took_min:.0f} minutes on {os.cpu_count()} cores, which pgbench, six servers and Halyard "
        "share; not to be edited.", "",
        f"**CPU**: microseconds of Halyard's per transaction of select-only with {CLIENTS} clients, medians of {given.rounds} "
        f"pairs of runs of {given.seconds} s, of which either came first in turn. *Split* is the default: each statement is "
        "classed, has to see what its session wrote, and goes to one of three standbys. *Fixed* is "
        "`halyard.route = primary`. The ratio is the median of the pairs' own, with the least and the greatest.", "",
        f"**Mixed**: nine reads for each write in the same {MIXED_CLIENTS} sessions, each of which reads what it wrote "
        "(`read_consistency = \"session\"`); reads as the nodes themselves counted them.", "",
        "| what | split | fixed to the primary | |", "|---|--:|--:|--:|",
    ]
    document = "\n".join(head + rows) + "\n"
    print(document)
    with open(given.output, "w", encoding="utf-8") as file:
        file.write(document)


@contextlib.contextmanager
def fixed_to_primary():
    """What pgbench connects with meanwhile."""
    os.environ["PGOPTIONS"] = PRIMARY_ALONE
    try:
        yield
    finally:
        del os.environ["PGOPTIONS"]


def cost(folder, proxy, given):
    """CPU per transaction with and without looking."""
    rows = []
    for protocol in PROTOCOLS:
        load = Load("select", protocol, CLIENTS)

        def split_us(load=load):
            return measure.run(folder, proxy.target, load, given.seconds).cpu_us

        def fixed_us(load=load):
            with fixed_to_primary():
                return measure.run(folder, proxy.target, load, given.seconds).cpu_us

        pairs = []
        for number in range(given.rounds):
            if number % 2:
                fixed = fixed_us()
                pairs.append((split_us(), fixed))
            else:
                pairs.append((split_us(), fixed_us()))
        ratios = [split / fixed for split, fixed in pairs]
        split, fixed = (statistics.median(side) for side in zip(*pairs))
        rows.append(
            f"| CPU, select-only, {protocol} | {split:.1f} µs | {fixed:.1f} µs | "
            f"× {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
        print(rows[-1], flush=True)
    return rows


def mixed(folder, cluster, proxy, given):
    """Who served the reads of a mixed load, by the nodes' own counts."""
    read, write = folder.write("read.sql", READ), folder.write("write.sql", WRITE)
    measure.SCRIPTS["mixed"] = ["-s", str(given.scale), "-f", f"{read}@9", "-f", f"{write}@1"]
    rows = []
    # What came before is counted by the nodes when their connections have been idle for a while.
    time.sleep(steady.STATISTICS_DELAY_S)
    for rate in RATES:
        before = counts(folder, cluster)
        load = Load("mixed", "prepared", MIXED_CLIENTS, rate=rate)
        sample = without_failures(measure.run(folder, proxy.target, load, MIXED_SECONDS))
        time.sleep(steady.STATISTICS_DELAY_S)
        after = counts(folder, cluster)
        standbys = after["standby"] - before["standby"]
        # An UPDATE looks its row up as well.
        primary = after["primary"] - before["primary"] - (after["written"] - before["written"])
        share = standbys / (standbys + primary)
        fixed = "" if rate else f"{fixed_tps(folder, proxy, load):,.0f} a second"
        title = f"at {rate:,} a second" if rate else "as fast as they can"
        rows.append(
            f"| mixed, {title} | {sample.tps:,.0f} a second | {fixed} | {share:.1%} of {standbys + primary:,} reads off the primary |"
        )
        print(rows[-1], flush=True)
    return rows


def fixed_tps(folder, proxy, load):
    """The same with the primary alone."""
    with fixed_to_primary():
        return without_failures(measure.run(folder, proxy.target, load, MIXED_SECONDS)).tps


def without_failures(sample):
    if sample.failed:
        raise BenchError(f"{sample.failed} transactions failed")
    return sample


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
