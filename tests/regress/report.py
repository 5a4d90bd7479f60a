"""docs/regress.md, from the outcomes of a run."""

MARK = {True: "pass", False: "**fail**"}

PAGE = """\
# PostgreSQL's own tests, through the port

Written by `make regress` (`tests/regress/run.sh`); not to be edited. Two suites of PostgreSQL {postgres} run twice, once
connected to a server directly and once through {halyard} in front of that server:

- the **regression suite**: `pg_regress` with the `parallel_schedule`, so that up to 20 sessions at a time take turns on
  the connections, a new one whenever a script says `\\c`;
- **libpq's test of pipelines** (`src/test/modules/libpq_pipeline`), each part by its own checks and, where PostgreSQL has a
  trace of it, by the messages that came and went.

One server of the suite's own version, made with `initdb --no-locale -E UTF8`, new for each run; Halyard in **transaction
pooling** with {pool_size} connections to it, everything else as it is by default. Clients are the superuser that the suite
wants; creating the database is part of the run.

| suite | directly | through Halyard |
|---|--:|--:|
| regression suite, files | {direct_files} | {through_files} |
| libpq's pipelines, checks | {direct_checks} | {through_checks} |

## What fails, and why

*Design*: what pooling by transaction cannot give, or not at a fair price. *Gap*: what Halyard ought to do and does not yet.
A test that fails *sometimes* depends on which connection happened to be free; the last column is this run. The list is
`tests/regress/expected_failures.toml`: the command fails if anything else does, or if one passes that ought to fail always.

{explained}
## libpq's pipelines

{checks}
## Every file of the regression suite

In the schedule's order.

{files}"""


def document(postgres, halyard, pool_size, direct, through, expected):
    """The page. `direct` and `through` are pairs of outcomes: of the files, and of the checks on pipelines."""
    return PAGE.format(
        postgres=postgres, halyard=halyard, pool_size=pool_size,
        direct_files=count(direct[0]), through_files=count(through[0]),
        direct_checks=count(direct[1]), through_checks=count(through[1]),
        explained=explained({**through[0], **through[1]}, expected),
        checks=table("check", direct[1], through[1]), files=table("file", direct[0], through[0]),
    )


def count(outcomes):
    return f"{sum(outcomes.values())} of {len(outcomes)}"


def table(head, direct, through):
    lines = [f"| {head} | directly | through Halyard |", "|---|---|---|"]
    lines += [f"| {name} | {MARK[direct[name]]} | {MARK[through[name]]} |" for name in through]
    return "\n".join(lines) + "\n"


def explained(through, expected):
    lines = ["| test | kind | fails | why | this run |", "|---|---|---|---|---|"]
    for name, entry in expected.entries.items():
        why = " ".join(entry["why"].split())
        lines.append(f"| {name} | {entry['kind']} | {entry['fails']} | {why} | {MARK[through[name]]} |")
    unexplained = [name for name, passed in through.items() if not passed and name not in expected.entries]
    lines += [f"| {name} | **not explained** | | | **fail** |" for name in unexplained]
    return "\n".join(lines) + "\n"
