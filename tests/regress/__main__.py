"""Runs PostgreSQL's regression suite and libpq's test of pipelines, directly and through Halyard, and writes one table.

Called by tests/regress/run.sh.
"""

import argparse
import os
import subprocess
import signal
import sys

import report
import suites
from expected import Expected
from servers import START_LIMIT_S, Folder, RegressError, halyard, postgres


def options():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(prog="tests/regress/run.sh", description=__doc__)
    parser.add_argument("--inputs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--binary", required=True, help="Halyard's program [a release build]")
    parser.add_argument("--pool-size", type=int, default=20, help="connections to the server [20]")
    parser.add_argument("--output", default=os.path.join(here, "../../docs/regress.md"), help="[docs/regress.md]")
    return parser.parse_args()


def main():
    given = options()
    # SIGTERM ends the run as Ctrl-C does: with everything cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    expected = Expected()
    with Folder(given.inputs, given.binary) as folder:
        with postgres(folder, "direct") as port:
            direct = run(given, folder, "direct", port)
        with postgres(folder, "halyard") as node_port, halyard(folder, node_port, given.pool_size) as port:
            through = run(given, folder, "halyard", port)
        version = folder.run(folder.inside("halyard"), "--version", limit_s=START_LIMIT_S)[1].strip()
        told = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
        if told.returncode == 0:
            version += f" (commit {told.stdout.strip()})"
    with open(os.path.join(given.inputs, "version"), encoding="utf-8") as file:
        page = report.document(file.read().strip(), version, given.pool_size, direct, through, expected)
    with open(given.output, "w", encoding="utf-8") as file:
        file.write(page)
    complaints = expected.complaints({**direct[0], **direct[1]}, {**through[0], **through[1]})
    for complaint in complaints:
        print(f"regress: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


def run(given, folder, name, port):
    """Both suites against a port. What differs from what is expected stays beside the inputs, for a person to read."""
    files, differences = suites.regression(folder, name, port)
    checks, more = suites.pipeline(folder, name, port)
    kept = os.path.join(given.inputs, os.pardir, f"regress-{name}.diffs")
    with open(kept, "w", encoding="utf-8") as file:
        file.write(differences + more)
    failed = [name for name, passed in {**files, **checks}.items() if not passed]
    print(f"{name}: {report.count(files)} files, {report.count(checks)} checks on pipelines")
    if failed:
        print(f"  failed: {', '.join(failed)}\n  see {os.path.normpath(kept)}")
    sys.stdout.flush()
    return files, checks


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RegressError as error:
        sys.exit(f"regress: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
