"""asyncpg: statements and their cache, types, cursors, COPY, blocks, pools, listeners, cancelling.

Connects by the PG* variables, in the schema that SCHEMA names. With FEW_BACKENDS set there are fewer connections to the
servers than clients, so what needs two of them at a time is left out.
"""

import asyncio
import datetime
import decimal
import io
import json
import os
import uuid
from contextlib import contextmanager

import asyncpg

SCHEMA = os.environ["SCHEMA"]
ADDRESS = {
    "host": os.environ["PGHOST"],
    "port": int(os.environ["PGPORT"]),
    "user": os.environ["PGUSER"],
    "password": os.environ["PGPASSWORD"],
    "database": os.environ["PGDATABASE"],
    "server_settings": {"search_path": SCHEMA, "application_name": "asyncpg"},
}


@contextmanager
def raises(kind):
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


async def queries(conn):
    for number in range(150):
        assert await conn.fetchval(f"SELECT {number} + $1::int", 1) == number + 1
    statement = await conn.prepare("SELECT $1::int AS a, $2::text[] AS b")
    assert [attribute.type.name for attribute in statement.get_attributes()] == ["int4", "text[]"]
    assert [parameter.name for parameter in statement.get_parameters()] == ["int4", "text[]"]
    for number in range(10):
        assert tuple(await statement.fetchrow(number, ["x", "ü"])) == (number, ["x", "ü"])
    with raises(asyncpg.DivisionByZeroError):
        await conn.fetch("SELECT 1/0")
    with raises(asyncpg.UndefinedTableError):
        await conn.fetch("SELECT * FROM there_is_no_such_table WHERE a = $1", 1)
    assert await conn.execute("SELECT 1; SELECT 2") == "SELECT 1"
    # Without a cache, each is the unnamed statement or prepared anew.
    uncached = await asyncpg.connect(**ADDRESS, statement_cache_size=0)
    for number in range(20):
        assert await uncached.fetchval("SELECT $1::int", number) == number
    await uncached.close()
    assert conn.get_settings().application_name == "asyncpg"
    assert await conn.fetchval("SHOW search_path") == SCHEMA


async def types(conn):
    await conn.execute("CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE TYPE place AS (x int, name text)")
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    await conn.execute(
        "CREATE TABLE typed (mood mood, place place, at timestamptz, many jsonb, id uuid, exact numeric, "
        "span int4range, days date[], raw bytea)"
    )
    row = (
        "sad",
        (7, "here, (there)"),
        datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=datetime.timezone.utc),
        {"a": [1, None, "ü"]},
        uuid.uuid4(),
        decimal.Decimal("12345678901234567890.10"),
        asyncpg.Range(1, 5),
        [datetime.date(2024, 1, 1), None],
        bytes(range(256)),
    )
    await conn.execute("INSERT INTO typed VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)", *row)
    found = await conn.fetchrow("SELECT * FROM typed")
    assert tuple(found) == row, found
    # A text codec for an enum.
    await conn.set_type_codec("mood", schema=SCHEMA, encoder=str.lower, decoder=str.upper, format="text")
    assert await conn.fetchval("SELECT mood FROM typed WHERE mood = $1", "SAD") == "SAD"
    await conn.reset_type_codec("mood", schema=SCHEMA)


async def changes_of_a_table(conn):
    async with conn.transaction():
        await conn.execute("CREATE TABLE changed AS SELECT 1 AS a")
        assert tuple(await conn.fetchrow("SELECT * FROM changed")) == (1,)
        await conn.execute("ALTER TABLE changed ADD b int DEFAULT 5")
        # It forgets its statements, and prepares the same text again under another name.
        await conn.reload_schema_state()
        assert tuple(await conn.fetchrow("SELECT * FROM changed")) == (1, 5)


async def blocks(conn):
    async with conn.transaction():
        await conn.execute("CREATE TABLE numbered (a int PRIMARY KEY, b text)")
        await conn.executemany("INSERT INTO numbered VALUES ($1, $2)", [(n, str(n)) for n in range(500)])
        rows = [row["a"] async for row in conn.cursor("SELECT a FROM numbered ORDER BY a", prefetch=50)]
        assert rows == list(range(500))
        cursor = await conn.cursor("SELECT a FROM numbered WHERE a > $1 ORDER BY a", 100)
        assert (await cursor.fetchrow())["a"] == 101
        assert await cursor.forward(10) == 10
        assert [row["a"] for row in await cursor.fetch(3)] == [112, 113, 114]
        with raises(asyncpg.UniqueViolationError):
            async with conn.transaction():
                await conn.execute("INSERT INTO numbered VALUES (1, 'again')")
        assert await conn.fetchval("SELECT count(*) FROM numbered") == 500
    with raises(asyncpg.NoActiveSQLTransactionError):
        await conn.execute("DECLARE homeless CURSOR FOR SELECT 1")
    # All or nothing.
    with raises(asyncpg.UniqueViolationError):
        await conn.executemany("INSERT INTO numbered VALUES ($1, 'new')", [(600,), (601,), (1,)])
    assert await conn.fetchval("SELECT count(*) FROM numbered") == 500
    async with conn.transaction(readonly=True):
        assert await conn.fetchval("SHOW transaction_read_only") == "on"
        with raises(asyncpg.ReadOnlySQLTransactionError):
            async with conn.transaction():
                await conn.execute("DELETE FROM numbered")
        assert await conn.fetchval("SELECT count(*) FROM numbered") == 500
    async with conn.transaction(isolation="serializable", readonly=True, deferrable=True):
        assert await conn.fetchval("SHOW transaction_isolation") == "serializable"
    by_hand = conn.transaction(isolation="repeatable_read")
    await by_hand.start()
    await conn.execute("DELETE FROM numbered")
    await by_hand.rollback()
    for number in range(20):
        await conn.execute("UPDATE numbered SET b = $1 WHERE a = 1", f"turn {number}")
        assert await conn.fetchval("SELECT b FROM numbered WHERE a = 1") == f"turn {number}"


async def copies(conn):
    async with conn.transaction():
        await conn.execute("TRUNCATE numbered")
        done = await conn.copy_records_to_table("numbered", records=[(n, "copied") for n in range(2000)])
        assert done == "COPY 2000"
        out = io.BytesIO()
        await conn.copy_from_query("SELECT a FROM numbered WHERE a >= $1 ORDER BY a", 0, output=out)
        assert out.getvalue().split() == [str(n).encode() for n in range(2000)]
    out = io.BytesIO()
    await conn.copy_from_table("numbered", columns=["a", "b"], output=out, format="csv", header=True)
    out.seek(0)
    await conn.execute("CREATE TABLE again (LIKE numbered)")
    assert await conn.copy_to_table("again", source=out, format="csv", header=True) == "COPY 2000"
    with raises(asyncpg.UniqueViolationError):
        await conn.copy_records_to_table("numbered", records=[(5000, "a"), (5000, "b")])
    assert await conn.fetchval("SELECT count(*) FROM numbered") == 2000

    async def breaks_off():
        yield (6000, "one")
        raise KeyError("changed its mind")

    with raises(KeyError):
        await conn.copy_records_to_table("numbered", records=breaks_off())
    assert await conn.fetchval("SELECT count(*) FROM again") == 2000


async def cancels(conn):
    with raises(asyncio.TimeoutError):
        await conn.execute("SELECT pg_sleep(60)", timeout=0.3)
    assert await conn.fetchval("SELECT 1") == 1
    with raises(asyncio.TimeoutError):
        await asyncio.wait_for(conn.fetch("SELECT pg_sleep($1)", 60), 0.3)
    assert await conn.fetchval("SELECT 2") == 2
    with raises(asyncpg.QueryCanceledError):
        async with conn.transaction():
            await conn.execute("SET LOCAL statement_timeout TO 100")
            await conn.execute("SELECT pg_sleep(60)")
    assert await conn.fetchval("SHOW statement_timeout") == "0"
    notices = []
    conn.add_log_listener(lambda _conn, notice: notices.append(notice.message))
    await conn.execute("DO $$ BEGIN RAISE NOTICE 'look'; END $$")
    await asyncio.sleep(0)
    assert notices == ["look"]


async def pools(_conn):
    async with asyncpg.create_pool(**ADDRESS, min_size=2, max_size=8) as pool:
        await pool.execute("CREATE TABLE counted (a int); INSERT INTO counted VALUES (0)")

        async def work(number):
            # Between two users of a connection the pool resets it: advisory locks, cursors, LISTEN, settings.
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute("UPDATE counted SET a = a + 1")
                return await conn.fetchval("SELECT $1::int", number)

        assert await asyncio.gather(*(work(n) for n in range(100))) == list(range(100))
        assert await pool.fetchval("SELECT a FROM counted FOR SHARE") == 100
        async with pool.acquire() as conn:
            await conn.execute("SET lock_timeout TO '7s'")
        shown = await asyncio.gather(*(pool.fetchval("SHOW lock_timeout") for _ in range(20)))
        assert shown == ["0"] * 20
        with raises(asyncio.TimeoutError):
            async with pool.acquire() as conn:
                await conn.fetch("SELECT pg_sleep(60)", timeout=0.2)


async def listens(conn):
    heard = asyncio.Queue()
    listener = await asyncpg.connect(**ADDRESS)
    await listener.add_listener(f"{SCHEMA}_channel", lambda _conn, _pid, _channel, payload: heard.put_nowait(payload))
    await listener.execute(f"NOTIFY {SCHEMA}_channel, 'its own'")
    for number in range(3):
        await conn.execute("SELECT pg_notify($1, $2)", f"{SCHEMA}_channel", str(number))
    for expected in ("its own", "0", "1", "2"):
        assert await asyncio.wait_for(heard.get(), 20) == expected
    assert await listener.fetchval("SELECT 1") == 1
    await listener.close()


async def conflicts(conn):
    other = await asyncpg.connect(**ADDRESS)
    with raises(asyncpg.SerializationError):
        async with conn.transaction(isolation="repeatable_read"):
            await conn.fetch("SELECT * FROM counted")
            await other.execute("UPDATE counted SET a = a + 1")
            await conn.execute("UPDATE counted SET a = a + 1")
    await other.close()


async def main():
    conn = await asyncpg.connect(**ADDRESS)
    checks = [queries, types, blocks, copies, cancels, pools, changes_of_a_table]
    if not os.environ.get("FEW_BACKENDS"):
        checks += [listens, conflicts]
    for check in checks:
        await check(conn)
    await conn.close()


asyncio.run(main())
