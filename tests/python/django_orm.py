"""Django: migrations, ORM, blocks, locks, cursors of the server, threads with persistent connections, time zones.

Connects by the PG* variables, in the schema that SCHEMA names. With FEW_BACKENDS set there are fewer connections to the
servers than clients, so what needs two of them at a time is left out.
"""

import datetime
import decimal
import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import django
from django.apps import AppConfig
from django.conf import settings

SCHEMA = os.environ["SCHEMA"]

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": os.environ["PGDATABASE"],
            "USER": os.environ["PGUSER"],
            "PASSWORD": os.environ["PGPASSWORD"],
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {"options": f"-c search_path={SCHEMA}", "server_side_binding": True},
        }
    },
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "django.contrib.postgres",
        AppConfig("library", sys.modules["__main__"]),
    ],
    MIGRATION_MODULES={"library": None},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    SECRET_KEY="of this test alone",
    TIME_ZONE="Europe/Madrid",
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import Group, Permission, User  # noqa: E402
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.contrib.postgres.fields import ArrayField  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, Error, IntegrityError, ProgrammingError, close_old_connections  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.db.models import Count, F, Prefetch, Q, Sum, Window  # noqa: E402
from django.db.models.functions import RowNumber, TruncDay  # noqa: E402
from django.utils import timezone  # noqa: E402


class Author(models.Model):
    name = models.CharField(max_length=100, unique=True)
    born = models.DateField(null=True)

    class Meta:
        app_label = "library"


class Book(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    author = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")
    title = models.TextField()
    price = models.DecimalField(max_digits=8, decimal_places=2)
    stock = models.IntegerField(default=0)
    published = models.DateTimeField(default=timezone.now)
    tags = ArrayField(models.TextField(), default=list)
    details = models.JSONField(default=dict)
    cover = models.BinaryField(null=True)

    class Meta:
        app_label = "library"
        constraints = [models.CheckConstraint(condition=Q(stock__gte=0), name="stock_is_not_negative")]
        indexes = [models.Index(fields=["title"], name="book_title")]


@contextmanager
def raises(kind):
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} came")


def migrations():
    call_command("migrate", verbosity=0)
    # A second time there is nothing to do, which it sees by reading what it has just written.
    call_command("migrate", verbosity=0, check_unapplied=True)
    with connection.schema_editor() as editor:
        editor.create_model(Author)
        editor.create_model(Book)
    assert {"library_author", "library_book", "auth_user"} <= set(connection.introspection.table_names())
    assert Permission.objects.filter(content_type=ContentType.objects.get_for_model(User)).count() == 4


def objects():
    ann = Author.objects.create(name="Ann", born=datetime.date(1950, 2, 28))
    book = Book.objects.create(
        author=ann, title="One", price="12.50", stock=3, tags=["a", 'b"'], details={"deep": [1, None]}, cover=b"\x00\xff"
    )
    book.refresh_from_db()
    assert (book.price, book.tags, book.details) == (decimal.Decimal("12.50"), ["a", 'b"'], {"deep": [1, None]})
    assert bytes(book.cover) == b"\x00\xff"
    assert Book.objects.get(details__deep__0=1, tags__contains=["a"]) == book
    same, made = Author.objects.get_or_create(name="Ann")
    assert (same, made) == (ann, False)
    bob, made = Author.objects.update_or_create(name="Bob", defaults={"born": None})
    assert made
    for number in range(20):
        Author.objects.filter(pk=bob.pk).update(name=f"Bob {number}")
        assert Author.objects.get(pk=bob.pk).name == f"Bob {number}"
    made = Book.objects.bulk_create(
        [Book(author=bob, title=f"Many {n}", price=n, stock=n) for n in range(1500)], batch_size=400
    )
    assert len(made) == 1500
    for many in made[:10]:
        many.title += "!"
    assert Book.objects.bulk_update(made[:10], ["title"]) == 10
    Author.objects.bulk_create([Author(name="Ann"), Author(name="Cyd")], ignore_conflicts=True)
    assert Author.objects.count() == 3
    Book.objects.filter(author=bob).update(stock=F("stock") + 1, price=F("price") * 2)
    totals = Author.objects.annotate(n=Count("books"), worth=Sum("books__price")).order_by("name").values_list("n", "worth")
    assert list(totals) == [(1, decimal.Decimal("12.50")), (1500, decimal.Decimal(1499 * 1500)), (0, None)]
    cheap = Prefetch("books", Book.objects.filter(price__lt=10).order_by("price"))
    assert [book.price for book in Author.objects.prefetch_related(cheap).get(pk=bob.pk).books.all()] == [0, 2, 4, 6, 8]
    ranked = Book.objects.annotate(rank=Window(RowNumber(), order_by=F("price").desc())).order_by("rank")
    assert ranked.select_related("author")[0].author == bob
    assert Book.objects.filter(title__endswith="!").delete()[0] == 10
    assert not Book.objects.filter(title="nowhere").exists()
    assert Author.objects.filter(books__isnull=True).union(Author.objects.filter(name="Ann")).count() == 2


def users():
    user = User.objects.create_user("ann", password="hers")
    user.groups.add(Group.objects.create(name="readers"))
    user.user_permissions.set(Permission.objects.filter(codename="view_user"))
    again = User.objects.get(username="ann")
    assert again.check_password("hers") and again.has_perm("auth.view_user")
    session = SessionStore()
    session["user"] = again.pk
    session.save()
    assert SessionStore(session.session_key)["user"] == again.pk
    assert user.delete()[1]["auth.User"] == 1


def blocks():
    told = []
    with transaction.atomic():
        transaction.on_commit(lambda: told.append(Author.objects.filter(name="Dan").exists()))
        Author.objects.create(name="Dan")
        with raises(IntegrityError), transaction.atomic():
            Author.objects.create(name="Ann")
        with transaction.atomic():
            Author.objects.create(name="Eve")
            transaction.set_rollback(True)
        assert told == []
    assert told == [True]
    assert not Author.objects.filter(name="Eve").exists()
    with raises(KeyError), transaction.atomic():
        Author.objects.all().delete()
        raise KeyError("changed its mind")
    with raises(IntegrityError):
        Book.objects.filter(title="One").update(stock=-1)
    with raises(IntegrityError):
        Book.objects.create(author_id=-1, title="Nobody's", price=1)
    with raises(DatabaseError):
        Book.objects.create(author_id=1, title="Dear", price="1234567.00")
    with raises(ProgrammingError), connection.cursor() as cursor:
        cursor.execute("SELECT * FROM there_is_no_such_table")
    with transaction.atomic():
        with raises(transaction.TransactionManagementError):
            try:
                Author.objects.create(name="Ann")
            except IntegrityError:
                Author.objects.count()
        transaction.set_rollback(True)
    savepoint_by_hand()
    assert Author.objects.count() == 4


def savepoint_by_hand():
    transaction.set_autocommit(False)
    try:
        Author.objects.create(name="Fay")
        savepoint = transaction.savepoint()
        Author.objects.filter(name="Fay").delete()
        transaction.savepoint_rollback(savepoint)
        assert Author.objects.filter(name="Fay").exists()
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)


def cursors():
    # In a block a cursor lives as long as the block; outside of one it is WITH HOLD and keeps its connection.
    with transaction.atomic():
        assert sum(1 for _ in Book.objects.order_by("price").iterator(chunk_size=200)) == 1491
    prices = Book.objects.order_by("price").values_list("price", flat=True).iterator(chunk_size=300)
    assert next(prices) == decimal.Decimal("12.50")
    assert Author.objects.count() == 4
    assert len(list(prices)) == 1490
    authors = list(Author.objects.order_by("pk").prefetch_related("books").iterator(chunk_size=2))
    assert [len(author.books.all()) for author in authors][:2] == [1, 1490]


def raw():
    (ann,) = Author.objects.raw("SELECT * FROM library_author WHERE name = %s", ["Ann"])
    assert ann.born == datetime.date(1950, 2, 28)
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO library_author (name) VALUES (%s)", [("Gil",), ("Hal",)])
        cursor.execute("DELETE FROM library_author WHERE name IN (%s, %s) RETURNING name", ["Gil", "Hal"])
        assert sorted(cursor.fetchall()) == [("Gil",), ("Hal",)]
        with cursor.copy("COPY (SELECT name FROM library_author ORDER BY name) TO STDOUT") as copy:
            assert [row[0] for row in copy.rows()] == ["Ann", "Bob 19", "Cyd", "Dan"]
    assert "Scan" in Book.objects.filter(title="One").explain()


def time_zones():
    moment = datetime.datetime(2024, 3, 31, 23, 30, tzinfo=datetime.timezone.utc)
    book = Book.objects.get(title="One")
    book.published = moment
    book.save(update_fields=["published"])
    with connection.cursor() as cursor:
        # Django sets it as it connects; the settings of the application count in what the server computes.
        cursor.execute("SHOW timezone")
        assert cursor.fetchone() == ("UTC",)
    days = Book.objects.filter(title="One").annotate(day=TruncDay("published")).values_list("day", "published")
    ((day, published),) = days
    assert published == moment and (day.month, day.day) == (4, 1), (day, published)
    with timezone.override("America/New_York"):
        assert Book.objects.get(title="One", published__date="2024-03-31") == book


def threads():
    book = Book.objects.get(title="One")

    def sell(_number):
        close_old_connections()
        with transaction.atomic():
            locked = Book.objects.select_for_update(of=("self",)).select_related("author").get(pk=book.pk)
            locked.stock += 1
            locked.save()
        Book.objects.filter(pk=book.pk).update(stock=F("stock") + 1)

    before = book.stock
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(sell, range(30)))
        # The connections of the threads end with them.
        list(pool.map(lambda _: connection.close(), range(20)))
    with transaction.atomic():
        assert Book.objects.select_for_update().get(pk=book.pk).stock == before + 60


def locks():
    book = Book.objects.get(title="One")

    def is_locked(_number):
        with transaction.atomic():
            free = Book.objects.select_for_update(skip_locked=True).filter(pk=book.pk).exists()
            with raises(Error), transaction.atomic():
                Book.objects.select_for_update(nowait=True).get(pk=book.pk)
        connection.close()
        return not free

    with transaction.atomic(), ThreadPoolExecutor(1) as pool:
        Book.objects.select_for_update().get(pk=book.pk)
        assert list(pool.map(is_locked, [1])) == [True]


def flushed():
    with transaction.atomic():
        Book.objects.all().delete()
        Author.objects.all().delete()
    with connection.schema_editor() as editor:
        editor.delete_model(Book)
        editor.delete_model(Author)
    call_command("flush", verbosity=0, interactive=False)
    assert User.objects.count() == 0
    call_command("migrate", "auth", "zero", verbosity=0)
    assert "auth_user" not in connection.introspection.table_names()


ALWAYS = (migrations, objects, users, blocks, cursors, raw, time_zones, threads)
TWO_AT_A_TIME = () if os.environ.get("FEW_BACKENDS") else (locks,)

for check in (*ALWAYS, *TWO_AT_A_TIME, flushed):
    check()
connection.close()
