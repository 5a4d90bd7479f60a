"""Runs pgbench directly, through PgBouncer and through Halyard in turn, and writes one table.

Called by benches/run.sh. Targets of one load take turns within a round, so that what else the machine does hits all of
them alike; every figure is the median of the rounds.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import measure
import points
import report
from measure import Target
from servers import (
    DATABASE, HOST, PGBOUNCER, USER, BenchError, Cluster, Folder, Halyard, PgBouncer, Postgres,
)


def options():
    parser = argparse.ArgumentParser(prog="benches/run.sh", description=__doc__)
    quick = os.environ.get("QUICK", "") not in ("", "0")
    environment = os.environ.get
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=environment("SECONDS_PER_POINT", 2 if quick else 3),
                        help="of each run of pgbench (SECONDS_PER_POINT) [3; 2 with QUICK=1]")
    parser.add_argument("--rounds", type=int, default=environment("ROUNDS", 1 if quick else 3),
                        help="runs of each line (ROUNDS) [3; 1 with QUICK=1]")
    parser.add_argument("--scale", type=int, default=environment("SCALE", 20), help="of pgbench's tables (SCALE) [20]")
    parser.add_argument("--only", default="", help="a regular expression for 'load protocol clients'")
    parser.add_argument("--base-port", type=int, default=environment("BASE_PORT", 28000),
                        help="where the real cluster's ports begin (BASE_PORT) [28000]")
    parser.add_argument("--no-cluster", action="store_true", help="leave the real cluster's lines out")
    parser.add_argument("--few", action="store_true", default=quick,
                        help="leave out TPC-B with 1 and 64 clients, and repetitions (QUICK=1)")
    parser.add_argument("--output", help="file for the table [benches/RESULTS.md]")
    return parser.parse_args()


def main():
    given = options()
    # SIGTERM ends the run as Ctrl-C does: with everything cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not os.path.exists(PGBOUNCER):
        raise BenchError("pgbouncer is missing: run cluster/deps.sh bench")
    began, load_average = time.monotonic(), os.getloadavg()[0]
    chosen = [point for point in points.all_points() if wanted(given, point)]
    rows, failures = [], []
    print(report.HEAD, flush=True)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(Folder())
        # A copy that the folder's user may read, and that no build replaces meanwhile.
        binary = shutil.copy(given.binary, folder.inside("halyard"))
        os.chmod(binary, 0o755)
        postgres = Postgres(folder, given.scale)
        targets = start(folder, postgres, binary)
        versions = {
            "halyard": f"{folder.run(binary, '--version').strip()} ({commit()})",
            "pgbouncer": PgBouncer.version(folder),
            "postgres": postgres.version(),
        }
        for point in chosen:
            if point.needs_cluster and points.HALYARD_SPLIT not in targets:
                cluster = stack.enter_context(Cluster(folder, binary, given.base_port))
                targets[points.HALYARD_SPLIT] = prepared(folder, cluster, given.scale)
            for row in rows_of(folder, point, targets, given, failures):
                rows.append(row)
                print(row, flush=True)
    took_s = time.monotonic() - began
    command = " ".join(["benches/run.sh", *changed_options(given)])
    document = report.document(rows, versions, command, load_average, points.POOL_SIZE, took_s, failures)
    output = given.output or os.path.join(os.path.dirname(__file__), os.pardir, "RESULTS.md")
    with open(output, "w", encoding="utf-8") as file:
        file.write(document)
    print(f"\nwritten to {os.path.relpath(output)} after {took_s:.0f} s")
    if failures:
        raise BenchError("; ".join(failures))


def wanted(given, point):
    load = f"{point.title} {point.load.protocol} {point.load.clients}"
    left_out = given.no_cluster and point.needs_cluster or given.few and not point.in_few
    return re.search(given.only, load) and not left_out


def changed_options(given):
    """What has to be typed for a run like this one."""
    options = [f"--seconds {given.seconds}", f"--rounds {given.rounds}", f"--scale {given.scale}"]
    if given.only:
        options.append(f"--only '{given.only}'")
    return options + ["--no-cluster"] * given.no_cluster + ["--few"] * given.few


def start(folder, postgres, binary):
    """All servers at once: who is not asked anything does nothing."""
    def halyard(name, file, **settings):
        return name, Halyard(folder, postgres, binary, file, points.POOL_SIZE, **settings)

    def pgbouncer(name, file, mode="transaction", size=points.POOL_SIZE, **settings):
        return name, PgBouncer(folder, postgres, file, mode, size, **settings)

    proxies = dict([
        halyard(points.HALYARD, "halyard"),
        halyard(points.HALYARD_ONE_WORKER, "halyard-1", general={"workers": 1}),
        halyard(points.HALYARD_MULTI_THREAD, "halyard-mt", general={"runtime": "multi-thread"}),
        halyard(points.HALYARD_UNIX, "halyard-unix", host=folder.path),
        pgbouncer(points.PGBOUNCER, "pgbouncer"),
        pgbouncer(points.PGBOUNCER_SESSION, "pgbouncer-session", "session", max(points.CLIENTS)),
        pgbouncer(points.PGBOUNCER_UNIX, "pgbouncer-unix", host=folder.path),
    ])
    password = folder.secrets[USER]
    targets = {
        name: Target(name, proxy.port, proxy.process.pid, password=password) for name, proxy in proxies.items()
    }
    for name, host in ((points.DIRECT, HOST), (points.DIRECT_UNIX, folder.path)):
        targets[name] = Target(name, postgres.port, None, host=host, password=password)
    return targets


def prepared(folder, cluster, scale):
    """The real cluster with data for pgbench in it."""
    target = Target(
        points.HALYARD_SPLIT, cluster.port, cluster.pid,
        database=cluster.database, user=cluster.user, password=cluster.password,
    )
    measure.fill(folder, target, scale)
    return target


def rows_of(folder, point, targets, given, failures):
    """Measures a point, its targets in turn, and gives a row for each."""
    samples = {name: [] for name in point.targets}
    for _ in range(given.rounds if given.few else max(given.rounds, point.rounds_min)):
        for name in list(samples):
            what = f"{point.title}, {point.load.protocol}, {point.load.clients} clients, {name}"
            try:
                sample = measure.run(folder, targets[name], point.load, given.seconds)
                if sample.failed:
                    raise BenchError(f"{sample.failed} failed of {sample.transactions} transactions")
            except (BenchError, subprocess.TimeoutExpired) as error:
                failures.append(f"{what}: {error}")
                del samples[name]
                continue
            samples[name].append(sample)
    return [report.row(point, name, samples.get(name), samples) for name in point.targets]


def commit():
    """Which source this is, as far as git knows."""
    describe = subprocess.run(
        ("git", "describe", "--always", "--dirty"), cwd=os.path.dirname(os.path.abspath(__file__)),
        text=True, capture_output=True, check=False,
    )
    return describe.stdout.strip() or "source not under git"


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
