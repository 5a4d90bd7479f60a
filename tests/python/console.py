"""The admin console by psycopg 3 and asyncpg: both protocols, with transactions that drivers open by themselves."""
import asyncio
import os

import asyncpg
import psycopg

with psycopg.connect() as connection:
    # Not in autocommit: the driver says BEGIN first.
    with connection.cursor() as cursor:
        cursor.execute("SHOW POOLS")
        names = [column.name for column in cursor.description]
        assert names[:3] == ["database", "user", "cl_active"], names
        rows = cursor.fetchall()
        assert rows and isinstance(rows[0][2], int), rows
    connection.commit()
    try:
        connection.execute("SHOW NOTHING")
        raise AssertionError("it is no command")
    except psycopg.errors.SyntaxError:
        connection.rollback()

with psycopg.connect(autocommit=True) as connection:
    for binary in (False, True):
        with connection.cursor(binary=binary) as cursor:
            cursor.execute("SHOW STATS")
            at = [column.name for column in cursor.description].index("total_query_count")
            assert all(isinstance(row[at], int) for row in cursor.fetchall())
    # Prepared, and with a statement that is explained.
    for _ in range(10):
        rows = connection.execute("SHOW NODES", prepare=True).fetchall()
        assert {"primary", "standby"} <= {row[3] for row in rows}, rows
    explained = dict(connection.execute("EXPLAIN ROUTE DELETE FROM t").fetchall())
    assert explained["access"] == "write" and explained["target"] == "primary", explained


async def main():
    connection = await asyncpg.connect(
        host=os.environ["PGHOST"],
        port=os.environ["PGPORT"],
        user=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        database=os.environ["PGDATABASE"],
    )
    rows = await connection.fetch("SHOW LISTS")
    assert dict((row["list"], row["items"]) for row in rows)["pools"] >= 1
    await connection.close(timeout=10)


asyncio.run(main())
print("ok")
