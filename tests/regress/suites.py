"""The two suites, run against a port. Each gives what became of its parts: a name, and whether it passed."""

import os
import re

from servers import HOST, USER, RegressError

DATABASE = "regression"
# A run takes about a minute on two cores.
SUITE_LIMIT_S = 1200
PIPELINE_LIMIT_S = 120
# Rows that the pipelines insert, and the tests whose messages are compared, as in PostgreSQL's
# src/test/modules/libpq_pipeline/t/001_libpq_pipeline.pl.
PIPELINE_ROWS = 700
TRACED = {
    "simple_pipeline", "nosync", "multi_pipelines", "prepared", "singlerow", "pipeline_abort", "pipeline_idle",
    "transaction", "disallowed_in_pipeline",
}

# A line of pg_regress on one file. What it ignores, by the schedule, is `random`, which may fail by chance.
OUTCOME = re.compile(r"^(?:test| {4}) (\S+) +\.\.\. (ok|FAILED|failed \(ignored\))", re.MULTILINE)


def files_of(schedule):
    """The names in a schedule, in its order."""
    with open(schedule, encoding="utf-8") as file:
        return [name for line in file if line.startswith("test:") for name in line.split()[1:]]


def regression(folder, name, port):
    """Runs pg_regress by the parallel schedule: up to 20 sessions at once, so that they share connections in earnest.

    Gives the outcome of each file, and the differences as text.
    """
    inputs, output = folder.inside("inputs"), folder.make(f"{name}.output")
    schedule = f"{inputs}/regress/parallel_schedule"
    _, printed = folder.run(
        f"{inputs}/usr/lib/postgresql/15/lib/pgxs/src/test/regress/pg_regress",
        f"--inputdir={inputs}/regress", f"--outputdir={output}", f"--bindir={folder.program('')}",
        f"--dlpath={inputs}/lib", f"--schedule={schedule}", f"--dbname={DATABASE}", "--encoding=UTF8", "--no-locale",
        f"--host={HOST}", f"--port={port}", f"--user={USER}", limit_s=SUITE_LIMIT_S,
    )
    outcomes = {name: outcome != "FAILED" for name, outcome in OUTCOME.findall(printed)}
    wanted = files_of(schedule)
    if set(outcomes) != set(wanted):
        raise RegressError(f"pg_regress did not report on every file ({name}):\n{printed.strip()[-1500:]}")
    differences = os.path.join(output, "regression.diffs")
    text = ""
    if os.path.exists(differences):
        # Not all of it is UTF-8: some tests are of other encodings.
        with open(differences, encoding="utf-8", errors="replace") as file:
            text = file.read()
    return {name: outcomes[name] for name in wanted}, text


def pipeline(folder, name, port):
    """Runs libpq's test of pipelines, each part twice over: its own checks, and the messages that came and went.

    Gives the outcome of each check, and what failed as text.
    """
    program, traces = folder.inside("inputs/libpq_pipeline"), folder.make(f"{name}.traces")
    connection = f"host={HOST} port={port} user={USER} dbname=postgres"
    status, tests = folder.run(program, "tests", limit_s=PIPELINE_LIMIT_S)
    if status:
        raise RegressError(f"libpq_pipeline does not name its tests: {tests.strip()}")
    outcomes, differences = {}, []
    for test in tests.split():
        trace = f"{traces}/{test}.trace"
        traced = ("-t", trace) if test in TRACED else ()
        status, printed = folder.run(
            program, "-r", str(PIPELINE_ROWS), *traced, test, connection, limit_s=PIPELINE_LIMIT_S,
        )
        outcomes[test] = status == 0
        if status:
            differences.append(f"libpq_pipeline {test}:\n{printed}")
        if traced:
            # A test that failed early may have left no trace; what is expected is always there.
            heard = read(trace) if os.path.exists(trace) else ""
            expected = read(folder.inside("inputs/traces", f"{test}.trace"))
            outcomes[f"{test}, messages"] = heard == expected
            if heard != expected:
                differences.append(f"libpq_pipeline {test}, messages expected:\n{expected}\nand seen:\n{heard}")
    return outcomes, "\n".join(differences)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()
