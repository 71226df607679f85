"""Scrapes: their content and their format."""

from __future__ import annotations

import gzip
import inspect
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode
from wsgiref.util import setup_testing_defaults

import prometheus_client
import pytest
from conftest import RedisServer
from helpers import OPENMETRICS, PROMETHEUS_2, Temperature
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_text

import pdc
import pdc.sqlite
from pdc.exposition import Scrape
from pdc.exposition import collect as pdc_collect

TEXT = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8; escaping="
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        ("text/plain", TEXT),
        ("text/plain; version=0.0.4", TEXT),
        (BROWSER, TEXT),
        ("image/png", TEXT),
        (",;,=;q", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        (PROMETHEUS_2, OPENMETRICS + "underscores"),
        (PROMETHEUS_3, OPENMETRICS + "allow-utf-8"),
        ("application/openmetrics-text", OPENMETRICS + "underscores"),
        ('Application/OpenMetrics-Text; Version="1.0.0"; Escaping=dots', OPENMETRICS + "dots"),
        ("application/openmetrics-text;q=0.4, text/plain;version=1.0.0;q=0.5", TEXT_1 + "underscores"),
        ("text/plain;q=0.3, application/openmetrics-text;version=1.0.0;q=0.5", OPENMETRICS + "underscores"),
        ("text/plain;version=1.0.0;escaping=values", TEXT_1 + "values"),
        ("text/plain;version=1.0.0;escaping=unknown", TEXT_1 + "underscores"),
        ("*/*, application/openmetrics-text;q=0.9", TEXT),
    ],
)
def test_accept_chooses_format_and_escaping(
    tmp_path: Path, registry: CollectorRegistry, accept: str, content_type: str
) -> None:
    """The best format that the client accepts is served, as prometheus_client renders it; else text 0.0.4."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Gauge("dotted.name", "Help", ["é"], registry=registry).labels("\n").set(1)
    answer = Scrape(accept=accept).answer()
    assert dict(answer.headers)["Content-Type"] == content_type
    encode = openmetrics if "openmetrics" in content_type else prometheus_client.generate_latest
    options = {"escaping": content_type.rpartition("escaping=")[2]} if "escaping" in content_type else {}
    (rendered,) = (family for family in encode(registry, **options).split(b"# HELP ") if family)
    assert rendered.removesuffix(b"# EOF\n") in answer.body
    assert answer.body.endswith(b"# EOF\n") == ("openmetrics" in content_type)


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [
        ("gzip", True),
        ("GZIP;q=0.5, identity", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("br, zstd", False),
        ("gzip;q=x", False),
    ],
)
@pytest.mark.usefixtures("counted")
def test_accept_encoding_chooses_gzip(accept_encoding: str, compressed: bool) -> None:
    """Metrics are compressed for clients that accept gzip, and `Vary` names the header that decided."""
    answer = Scrape(accept_encoding=accept_encoding).answer()
    headers = dict(answer.headers)
    assert headers["Vary"] == "Accept, Accept-Encoding"
    assert headers["Content-Length"] == str(len(answer.body))
    assert (headers.get("Content-Encoding") == "gzip") is compressed
    assert b'sales_total{path="/"} 2.0\n' in (gzip.decompress(answer.body) if compressed else answer.body)


@pytest.mark.usefixtures("counted")
def test_compression_can_be_disabled(registry: CollectorRegistry) -> None:
    """`disable_compression` sends plain text also to clients that accept gzip."""
    environ: dict[str, Any] = {"HTTP_ACCEPT_ENCODING": "gzip"}
    setup_testing_defaults(environ)
    app = pdc.make_wsgi_app(registry, disable_compression=True)
    assert b"sales_total" in b"".join(app(environ, lambda *_: lambda _: None))


@pytest.mark.usefixtures("counted")
def test_an_icon_is_no_scrape() -> None:
    """A browser asks for an icon beside the page: that is empty, as in prometheus_client, and reads no storage."""
    environ: dict[str, Any] = {"PATH_INFO": "/favicon.ico"}
    setup_testing_defaults(environ)
    answered: list[str] = []

    def start_response(status: str, *_: Any) -> Callable[[bytes], object]:
        answered.append(status)
        return bytes

    assert list(pdc.make_wsgi_app()(environ, start_response)) == [b""]
    assert answered == ["200 OK"]


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", {"sales_total", "sales_created", "stock"}),
        ("name[]=", {"sales_total", "sales_created", "stock"}),
        ("name[]=stock", {"stock"}),
        ("name%5B%5D=sales_total&name[]=stock&name[]=unknown", {"sales_total", "stock"}),
        ("name[]=unknown", set()),
        ("name[]=sales", set()),
    ],
)
@pytest.mark.usefixtures("counted")
def test_names_choose_samples(query: str, shown: set[str]) -> None:
    """With `name[]` only the samples of these names are shown, and no family without such samples."""
    answer = Scrape(query=query, accept="application/openmetrics-text").answer()
    families = [family for family in text_string_to_metric_families(answer.body.decode()) if not family.name.startswith("pdc")]
    assert all(family.samples for family in families)
    assert {sample.name for family in families for sample in family.samples} == shown


def headers_of(*words: str) -> st.SearchStrategy[str]:
    """Headers of these words, of punctuation, and of any bytes that a client may send."""
    pieces = st.sampled_from([*words, ",", ";", "=", '"', " ", "q=", "0.5", "-1", "nan", "1e999", "*/*", "\x00", "\xff", "\t"])
    return st.lists(pieces | st.text(st.characters(max_codepoint=255), max_size=3), max_size=12).map("".join)


@given(
    accept=headers_of("text/plain", "application/openmetrics-text", "version=", "1.0.0", "0.0.4", "escaping=", "dots"),
    accept_encoding=headers_of("gzip", "identity", "*"),
    query=headers_of("name[]=", "name%5B%5D=", "stock", "sales_total", "&", "%", "%FF", "+"),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@pytest.mark.usefixtures("counted")
def test_broken_requests_get_metrics(accept: str, accept_encoding: str, query: str) -> None:
    """For any bytes as headers and query, a client gets a valid answer in the format that the answer names."""
    answer = Scrape(accept=accept, accept_encoding=accept_encoding, query=query).answer()
    headers = dict(answer.headers)
    assert answer.status == 200
    assert headers["Content-Length"] == str(len(answer.body))
    body = (gzip.decompress(answer.body) if "Content-Encoding" in headers else answer.body).decode()
    parse = text_string_to_metric_families if "openmetrics" in headers["Content-Type"] else parse_text
    shown = {sample.name for family in parse(body) for sample in family.samples}
    names = parse_qs(query).get("name[]", ["sales_total", "stock"])
    assert shown.issuperset({"sales_total", "stock"}.intersection(names))


def test_a_process_that_declared_nothing_shows_everything(
    storage: dict[str, Any], run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The storage has name, type, help, unit and series of all metrics: any process renders the same."""
    declare = """
        setup()
        pdc.Counter("sales", "Sold things", ["path"], unit="bytes").labels("/").inc()
        pdc.Gauge("stock", "Help\\nwith lines")
        pdc.Summary("basket", "", unit="bytes").observe(3)
        pdc.Histogram("wait", "Help", buckets=[1, 2]).observe(1.5)
        pdc.Info("build", "Help").info({"version": "1"})
        pdc.Enum("state", "Help", states=["on", "off"]).state("off")
        pdc.Counter("idle", "A parent with no child yet", ["path"])
        """
    show = """
        from pdc.exposition import Scrape
        print(pdc.generate_latest().decode() + Scrape(accept="application/openmetrics-text").answer().body.decode(), end="")
        """
    first = run_script(f"{declare}\n{show}", storage=storage).stdout
    assert run_script(f"        setup()\n{show}", storage=storage).stdout == first
    for line in (
        *("# HELP sales_bytes_total Sold things", "# TYPE sales_bytes_total counter", 'sales_bytes_total{path="/"} 1.0'),
        *(
            "# UNIT sales_bytes bytes",
            "# HELP stock Help\\nwith lines",
            "# TYPE stock gauge",
            "stock 0.0",
            "basket_bytes_sum 3.0",
        ),
        *('wait_bucket{le="2.0"} 1.0', 'build_info{version="1"} 1.0', 'state{state="off"} 1.0', "# TYPE idle_total counter"),
        "# TYPE state stateset",
    ):
        assert f"{line}\n" in first


@pytest.mark.usefixtures("counted")
def test_a_registry_adds_its_other_collectors(registry: CollectorRegistry) -> None:
    """`generate_latest(registry)` adds collectors, metrics in memory and target info; it shows no family twice."""
    alone = pdc.generate_latest()
    assert pdc.generate_latest(registry) == alone
    registry.set_target_info({"env": "test"})
    registry.register(Temperature())
    prometheus_client.Counter("local", "In memory", registry=registry).inc()
    shown = pdc.generate_latest(registry)
    assert shown.startswith(alone)
    for line in (b'target_info{env="test"} 1.0\n', b"temperature 21.0\n", b"local_total 1.0\n", b"stock 7.0\n"):
        assert shown.count(line) == 1
    assert b"stock 99" not in shown
    names = [line.split()[2] for line in shown.splitlines() if line.startswith(b"# TYPE")]
    assert len(names) == len(set(names))


def test_metrics_of_the_other_storage_come_from_the_registry(
    registry: CollectorRegistry, tmp_path: Path, redis_server: RedisServer
) -> None:
    """A registry with metrics of both storages shows both, whichever `setup` chose last."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.sqlite.Counter("in_sqlite", "Help", registry=registry).inc(2)
    pdc.setup(redis=redis_server.url)
    pdc.Counter("in_redis", "Help", registry=registry).inc(3)
    assert b"in_sqlite" not in pdc.generate_latest()
    shown = pdc.generate_latest(registry)
    assert b"in_sqlite_total 2.0\n" in shown
    assert b"in_redis_total 3.0\n" in shown


OTHERS: list[tuple[str, Callable[[], object], str]] = [
    *(
        (kept, declare, dropped)
        for kept, declare in (
            ("jobs", lambda: pdc.Counter("jobs", "Help", registry=None).inc()),
            ("lat", lambda: pdc.Summary("lat", "Help", registry=None).observe(1)),
            ("size", lambda: pdc.Histogram("size", "Help", buckets=[1], registry=None).observe(1)),
            ("build", lambda: pdc.Info("build", "Help", registry=None).info({"version": "1"})),
        )
        for dropped in {
            "jobs": ("jobs_total", "jobs_created"),
            "lat": ("lat_sum", "lat_count", "lat_created"),
            "size": ("size_bucket", "size_sum", "size_count", "size_created"),
            "build": ("build_info",),
        }[kept]
    )
]
"""Metrics whose samples have the name of a gauge, which is another metric of the storage."""


def valid(*registries: CollectorRegistry) -> dict[str, set[str]]:
    """Check the page in every format, cold and warm, with and without names; return sample names by family name."""
    pages = []
    registry = registries[0] if registries else None
    for accept in ("application/openmetrics-text", "text/plain"):
        for query in (
            "",
            "",
            urlencode([("name[]", sample.name) for family in pdc_collect(registry) for sample in family.samples]),
        ):
            body = Scrape(accept=accept, query=query).answer(registry).body
            parse = text_string_to_metric_families if "openmetrics" in accept else parse_text
            found = {family.name: {sample.name for sample in family.samples} for family in parse(body.decode())}
            lines = [line.rpartition(" ")[0] for line in body.decode().splitlines() if not line.startswith("#")]
            assert len(lines) == len(set(lines))
            assert (helps := re.findall("(?m)^# HELP (\\S+)", body.decode())) == list(dict.fromkeys(helps))
            if "openmetrics" in accept:
                pages.append({name: samples for name, samples in found.items() if not name.startswith("pdc_") and samples})
    lint = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert b"error" not in lint.stderr, lint.stderr
    assert all(page == pages[0] for page in pages)
    return pages[0]


def test_families_that_share_names_of_samples_are_shown_once(
    storage: dict[str, Any], registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A scrape is valid in every format: of two clashing families it shows the first by name, and logs the other once."""
    pdc.setup(**storage, flush_interval=3600)
    pdc.Gauge("innocent", "Help", registry=registry).set(1)
    for _, declare, dropped in OTHERS:
        pdc.Gauge(dropped, "Help", ["path"], registry=None).labels("/").set(7)
        declare()
    found = valid()
    assert set(found) == {"innocent", "jobs", "lat", "size", "build"}
    assert found["jobs"] == {"jobs_total", "jobs_created"}
    assert b"7.0" not in pdc.generate_latest()
    logged = [record.getMessage() for record in caplog.records if "is not shown" in record.getMessage()]
    assert sorted(logged) == sorted(
        f"metric {dropped} is not shown: {dropped} is a name of metric {kept}, too; rename one, or remove the exporter that "
        "makes it"
        for kept, _, dropped in OTHERS
    )


def test_names_that_a_format_escapes_alike_are_shown_once(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Names that a format escapes to the same one are shown once there, and both where the format can express them."""
    pdc.setup(**storage)
    for name, value in (("a.b", 1), ("a_b", 2)):
        pdc.Gauge(name, "Help", registry=registry).set(value)
    assert pdc.generate_latest() == b"# HELP a_b Help\n# TYPE a_b gauge\na_b 1.0\n"
    assert pdc.generate_latest(registry.restricted_registry(["a.b", "a_b"])) == pdc.generate_latest()
    both = pdc.generate_latest(escaping="allow-utf-8")
    assert both.count(b"# TYPE") == 2
    assert both == prometheus_client.generate_latest(registry, escaping="allow-utf-8")


class Clashing:
    """A collector whose families have taken names, each in another way."""

    def collect(self) -> Iterator[Metric]:
        """Families that share names with those of the storage, with the target info, and with each other."""
        yield GaugeMetricFamily("sales_created", "Help", 99)
        yield GaugeMetricFamily("stock", "Help", 99)
        yield GaugeMetricFamily("sales_total", "Help", 99)
        yield GaugeMetricFamily("target_info", "Help", 99)
        odd = Metric("odd", "Help", "unknown")
        odd.add_sample("stock", {}, 99)
        yield odd
        yield SummaryMetricFamily("times", "Help", 3, 4)
        yield CounterMetricFamily("times_sum", "Help", 99)


@pytest.mark.usefixtures("counted")
def test_collectors_that_clash_with_stored_families_are_left_out(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """A registry's other collectors show families without a name clash; the rest is in the log once."""
    registry.set_target_info({"env": "test"})
    registry.register(Clashing())
    found = valid(registry)
    assert set(found) == {"sales", "stock", "target", "times"}
    assert b" 99.0\n" not in pdc.generate_latest(registry)
    logged = [record.getMessage() for record in caplog.records if "is not shown" in record.getMessage()]
    assert len(logged) == 6
    assert "metric stock is not shown: there is another one of that name; rename one, or remove" in "\n".join(logged)


@pytest.mark.usefixtures("counted")
def test_a_registry_may_be_restricted_to_what_others_declared(registry: CollectorRegistry, storage: dict[str, Any]) -> None:
    """A restricted registry shows metrics that another process declared, with one read of the storage."""
    pdc.setup(**storage)
    pdc.Gauge("elsewhere", "Help", registry=None).set(3)
    assert pdc.generate_latest(registry.restricted_registry(["elsewhere"])).endswith(b"\nelsewhere 3.0\n")


@pytest.mark.usefixtures("counted")
def test_escaping_is_chosen_as_in_prometheus_client(registry: CollectorRegistry) -> None:
    """`escaping` spells names as prometheus_client does; an unknown scheme is refused."""
    pdc.Gauge("dotted.name", "Help", ["é"], registry=registry).labels("\n").set(1)
    lines = [*pdc.generate_latest().splitlines()]
    for escaping in ("allow-utf-8", "underscores", "dots", "values"):
        shown = pdc.generate_latest(registry, escaping).splitlines()
        assert sorted(shown) == sorted(prometheus_client.generate_latest(registry, escaping).splitlines())
        assert (shown == lines) is (escaping == "underscores")
    with pytest.raises(ValueError, match="'utf-8'"):
        pdc.generate_latest(escaping="utf-8")


def test_functions_take_the_arguments_of_prometheus_client() -> None:
    """All arguments of the installed prometheus_client exist, with the same names and in the same order."""
    for name in ("generate_latest", "make_wsgi_app", "make_asgi_app", "start_http_server"):
        wanted = list(inspect.signature(getattr(prometheus_client, name)).parameters)
        assert list(inspect.signature(getattr(pdc, name)).parameters)[: len(wanted)] == wanted


def test_importing_pdc_imports_little(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """`import pdc` is for every program: drivers, frameworks and rare functions are imported at their first use.

    Logging of Python 3.14 brings dataclasses.
    """
    unwanted = (
        *("redis", "sqlite3", "flask", "werkzeug", "django", "starlette", "fastapi", "gunicorn"),
        *("celery", "rq", "dramatiq"),
        *("asyncio", "dataclasses", "difflib", "pdc.exposition", "pdc.options", "pdc.http"),
    )
    source = f"import sys\nprint([name for name in {unwanted} if name in sys.modules])"
    least = [sys.executable, "-c", f"import logging, prometheus_client\n{source}"]
    assert run_script(source).stdout == subprocess.run(least, capture_output=True, text=True, check=True).stdout


def test_many_names_cost_no_more_than_one(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A query of thousands of names takes time for its length and for the samples, not for one times the other."""
    pdc.setup(**storage, flush_interval=3600)
    hits = pdc.Counter("hits", "Hits.", ["n"], registry=registry)
    for number in range(1000):
        hits.labels(number).inc()
    names = [f"name[]=other_{number}" for number in range(7000)]

    def seconds(query: str) -> float:
        began = time.thread_time()
        assert Scrape(query=query).answer().body.count(b"hits_total{") == 1000
        return time.thread_time() - began

    few = min(seconds("name[]=hits_total") for _ in range(3))
    assert min(seconds("&".join([*names, "name[]=hits_total"])) for _ in range(3)) < 3 * few + 0.05
