"""Metrics of Django's databases and caches: queries, changes of models, migrations, hits and misses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import django_project
import pytest
from django.contrib.auth.models import Group, Permission
from django.contrib.contenttypes.models import ContentType
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection
from django.db.backends.signals import connection_created
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import CaptureQueriesContext
from django_project import Send, Settings, scraped, wsgi

# pytest finds these fixtures by their names here.
own_storage = django_project.own_storage
change = django_project.change
send = django_project.send


def test_queries_are_counted_and_timed(change: Settings) -> None:
    """Every query counts with its alias and vendor, errors by exception, also from an iterator of parameters."""
    queries = ("default", "sqlite")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE notes (text)")
        cursor.executemany("INSERT INTO notes VALUES (%s)", iter([("a",), ("b",)]))
        with pytest.raises(OperationalError):
            cursor.execute("SELECT * FROM nothing")
        assert scraped("django_db_queries_total") == {queries: 3.0}
        assert scraped("django_db_query_duration_seconds_count") == {queries: 3.0}
        assert scraped("django_db_query_errors_total") == {("default", "OperationalError", "sqlite"): 1.0}
        change(django_databases=False)
        cursor.execute("DROP TABLE notes")
    assert scraped("django_db_queries_total") == {queries: 3.0}


def test_a_connection_that_reconnects_counts_once() -> None:
    """Each query counts once, however often the connection was made."""
    for _ in range(2):
        connection.inc_thread_sharing()
        connection_created.send(type(connection), connection=connection)
    connection.cursor().execute("SELECT 1")
    assert scraped("django_db_queries_total") == {("default", "sqlite"): 1.0}


@pytest.fixture
def tables() -> Iterator[None]:
    """The tables of the installed apps, empty again after the test."""
    call_command("migrate", verbosity=0)
    yield
    Group.objects.all().delete()


@pytest.mark.usefixtures("tables")
def test_changes_of_models_are_counted_after_the_write(change: Settings) -> None:
    """Inserts, updates and deletes of the named models count when they are written; failed ones do not."""
    change(django_models=["auth.Group"])
    group = Group.objects.create(pk=1, name="cooks")
    with pytest.raises(IntegrityError):
        Group.objects.create(name="cooks")
    group.name = "waiters"
    group.save()
    group.delete()
    ContentType.objects.create(app_label="shop", model="tea").delete()
    assert scraped("django_model_changes_total") == {
        ("auth.Group", "insert"): 1.0,
        ("auth.Group", "update"): 1.0,
        ("auth.Group", "delete"): 1.0,
    }


@pytest.mark.usefixtures("tables")
def test_bulk_writes_count_every_row(change: Settings) -> None:
    """Whole querysets count by their rows, cascades too; a deletion that Django does in one query stays one query."""
    change(django_models=["auth.Group", "auth.Permission"])
    ContentType.objects.create(pk=1000, app_label="shop", model="tea")
    Group.objects.bulk_create(Group(name=f"cooks {number}") for number in range(5))
    Group(pk=2000, name="with a key of its own").save()
    groups = list(Group.objects.filter(name__startswith="cooks"))
    for group in groups:
        group.name += "!"
    Group.objects.bulk_update(groups, ["name"])
    assert Group.objects.filter(name="nobody").update(name="somebody") == 0
    assert Permission.objects.filter(content_type=1000).count() == 0
    Permission.objects.bulk_create(Permission(content_type_id=1000, codename=code, name=code) for code in "abc")
    with CaptureQueriesContext(connection) as queries:
        Group.permissions.through.objects.all().delete()
    assert [query["sql"].split()[0] for query in queries] == ["BEGIN", "DELETE", "COMMIT"]
    Group.objects.filter(name__startswith="cooks").delete()
    ContentType.objects.filter(pk=1000).delete()
    assert scraped("django_model_changes_total") == {
        ("auth.Group", "insert"): 6.0,
        ("auth.Group", "update"): 5.0,
        ("auth.Group", "delete"): 5.0,
        ("auth.Permission", "insert"): 3.0,
        ("auth.Permission", "delete"): 3.0,
    }


@pytest.mark.usefixtures("tables")
def test_models_are_counted_by_app(change: Settings) -> None:
    """The label of an app selects all of its models."""
    change(django_models="auth")
    Group.objects.create(name="cooks")
    assert scraped("django_model_changes_total") == {("auth.Group", "insert"): 1.0}


@pytest.mark.usefixtures("tables")
def test_migrations_are_read_when_scraped(send: Send, change: Settings) -> None:
    """The page shows the numbers of applied and unapplied migrations that the database has at that moment."""
    assert b"django_migrations" not in send("/metrics").body
    change(django_migrations=True, namespace="shop")
    assert set(scraped("shop_django_migrations_unapplied").items()) == {(("default",), 0.0)}
    applied = scraped("shop_django_migrations_applied")["default",]
    recorder = MigrationRecorder(connection)
    recorder.record_unapplied("auth", "0012_alter_user_first_name_max_length")
    try:
        page = wsgi("/metrics").body.decode()
    finally:
        recorder.record_applied("auth", "0012_alter_user_first_name_max_length")
    assert scraped("shop_django_migrations_unapplied", page) == {("default",): 1.0}
    assert scraped("shop_django_migrations_applied", page) == {("default",): applied - 1}


def test_a_database_that_cannot_be_read_has_no_migrations(change: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page shows everything else where a database is down."""

    def broken(*_: Any) -> None:
        raise OperationalError("down")

    monkeypatch.setattr(MigrationRecorder, "applied_migrations", broken)
    change(django_migrations=True)
    wsgi("/")
    assert scraped("django_migrations_applied") == {}
    assert scraped("http_requests_total") == {("GET", "/", "200"): 1.0}


@pytest.fixture
def counted_cache(change: Settings) -> Any:
    """A cache whose operations are counted."""
    change(django_caches=True, CACHES={"fast": {"BACKEND": LOCMEM}, "default": {"BACKEND": LOCMEM, "LOCATION": "tests"}})
    cache.clear()
    return cache


LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


def test_hits_and_misses_are_counted(counted_cache: Any) -> None:
    """Each requested key is a hit or a miss, also one whose value is false; callers see no change."""
    counted_cache.set_many({"zero": 0, "none": None, "tea": "green"})
    assert counted_cache.get("zero", 1) == 0
    assert counted_cache.get("none", 1) is None
    assert counted_cache.get("nothing", 1) == 1
    assert counted_cache.get("nothing", default=2) == 2
    assert counted_cache.get_many(["tea", "nothing", "none"]) == {"tea": "green", "none": None}
    assert list(counted_cache.get_many(iter(["tea"]))) == ["tea"]
    assert counted_cache.get_or_set("cake", lambda: "plum") == "plum"
    assert scraped("django_cache_hits_total") == {("default",): 6.0}
    assert scraped("django_cache_misses_total") == {("default",): 4.0}
    assert scraped("django_cache_operation_duration_seconds_count") == {
        ("default", "set_many"): 1.0,
        ("default", "get"): 6.0,
        ("default", "get_many"): 2.0,
        ("default", "add"): 1.0,
        ("default", "clear"): 1.0,
    }


def test_cache_operations_are_counted_in_coroutines(counted_cache: Any) -> None:
    """The coroutines of a cache count as its methods do."""

    async def use() -> Any:
        await counted_cache.aset("tea", "green")
        return await counted_cache.aget("tea")

    assert asyncio.run(use()) == "green"
    assert scraped("django_cache_hits_total") == {("default",): 1.0}


def test_caches_are_left_alone_unless_asked_for() -> None:
    """Without PDC_DJANGO_CACHES no operation of a cache is counted."""
    cache.get("tea")
    assert scraped("django_cache_misses_total") == {}


def test_nothing_is_counted_with_wrong_options_and_nothing_breaks(change: Settings) -> None:
    """With wrong options, which the checks report, databases and caches work unchanged."""
    change(buckets="wide", CACHES={"default": {"BACKEND": LOCMEM, "LOCATION": "plain"}})
    connection.cursor().execute("SELECT 1")
    cache.get("tea")
    with pytest.raises(CommandError, match="PDC_BUCKETS must be increasing numbers of seconds, got 'wide'"):
        call_command("check")


@pytest.mark.usefixtures("tables")
def test_databases_have_the_names_of_django_prometheus(change: Settings) -> None:
    """With these PDC_NAMES, queries, connections, caches, models and migrations have its names and labels, too."""
    caches_of = {"default": {"BACKEND": LOCMEM, "LOCATION": "named"}}
    options = {"django_caches": True, "django_models": "auth", "django_migrations": True}
    change(names="django-prometheus", CACHES=caches_of, **options)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE letters (text)")
        cursor.executemany("INSERT INTO letters VALUES (%s)", [("a",), ("b",)])
        cursor.executemany("INSERT INTO letters VALUES (%s)", iter([("c",)]))
        with pytest.raises(OperationalError):
            cursor.execute("SELECT * FROM nothing")
        cursor.execute("DROP TABLE letters")
    connection_created.send(type(connection), connection=connection)
    queries = ("default", "sqlite")
    assert scraped("django_db_execute_total") == {queries: 6.0}
    assert scraped("django_db_execute_many_total") == {queries: 3.0}
    assert scraped("django_db_query_duration_seconds_count")[queries] > 5  # with those of the tables
    assert scraped("django_db_errors_total") == {("default", "OperationalError", "sqlite"): 1.0}
    assert scraped("django_db_new_connections_total") == {queries: 1.0}
    cache.set("tea", "green")
    assert cache.get_many(["tea", "nothing"]) == {"tea": "green"}
    names = ("django_cache_get_total", "django_cache_get_hits_total", "django_cache_get_misses_total")
    assert [scraped(name) for name in names] == [{("locmem",): 2.0}, {("locmem",): 1.0}, {("locmem",): 1.0}]
    group = Group.objects.create(name="cooks")
    group.save()
    group.delete()
    for operation in ("inserts", "updates", "deletes"):
        assert scraped(f"django_model_{operation}_total") == {("group",): 1.0}
    assert scraped("django_migrations_unapplied_total") == {("default",): 0.0}
    assert scraped("django_migrations_applied_total")["default",] > 0
