"""Instructions that a whole proxy process spends in user space on one transaction, counted by valgrind.

The process runs under callgrind and serves two numbers of transactions; what the difference leaves is free of start-up,
logins and shutdown. Instructions do not hang on what else the machine does, so that they tell a
change of one per cent, where times tell ten. System calls count as nothing here: the kernel's share is in RESULTS.md.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import time

from servers import DATABASE, HOST, PG_BIN, USER, BenchError, Folder, Halyard, PgBouncer, Postgres, end

PROTOCOLS = ("simple", "extended", "prepared")
POOL_SIZE = 16
WARM_UP = 640
WARM_UP_S = 2
# callgrind_control is told three times to write a file; the third holds the longest run.
DUMPS = 3


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--binary", required=True, help="a release build of halyard")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    options.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=PROTOCOLS)
    options.add_argument("--transactions", type=int, default=4000, help="the difference between the two runs")
    options.add_argument("--keep", metavar="DIR", help="leave callgrind's files here, for callgrind_annotate")
    options.add_argument("--only", choices=("halyard", "pgbouncer"), help="leave the other out")
    given = options.parse_args()
    if not shutil.which("valgrind"):
        raise BenchError("valgrind is missing: run cluster/deps.sh bench")
    with Folder() as folder:
        postgres = Postgres(folder, scale=1)
        print("instructions in user space per select-only transaction\n")
        print("| protocol | clients | Halyard | PgBouncer | ratio |\n|---|--:|--:|--:|--:|", flush=True)
        for protocol in given.protocol:
            for clients in given.clients:
                print(row(folder, postgres, given, protocol, clients), flush=True)


def row(folder, postgres, given, protocol, clients):
    figures = {
        kind: count(folder, postgres, given, kind, protocol, clients)
        for kind in ("halyard", "pgbouncer")
        if given.only in (None, kind)
    }
    halyard, pgbouncer = figures.get("halyard"), figures.get("pgbouncer")
    ratio = f"{halyard / pgbouncer:.2f}" if halyard and pgbouncer else "–"
    cells = [f"{figure:,.0f}" if figure else "–" for figure in (halyard, pgbouncer)]
    return f"| {protocol} | {clients} | {' | '.join(cells)} | {ratio} |"


def count(folder, postgres, given, kind, protocol, clients):
    """Instructions of a proxy for one transaction."""
    name = f"{kind}-{protocol}-{clients}"
    out = folder.inside(f"{name}.callgrind")
    under = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--vgdb-poll=1000")
    if kind == "halyard":
        # What is done by the clock, and not by the transaction, is made rare.
        proxy = Halyard(
            folder, postgres, given.binary, name, POOL_SIZE, general={"workers": 1},
            health={"interval": "1min", "timeout": "1min", "connect_timeout": "1min", "stale_after": "1h"}, under=under,
        )
    else:
        # It cannot pool transactions of prepared statements, only give each client a connection of its own.
        mode = "session" if protocol == "prepared" else "transaction"
        proxy = PgBouncer(folder, postgres, name, mode, max(POOL_SIZE, clients), under=under)
    few, many = given.transactions // 2, given.transactions * 3 // 2
    try:
        # Opens the pool's connections, and has Halyard read the catalogue, which it does a moment after the first login.
        drive(folder, proxy, protocol, clients, WARM_UP)
        time.sleep(WARM_UP_S)
        dump(folder, proxy, out)
        counts = []
        for transactions in (few, many):
            drive(folder, proxy, protocol, clients, transactions)
            counts.append(dump(folder, proxy, out))
    finally:
        end(proxy.process)
    if given.keep:
        os.makedirs(given.keep, exist_ok=True)
        shutil.copy(f"{out}.{DUMPS}", os.path.join(given.keep, f"{name}.callgrind"))
    return (counts[1] - counts[0]) / given.transactions


def drive(folder, proxy, protocol, clients, transactions):
    folder.run(
        f"{PG_BIN}/pgbench", "-n", "-S", "-M", protocol, "-c", str(clients), "-t", str(transactions // clients),
        "-h", HOST, "-p", str(proxy.port), "-U", USER, DATABASE, password=folder.secrets[USER], timeout=600,
    )


def dump(folder, proxy, out):
    """Has callgrind write what it counted since the last time; the sum."""
    folder.run("callgrind_control", "--dump", str(proxy.process.pid), timeout=60)
    newest = max(glob.glob(f"{out}.*"), key=lambda path: int(path.rpartition(".")[2]))
    with open(newest, encoding="utf-8") as file:
        total = re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE)
    if not total:
        raise BenchError(f"callgrind counted nothing: {newest}")
    return int(total[1])


if __name__ == "__main__":
    try:
        main()
    except (BenchError, subprocess.TimeoutExpired) as error:
        sys.exit(f"instructions: {error}")
