"""libpq's target_session_attrs with several hosts in the connection string.

PGPORT takes reads and writes, PRIMARY_PORT is the primary's, and REPLICA_PORT is a standby's.
"""

import os

import psycopg

ANY = int(os.environ["PGPORT"])
PRIMARY = int(os.environ["PRIMARY_PORT"])
REPLICA = int(os.environ["REPLICA_PORT"])


def connected_to(attrs, *ports):
    """The port that was picked; None where no host would do."""
    hosts = {"host": ",".join(["127.0.0.1"] * len(ports)), "port": ",".join(map(str, ports))}
    try:
        with psycopg.connect(autocommit=True, target_session_attrs=attrs, **hosts) as conn:
            if attrs in ("read-write", "primary"):
                conn.execute("CREATE TEMPORARY TABLE writable (a int)")
            if attrs in ("read-only", "standby"):
                assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
            return conn.info.port
    except psycopg.OperationalError as error:
        assert "session is" in str(error) or "server is" in str(error), error
        return None


EXPECTED = {
    "any": {(REPLICA, PRIMARY): REPLICA, (PRIMARY, REPLICA): PRIMARY, (ANY, REPLICA): ANY},
    "read-write": {(REPLICA, PRIMARY): PRIMARY, (REPLICA, ANY): ANY, (REPLICA,): None},
    "primary": {(REPLICA, PRIMARY): PRIMARY, (REPLICA, ANY): ANY, (REPLICA,): None},
    "read-only": {(PRIMARY, REPLICA): REPLICA, (ANY, REPLICA): REPLICA, (PRIMARY,): None, (ANY,): None},
    "standby": {(PRIMARY, REPLICA): REPLICA, (ANY, REPLICA): REPLICA, (PRIMARY,): None, (ANY,): None},
    "prefer-standby": {(PRIMARY, REPLICA): REPLICA, (ANY, PRIMARY, REPLICA): REPLICA, (ANY,): ANY, (PRIMARY,): PRIMARY},
}

for attrs, cases in EXPECTED.items():
    for ports, port in cases.items():
        assert connected_to(attrs, *ports) == port, (attrs, ports)
