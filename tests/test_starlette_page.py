"""The metrics page and the options of Starlette and FastAPI."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from typing import Any

import pytest
import starlette_applications
from fastapi import FastAPI
from helpers import Run
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Route
from starlette_applications import ASGI, Make, Message, TestClient, add, client, fine, ignore, never, requests, scope, stored

from pdc.exposition import Scrape
from pdc.options import OptionError, from_header
from pdc_starlette import PrometheusMiddleware, instrument, metrics

# pytest finds these fixtures by their names here.
framework = starlette_applications.framework
options = starlette_applications.options
make_app = starlette_applications.make_app


def page(app: ASGI, path: str = "/metrics", **headers: str) -> Any:
    """The metrics page."""
    return client(app).get(path, headers=headers)


@pytest.mark.parametrize("path", ["/metrics", "/internal/metrics", "/sub/metrics"])
def test_scrapes_are_not_counted_wherever_they_are(make_app: Make, path: str) -> None:
    """The page is no request, whether at the path of the option or mounted by hand, in the application or below."""
    app = make_app({"/": fine}, metrics_path=path if path == "/metrics" else None)
    if path == "/internal/metrics":
        add(app, path, metrics)
    elif path == "/sub/metrics":
        app.mount("/sub", Starlette(routes=[Route("/metrics", metrics)]))
    client(app).get("/")
    for _ in range(2):
        answer = page(app, path)
        assert answer.status_code == 200
        samples = {sample.name: sample for family in text_string_to_metric_families(answer.text) for sample in family.samples}
        assert samples["http_requests_total"].labels["route"] == "/"
        assert samples["http_requests_in_progress"].value == 0.0
    assert requests() == {("GET", "/", "200"): 1.0}


def test_the_first_scrape_imports_nothing_on_the_event_loop(run_script: Run) -> None:
    """Requests do not wait while the first scrape of a process imports the threads of anyio: it uses those of asyncio."""
    code = """
    import asyncio, sys
    from starlette.applications import Starlette
    from pdc_starlette import instrument

    app, sent = Starlette(), []
    instrument(app, sqlite_path="metrics.db")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(app(scope, None, send))
    print(sent[0]["status"], "anyio._backends._asyncio" in sys.modules)
    """
    assert run_script(code).stdout.split() == ["200", "False"]


def test_the_page_is_before_routes_for_every_path(make_app: Make) -> None:
    """The page answers GET, HEAD and OPTIONS, also where the application has a route for every path."""
    web = client(make_app({"/{anything:path}": fine}))
    statuses = {method: web.request(method, "/metrics").status_code for method in ("GET", "HEAD", "OPTIONS", "POST")}
    assert statuses == {"GET": 200, "HEAD": 200, "OPTIONS": 200, "POST": 405}
    assert web.head("/metrics").headers["content-length"] == web.get("/metrics").headers["content-length"]
    assert requests() == {}


def test_the_page_negotiates_and_asks_for_the_token(make_app: Make) -> None:
    """The page answers in OpenMetrics when asked to, and with 401 without the token."""
    app = make_app(metrics_token="secret")
    assert page(app).status_code == page(app, authorization="Bearer secre").status_code == 401
    answer = page(app, authorization="Bearer secret", accept="application/openmetrics-text")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


def test_the_page_reads_the_storage_in_a_thread(make_app: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop runs on while the storage is read."""
    threads: list[int] = []
    answer = Scrape.answer

    def watched(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return answer(*arguments)

    monkeypatch.setattr(Scrape, "answer", watched)

    async def run() -> int:
        await make_app()(scope("/metrics"), never, ignore)
        return threading.get_ident()

    loop = asyncio.run(run())
    assert len(threads) == 1
    assert loop not in threads


def test_a_storage_that_cannot_be_read_is_a_503(make_app: Make) -> None:
    """Without its storage the application answers requests, and the metrics page gives the reason."""
    app = make_app({"/": fine}, sqlite_path="/nonexistent/metrics.db")
    assert client(app).get("/").status_code == 200
    answer = page(app)
    assert answer.status_code == 503
    assert "/nonexistent/metrics.db" in answer.text


def test_the_page_needs_the_middleware() -> None:
    """Without the middleware the page names it as the remedy."""
    app = Starlette(routes=[Route("/metrics", metrics)])
    with pytest.raises(RuntimeError, match=r"add_middleware\(PrometheusMiddleware\)"):
        TestClient(app).get("/metrics")


def test_options_are_keywords(make_app: Make) -> None:
    """Options are keywords, labels may be callables that take the request."""
    app = make_app(
        {"/": fine, "/health": fine},
        namespace="shop",
        group_status=True,
        exclude_paths=["/health"],
        labels={"tier": from_header("x-tier"), "place": "here"},
    )
    for path in ("/", "/health"):
        client(app).get(path, headers={"x-tier": "gold"})
    assert stored("shop_http_requests_total") == {("GET", "here", "/", "2xx", "gold"): 1.0}


def test_options_come_from_the_environment(framework: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Options that are no keywords come from environment variables."""
    monkeypatch.setenv("PDC_NAMESPACE", "shop")
    app = (FastAPI if framework == "fastapi" else Starlette)()
    app.add_middleware(PrometheusMiddleware, **options)
    app.add_route("/metrics", metrics)
    client(app).get("/nowhere")
    assert 'shop_http_requests_total{method="GET",route="<unmatched>",status="404"} 1.0' in page(app).text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"bucket": [1]}, "unknown option PDC_BUCKET; did you mean PDC_BUCKETS"), ({"buckets": [2, 1]}, "PDC_BUCKETS must be")],
)
def test_wrong_options_fail_the_start(make_app: Make, framework: str, wrong: dict[str, Any], message: str) -> None:
    """A wrong option is refused at once by `instrument`, by the middleware when the server starts, or at each request."""
    with pytest.raises(OptionError, match=message):
        make_app(**wrong)
    app = (FastAPI if framework == "fastapi" else Starlette)()
    app.add_middleware(PrometheusMiddleware, **wrong)
    assert message in _failed_start(app)


@pytest.mark.parametrize("wrong", [{"redis_url": "localhost"}, {"redis_url": "redis://h?bad=1"}, {"sqlite_path": "/"}])
def test_a_refusal_of_the_storage_fails_the_start(framework: str, wrong: dict[str, Any]) -> None:
    """An option that only the storage refuses fails the start as other wrong options do."""
    app = (FastAPI if framework == "fastapi" else Starlette)()
    instrument(app, **wrong)
    assert re.match(r"PDC_(REDIS_URL|SQLITE_PATH): ", _failed_start(app))


def test_a_missing_driver_fails_the_start(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where redis-py is not installed, the message of the failed start names the extra."""
    monkeypatch.setitem(sys.modules, "pdc.storage.redis", None)
    app = (FastAPI if framework == "fastapi" else Starlette)()
    instrument(app, redis_url="redis://localhost")
    assert "pip install 'prometheus-distributed-client[redis]'" in _failed_start(app)


def _failed_start(app: Any) -> str:
    """The message of a start of the application that fails, as do its requests."""
    with pytest.raises(OptionError):
        asyncio.run(app(scope("/"), never, ignore))
    sent: list[Message] = []

    async def start() -> Message:
        return {"type": "lifespan.startup"}

    async def send(answer: Message) -> None:
        sent.append(answer)

    with pytest.raises(OptionError):
        asyncio.run(app({"type": "lifespan", "state": {}}, start, send))
    assert sent[0]["type"] == "lifespan.startup.failed"
    return str(sent[0]["message"])


def test_the_middleware_can_be_switched_off(make_app: Make) -> None:
    """With `enabled=False` nothing is counted, and there is no page."""
    app = make_app({"/": fine}, enabled=False)
    assert client(app).get("/").status_code == 200
    assert page(app).status_code == 404
