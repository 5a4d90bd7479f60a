"""SQLAlchemy 2: engine and pool, unit of work, cursors of the server, isolation, reflection, by psycopg and asyncpg.

Connects by the PG* variables, in the schema that SCHEMA names. With FEW_BACKENDS set there are fewer connections to the
servers than clients, so what needs two of them at a time is left out.
"""

import asyncio
import datetime
import decimal
import enum
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy import ForeignKey, Identity, String, func, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload
from sqlalchemy.orm.exc import StaleDataError

SCHEMA = os.environ["SCHEMA"]


def address(driver):
    return sa.URL.create(
        f"postgresql+{driver}",
        username=os.environ["PGUSER"],
        password=os.environ["PGPASSWORD"],
        host=os.environ["PGHOST"],
        port=int(os.environ["PGPORT"]),
        database=os.environ["PGDATABASE"],
    )


@contextmanager
def raises(kind):
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


class Base(DeclarativeBase):
    type_annotation_map = {
        dict: postgresql.JSONB,
        list[str]: postgresql.ARRAY(String),
        datetime.datetime: sa.DateTime(timezone=True),
    }


class Status(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    joined: Mapped[datetime.datetime] = mapped_column(server_default=func.now())
    orders: Mapped[list["Order"]] = relationship(back_populates="customer", cascade="all, delete-orphan")


class Order(Base):
    __tablename__ = "order"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"), index=True)
    status: Mapped[Status] = mapped_column(default=Status.OPEN)
    total: Mapped[decimal.Decimal] = mapped_column(sa.Numeric(12, 2))
    tags: Mapped[list[str]] = mapped_column(default=list)
    details: Mapped[dict] = mapped_column(default=dict)
    note: Mapped[bytes | None]
    version: Mapped[int] = mapped_column()
    customer: Mapped[Customer] = relationship(back_populates="orders")
    __mapper_args__ = {"version_id_col": version}


class Measure(Base):
    __tablename__ = "measure"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float]


def schema(engine):
    Base.metadata.create_all(engine)
    # Whoever made it sees it on the same connection at once; there is nothing left to make.
    with engine.connect() as conn:
        conn.execution_options(isolation_level="AUTOCOMMIT")
        Base.metadata.create_all(conn)
        inspector = sa.inspect(conn)
        assert set(inspector.get_table_names()) >= {"customer", "order", "measure"}
        columns = {column["name"]: column for column in inspector.get_columns("order")}
        assert isinstance(columns["details"]["type"], postgresql.JSONB)
        assert columns["status"]["type"].enums == ["OPEN", "PAID"]
        (key,) = inspector.get_foreign_keys("order")
        assert (key["referred_table"], key["constrained_columns"]) == ("customer", ["customer_id"])
        assert [index["column_names"] for index in inspector.get_indexes("order")] == [["customer_id"]]
        reflected = sa.Table("order", sa.MetaData(), autoload_with=conn)
        assert reflected.c.keys() == Order.__table__.c.keys()


def unit_of_work(engine):
    with Session(engine) as session:
        ann = Customer(name="Ann", orders=[Order(total=decimal.Decimal("12.50"), tags=["a", 'b"'], note=b"\x00\xff")])
        session.add_all([ann, Customer(name="Bob"), Customer(name="Cyd")])
        session.flush()
        assert ann.id and ann.joined.tzinfo and ann.orders[0].version == 1
        ann.orders.append(Order(total=decimal.Decimal("99.99"), details={"deep": [1, {"ü": None}]}))
        session.commit()
        # Expired by the commit, everything is read again, and what was written is there.
        assert sorted(order.total for order in ann.orders) == [decimal.Decimal("12.50"), decimal.Decimal("99.99")]
        first, second = sorted(ann.orders, key=lambda order: order.total)
        assert (first.tags, first.note, second.details) == (["a", 'b"'], b"\x00\xff", {"deep": [1, {"ü": None}]})
        for number in range(15):
            first.details = {"turn": number}
            session.commit()
            assert first.details == {"turn": number}
        query = select(Customer).options(selectinload(Customer.orders)).order_by(Customer.name)
        assert [(customer.name, len(customer.orders)) for customer in session.scalars(query)] == [("Ann", 2), ("Bob", 0), ("Cyd", 0)]
        totals = select(Customer.name, func.sum(Order.total)).join(Order).group_by(Customer.name)
        assert session.execute(totals).all() == [("Ann", decimal.Decimal("112.49"))]
        session.delete(second)
        first.status = Status.PAID
        session.commit()
        assert session.scalars(select(Order.status).where(Order.status == Status.PAID)).all() == [Status.PAID]


def savepoints(engine):
    with Session(engine) as session:
        session.add(Customer(name="Dan"))
        with raises(IntegrityError):
            with session.begin_nested():
                session.add(Customer(name="Ann"))
        with session.begin_nested() as savepoint:
            session.add(Customer(name="Eve"))
            session.flush()
            savepoint.rollback()
        session.commit()
        names = session.scalars(select(Customer.name).order_by(Customer.name)).all()
        assert names == ["Ann", "Bob", "Cyd", "Dan"]


def versions(engine):
    # Somebody else changes the row between reading and writing; each of the two uses one connection at a time.
    with Session(engine) as one:
        mine = one.scalars(select(Order)).one()
        one.expunge(mine)
    with Session(engine) as two:
        theirs = two.scalars(select(Order).with_for_update()).one()
        theirs.total += 1
        two.commit()
    with Session(engine) as one:
        one.add(mine)
        mine.total += 2
        with raises(StaleDataError):
            one.commit()


def bulk(engine):
    with Session(engine) as session:
        # Many rows in few statements, with what the server made of them in their order.
        rows = [{"name": f"many {number}"} for number in range(2500)]
        made = session.scalars(sa.insert(Customer).returning(Customer.id, sort_by_parameter_order=True), rows).all()
        assert len(made) == 2500 and made == sorted(made)
        session.execute(sa.update(Customer).where(Customer.name.startswith("many")).values(name=Customer.name + "!"))
        deleted = session.execute(sa.delete(Customer).where(Customer.name.startswith("many")))
        assert deleted.rowcount == 2500
        session.execute(sa.insert(Measure), [{"id": number, "value": number / 2} for number in range(3000)])
        upsert = insert(Measure).values([{"id": 1, "value": -1.0}, {"id": 9000, "value": 9.0}])
        upsert = upsert.on_conflict_do_update(index_elements=["id"], set_={"value": upsert.excluded.value})
        assert sorted(session.scalars(upsert.returning(Measure.value))) == [-1.0, 9.0]
        session.commit()


def streams(engine):
    with engine.connect() as conn:
        # What another connection of the pool has written may come a moment later to a standby.
        ordered = select(Measure.id).order_by(Measure.id).with_statement_hint("/* halyard.route: primary */")
        result = conn.execution_options(stream_results=True, max_row_buffer=200).execute(ordered)
        seen = [row.id for part in result.partitions(500) for row in part]
        assert seen == [*range(3000), 9000]
    with Session(engine) as session:
        result = session.scalars(select(Measure).order_by(Measure.id), execution_options={"yield_per": 400})
        assert next(result).id == 0
        result.close()
        assert session.scalar(select(func.count()).select_from(Measure)) == 3001


def isolation(engine):
    for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        with engine.connect().execution_options(isolation_level=level) as conn:
            assert conn.get_isolation_level() == level
            conn.execute(sa.update(Measure).where(Measure.id == 2).values(value=Measure.value + 1))
            conn.commit()
            assert conn.scalar(text("SHOW transaction_isolation")) == level.lower()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.update(Measure).where(Measure.id == 2).values(value=0))
        assert conn.scalar(select(Measure.value).where(Measure.id == 2)) == 0
    reader = engine.execution_options(postgresql_readonly=True, isolation_level="REPEATABLE READ")
    with reader.connect() as conn:
        assert conn.scalar(text("SHOW transaction_read_only")) == "on"
        with raises(DBAPIError):
            conn.execute(sa.insert(Measure).values(id=-1, value=0))
    serial = {"isolation_level": "SERIALIZABLE", "postgresql_readonly": True, "postgresql_deferrable": True}
    with engine.connect().execution_options(**serial) as conn:
        assert conn.scalar(text("SHOW transaction_isolation")) == "serializable"
    # Back in the pool, a connection is as it was.
    with engine.begin() as conn:
        assert conn.scalar(text("SHOW transaction_read_only")) == "off"
        assert conn.scalar(text("SHOW transaction_isolation")) == "read committed"


def two_phases(engine):
    with engine.connect() as conn:
        kept = conn.scalar(text("SHOW max_prepared_transactions"))
    with engine.connect() as conn:
        transaction = conn.begin_twophase()
        conn.execute(sa.insert(Measure).values(id=-2, value=0))
        if kept != "0":
            transaction.prepare()
            transaction.rollback()
            return
        # Nodes keep none by default, and say so.
        with raises((DBAPIError, NotSupportedError)):
            transaction.prepare()
        conn.invalidate()


def threads(engine):
    with Session(engine) as session:
        session.add(Measure(id=-5, value=0))
        session.commit()

    def add(_number):
        with Session(engine) as session, session.begin():
            session.get(Measure, -5, with_for_update=True).value += 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(40)))
    with Session(engine) as session:
        assert session.get(Measure, -5, with_for_update=True).value == 40


async def asynchronous():
    engine = create_async_engine(
        address("asyncpg"), pool_size=4, pool_pre_ping=True, connect_args={"server_settings": {"search_path": SCHEMA}}
    )
    async with engine.begin() as conn:
        await conn.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        async with session.begin():
            session.add_all([Customer(name=f"async {n}", orders=[Order(total=n)]) for n in range(50)])
        query = select(Customer).options(selectinload(Customer.orders)).where(Customer.name.startswith("async"))
        assert sum(order.total for customer in await session.scalars(query) for order in customer.orders) == 1225
        with raises(IntegrityError):
            async with session.begin_nested():
                session.add(Customer(name="async 1"))
        await session.commit()
    async with engine.connect() as conn:
        ordered = select(Order.total).order_by(Order.total).with_for_update()
        async with conn.stream(ordered) as result:
            assert len([row async for row in result]) == 51

    async def add(number):
        async with AsyncSession(engine) as session, session.begin():
            measure = await session.get(Measure, -5, with_for_update=True)
            measure.value += number

    await asyncio.gather(*(add(number) for number in range(20)))
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
        assert await conn.scalar(text("SHOW transaction_isolation")) == "serializable"
        assert await conn.scalar(text("SHOW transaction_read_only")) == "on"
    async with engine.begin() as conn:
        assert await conn.scalar(select(Measure.value).where(Measure.id == -5).with_for_update()) == 40 + 190
    await engine.dispose()


def main():
    engine = sa.create_engine(
        address("psycopg"),
        pool_size=4,
        pool_pre_ping=True,
        connect_args={"options": f"-c search_path={SCHEMA}", "application_name": "SQLAlchemy"},
    )
    schema(engine)
    for check in (unit_of_work, savepoints, versions, bulk, streams, isolation, two_phases, threads):
        check(engine)
    asyncio.run(asynchronous())
    Base.metadata.drop_all(engine)
    engine.dispose()


main()
