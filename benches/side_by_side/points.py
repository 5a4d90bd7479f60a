"""What is measured: every load, and through what."""

import dataclasses

from measure import Load

POOL_SIZE = 16
PROTOCOLS = ("simple", "extended", "prepared")
CLIENTS = (1, 16, 64)
FIXED_RATE = 4000

# The names of targets as the table shows them.
DIRECT = "direct"
HALYARD = "Halyard"
PGBOUNCER = "PgBouncer"
PGBOUNCER_SESSION = "PgBouncer, session pooling"
HALYARD_ONE_WORKER = "Halyard, workers = 1"
HALYARD_MULTI_THREAD = "Halyard, multi-thread"
DIRECT_UNIX = "direct, Unix socket"
HALYARD_UNIX = "Halyard, Unix socket to the node"
PGBOUNCER_UNIX = "PgBouncer, Unix socket to the node"
HALYARD_SPLIT = "Halyard, reads on 3 standbys"


@dataclasses.dataclass(frozen=True)
class Point:
    """A load, and the targets it is run against in turn."""

    title: str
    load: Load
    targets: tuple[str, ...]
    # What the targets' transactions and CPU are compared with.
    direct: str = DIRECT
    pgbouncer: str = PGBOUNCER
    # Fewer rounds than this are too few for what is to be decided by it.
    rounds_min: int = 1

    @property
    def in_few(self):
        """Whether it is measured when there is little time."""
        return self.load.script != "tpcb" or self.load.clients == 16

    @property
    def needs_cluster(self):
        return HALYARD_SPLIT in self.targets


def all_points():
    """In the order of the table."""
    points = []
    for script, title in (("select", "select-only"), ("tpcb", "TPC-B")):
        for protocol in PROTOCOLS:
            # PgBouncer 1.18 knows no prepared statements: with transaction pooling a Bind meets a connection that has
            # never seen its Parse. With session pooling, a connection for every client, it has them, and less to do.
            pgbouncer = PGBOUNCER_SESSION if protocol == "prepared" else PGBOUNCER
            for clients in CLIENTS:
                load = Load(script, protocol, clients)
                points.append(Point(title, load, (DIRECT, pgbouncer, HALYARD), pgbouncer=pgbouncer))
    points.append(Point(
        "select-only, a connection each", Load("select", "simple", 16, connect=True), (DIRECT, PGBOUNCER, HALYARD),
    ))
    points.append(Point("100 MiB result", Load("large", "simple", 1), (DIRECT, PGBOUNCER, HALYARD)))
    points.append(Point(
        "select-only", Load("select", "extended", 16), (DIRECT_UNIX, PGBOUNCER_UNIX, HALYARD_UNIX),
        direct=DIRECT_UNIX, pgbouncer=PGBOUNCER_UNIX,
    ))
    threads = (PGBOUNCER, HALYARD, HALYARD_ONE_WORKER, HALYARD_MULTI_THREAD)
    for load in (
        Load("select", "extended", 16),
        Load("select", "extended", 64),
        Load("select", "extended", 16, rate=FIXED_RATE),
    ):
        title = f"select-only, {FIXED_RATE} a second" if load.rate else "select-only, forms of threads"
        points.append(Point(title, load, threads, rounds_min=3))
    for script, title in (("select", "select-only"), ("tpcb", "TPC-B")):
        for protocol in PROTOCOLS:
            points.append(Point(f"{title}, real cluster", Load(script, protocol, 16), (HALYARD_SPLIT,)))
    return points
