"""The tracking of WSGI requests, which all frameworks share."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

import pdc
from pdc.exposition import Scrape
from pdc.http import CLIENT_CLOSED_REQUEST, TRACKER, Hooks, HTTPMetrics, RequestRecord, track_wsgi
from pdc.http.labels import RequestLabels
from pdc.options import OptionError, Options


@pytest.fixture
def metrics(tmp_path: Path) -> HTTPMetrics:
    """HTTP metrics with a storage for one test, written through."""
    return HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0))


@pytest.mark.parametrize("cleared_in_between", [False, True])
def test_a_request_ends_where_it_began(metrics: HTTPMetrics, cleared_in_between: bool) -> None:
    """A program that clears the gauge of requests in progress makes it negative for no request, as a held child would."""
    (gauge,) = (family.metric for family in metrics.series.families if family.measures == "in_progress")

    def clear() -> Iterable[bytes]:
        gauge.clear()
        yield b"a"

    if cleared_in_between:
        call(track_wsgi(metrics, answering(clear)))
    else:
        call(track_wsgi(metrics, answering(lambda: [b"a"])))
        gauge.clear()
    call(track_wsgi(metrics, answering(lambda: [b"a"], "404 Not Found")))
    assert samples().get(("requests_in_progress", "GET"), 0.0) == 0.0


def samples() -> dict[tuple[str, ...], float]:
    """The requests in the storage: (name, label values...) to value, without sums, buckets and times."""
    metrics = pdc.exposition.collect()
    return {
        (sample.name.removeprefix("http_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name.startswith("http_") and sample.name.endswith(("_total", "_count", "_in_progress"))
    }


def call(app: Any, method: str = "GET", path: str = "/", *, read: bool = True, **environ: Any) -> Iterable[bytes]:
    """Call a WSGI application as a server does, and by default read its body."""
    body = app({"REQUEST_METHOD": method, "PATH_INFO": path, **environ}, lambda *_: lambda _: None)
    if read:
        for _ in body:
            pass
        body.close()
    return body  # type: ignore[no-any-return]  # WSGI types do not know our class


def _keyword_only(*, request: object) -> str:
    return str(request)


async def _coroutine(_: object) -> None: ...


def answering(chunks: Callable[[], Iterable[bytes]], status: str = "200 OK", headers: Any = ()) -> Any:
    """A WSGI application with the route /x that answers these chunks."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TRACKER].route = "/x"
        start_response(status, list(headers))
        return chunks()

    return app


@pytest.mark.parametrize(("headers", "announced"), [([], False), ([("Content-Length", "2")], True)])
def test_a_request_is_counted_once_its_body_has_ended(metrics: HTTPMetrics, headers: Any, announced: bool) -> None:
    """A request is in progress until its last byte is handed over, announced or not, then counted and timed."""
    body = call(track_wsgi(metrics, answering(lambda: [b"a", b"b"], headers=headers)), read=False)
    chunks = iter(body)
    next(chunks)
    assert samples() == {("requests_in_progress", "GET"): 1.0}
    assert ([next(chunks)] if announced else list(chunks)) == [b"b"]
    body.close()  # type: ignore[attr-defined]  # WSGI types have no close
    assert samples() == {
        ("requests_in_progress", "GET"): 0.0,
        ("requests_total", "GET", "/x", "200"): 1.0,
        ("request_duration_seconds_count", "GET", "/x", "200"): 1.0,
    }


def test_an_exception_of_the_application_is_a_500(metrics: HTTPMetrics) -> None:
    """An exception of the application is counted, as is a request with status 500, and reaches the server."""

    def app(environ: dict[str, Any], _: Any) -> Iterable[bytes]:
        environ[TRACKER].route = "/x"
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        call(track_wsgi(metrics, app))
    assert samples()["exceptions_total", "KeyError", "GET", "/x"] == 1.0
    assert samples()["requests_total", "GET", "/x", "500"] == 1.0
    assert samples()["requests_in_progress", "GET"] == 0.0


def test_an_exception_in_mid_stream_is_visible(metrics: HTTPMetrics) -> None:
    """A body that breaks keeps the status that was sent, and its exception is counted."""

    def chunks() -> Iterator[bytes]:
        yield b"a"
        raise OSError("disk")

    body = call(track_wsgi(metrics, answering(chunks)), read=False)
    with pytest.raises(OSError, match="disk"):
        list(body)
    body.close()  # type: ignore[attr-defined]  # WSGI types have no close
    assert samples()["exceptions_total", "OSError", "GET", "/x"] == 1.0
    assert samples()["requests_total", "GET", "/x", "200"] == 1.0


@pytest.mark.parametrize(
    ("method", "status", "headers", "counted"),
    [
        ("GET", "200 OK", [], str(CLIENT_CLOSED_REQUEST)),
        ("GET", "200 OK", [("Content-Length", "2")], str(CLIENT_CLOSED_REQUEST)),
        ("GET", "200 OK", [("Content-Length", "1")], "200"),
        ("GET", "200 OK", [("Content-Length", "?")], str(CLIENT_CLOSED_REQUEST)),
        ("HEAD", "200 OK", [("Content-Length", "2")], "200"),
        ("GET", "304 Not Modified", [], "304"),
    ],
)
def test_a_client_that_goes_away_is_counted_as_499(
    metrics: HTTPMetrics, method: str, status: str, headers: list[tuple[str, str]], counted: str
) -> None:
    """A body that is closed before its end counts as 499, unless all of its announced length was read."""
    body = call(track_wsgi(metrics, answering(lambda: [b"a", b"b"], status, headers)), method, read=False)
    next(iter(body))
    body.close()  # type: ignore[attr-defined]  # WSGI types have no close
    assert samples()["requests_total", method, "/x", counted] == 1.0


def test_a_file_is_left_to_the_server(metrics: HTTPMetrics, tmp_path: Path) -> None:
    """A body that the server sends by itself is passed unchanged, and ends the request when it is closed."""
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        wrapped = FileWrapper(file)
        environ: Any = {"wsgi.file_wrapper": FileWrapper}
        assert call(track_wsgi(metrics, answering(lambda: wrapped)), read=False, **environ) is wrapped
        wrapped.close()
        assert file.closed
    assert samples()["requests_total", "GET", "/x", "200"] == 1.0


def test_made_up_methods_and_unknown_paths_add_one_series(metrics: HTTPMetrics) -> None:
    """Methods outside the standard and paths without a route make no series of their own."""

    def not_found(_: Any, start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    for number in range(20):
        call(track_wsgi(metrics, not_found), f"M{number}", f"/{number}")
    assert samples() == {
        ("requests_in_progress", "<other>"): 0.0,
        ("requests_total", "<other>", "<unmatched>", "404"): 20.0,
        ("request_duration_seconds_count", "<other>", "<unmatched>", "404"): 20.0,
    }


def test_excluded_paths_are_not_tracked(tmp_path: Path) -> None:
    """A path is excluded when it is named, or when a compiled pattern matches all of it."""
    options = Options(sqlite_path=str(tmp_path / "metrics.db"), exclude_paths=("/health", re.compile("/a+")))
    metrics = HTTPMetrics(options)
    excluded = [path for path in ("/health", "/healthy", "/aa", "/aab", "/metrics") if metrics.track("GET", path) is None]
    assert excluded == ["/health", "/aa", "/metrics"]


def test_statuses_can_be_grouped(tmp_path: Path) -> None:
    """With group_status the label is 2xx instead of 201."""
    metrics = HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0, group_status=True))
    call(track_wsgi(metrics, answering(lambda: [b""], "201 Created")))
    assert samples()["requests_total", "GET", "/x", "2xx"] == 1.0


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        *(("", 401), ("Bearer wrong", 401), ("Bearer gehéim", 200), ("gehéim", 401), ("Basic x", 401)),
        *(("Bearer", 401), ("Bearer gehéim\0", 401), ("\ud800\udcff", 401), ("Bearer " + "x" * 1_000_000, 401)),
    ],
)
def test_metrics_need_the_token(tmp_path: Path, authorization: str, status: int) -> None:
    """With a token, only a scrape that sends it gets metrics."""
    metrics = HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), metrics_token="gehéim"))
    assert metrics.answer(Scrape(authorization=authorization)).status == status


def test_a_request_goes_on_when_metrics_cannot(metrics: HTTPMetrics, caplog: pytest.LogCaptureFixture) -> None:
    """After `shutdown`, requests are answered; the log reports that they are not counted."""
    pdc.shutdown()
    call(track_wsgi(metrics, answering(lambda: [b"a"])))
    assert "could not be tracked" in caplog.text


def test_callables_of_other_parameters_are_refused(tmp_path: Path) -> None:
    """A callable of a label takes the request, or that and the response; one of exemplars nothing, or the request."""
    of_user = "PDC_LABELS: expected the callable of 'user' to take the request, or the request and the response, got "
    wrong: list[tuple[str, Any, str]] = [
        ("labels", {"user": lambda: ""}, rf"{of_user}.*<lambda>\(\): give"),
        (
            "labels",
            {"user": lambda a, b, c: (a, b, c)},
            r"<lambda>\(a, b, c\): give it one or two parameters without defaults",
        ),
        ("labels", {"user": _keyword_only}, rf"{of_user}_keyword_only\(\*, request"),
        (
            "exemplars",
            lambda a, b: {a: b},
            r"PDC_EXEMPLARS: expected .* nothing or the request, got .*<lambda>\(a, b\): give it one",
        ),
    ]
    for option, value, message in wrong:
        with pytest.raises(OptionError, match=message):
            HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), **{option: value}))


class Lazy:
    """An object that loads another one when it is used, and fails."""

    @property  # type: ignore[misc]  # that of other objects may be assigned
    def __class__(self) -> type:
        """Its class: that of the object."""
        raise LookupError


def test_a_label_that_cannot_be_loaded_is_empty() -> None:
    """A lazy object that fails when it becomes a text leaves its label empty, as a callable that fails does."""
    assert RequestLabels(Options(labels={"user": lambda _: Lazy(), "zone": "eu"})).values(object()) == ("", "eu")


def test_failures_of_callables_hold_no_request() -> None:
    """The objects of a request go at its end, without the garbage collector, also where hooks, labels or exemplars fail."""

    class Held:
        """An object to refer to weakly."""

    hooks, options = Hooks(), Options(labels={"a": lambda request: request[0]}, exemplars=lambda request: request[0])
    labels = RequestLabels(options)
    hooks.add(lambda record: record.route[0])

    def fail() -> weakref.ref[Held]:
        held: Any = Held()
        hooks.call(RequestRecord(held, None, "GET", held, 200, 0.0, 0, 0, None))
        assert (labels.values(held), asyncio.run(labels.awaited(held)), labels.exemplar(held)) == (("",), ("",), None)
        return weakref.ref(held)

    fail()  # the log may hold the first error
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_functions_that_are_no_hooks_are_refused() -> None:
    """A function of other parameters, and a coroutine function, are no hooks."""
    wrong: list[Any] = [lambda: None, lambda a, b: (a, b), _coroutine, 5]
    for hook in wrong:
        with pytest.raises(TypeError, match="expected a function of one parameter, the record of a request, got "):
            Hooks().add(hook)


def test_series_over_the_limit_take_no_memory(tmp_path: Path) -> None:
    """Requests of ever new routes are not remembered one by one once there are max_series of them."""
    options = Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=3600, max_series=2)
    metrics = HTTPMetrics(options)
    for number in range(20):
        metrics.series.find("GET", f"/{number}", 200, ())[0].inc()
    assert len(metrics.series.known) == 2
    assert samples()["requests_total", "GET", "/1", "200"] == 1.0
    assert samples()["requests_total", "<overflow>", "<overflow>", "<overflow>"] == 18.0
