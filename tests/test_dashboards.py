"""Dashboards of other exporters: a real Prometheus answers their queries about applications that have their names."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

import http_applications
import pytest
from conftest import ROOT, wait_until
from django.contrib.auth.models import Group
from django.core.cache import caches
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import include, path
from test_celery import receivers, send, worker
from test_prometheus import SCRAPED, Prometheus

from pdc.options import NAMES

_receivers = receivers
VIEWS = 'view!~"<unnamed view>|health_check:health_check_home|prometheus-django-metrics"'
FRAMEWORK_OF = {
    "otel": "flask",
    "django-prometheus": "django",
    "prometheus-flask-exporter": "flask",
    "starlette-exporter": "starlette",
    "fastapi-instrumentator": "fastapi",
    "fastapi-observability": "fastapi",
}


def queries() -> dict[str, list[str]]:
    """The queries of tests/dashboards.txt, by PDC_NAMES."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "tests" / "dashboards.txt").read_text().splitlines():
        if heading := re.match(r"\[(\S+)\]", line):
            lines = found.setdefault(heading[1], [])
        elif line and not line.startswith("#"):
            lines.append(line.replace("$views", VIEWS))
    return found


def answer(request: HttpRequest, status: int = 200) -> HttpResponse:
    """A view of Django: a page of a template, a redirect, an answer without a body, or an exception."""
    if status == 500:
        raise LookupError
    if status == 302:
        return HttpResponseRedirect("/")
    return HttpResponse(status=status) if status != 200 else TemplateResponse(request, ["cup.html", "mug.html"])


def work(cache: Any) -> None:
    """Use the database and the cache, with an error, a miss, and a connection."""
    with connection.cursor() as cursor, suppress(OperationalError):
        cursor.executemany("INSERT INTO auth_group (name) VALUES (%s)", [("cooks",), ("waiters",)])
        cursor.execute("SELECT * FROM nothing")
    group = Group.objects.create(name="guests")
    group.save()
    Group.objects.all().delete()
    cache.set("a", 1)
    cache.get_many(["a", "b"])
    extra = connections.create_connection("default")
    extra.connect()
    extra.connection.close()


def use(app: http_applications.Application) -> None:
    """Send all kinds of requests to an application of the contract."""
    for place in ("/items/tea", "/missing/tea", "/nowhere", "/broken", "/stream"):
        app.get(place, 2)
    app.request("POST", "/orders", body=b"tea")


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve a project of Django at a free port, with the database of this thread."""
    shared: Any = connections["default"]
    shared.inc_thread_sharing()
    server = make_server("127.0.0.1", 0, app, handler_class=_Quiet)

    def serve() -> None:
        connections["default"] = shared
        server.serve_forever(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        shared.dec_thread_sharing()


class Shop(NamedTuple):
    """Applications with all names in one storage, which `act` sends requests."""

    name: str
    port: int
    act: Callable[[], None]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Make and serve them."""
    common = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 3600}
    urls = [path("<int:status>", answer, name="answer"), path("", answer, name="index")]
    options = {"django_caches": True, "django_migrations": True, "django_models": ["auth"], "names": "django-prometheus"}
    templates = {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"mug.html": "tea"})]},
    }
    with ExitStack() as stack:
        django = http_applications.FRAMEWORKS["django"](**common, **options)
        stack.callback(django.close)
        urlconf = (
            path("", include("pdc_django.urls")),
            path("admin/", include((urls, "admin"))),
            path("shop/", include((urls, "shop"))),
        )
        stack.enter_context(override_settings(ROOT_URLCONF=urlconf, TEMPLATES=[templates]))
        call_command("migrate", verbosity=0)
        cache = caches.create_connection("default")
        own = {"fastapi-observability": {"labels": {"app_name": "shop"}}}
        others = [
            http_applications.FRAMEWORKS[framework](**common, names=name, **own.get(name, {}))
            for name, framework in FRAMEWORK_OF.items()
            if framework != "django"
        ]

        tasks = stack.enter_context(worker(names="celery-exporter", queue_length=True))

        def act() -> None:
            for end in ("success", "success", "failure", "retry", "reject"):
                send(tasks, end)
            send(tasks, "success", expires=datetime.now(timezone.utc) - timedelta(1))
            for place in ("admin/", "shop/"):
                for status in ("", 200, 302, 404, 500):
                    django.get(f"/{place}{status}")
            work(cache)
            for each in others:
                use(each)

        yield Shop("names", stack.enter_context(served(django.app)), act)


@pytest.fixture
def prometheus(tmp_path: Path, shop: Shop) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the applications before and after all kinds of requests."""
    shop.act()
    server = Prometheus(tmp_path, [shop])  # type: ignore[list-item]  # it asks for no more
    try:
        wait_until(partial(server.query, f"{SCRAPED} > 0"), 30)
        shop.act()
        acted = time.time()
        wait_until(partial(server.query, f"{SCRAPED} > {acted:.3f}"), 30)
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def test_queries_of_dashboards_return_numbers(prometheus: Prometheus) -> None:
    """Each query of tests/dashboards.txt returns a number, for all names of other exporters."""
    assert queries().keys() == {*NAMES, "celery-exporter"} - {"pdc"}
    left = [(name, query) for name, each in queries().items() for query in each]
    left.sort(key=lambda item: "irate(" not in item[1])  # these look at the last two scrapes alone

    def all_return() -> bool:
        left[:] = [item for item in left if all(map(math.isnan, prometheus.query(item[1]).values()))]
        return not left

    with suppress(AssertionError):
        wait_until(all_return)  # a subquery looks at whole seconds, at the last one perhaps before the scrape
    assert left == []
