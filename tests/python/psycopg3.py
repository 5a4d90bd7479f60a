"""psycopg 3: pipelines, prepared statements, COPY, server-side cursors, transactions, errors."""

import time
import psycopg
from psycopg import errors
from psycopg.rows import dict_row


def prepared(conn):
    for number in range(20):
        (doubled,) = conn.execute("SELECT %s::int * 2", [number], prepare=True).fetchone()
        assert doubled == number * 2
    # By itself it prepares what it has seen five times, and drops the oldest beyond a hundred.
    for number in range(150):
        for _ in range(6):
            assert conn.execute(f"SELECT {number}, %s::text", ["x"]).fetchone() == (number, "x")


def pipelines(conn):
    with conn.pipeline() as pipeline:
        cursors = [conn.execute("SELECT %s::int", [number]) for number in range(300)]
        pipeline.sync()
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(300))
    try:
        with conn.pipeline():
            good = conn.execute("SELECT 1")
            conn.execute("SELECT 1/0")
            conn.execute("SELECT 2")
    except errors.DivisionByZero:
        pass
    else:
        raise AssertionError("the error of the pipeline is lost")
    assert good.fetchone() == (1,)
    assert conn.execute("SELECT 3").fetchone() == (3,)


def copies(conn):
    rows = [(number, f"line {number}\t\\ ü") for number in range(5000)]
    with conn.transaction(), conn.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS psycopg_copy")
        cursor.execute("CREATE TABLE psycopg_copy (a int, b text)")
        with cursor.copy("COPY psycopg_copy FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        with cursor.copy("COPY (SELECT * FROM psycopg_copy ORDER BY a) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            assert list(copy.rows()) == rows
    try:
        with conn.cursor().copy("COPY psycopg_copy FROM STDIN") as copy:
            copy.write("1\tone\n")
            raise KeyError("changed its mind")
    except KeyError:
        pass
    assert conn.execute("SELECT 1").fetchone() == (1,)


def server_side_cursors(conn):
    with conn.transaction():
        with conn.cursor(name="some", row_factory=dict_row) as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT g FROM generate_series(1, 1000) g")
            assert [row["g"] for row in cursor] == list(range(1, 1001))
        with conn.cursor(name="scrolls", scrollable=True) as cursor:
            cursor.execute("SELECT g FROM generate_series(1, 10) g")
            cursor.scroll(5)
            assert cursor.fetchone() == (6,)


def transactions(conn):
    with conn.transaction():
        conn.execute("DROP TABLE IF EXISTS psycopg_blocks")
        conn.execute("CREATE TABLE psycopg_blocks (a int PRIMARY KEY)")
        try:
            with conn.transaction():
                conn.execute("INSERT INTO psycopg_blocks VALUES (1)")
                conn.execute("INSERT INTO psycopg_blocks VALUES (1)")
        except errors.UniqueViolation:
            pass
        conn.execute("INSERT INTO psycopg_blocks VALUES (2)")
        assert conn.execute("SELECT a FROM psycopg_blocks").fetchall() == [(2,)]
    # A read-only transaction runs on a replica, which may not have the table yet.
    seen, deadline = 0, time.monotonic() + 30
    while seen < 20:
        assert time.monotonic() < deadline, "the replicas do not get the table"
        there = conn.execute("SELECT to_regclass('psycopg_blocks') IS NOT NULL").fetchone()[0]
        seen = seen + 1 if there else 0
    conn.read_only = True
    try:
        with conn.transaction():
            conn.execute("INSERT INTO psycopg_blocks VALUES (3)")
    except errors.ReadOnlySqlTransaction:
        pass
    else:
        raise AssertionError("a read-only transaction has written")
    conn.read_only = None


def binary(conn):
    cursor = conn.cursor(binary=True)
    values = (42, "text", b"\x00\xff", [1, 2, 3], None, 1.5)
    assert cursor.execute("SELECT %b::int, %b::text, %b::bytea, %b::int[], %b::int, %b::float8", values).fetchone() == values
    cursor.executemany("SELECT %s::int", [(n,) for n in range(50)], returning=True)
    seen = [cursor.fetchone()[0]]
    while cursor.nextset():
        seen.append(cursor.fetchone()[0])
    assert seen == list(range(50))


with psycopg.connect(autocommit=True) as connection:
    for check in (prepared, pipelines, copies, server_side_cursors, transactions, binary):
        check(connection)
print("ok")
