"""asyncpg: prepared statements and their cache, cursors, COPY, transactions, pool, LISTEN, cancelling."""

import asyncio
import io
import os

import asyncpg

ADDRESS = {
    "host": os.environ["PGHOST"],
    "port": int(os.environ["PGPORT"]),
    "user": os.environ["PGUSER"],
    "password": os.environ["PGPASSWORD"],
    "database": os.environ["PGDATABASE"],
}


async def queries(conn):
    for number in range(150):
        assert await conn.fetchval(f"SELECT {number} + $1::int", 1) == number + 1
    statement = await conn.prepare("SELECT $1::int AS a, $2::text[] AS b")
    assert [str(attribute.type.name) for attribute in statement.get_attributes()] == ["int4", "text[]"]
    for number in range(10):
        assert tuple(await statement.fetchrow(number, ["x", "ü"])) == (number, ["x", "ü"])
    try:
        await conn.fetch("SELECT 1/0")
    except asyncpg.DivisionByZeroError:
        pass
    else:
        raise AssertionError("no error came")
    assert await conn.execute("SELECT 1; SELECT 2") == "SELECT 1"


async def blocks(conn):
    async with conn.transaction():
        await conn.execute("DROP TABLE IF EXISTS asyncpg_blocks")
        await conn.execute("CREATE TABLE asyncpg_blocks (a int PRIMARY KEY, b text)")
        await conn.executemany("INSERT INTO asyncpg_blocks VALUES ($1, $2)", [(n, str(n)) for n in range(500)])
        rows = [row["a"] async for row in conn.cursor("SELECT a FROM asyncpg_blocks ORDER BY a", prefetch=50)]
        assert rows == list(range(500))
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO asyncpg_blocks VALUES (1, 'again')")
        except asyncpg.UniqueViolationError:
            pass
        assert await conn.fetchval("SELECT count(*) FROM asyncpg_blocks") == 500
    async with conn.transaction(readonly=True):
        assert await conn.fetchval("SHOW transaction_read_only") == "on"


async def copies(conn):
    async with conn.transaction():
        await conn.execute("TRUNCATE asyncpg_blocks")
        done = await conn.copy_records_to_table("asyncpg_blocks", records=[(n, "copied") for n in range(2000)])
        assert done == "COPY 2000"
        out = io.BytesIO()
        await conn.copy_from_query("SELECT a FROM asyncpg_blocks ORDER BY a", output=out)
        assert out.getvalue().split() == [str(n).encode() for n in range(2000)]


async def cancels(conn):
    try:
        await conn.execute("SELECT pg_sleep(60)", timeout=0.5)
    except asyncio.TimeoutError:
        pass
    else:
        raise AssertionError("it was not cancelled")
    assert await conn.fetchval("SELECT 1") == 1


async def listens(conn):
    heard = asyncio.Queue()
    await conn.add_listener("asyncpg_channel", lambda _conn, _pid, _channel, payload: heard.put_nowait(payload))
    await conn.execute("NOTIFY asyncpg_channel, 'hello'")
    assert await asyncio.wait_for(heard.get(), 20) == "hello"


async def pools():
    async def work(pool, number):
        async with pool.acquire() as conn, conn.transaction():
            return await conn.fetchval("SELECT $1::int", number)

    # Between two users of a connection the pool resets it: advisory locks, cursors, LISTEN, settings.
    async with asyncpg.create_pool(**ADDRESS, min_size=2, max_size=8) as pool:
        assert await asyncio.gather(*(work(pool, n) for n in range(100))) == list(range(100))


async def main():
    conn = await asyncpg.connect(**ADDRESS)
    for check in (queries, blocks, copies, cancels, listens):
        await check(conn)
    await conn.close()
    await pools()
    print("ok")


asyncio.run(main())
