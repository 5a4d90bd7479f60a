"""psycopg 3 and asyncpg listen: many connections over few, in blocks and outside of them."""

import asyncio
import os

import asyncpg
import psycopg

ADDRESS = {
    "host": os.environ["PGHOST"],
    "port": int(os.environ["PGPORT"]),
    "user": os.environ["PGUSER"],
    "password": os.environ["PGPASSWORD"],
    "database": os.environ["PGDATABASE"],
}
COUNT = 50


def psycopg_listens():
    with psycopg.connect(autocommit=True) as listener, psycopg.connect() as talker:
        listener.execute("LISTEN py_psycopg")
        for number in range(COUNT):
            talker.execute("SELECT pg_notify('py_psycopg', %s)", [str(number)])
            talker.commit()
        talker.execute("NOTIFY py_psycopg, 'never'")
        talker.rollback()
        talker.execute("NOTIFY py_psycopg, 'stop'")
        talker.commit()
        heard = []
        for notify in listener.notifies():
            if notify.payload == "stop":
                break
            heard.append(int(notify.payload))
        assert heard == list(range(COUNT)), heard
        # It hears itself within its own statement.
        heard = []
        listener.add_notify_handler(lambda notify: heard.append(notify.payload))
        listener.execute("NOTIFY py_psycopg, 'myself'")
        assert heard == ["myself"], heard
        with listener.transaction():
            listener.execute("UNLISTEN py_psycopg")
            with listener.transaction(force_rollback=True):
                listener.execute("LISTEN py_other")
        listener.execute("NOTIFY py_psycopg; NOTIFY py_other")
        assert heard == ["myself"], heard


async def asyncpg_listens():
    listeners = [await asyncpg.connect(**ADDRESS) for _ in range(10)]
    heard = [[] for _ in listeners]
    over = [asyncio.Event() for _ in listeners]
    warnings = []

    def hears(number):
        def told(_connection, _pid, channel, payload):
            assert channel == "Py Asyncpg"
            if payload == "stop":
                over[number].set()
            else:
                heard[number].append(int(payload))

        return told

    for number, listener in enumerate(listeners):
        listener.add_log_listener(lambda _connection, message: warnings.append(message))
        await listener.add_listener("Py Asyncpg", hears(number))
    async with asyncpg.create_pool(**ADDRESS, min_size=1, max_size=4) as pool:
        for number in range(COUNT):
            await pool.execute("SELECT pg_notify('Py Asyncpg', $1)", str(number))
        await pool.execute("NOTIFY \"Py Asyncpg\", 'stop'")
    # They go on working meanwhile.
    assert [await listener.fetchval("SELECT 1") for listener in listeners] == [1] * len(listeners)
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in over)), 30)
    assert all(numbers == list(range(COUNT)) for numbers in heard), heard
    assert warnings == [], warnings
    await listeners[0].reset()
    await listeners[1].execute("NOTIFY \"Py Asyncpg\", '4711'")
    while heard[1][-1] != 4711:
        await asyncio.sleep(0.01)
    assert heard[0][-1] != 4711, "UNLISTEN * of the reset"
    for listener in listeners:
        await listener.close()


psycopg_listens()
asyncio.run(asyncpg_listens())
print("ok")
