"""psycopg 3: pipelines, prepared statements, COPY, cursors of the server, transactions, types, cancelling, a pool.

Connects by the PG* variables, in the schema that SCHEMA names. With FEW_BACKENDS set there are fewer connections to the
servers than clients, so what needs two of them at a time is left out.
"""

import asyncio
import datetime
import decimal
import enum
import json
import os
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
from psycopg import IsolationLevel, errors, pq, sql
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb
from psycopg.types.range import Range
from psycopg_pool import ConnectionPool

SCHEMA = os.environ["SCHEMA"]
OPTIONS = {"options": f"-c search_path={SCHEMA}", "application_name": "psycopg"}


def connect(**more):
    return psycopg.connect(**{"autocommit": True, **OPTIONS, **more})


@contextmanager
def raises(kind):
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


def prepared(conn):
    for number in range(20):
        (doubled,) = conn.execute("SELECT %s::int * 2", [number], prepare=True).fetchone()
        assert doubled == number * 2
    # By itself it prepares what it has seen five times, and drops the oldest beyond a hundred.
    for number in range(130):
        for _ in range(6):
            assert conn.execute(f"SELECT {number}, %s::text", ["x"]).fetchone() == (number, "x")
    with connect(prepare_threshold=0) as eager:
        eager.prepared_max = 10
        for turn in range(3):
            for number in range(30):
                assert eager.execute(f"SELECT {number} + %s", [turn]).fetchone() == (number + turn,)
        # The same text with parameters of other types is another statement.
        for value in (1, 2**40, "text", 1.5, None, [1, 2]):
            with eager.transaction():
                assert eager.execute("SELECT %s", [value]).fetchone() == (value,)
        with raises(errors.UndefinedTable):
            eager.execute("SELECT * FROM there_is_no_such_table WHERE a = %s", [1])
        eager.execute("DISCARD ALL")
        eager.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(SCHEMA)))
    with connect(prepare_threshold=None) as never:
        assert [never.execute("SELECT %s", [n]).fetchone()[0] for n in range(20)] == list(range(20))


def pipelines(conn):
    with conn.pipeline() as pipeline:
        cursors = [conn.execute("SELECT %s::int", [number]) for number in range(300)]
        pipeline.sync()
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))
    with raises(errors.DivisionByZero):
        with conn.pipeline():
            good = conn.execute("SELECT 1")
            conn.execute("SELECT 1/0")
            conn.execute("SELECT 2")
    assert good.fetchone() == (1,)
    assert conn.execute("SELECT 3").fetchone() == (3,)

    conn.execute("CREATE TABLE piped (a int PRIMARY KEY, b text)")
    with conn.pipeline() as pipeline, conn.cursor() as cursor:
        cursor.executemany("INSERT INTO piped VALUES (%s, %s) RETURNING a", [(n, str(n)) for n in range(100)], returning=True)
        seen = [cursor.fetchone()[0]]
        while cursor.nextset():
            seen.append(cursor.fetchone()[0])
        assert seen == list(range(100))
        # An error ends the pipeline up to the next synchronization, and the pipeline goes on behind it.
        with raises(errors.UniqueViolation):
            conn.execute("INSERT INTO piped VALUES (1, 'again')")
            conn.execute("INSERT INTO piped VALUES (1000, 'never')")
            pipeline.sync()
        # Whether libpq has met that synchronization by now is a matter of time, the next one is certain.
        pipeline.sync()
        assert pipeline.status == pq.PipelineStatus.ON
        with conn.transaction():
            conn.execute("INSERT INTO piped VALUES (200, 'kept')")
        with raises(errors.UniqueViolation):
            with conn.transaction():
                conn.execute("INSERT INTO piped VALUES (201, 'lost')")
                conn.execute("INSERT INTO piped VALUES (200, 'again')")
        late = conn.execute("SELECT array_agg(a ORDER BY a) FROM piped WHERE a >= 100")
        assert late.fetchone() == ([200],)


def copies(conn):
    rows = [(number, f"line {number}\t\\ ü") for number in range(5000)]
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("CREATE TABLE copied (a int, b text)")
        with cursor.copy("COPY copied FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        assert cursor.rowcount == 5000
        with cursor.copy("COPY (SELECT * FROM copied ORDER BY a) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == rows
    with conn.cursor() as cursor:
        with cursor.copy("COPY copied FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            for row in rows[:1000]:
                copy.write_row(row)
    with raises(KeyError):
        with conn.cursor().copy("COPY copied FROM STDIN") as copy:
            copy.write("1\tone\n")
            raise KeyError("changed its mind")
    with raises(errors.InvalidTextRepresentation):
        with conn.cursor().copy("COPY copied FROM STDIN") as copy:
            copy.write("one\t1\n")
    assert conn.execute("SELECT count(*) FROM copied").fetchone() == (6000,)


def server_cursors(conn):
    with conn.transaction():
        with conn.cursor(name="some", row_factory=dict_row) as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT g FROM generate_series(1, %s) g", [1000])
            assert [row["g"] for row in cursor] == list(range(1, 1001))
        with conn.cursor(name="scrolls", scrollable=True) as cursor:
            cursor.execute("SELECT g FROM generate_series(1, 10) g")
            cursor.scroll(5)
            assert cursor.fetchone() == (6,)
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
            cursor.scroll(-1)
            assert cursor.fetchone() == (3,)
        # Two at a time, interleaved with statements.
        with conn.cursor(name="one") as one, conn.cursor(name="two") as two:
            one.execute("SELECT g FROM generate_series(1, 5) g")
            two.execute("SELECT -g FROM generate_series(1, 5) g")
            for number in range(1, 6):
                assert (one.fetchone(), conn.execute("SELECT 'between'").fetchone(), two.fetchone()) == (
                    (number,),
                    ("between",),
                    (-number,),
                )
    # It outlives its transaction, and several others.
    with conn.cursor(name="held", withhold=True) as cursor:
        cursor.execute("SELECT g FROM generate_series(1, 100) g")
        assert cursor.fetchone() == (1,)
        conn.execute("CREATE TABLE IF NOT EXISTS between_fetches (a int)")
        assert len(cursor.fetchall()) == 99
    with raises(errors.NoActiveSqlTransaction):
        conn.cursor(name="homeless").execute("SELECT 1")


def transactions(conn):
    conn.execute("CREATE TABLE numbered (a int PRIMARY KEY)")
    with conn.transaction():
        with raises(errors.UniqueViolation):
            with conn.transaction():
                conn.execute("INSERT INTO numbered VALUES (1)")
                conn.execute("INSERT INTO numbered VALUES (1)")
        conn.execute("INSERT INTO numbered VALUES (2)")
        with conn.transaction(force_rollback=True):
            conn.execute("DELETE FROM numbered")
        with conn.transaction() as inner:
            conn.execute("INSERT INTO numbered VALUES (3)")
            raise psycopg.Rollback(inner)
        assert conn.info.transaction_status == pq.TransactionStatus.INTRANS
    assert conn.execute("SELECT a FROM numbered").fetchall() == [(2,)]
    # As the DB-API has it: a transaction begins by itself.
    with connect(autocommit=False) as plain:
        plain.execute("INSERT INTO numbered VALUES (4)")
        plain.rollback()
        with raises(errors.UniqueViolation):
            plain.execute("INSERT INTO numbered VALUES (2)")
        with raises(errors.InFailedSqlTransaction):
            plain.execute("SELECT 1")
        plain.rollback()
        plain.execute("INSERT INTO numbered VALUES (5)")
        plain.commit()
        assert plain.execute("SELECT a FROM numbered ORDER BY a").fetchall() == [(2,), (5,)]


def reads_its_own_writes(conn):
    conn.execute("CREATE TABLE written (a int)")
    conn.execute("INSERT INTO written VALUES (0)")
    for number in range(1, 25):
        conn.execute("UPDATE written SET a = %s", [number])
        assert conn.execute("SELECT a FROM written").fetchone() == (number,)


def kinds_of_transactions(conn):
    conn.read_only = True
    with conn.transaction():
        assert conn.execute("SHOW transaction_read_only").fetchone() == ("on",)
        assert conn.execute("SELECT a FROM written").fetchone() == (24,)
    with raises(errors.ReadOnlySqlTransaction):
        with conn.transaction():
            conn.execute("INSERT INTO written VALUES (3)")
    conn.isolation_level = IsolationLevel.SERIALIZABLE
    conn.deferrable = True
    with conn.transaction():
        # A standby has no serializable transactions: this one runs on the primary.
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("SHOW transaction_deferrable").fetchone() == ("on",)
        assert conn.execute("SELECT count(*) FROM written").fetchone() == (1,)
    conn.read_only = conn.deferrable = None
    for level in IsolationLevel:
        conn.isolation_level = level
        with conn.transaction():
            (shown,) = conn.execute("SHOW transaction_isolation").fetchone()
            assert shown == level.name.lower().replace("_", " ")
            conn.execute("UPDATE written SET a = a + 1")
    conn.isolation_level = None
    assert conn.execute("SHOW default_transaction_isolation").fetchone() == ("read committed",)
    (kept,) = conn.execute("SHOW max_prepared_transactions").fetchone()
    plain = connect(autocommit=False)
    plain.tpc_begin(plain.xid(42, "global", "branch"))
    plain.execute("UPDATE written SET a = 0")
    if kept == "0":
        # Nodes keep none by default, and say so.
        with raises(psycopg.NotSupportedError):
            plain.tpc_prepare()
    else:
        plain.tpc_prepare()
        plain.tpc_rollback()
    plain.close()
    assert conn.execute("SELECT a FROM written").fetchone() == (28,)


class Mood(enum.Enum):
    happy = "happy"
    sad = "sad"


def types(conn):
    values = (42, "text", b"\x00\xff", [1, 2, 3], None, 1.5)
    query = "SELECT {0}::int, {0}::text, {0}::bytea, {0}::int[], {0}::int, {0}::float8"
    for place in ("%b", "%t", "%s"):
        for binary in (False, True):
            cursor = conn.cursor(binary=binary)
            assert cursor.execute(query.format(place), values).fetchone() == values
    conn.execute("CREATE TYPE mood AS ENUM ('happy', 'sad'); CREATE TYPE place AS (x int, name text)")
    register_enum(EnumInfo.fetch(conn, "mood"), conn, Mood)
    register_composite(CompositeInfo.fetch(conn, "place"), conn)
    conn.execute("CREATE TABLE typed (mood mood, place place, at timestamptz, many jsonb, id uuid, exact numeric, span int4range)")
    row = (
        Mood.sad,
        (7, "here, (there)"),
        datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.timezone.utc),
        {"a": [1, None, "ü"]},
        uuid.uuid4(),
        decimal.Decimal("12345678901234567890.10"),
        Range(1, 5),
    )
    place = CompositeInfo.fetch(conn, "place").python_type or tuple
    stored = (*row[:3], Jsonb(row[3]), *row[4:])
    conn.execute("INSERT INTO typed VALUES (%s, %s::place, %s, %s, %s, %s, %s)", (stored[0], place(stored[1]), *stored[2:]))
    for binary in (False, True):
        found = conn.cursor(binary=binary).execute("SELECT * FROM typed").fetchone()
        assert (found[0], tuple(found[1]), *found[2:]) == row, found
    assert json.loads(conn.execute("SELECT many::text FROM typed").fetchone()[0]) == row[3]
    cursor = conn.cursor(row_factory=namedtuple_row)
    assert cursor.execute("SELECT 1 AS one, 2 AS two").fetchone()._asdict() == {"one": 1, "two": 2}


def settings(conn):
    conn.execute("SET timezone TO 'Asia/Tokyo'")
    assert conn.info.parameter_status("TimeZone") == "Asia/Tokyo"
    (moment,) = conn.execute("SELECT '2024-01-01 00:00:00+00'::timestamptz").fetchone()
    assert moment.utcoffset() == datetime.timedelta(hours=9)
    with conn.transaction():
        conn.execute("SET LOCAL statement_timeout TO '7s'")
        assert conn.execute("SHOW statement_timeout").fetchone() == ("7s",)
    assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)
    conn.execute("RESET timezone")
    with connect(client_encoding="latin1", options=f"-c search_path={SCHEMA} -c statement_timeout=9s") as other:
        assert other.info.encoding == "iso8859-1"
        assert other.execute("SELECT 'ü', current_setting('statement_timeout')").fetchone() == ("ü", "9s")
    notices = []
    conn.add_notice_handler(lambda notice: notices.append((notice.severity, notice.message_primary)))
    conn.execute("DO $$ BEGIN RAISE NOTICE 'look'; RAISE WARNING 'here'; END $$")
    assert notices == [("NOTICE", "look"), ("WARNING", "here")]


def cancels(conn):
    timer = threading.Timer(0.3, conn.cancel_safe)
    timer.start()
    with raises(errors.QueryCanceled):
        conn.execute("SELECT pg_sleep(60)")
    timer.join()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    with conn.transaction():
        conn.execute("SET LOCAL statement_timeout TO 100")
        with raises(errors.QueryCanceled), conn.transaction():
            conn.execute("SELECT pg_sleep(60)")
        assert conn.execute("SELECT 1").fetchone() == (1,)


def asynchronous(_conn):
    async def number(n):
        async with await psycopg.AsyncConnection.connect(autocommit=True, **OPTIONS) as conn:
            async with conn.pipeline():
                cursors = [await conn.execute("SELECT %s::int + %s", [n, m]) for m in range(10)]
            return [(await cursor.fetchone())[0] for cursor in cursors]

    async def work():
        assert await asyncio.gather(*(number(n) for n in range(12))) == [[n + m for m in range(10)] for n in range(12)]
        async with await psycopg.AsyncConnection.connect(autocommit=True, **OPTIONS) as conn:
            # Given up by the program, it is cancelled in the server, and the connection stays usable.
            with raises(asyncio.TimeoutError):
                await asyncio.wait_for(conn.execute("SELECT pg_sleep(60)"), 0.3)
            assert await (await conn.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(work())


def pools(_conn):
    with ConnectionPool(kwargs=OPTIONS, min_size=2, max_size=6, check=ConnectionPool.check_connection) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE counted (a int); INSERT INTO counted VALUES (0)")

        def add(_number):
            with pool.connection() as conn:
                (before,) = conn.execute("SELECT a FROM counted FOR UPDATE").fetchone()
                conn.execute("UPDATE counted SET a = %s", [before + 1])

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(add, range(60)))
        with pool.connection() as conn:
            assert conn.execute("SELECT a FROM counted FOR SHARE").fetchone() == (60,)
        with raises(errors.DivisionByZero), pool.connection() as conn:
            conn.execute("SELECT 1/0")


def copies_from_one_to_another(conn):
    conn.execute("CREATE TABLE copied_again (LIKE copied)")
    with connect() as source, source.cursor().copy("/* halyard.route: primary */ COPY copied TO STDOUT") as out:
        with conn.cursor().copy("COPY copied_again FROM STDIN") as into:
            for block in out:
                into.write(block)
    assert conn.execute("SELECT count(*) FROM copied_again").fetchone() == (6000,)


def conflicts(conn):
    conn.execute("UPDATE written SET a = 0")
    with connect(autocommit=False) as one, connect(autocommit=False) as two:
        one.isolation_level = two.isolation_level = IsolationLevel.REPEATABLE_READ
        for each in (one, two):
            assert each.execute("SELECT a FROM written").fetchone() == (0,)
        one.execute("UPDATE written SET a = 1")
        one.commit()
        assert two.execute("SELECT a FROM written").fetchone() == (0,)
        with raises(errors.SerializationFailure):
            two.execute("UPDATE written SET a = 2")
        two.rollback()
        with one.transaction():
            one.execute("SELECT a FROM written FOR UPDATE")
            with raises(errors.LockNotAvailable):
                two.execute("SELECT a FROM written FOR UPDATE NOWAIT")
        two.rollback()


def notifications(conn):
    channel = sql.Identifier(f"{SCHEMA}_channel")
    with connect() as listener:
        listener.execute(sql.SQL("LISTEN {}").format(channel))
        for number in range(5):
            conn.execute("SELECT pg_notify(%s, %s)", [f"{SCHEMA}_channel", str(number)])
        heard = [notify.payload for notify in listener.notifies(timeout=20, stop_after=5)]
        assert heard == ["0", "1", "2", "3", "4"], heard
        listener.execute(sql.SQL("NOTIFY {}, 'its own'").format(channel))
        (own,) = listener.notifies(timeout=20, stop_after=1)
        assert (own.payload, own.channel) == ("its own", f"{SCHEMA}_channel") and own.pid > 0
        # Nothing is told before the transaction is committed, and nothing of one that is rolled back.
        with conn.transaction(force_rollback=True):
            conn.execute(sql.SQL("NOTIFY {}, 'never'").format(channel))
        with conn.transaction():
            conn.execute(sql.SQL("NOTIFY {}, 'committed'").format(channel))
        assert [notify.payload for notify in listener.notifies(timeout=20, stop_after=1)] == ["committed"]
        listener.execute("UNLISTEN *")


ALWAYS = (
    prepared,
    pipelines,
    copies,
    server_cursors,
    transactions,
    reads_its_own_writes,
    kinds_of_transactions,
    types,
    settings,
    cancels,
    asynchronous,
    pools,
)
TWO_AT_A_TIME = (copies_from_one_to_another, conflicts, notifications)

with connect() as connection:
    for check in ALWAYS if os.environ.get("FEW_BACKENDS") else ALWAYS + TWO_AT_A_TIME:
        check(connection)
