"""Applications that have every metric: prints their page.

With the argument `default` each option has its default, with `everything` metrics are switched on. Further arguments are
libraries of queues, beside Celery, whose tasks are counted.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import django
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from django.conf import settings
from django.core.cache import cache
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import include, path
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import pdc
from pdc.jobs.tasks import TaskMetrics
from pdc_starlette import instrument

SHARED: dict[str, Any] = {"sqlite_path": "metrics.db", "journal": False}
OF_DJANGO: dict[str, Any] = {}
if sys.argv[1] == "everything":
    SHARED |= dict.fromkeys(("sizes", "first_byte", "in_progress_by_route", "process_metrics"), True)
    OF_DJANGO |= {"django_caches": True, "django_models": "auth", "django_migrations": True}


def failing(request: HttpRequest) -> HttpResponse:
    """Use the cache and the database, and raise."""
    from django.contrib.auth.models import Group

    cache.set("name", 1)
    cache.get_many(["name", "other"])
    Group.objects.create(name="staff")
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM nowhere")
    return HttpResponse(request.path)


urlpatterns: list[Any] = [path("failing", failing)]


async def failing_socket(socket: WebSocket) -> None:
    """Accept the connection, and raise."""
    await socket.accept()
    raise KeyError(socket.url.path)


def use_django() -> Client:
    """Configure a project, whose client this is."""
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "pdc_django"],
        LOGGING={"version": 1, "loggers": {"django": {"level": "CRITICAL"}}},
        MIDDLEWARE=["pdc_django.middleware.PrometheusMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of tests",
        USE_TZ=True,
        **{f"PDC_{name.upper()}": value for name, value in (SHARED | OF_DJANGO).items()},
    )
    django.setup()
    urlpatterns.append(path("", include("pdc_django.urls")))
    from django.contrib.auth.models import Group, Permission

    with connection.schema_editor() as editor:
        for model in (Permission, Group):
            editor.create_model(model)
    return Client(raise_request_exception=False)


def use_websocket() -> None:
    """Open a connection whose view fails."""
    app = Starlette(routes=[WebSocketRoute("/chat", failing_socket)])
    instrument(app, **SHARED)
    scope = {"type": "websocket", "path": "/chat", "headers": [], "query_string": b"", "server": ("test", 80), "scheme": "ws"}

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        pass

    try:
        asyncio.run(app(scope, receive, send))
    except KeyError:
        print("# the view of the WebSocket failed")


def use_job() -> None:
    """Run a job."""
    with pdc.job("nightly_import") as job:
        job.count()


def use_queue(library: str) -> None:
    """Count a task of a library, as its module does."""
    tasks, named = TaskMetrics(library), ("shop.order", "orders")
    tasks.sent(*named)
    tasks.received(*named)
    tasks.started(*named, "worker", 0.1)
    tasks.stopped(*named, "worker")
    tasks.timed(*named, "failure", 0.1)
    tasks.ended(*named, "failure", "ValueError")
    tasks.show_worker("worker", ["orders"], lives=True)
    tasks.show_length("orders", 1)


def print_page_of_worker(client: Client) -> None:
    """Print the page while a worker runs that has had a task which failed. It takes seconds to end, so end without it."""
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.01}
    pdc.celery.instrument(app, queue_length=True)

    @app.task(name="shop.order")
    def order() -> None:
        raise ValueError

    worker: Any
    with start_worker(app, perform_ping_check=False, loglevel="CRITICAL") as worker:
        signals.worker_ready.send(worker.consumer)  # other workers send it themselves
        order.delay().get(timeout=20, interval=0.01, propagate=False)
        page, until = "", time.monotonic() + 20
        while "celery_queue_messages{" not in page and time.monotonic() < until:
            page = client.get("/metrics").content.decode()
        sys.stdout.write(page)
        sys.stdout.flush()
        os._exit(0)


client_of_django = use_django()
use_websocket()
use_job()
for each in sys.argv[2:]:
    use_queue(each)
client_of_django.post("/failing", {"name": "tea"})
print_page_of_worker(client_of_django)
