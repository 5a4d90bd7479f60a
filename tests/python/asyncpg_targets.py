"""asyncpg's target_session_attrs with several hosts.

PGPORT takes reads and writes, PRIMARY_PORT is the primary's, and REPLICA_PORT is a standby's.
"""

import asyncio
import os

import asyncpg

ANY = int(os.environ["PGPORT"])
PRIMARY = int(os.environ["PRIMARY_PORT"])
REPLICA = int(os.environ["REPLICA_PORT"])


async def connected_to(attrs, *ports, **settings):
    """The port that was picked; None where no host would do."""
    hosts = {"host": ["127.0.0.1"] * len(ports), "port": list(ports)}
    try:
        conn = await asyncpg.connect(target_session_attrs=attrs, server_settings=settings, **hosts)
    except asyncpg.TargetServerAttributeNotMatched:
        return None
    try:
        if attrs in ("read-write", "primary"):
            await conn.execute("CREATE TEMPORARY TABLE writable (a int)")
        if attrs == "standby":
            assert await conn.fetchval("SELECT pg_is_in_recovery()")
        if attrs == "read-only":
            assert await conn.fetchval("SHOW transaction_read_only") == "on"
        # What was picked is told nowhere else.
        return conn._addr[1]
    finally:
        await conn.close()


EXPECTED = {
    "any": {(REPLICA, PRIMARY): REPLICA, (PRIMARY, REPLICA): PRIMARY, (ANY, REPLICA): ANY},
    "read-write": {(REPLICA, PRIMARY): PRIMARY, (REPLICA, ANY): ANY, (REPLICA,): None},
    "primary": {(REPLICA, PRIMARY): PRIMARY, (REPLICA, ANY): ANY, (REPLICA,): None},
    "read-only": {(PRIMARY, REPLICA): REPLICA, (ANY, REPLICA): REPLICA, (PRIMARY,): None, (ANY,): None},
    "standby": {(PRIMARY, REPLICA): REPLICA, (ANY, REPLICA): REPLICA, (PRIMARY,): None, (ANY,): None},
    "prefer-standby": {(PRIMARY, REPLICA): REPLICA, (ANY, PRIMARY, REPLICA): REPLICA, (ANY,): ANY, (PRIMARY,): PRIMARY},
}


async def main():
    for attrs, cases in EXPECTED.items():
        for ports, port in cases.items():
            assert await connected_to(attrs, *ports) == port, (attrs, ports)
    # A session that asks to read only does so on any server.
    reader = {"default_transaction_read_only": "on"}
    for port in (ANY, PRIMARY):
        assert await connected_to("read-only", port, **reader) == port
        assert await connected_to("read-write", port, **reader) is None
        assert await connected_to("primary", REPLICA, port) == port


asyncio.run(main())
