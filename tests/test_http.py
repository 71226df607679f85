"""The options of the HTTP metrics, and the tracking of WSGI requests that any framework shares."""

from __future__ import annotations

import re
import sqlite3
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest
from prometheus_client import CollectorRegistry

import pdc
from pdc.exposition import Scrape
from pdc.http import CLIENT_CLOSED_REQUEST, TRACKER, HTTPMetrics
from pdc.options import OptionError, Options


@pytest.fixture
def metrics(tmp_path: Path) -> HTTPMetrics:
    """HTTP metrics with a storage of the test's own, written through."""
    return HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0))


def samples() -> dict[tuple[str, ...], float]:
    """What the storage says of requests: (name, label values...) to value, but for sums, buckets and times."""
    metrics = pdc.exposition.collect()
    return {
        (sample.name.removeprefix("http_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for metric in metrics
        for sample in metric.samples
        if sample.name.startswith("http_") and sample.name.endswith(("_total", "_count", "_in_progress"))
    }


def call(app: Any, method: str = "GET", path: str = "/", *, read: bool = True, **environ: Any) -> Iterable[bytes]:
    """Call a WSGI application as a server does, and read its body unless told otherwise."""
    body = app({"REQUEST_METHOD": method, "PATH_INFO": path, **environ}, lambda *_: lambda _: None)
    if read:
        for _ in body:
            pass
        body.close()
    return body  # type: ignore[no-any-return]


def answering(chunks: Callable[[], Iterable[bytes]], status: str = "200 OK", headers: Any = ()) -> Any:
    """A WSGI application with the route /x that answers these chunks."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ[TRACKER].route = "/x"
        start_response(status, list(headers))
        return chunks()

    return app


async def a_coroutine(_: object) -> str:
    """What is no label: nobody would await it."""
    return "me"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("REDIS_URL", "redis://localhost", "redis://localhost"),
        ("SQLITE_PATH", "a.db", "a.db"),
        ("REDIS_PREFIX", "shop", "shop"),
        ("REDIS_EXPIRE", "60", 60.0),
        ("REDIS_EXPIRE", "never", None),
        ("FLUSH_INTERVAL", "0.5", 0.5),
        ("EXIT_TIMEOUT", "0.5", 0.5),
        ("JOURNAL", "off", False),
        ("JOURNAL", "/var/lib/shop", "/var/lib/shop"),
        ("METRICS_PATH", "/m", "/m"),
        ("METRICS_PATH", "none", None),
        ("METRICS_PORT", "9100", ("0.0.0.0", 9100)),
        ("METRICS_PORT", "localhost:9100", ("localhost", 9100)),
        ("METRICS_PORT", "[::1]:9100", ("::1", 9100)),
        ("METRICS_TOKEN", "secret", "secret"),
        ("NAMESPACE", "shop", "shop"),
        ("BUCKETS", "0.1, 1,10", (0.1, 1.0, 10.0)),
        ("EXCLUDE_PATHS", "/health, /ready", ("/health", "/ready")),
        ("GROUP_STATUS", "true", True),
        ("ENABLED", "off", False),
    ],
)
def test_an_option_comes_from_the_environment_or_the_settings(name: str, text: str, expected: object) -> None:
    """An option is parsed from an environment variable; a setting, text or value, goes before it."""
    read = getattr(Options.load({}, {f"PDC_{name}": text}), name.lower())
    assert read == expected
    assert getattr(Options.load({f"PDC_{name}": read}, {f"PDC_{name}": "!"}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_EXPIRE", 0),
        ("REDIS_EXPIRE", "soon"),
        ("FLUSH_INTERVAL", -1),
        ("FLUSH_INTERVAL", float("nan")),
        ("FLUSH_INTERVAL", True),
        ("EXIT_TIMEOUT", -1),
        ("JOURNAL", 7.5),
        ("METRICS_PATH", "metrics"),
        ("METRICS_PORT", "http"),
        ("METRICS_PORT", ":9100"),
        ("METRICS_PORT", 0),
        ("METRICS_PORT", 65536),
        ("METRICS_PORT", True),
        ("LABELS", {"user": a_coroutine}),
        ("NAMESPACE", "a-b"),
        ("BUCKETS", []),
        ("BUCKETS", [2, 1]),
        ("BUCKETS", "a"),
        ("EXCLUDE_PATHS", [1]),
        ("GROUP_STATUS", "perhaps"),
        ("ENABLED", None),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name: str, value: object) -> None:
    """The error quotes the option, the value and what is allowed."""
    with pytest.raises(OptionError, match=rf"PDC_{name} must be .+, got {re.escape(repr(value))}"):
        Options.load({f"PDC_{name}": value}, {})


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    """A misspelt option is an error that names the right one; settings of others are none of our business."""
    with pytest.raises(OptionError, match="unknown option PDC_REDIS_ULR; did you mean PDC_REDIS_URL"):
        Options.load({"PDC_REDIS_ULR": "redis://localhost", "DEBUG": True}, {})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SQLITE", "SQLITE_PATH"),
        ("REDIS_ULR", "REDIS_URL"),
        ("REDIS", "REDIS_URL"),
        ("BUCKET", "BUCKETS"),
        ("TOKEN", "METRICS_TOKEN"),
        ("PORT", "METRICS_PORT"),
        ("FLUSH", "FLUSH_INTERVAL"),
    ],
)
def test_an_environment_variable_that_is_close_to_an_option_is_refused(name: str, meant: str) -> None:
    """A misspelt environment variable is an error that names the right one: its value would not be used."""
    message = rf"unknown environment variable PDC_{name}; did you mean PDC_{meant}\? Rename it, or remove it"
    with pytest.raises(OptionError, match=message):
        Options.load({}, {f"PDC_{name}": "1"})


def test_an_environment_variable_unlike_all_options_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown environment variable may belong to another program: the log tells of it, and of all that there are."""
    Options.load({}, {"PDC_WORKSHOP": "1"})
    assert "PDC_WORKSHOP; there are PDC_REDIS_URL" in caplog.text


def test_variables_of_kubernetes_and_of_other_extensions_are_none_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes names services in variables, which may begin with PDC_; options that only Django has are for it."""
    environ = {
        "PDC_REDIS_SERVICE_HOST": "10.0.0.1",
        "PDC_REDIS_SERVICE_PORT": "6379",
        "PDC_REDIS_PORT": "tcp://10.0.0.1:6379",
        "PDC_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "PDC_METRICS_SERVICE_HOST": "10.0.0.2",
        "PDC_METRICS_PORT": "tcp://10.0.0.2:9100",
        "PDC_DJANGO_MODELS": "shop",
    }
    assert Options.load({}, environ) == Options()
    assert Options.load({}, environ | {"PDC_METRICS_PORT": "9100"}).metrics_port == ("0.0.0.0", 9100)
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_environment_variable_is_not_given(text: str) -> None:
    """Every option keeps its default where its variable is empty, as in `PDC_REDIS_URL=`."""
    names = [f"PDC_{option.name.upper()}" for option in fields(Options) if option.name != "metrics_token"]
    assert Options.load({}, dict.fromkeys(names, text)) == Options()


def test_a_prefix_without_a_redis_is_refused(tmp_path: Path) -> None:
    """A file has no prefix: it is an error, also where no storage is named; one that is set up already may have it."""
    message = "PDC_REDIS_PREFIX='shop' needs PDC_REDIS_URL, which is not given: "
    with pytest.raises(OptionError, match=f"{message}remove PDC_SQLITE_PATH"):
        Options(sqlite_path=str(tmp_path / "metrics.db"), redis_prefix="shop").setup()
    with pytest.raises(OptionError, match=rf"{message}metrics would go to metrics\.db"):
        Options(redis_prefix="shop").setup()
    pdc.setup(sqlite=tmp_path / "metrics.db")
    Options(redis_prefix="shop").setup()


def test_an_empty_token_in_the_environment_is_refused() -> None:
    """A token that is set but empty would let everybody in: it is an error, not one that is not given."""
    with pytest.raises(OptionError, match=r"PDC_METRICS_TOKEN must be the bearer token .*, not empty, got "):
        Options.load({}, {"PDC_METRICS_TOKEN": ""})


@pytest.mark.parametrize("name", ["PDC_REDIS_URL", "PDC_SQLITE_PATH", "PDC_METRICS_TOKEN"])
def test_an_empty_setting_is_refused(name: str) -> None:
    """A setting that somebody gave and that is empty is an error: the program would go on with another one."""
    with pytest.raises(OptionError, match=f"{name} must be "):
        Options.load({name: ""}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PDC_METRICS_TOKEN", b"s3cret"),
        ("PDC_METRICS_TOKEN", " "),
        ("PDC_REDIS_URL", b"redis://:s3cret@localhost"),
        ("PDC_REDIS_URL", ["redis://:s3cret@localhost"]),
        ("PDC_REDIS_URL", {"password": "s3cret"}),
        ("PDC_SQLITE_PATH", "redis://:s3cret@localhost"),
        ("PDC_SQLITE_PATH", "redis:/:s3cret@localhost"),
        ("PDC_REDIS_EXPIRE", "redis://:s3cret@localhost"),
        ("PDC_METRICS_PATH", {"token": "s3cret"}),
    ],
)
def test_a_wrong_value_is_shown_without_secrets(name: str, value: Any) -> None:
    """The error names the option and what is allowed; it never quotes a token or a password, nor does what caused it."""
    with pytest.raises(OptionError, match=f"{name} must be .*, got ") as refused:
        Options.load({name: value}, {})
    assert "s3cret" not in "".join(traceback.format_exception(refused.value)).replace(repr(value), "")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__context__ is None


def test_two_storages_are_refused_without_showing_the_url() -> None:
    """A Redis URL, which may hold a password, and a SQLite path exclude each other."""
    with pytest.raises(OptionError, match="both given") as refused:
        Options.load({"PDC_REDIS_URL": "redis://:secret@localhost", "PDC_SQLITE_PATH": "a.db"}, {})
    assert "secret" not in str(refused.value)


def test_a_storage_that_is_replaced_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process has one storage: options that replace another one's say so, those of the same one do not."""
    for name in ("a.db", "a.db", "b.db"):
        Options(sqlite_path=str(tmp_path / name)).setup()
    expected = (
        f"the metrics of this process go to SQLite {tmp_path / 'b.db'} from now on, no longer to SQLite {tmp_path / 'a.db'}"
    )
    assert caplog.messages == [expected]


def test_a_storage_that_the_application_chose_is_kept(tmp_path: Path) -> None:
    """Options without a storage do not replace the one of an earlier `setup`."""
    pdc.setup(sqlite=tmp_path / "chosen.db")
    Options().setup()
    assert (tmp_path / "chosen.db").samefile(pdc.get_sqlite_conn().execute("PRAGMA database_list").fetchone()[2])


def test_a_program_without_a_framework_is_set_up_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """`setup_from_environ` uses the storage that variables name, and a keyword before its variable."""
    monkeypatch.setenv("PDC_SQLITE_PATH", str(tmp_path / "named.db"))
    monkeypatch.setenv("PDC_FLUSH_INTERVAL", "60")
    pdc.setup_from_environ()
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    hits.inc()
    with closing(sqlite3.connect(tmp_path / "named.db")) as reader:
        value = "SELECT value FROM metrics WHERE metric_key = 'hits' AND subkey = '_total:{}'"
        pdc.setup_from_environ(flush_interval=0)
        hits.inc()
        assert reader.execute(value).fetchone() == (2.0,)
        pdc.setup_from_environ()
        hits.inc()
        assert reader.execute(value).fetchone() == (2.0,)


def test_a_program_without_a_framework_writes_to_the_working_folder(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`setup_from_environ` makes metrics.db where no variable names a storage, and refuses options that do not exist."""
    for name in ("PDC_REDIS_URL", "PDC_SQLITE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="unknown option PDC_FLUSH; did you mean"):
        pdc.setup_from_environ(flush=0)
    pdc.setup_from_environ()
    pdc.Counter("runs", "Runs so far.", registry=registry).inc()
    pdc.flush()
    assert (tmp_path / "metrics.db").is_file()


@pytest.mark.parametrize(("headers", "announced"), [([], False), ([("Content-Length", "2")], True)])
def test_a_request_is_counted_once_its_body_has_ended(metrics: HTTPMetrics, headers: Any, announced: bool) -> None:
    """A request is in progress until its last byte is handed over, announced or not, then counted and timed."""
    body = call(metrics.wsgi(answering(lambda: [b"a", b"b"], headers=headers)), read=False)
    chunks = iter(body)
    next(chunks)
    assert samples() == {("requests_in_progress", "GET"): 1.0}
    assert ([next(chunks)] if announced else list(chunks)) == [b"b"]
    body.close()  # type: ignore[attr-defined]
    assert samples() == {
        ("requests_in_progress", "GET"): 0.0,
        ("requests_total", "GET", "/x", "200"): 1.0,
        ("request_duration_seconds_count", "GET", "/x", "200"): 1.0,
    }


def test_an_exception_of_the_application_is_a_500(metrics: HTTPMetrics) -> None:
    """What leaves the application is counted as an exception and as a request with status 500, and goes on."""

    def app(environ: dict[str, Any], _: Any) -> Iterable[bytes]:
        environ[TRACKER].route = "/x"
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        call(metrics.wsgi(app))
    assert samples()["exceptions_total", "KeyError", "GET", "/x"] == 1.0
    assert samples()["requests_total", "GET", "/x", "500"] == 1.0
    assert samples()["requests_in_progress", "GET"] == 0.0


def test_an_exception_in_mid_stream_is_visible(metrics: HTTPMetrics) -> None:
    """A body that breaks keeps the status that was sent, and its exception is counted."""

    def chunks() -> Iterator[bytes]:
        yield b"a"
        raise OSError("disk")

    body = call(metrics.wsgi(answering(chunks)), read=False)
    with pytest.raises(OSError, match="disk"):
        list(body)
    body.close()  # type: ignore[attr-defined]
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
    """A body that is closed before its end counts as 499, unless all that it announced was read."""
    body = call(metrics.wsgi(answering(lambda: [b"a", b"b"], status, headers)), method, read=False)
    next(iter(body))
    body.close()  # type: ignore[attr-defined]
    assert samples()["requests_total", method, "/x", counted] == 1.0


def test_a_file_is_left_to_the_server(metrics: HTTPMetrics, tmp_path: Path) -> None:
    """A body that the server sends by itself stays what it is, and ends the request when it is closed."""
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        wrapped = FileWrapper(file)
        environ: Any = {"wsgi.file_wrapper": FileWrapper}
        assert call(metrics.wsgi(answering(lambda: wrapped)), read=False, **environ) is wrapped
        wrapped.close()
        assert file.closed
    assert samples()["requests_total", "GET", "/x", "200"] == 1.0


def test_made_up_methods_and_unknown_paths_add_one_series(metrics: HTTPMetrics) -> None:
    """Methods outside the standard and paths without a route do not make series of their own."""

    def not_found(_: Any, start_response: Any) -> Iterable[bytes]:
        start_response("404 Not Found", [])
        return [b""]

    for number in range(20):
        call(metrics.wsgi(not_found), f"M{number}", f"/{number}")
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
    """With group_status the label says 2xx instead of 201."""
    metrics = HTTPMetrics(Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=0, group_status=True))
    call(metrics.wsgi(answering(lambda: [b""], "201 Created")))
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
    assert metrics.answer(Scrape(), authorization).status == status


def test_a_request_goes_on_when_metrics_cannot(metrics: HTTPMetrics, caplog: pytest.LogCaptureFixture) -> None:
    """After `shutdown`, requests are answered; that they are not counted is logged."""
    pdc.shutdown()
    call(metrics.wsgi(answering(lambda: [b"a"])))
    assert "could not be tracked" in caplog.text


def test_what_is_over_the_limit_takes_no_memory(tmp_path: Path) -> None:
    """Requests of ever new routes are not remembered one by one once there are max_series of them."""
    options = Options(sqlite_path=str(tmp_path / "metrics.db"), flush_interval=3600, max_series=2)
    metrics = HTTPMetrics(options)
    for number in range(20):
        metrics.new_series("GET", f"/{number}", 200, ())[0].inc()
    assert len(metrics.series) == 2
    assert samples()["requests_total", "GET", "/1", "200"] == 1.0
    assert samples()["requests_total", "<overflow>", "<overflow>", "<overflow>"] == 18.0
