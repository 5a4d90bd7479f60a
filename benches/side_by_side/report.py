"""The table."""

import os
import platform
import re
import statistics
import time

from measure import LARGE_RESULT_BYTES, read

HEAD = (
    "| load | protocol | clients | through | TPS | p50 ms | p99 ms | CPU us/tx (user) | sleeps/tx | RSS MB "
    "| TPS to direct | CPU to PgBouncer |\n"
    "|---|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"
)
ABSENT = "–"

NOTES = """\
What the columns say:

- *through*: Halyard with its shipped defaults (one event loop per core, classifier on) before **one** node, as PgBouncer has
  it, unless the line says otherwise. Everybody gets {pool} connections to the node with transaction pooling, and knows the
  user by the same SCRAM verifier.
- *p50, p99*: of whole transactions as pgbench saw them; at a fixed rate from when they were due.
- *CPU us/tx*: user and system time of all threads of the proxy, by the scheduler's own clock, for one transaction (for one GB
  where it says s/GB); in brackets the user part, which is sampled. pgbench, proxy and servers share the machine, so
  TPS tells how much they cost together, and this column what the proxy costs.
- *sleeps/tx*: how often a thread of the proxy had nothing to do and slept. Few mean that it is saturated.
- *RSS*: of the proxy after the run, with whatever the runs before it left.
- The ratios are medians of the rounds' ratios, between runs that lay side by side in time; *to PgBouncer* below 1 means
  that the line costs less. Figures of different machines, or of different runs, do not compare.
- PgBouncer {pgbouncer} cannot carry prepared statements over transaction pooling (`max_prepared_statements` came with 1.21). For the
  prepared lines it has session pooling and a connection to the node for each client, which is less work than
  Halyard's, and impossible with more clients than connections.
"""


def row(point, target, samples, context):
    """One line of the table. `context` is the samples of each target of the point."""
    load = point.load
    cells = [point.title, load.protocol, str(load.clients), target]
    if not samples:
        return line(cells + ["failed"] + [ABSENT] * 7)
    proxied = samples[0].usage is not None
    cells += [
        f"{median(samples, lambda s: s.tps):,.{0 if samples[0].tps >= 100 else 1}f}",
        f"{median(samples, lambda s: s.p50_us) / 1000:.2f}",
        f"{median(samples, lambda s: s.p99_us) / 1000:.2f}",
        cpu(load, samples) if proxied else ABSENT,
        f"{median(samples, lambda s: s.usage.switches / s.transactions):.2f}" if proxied else ABSENT,
        f"{samples[-1].rss_kb / 1024:.0f}" if proxied else ABSENT,
        ratio(samples, context.get(point.direct), lambda s: s.tps) if target != point.direct else ABSENT,
        ratio(samples, context.get(point.pgbouncer), lambda s: s.cpu_us)
        if proxied and target != point.pgbouncer else ABSENT,
    ]
    return line(cells)


def line(cells):
    return "| " + " | ".join(cells) + " |"


def median(samples, figure):
    return statistics.median(figure(sample) for sample in samples)


def cpu(load, samples):
    total = median(samples, lambda s: s.cpu_us)
    user = sum(s.usage.user_ticks for s in samples)
    sampled = user + sum(s.usage.system_ticks for s in samples)
    user_part = total * user / max(sampled, 1)
    if load.script == "large":
        per_gb = 1000 / LARGE_RESULT_BYTES  # us a transaction -> s a GB
        return f"{total * per_gb:.2f} s/GB ({user_part * per_gb:.2f})"
    return f"{total:.1f} ({user_part:.1f})"


def ratio(samples, others, figure):
    """The median of the ratios of runs that lay side by side."""
    if not others or len(others) != len(samples):
        return ABSENT
    ratios = [figure(ours) / figure(theirs) for ours, theirs in zip(samples, others) if figure(theirs)]
    return f"{statistics.median(ratios):.2f}" if ratios else ABSENT


def machine():
    """What it ran on."""
    model = re.search(r"model name\s*: (.*)", read("/proc/cpuinfo"))
    # The version, without what names one machine's own build.
    kernel = re.match(r"\d+\.\d+", platform.release())
    memory_kb = int(re.search(r"MemTotal:\s+(\d+)", read("/proc/meminfo"))[1])
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {memory_kb / 2**20:.0f} GB, "
        f"Linux {kernel[0] if kernel else 'of an unknown version'}"
    )


def document(rows, versions, command, load_average, pool_size, took_s, failures):
    """The whole of RESULTS.md."""
    parts = [
        "# Halyard beside PgBouncer and direct connections",
        "",
        f"- Date: {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC; the run took {took_s / 60:.0f} minutes",
        f"- Machine: {machine()}; load average before the run {load_average:.1f}",
        f"- Versions: {'; '.join(versions.values())}",
        f"- Command: `{command}`",
        "",
        HEAD,
        *rows,
        "",
        NOTES.format(pool=pool_size, pgbouncer=versions["pgbouncer"].rpartition(" ")[2]),
    ]
    if failures:
        parts += ["What failed:", "", *(f"- {failure}" for failure in failures), ""]
    return "\n".join(parts)
