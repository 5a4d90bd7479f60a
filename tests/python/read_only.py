"""Connections, blocks and statements that read only, as psycopg, asyncpg, SQLAlchemy and Django say it: standbys serve them.

Connects by the PG* variables, in the schema that SCHEMA names, whose table `kept` nobody writes. PRIMARY_PORT is where
the primary listens.
"""

import asyncio
import os

import asyncpg
import django
import psycopg
import sqlalchemy as sa
from django.conf import settings
from psycopg import IsolationLevel, errors
from sqlalchemy.ext.asyncio import create_async_engine

SCHEMA = os.environ["SCHEMA"]
PRIMARY = int(os.environ["PRIMARY_PORT"])
OPTIONS = f"-c search_path={SCHEMA}"
PORT = "SELECT inet_server_port()"
WRITE = "INSERT INTO kept VALUES (1)"
# Asks which process serves it, so nobody takes it for a read unless told.
UNPROVED = "SELECT inet_server_port() FROM (SELECT pg_backend_pid()) AS process"
HINT = "/* halyard.route: replica */"
# As sqlcommenter appends it to every statement; psycopg halves the percent sign.
TAGS = "/*application='shop',route='%%2Forders'*/"


def on_standby(port):
    assert port not in (None, PRIMARY), f"port {port} served it"


def on_primary(port):
    assert port == PRIMARY, f"port {port} served it"


def psycopg_reads():
    def port(conn):
        return conn.execute(PORT).fetchone()[0]

    for level in (None, IsolationLevel.REPEATABLE_READ):
        with psycopg.connect(options=OPTIONS) as conn:
            conn.read_only = True
            conn.isolation_level = level
            # `BEGIN READ ONLY`, in a flight of its own before the first statement.
            on_standby(port(conn))
            assert conn.execute("SHOW transaction_read_only").fetchone() == ("on",)
            conn.commit()
            on_standby(port(conn))
            try:
                conn.execute(WRITE)
            except errors.ReadOnlySqlTransaction:
                conn.rollback()
            else:
                raise AssertionError("it wrote")
            conn.read_only = False
            on_primary(port(conn))
            conn.execute(WRITE)
            conn.rollback()
            conn.read_only = None
            # By hand, behind its own BEGIN.
            conn.execute("SET TRANSACTION READ ONLY")
            on_standby(port(conn))
            conn.rollback()
    with psycopg.connect(options=OPTIONS, autocommit=True) as conn:
        with conn.transaction():
            conn.execute("SET TRANSACTION READ ONLY")
            on_standby(port(conn))
            with conn.transaction():
                on_standby(port(conn))
        conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
        with conn.transaction():
            on_standby(port(conn))
    with psycopg.connect(options=f"{OPTIONS} -c default_transaction_read_only=on") as conn:
        on_standby(port(conn))
        conn.rollback()
        with conn.cursor("of_the_server") as cursor:
            cursor.execute("SELECT inet_server_port() FROM generate_series(1, 300)")
            for (served,) in cursor:
                on_standby(served)


async def asyncpg_reads():
    conn = await asyncpg.connect(server_settings={"search_path": SCHEMA})
    for modes in ({}, {"isolation": "repeatable_read"}, {"isolation": "read_committed", "deferrable": True}):
        async with conn.transaction(readonly=True, **modes):
            on_standby(await conn.fetchval(PORT))
            try:
                async with conn.transaction():
                    await conn.execute(WRITE)
            except asyncpg.ReadOnlySQLTransactionError:
                pass
            else:
                raise AssertionError("it wrote")
            on_standby(await conn.fetchval(PORT))
        async with conn.transaction(**modes):
            on_primary(await conn.fetchval(PORT))
    async with conn.transaction():
        await conn.execute("SET TRANSACTION READ ONLY")
        on_standby(await conn.fetchval(PORT))
        rows = [row[0] async for row in conn.cursor("SELECT inet_server_port() FROM generate_series(1, 100)")]
        assert len(set(rows)) == 1
    await conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    async with conn.transaction():
        on_standby(await conn.fetchval(PORT))
    await conn.close()
    conn = await asyncpg.connect(server_settings={"default_transaction_read_only": "on"})
    async with conn.transaction():
        on_standby(await conn.fetchval(PORT))
    await conn.close()


def address(driver):
    return sa.URL.create(
        f"postgresql+{driver}",
        username=os.environ["PGUSER"],
        password=os.environ.get("PGPASSWORD"),
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        database=os.environ["PGDATABASE"],
    )


async def sqlalchemy_reads():
    engine = sa.create_engine(address("psycopg"))
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        reader = engine.execution_options(postgresql_readonly=True, isolation_level=level)
        with reader.connect() as conn:
            on_standby(conn.scalar(sa.text(PORT)))
            conn.rollback()
        with engine.connect().execution_options(isolation_level=level) as conn:
            on_primary(conn.scalar(sa.text(PORT)))
    with engine.begin() as conn:
        conn.execute(sa.text("SET TRANSACTION READ ONLY"))
        on_standby(conn.scalar(sa.text(PORT)))
    engine.dispose()
    engine = create_async_engine(address("asyncpg"))
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        on_standby(await conn.scalar(sa.text(PORT)))
    async with engine.begin() as conn:
        await conn.execute(sa.text("SET TRANSACTION READ ONLY"))
        on_standby(await conn.scalar(sa.text(PORT)))
    await engine.dispose()


def sqlalchemy_hints():
    engine = sa.create_engine(address("psycopg"), isolation_level="AUTOCOMMIT")
    unproved = sa.select(sa.func.inet_server_port()).where(sa.func.pg_backend_pid() != sa.bindparam("none", 0)).limit(1)
    with engine.connect() as conn:
        on_primary(conn.scalar(unproved))
        for hint, lands in ((HINT, on_standby), ("/* halyard.route: auto */", on_primary)):
            lands(conn.scalar(unproved.with_statement_hint(hint)))
            lands(conn.scalar(unproved.suffix_with(hint)))
        # Behind SELECT it stands within the statement.
        on_primary(conn.scalar(unproved.prefix_with(HINT)))

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def tagged(conn, cursor, statement, parameters, context, executemany):
        return f"{statement} {TAGS}", parameters

    with engine.connect() as conn:
        # Often enough that psycopg prepares it.
        for _ in range(8):
            on_standby(conn.scalar(unproved.with_statement_hint(HINT)))
            on_primary(conn.scalar(unproved))
    engine.dispose()


def django_reads():
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PGDATABASE"],
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
    }
    read_only = {**database, "OPTIONS": {"options": "-c default_transaction_read_only=on"}}
    by_setting = {**database, "OPTIONS": {"options": "-c halyard.route=replica"}}
    databases = {"default": database, "replica": read_only, "by_setting": by_setting}
    settings.configure(DATABASES=databases, USE_TZ=True)
    django.setup()
    from django.db import connections, transaction

    def port(alias):
        with connections[alias].cursor() as cursor:
            cursor.execute(PORT)
            return cursor.fetchone()[0]

    with transaction.atomic(using="replica"):
        on_standby(port("replica"))
    with transaction.atomic():
        on_primary(port("default"))
    with transaction.atomic():
        with connections["default"].cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        on_standby(port("default"))

    def tagged(execute, sql, params, many, context):
        return execute(f"{sql} {HINT} {TAGS}", params, many, context)

    def unproved(alias):
        with connections[alias].cursor() as cursor:
            cursor.execute(UNPROVED + " WHERE 1 = %s", [1])
            return cursor.fetchone()[0]

    on_primary(unproved("default"))
    with connections["default"].execute_wrapper(tagged):
        on_standby(unproved("default"))
    on_standby(unproved("by_setting"))
    connections.close_all()


psycopg_reads()
asyncio.run(asyncpg_reads())
asyncio.run(sqlalchemy_reads())
sqlalchemy_hints()
django_reads()
