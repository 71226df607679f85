"""A real Prometheus scrapes the example applications under Gunicorn while requests of all kinds come and a worker is killed.

One run of three applications over two storages is observed by all tests: it begins at `Run.began`, when Prometheus has
seen one request of every series and a request is in progress that never ends, since its worker is killed.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from conftest import ROOT, RedisServer, free_port, wait_until

from pdc.family import LEASE_SECONDS

pytestmark = pytest.mark.xdist_group("prometheus")  # they share the one run

APPS = ("flask_app", "django_app", "starlette_app")
STORAGES = ("sqlite", "redis")
NAMES = [f"{app}-{storage}" for app in APPS for storage in STORAGES]
WORKERS = 4
SCRAPE_SECONDS = 1.0
FLUSH_SECONDS = 1.0
"""The default of the extensions."""
QUICK_CLIENTS = 2
PATIENT_CLIENTS = 2
"""Per application; they leave workers free for scrapes."""


SCRAPED = "(timestamp(up) and up == 1)"
RECENT = f"{20 * SCRAPE_SECONDS:g}s"
"""The last value of a series within so long is its value: on a busy machine, scrapes may time out."""
IN_PROGRESS = f"sum by (shop) (last_over_time(http_requests_in_progress[{RECENT}]))"
Series = tuple[str, ...]
"""The values of labels, of which the first is always the shop."""


class Request(NamedTuple):
    """A request, and the series of http_requests_total that counts it, with the route as Flask and Django write it."""

    method: str
    path: str
    route: str
    status: str = "200"
    seconds: float = 0.0
    """How long the application takes at least."""
    label: str = ""
    """The method as the label shows it, where that differs."""


def slow(milliseconds: int) -> Request:
    """A request for a page that takes that long."""
    return Request("GET", f"/slow/{milliseconds}", "/slow/<int:milliseconds>", seconds=milliseconds / 1000)


def streamed(lines: int) -> Request:
    """A request for a stream that takes 20 ms per line."""
    return Request("GET", f"/report/{lines}", "/report/<int:lines>", seconds=lines * 0.02)


def made_up(method: str) -> Request:
    """A request with a method that HTTP does not have, or no web application."""
    return Request(method, "/", "/", "405", label="<other>")


METRICS = Request("GET", "/metrics", "")
INDEX = Request("GET", "/", "/")
ITEM = Request("GET", "/items/tea", "/items/<name>")
NOTHING = Request("GET", "/items/nothing", "/items/<name>", "404")
ORDER = Request("POST", "/items/tea/order", "/items/<name>/order", "201")
BROKEN = Request("GET", "/broken", "/broken", "500")
NOT_ALLOWED = [
    Request("DELETE", "/", "/", "405"),
    Request("GET", "/items/tea/order", "/items/<name>/order", "405"),
    Request("PUT", "/report/1", "/report/<int:lines>", "405"),
]
FLOOD = [Request("GET", f"/no/page/{number}", "<unmatched>", "404") for number in range(100)]
MADE_UP = [made_up(method) for method in ("BREW", "FOO", "PROPFIND", *(f"FOO{number}" for number in range(17)))]
WARM_UP = [INDEX, ITEM, NOTHING, ORDER, BROKEN, *NOT_ALLOWED, FLOOD[0], MADE_UP[0], streamed(1), slow(50)]
"""One request of every series: the first value of a series that Prometheus sees is no increase to it."""
QUICK = [*[INDEX, ITEM, NOTHING, ORDER, BROKEN, *NOT_ALLOWED] * 10, *FLOOD, *MADE_UP]
PATIENT = [*[streamed(15)] * 30, *[slow(1100)] * 8]
"""With `QUICK` there are 58 answers of status 200: 20 at once, 30 after 0.3 s or somewhat more, 8 after 1.1 s."""


class Answer(NamedTuple):
    """The answer that a client got."""

    request: Request
    status: str
    worker: str
    body: str
    seconds: float


class Shop:
    """One of the example applications under Gunicorn, with its own configuration."""

    def __init__(self, name: str, folder: Path, redis_url: str) -> None:
        self.name = name
        self.app, storage = name.split("-")
        self.port = free_port()
        self.warm_up: list[Answer] = []
        self.answers: list[Answer] = []
        self.closing = ExitStack()
        self.log = folder / "gunicorn.log"
        place = {"PDC_REDIS_URL": redis_url} if storage == "redis" else {"PDC_SQLITE_PATH": str(folder / "metrics.db")}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{self.port}", "app:app"],
                cwd=ROOT / "example_apps" / self.app,
                env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), **place},
                stderr=log,
            )

    def is_up(self) -> bool:
        """True if it answers."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask(METRICS).status == "200"
        except OSError:
            return False

    def ask(self, request: Request) -> Answer:
        """Send a request on a connection of its own."""
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(request.method, request.path)
            response = connection.getresponse()
            worker, body = response.headers.get("X-Worker", ""), response.read().decode()
        finally:
            connection.close()
        return Answer(request, str(response.status), worker, body, time.perf_counter() - start)

    def send(self, wanted: Collection[Request], clients: int) -> list[Answer]:
        """Send these from as many clients."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(self.ask, wanted))

    def ask_all_workers(self, request: Request) -> list[Answer]:
        """Send the request until every worker has answered it."""
        answers: list[Answer] = []
        deadline = time.monotonic() + 20
        while len({answer.worker for answer in answers}) < WORKERS:
            assert time.monotonic() < deadline, (self.name, Counter(answer.worker for answer in answers), self.log.read_text())
            answers.extend(self.send([request] * 2 * WORKERS, 2 * WORKERS))
        return answers

    def begin(self) -> None:
        """Send one request of every series and one to every worker, then one that is in progress until it is killed."""
        self.warm_up = self.send(WARM_UP, QUICK_CLIENTS) + self.ask_all_workers(slow(50))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self.closing.callback(connection.close)
        connection.request("GET", streamed(5000).path)
        self.stream = self.closing.enter_context(connection.getresponse())
        self.victim = self.stream.headers["X-Worker"]

    def strike(self, prometheus: Prometheus, began: float) -> None:
        """Kill the worker with the request in progress, right after a scrape, which it might otherwise be answering."""
        wait_until(lambda: prometheus.query(SCRAPED).get((self.name,), 0) > began, 30)
        self.killed = time.time()
        os.kill(int(self.victim), signal.SIGKILL)

    def go_on(self) -> None:
        """Send all kinds of requests at once."""
        with ThreadPoolExecutor(1) as pool:
            patient = pool.submit(self.send, PATIENT, PATIENT_CLIENTS)
            self.answers = self.send(QUICK, QUICK_CLIENTS) + patient.result()

    def route(self, request: Request) -> str:
        """The label route, as the application's framework writes it."""
        if self.app == "starlette_app":
            return re.sub(r"<(?:int:)?(name|lines|milliseconds)>", r"{\1}", request.route)
        return request.route

    def series(self, answer: Answer) -> Series:
        """The labels shop, method, route and status of an answer."""
        request = answer.request
        return self.name, request.label or request.method, self.route(request), request.status


class Prometheus:
    """A Prometheus server that scrapes the shops every second."""

    def __init__(self, folder: Path, shops: Collection[Shop], rules: Path | None = None, *options: str) -> None:
        targets = [f"{{targets: ['127.0.0.1:{shop.port}'], labels: {{shop: {shop.name}}}}}" for shop in shops]
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: {SCRAPE_SECONDS:g}s, evaluation_interval: {SCRAPE_SECONDS:g}s}}\n"
            f"scrape_configs: [{{job_name: shops, static_configs: [{', '.join(targets)}]}}]\n"
            f"rule_files: [{'' if rules is None else rules / '*.yml'}]\n"
        )
        address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{address}/api/v1/query"
        own = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
        self.process = subprocess.Popen(["prometheus", *own, "--log.level=error", *options], cwd=folder)

    def query(self, expression: str, *labels: str) -> dict[Series, float]:
        """The values of an expression by shop and these labels, of histograms the counts; empty while Prometheus starts."""
        try:
            answer = requests.get(self.url, {"query": expression}, timeout=10).json()
        except (requests.ConnectionError, requests.JSONDecodeError):  # while it starts it answers nothing, or in plain text
            return {}
        assert answer["status"] == "success", answer
        found = [(sample["metric"], _number(sample)) for sample in answer["data"]["result"]]
        return {tuple(metric.get(label, "") for label in ("shop", *labels)): value for metric, value in found}

    def wait_for(self, expression: str, expected: dict[Series, float]) -> None:
        """Wait until the expression has these values."""
        with suppress(AssertionError):
            wait_until(lambda: self.query(expression) == expected, 30)
        assert self.query(expression) == expected  # on a failure, this shows the actual values

    def wait_for_scrapes(self, moment: float) -> None:
        """Wait until every shop was scraped after this moment."""
        wait_until(lambda: self.query(f"count({SCRAPED} > {moment:.3f})") == {("",): len(NAMES)}, 30)


def _number(sample: dict[str, Any]) -> float:
    return float(sample["histogram"][1]["count"] if "histogram" in sample else sample["value"][1])


class Run(NamedTuple):
    """The events, with their times on the clock of Prometheus."""

    prometheus: Prometheus
    shops: list[Shop]
    began: float
    killed: float
    answered: float
    ended: float

    @property
    def window(self) -> str:
        """The range from the beginning to the end in PromQL."""
        return f"[{round((self.ended - self.began) * 1000)}ms] @ {self.ended:.3f}"

    def gained(self, metric: str, *labels: str) -> dict[Series, float]:
        """The exact increase of series between the beginning and the end, which `increase` estimates."""
        difference = " - ".join(f"last_over_time({metric}[{RECENT}] @ {moment:.3f})" for moment in (self.ended, self.began))
        return self.prometheus.query(f"sum by (shop, {', '.join(labels)}) ({difference})", *labels)

    def sent(self, *positions: int) -> Counter[Series]:
        """The number of answered requests, by these positions of their series."""
        series = [shop.series(answer) for shop in self.shops for answer in shop.answers]
        return Counter(tuple(one[position] for position in (0, *positions)) for one in series)


def everywhere(value: float) -> dict[Series, float]:
    """The same value for all shops."""
    return {(name,): value for name in NAMES}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The whole run, once for all tests."""
    folder = tmp_path_factory.mktemp("prometheus")
    redis_server = RedisServer(folder)
    shops = []
    for number, name in enumerate(NAMES):
        (folder / name).mkdir()
        shops.append(Shop(name, folder / name, f"redis://127.0.0.1:{redis_server.port}/{number}"))
    prometheus = Prometheus(folder, shops)
    try:
        yield happen(prometheus, shops)
    finally:
        for shop in shops:
            shop.closing.close()
        processes = [shop.process for shop in shops] + [prometheus.process]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)
        redis_server.stop()


def happen(prometheus: Prometheus, shops: list[Shop]) -> Run:
    """Warm the shops up, kill a busy worker of each, send all kinds of requests, and wait until the dead are forgotten."""
    for shop in shops:
        wait_until(shop.is_up, 30)
    with ThreadPoolExecutor(len(shops)) as pool:
        list(pool.map(Shop.begin, shops))
        warm: dict[Series, float] = {(shop.name,): float(len(shop.warm_up)) for shop in shops}
        prometheus.wait_for(f"sum by (shop) (last_over_time(http_requests_total[{RECENT}]))", warm)
        prometheus.wait_for(IN_PROGRESS, everywhere(1))
        began = time.time()  # `increase` knows only what comes after the first scrape of its range
        list(pool.map(lambda shop: shop.strike(prometheus, began), shops))
        killed = time.time()
        list(pool.map(Shop.go_on, shops))
        answered = time.time()
    prometheus.wait_for_scrapes(answered + 2 * FLUSH_SECONDS)  # by then everything must have been counted
    with suppress(AssertionError):  # the tests read this window
        wait_until(lambda: prometheus.query(IN_PROGRESS) == everywhere(0), 2 * LEASE_SECONDS)
    return Run(prometheus, shops, began, killed, answered, time.time())


def test_every_request_is_counted_once(run: Run) -> None:
    """Of every series of every application, Prometheus counts exactly the sent requests, and no counter is ever reset."""
    for shop in run.shops:
        assert [answer for answer in shop.answers if answer.status != answer.request.status] == []
    assert run.gained("http_requests_total", "method", "route", "status") == run.sent(1, 2, 3)
    assert run.gained("http_request_duration_seconds_count", "method", "route", "status") == run.sent(1, 2, 3)
    assert run.gained("http_exceptions_total", "method", "route", "exception") == {
        (name, "GET", "/broken", "RuntimeError"): 10 for name in NAMES
    }
    assert run.gained("shop_orders_total", "item") == {(name, "tea"): 10 for name in NAMES}
    assert run.prometheus.query(f"sum by (shop) (resets(http_requests_total{run.window}))") == everywhere(0)


@pytest.mark.parametrize("label", ["method", "route", "status"])
def test_increase_agrees_with_what_was_sent(run: Run, label: str) -> None:
    """`increase` is never below the sent number, nor above its extrapolation: 1.1 scrapes at either end."""
    found = run.prometheus.query(f"sum by (shop, {label}) (increase(http_requests_total{run.window}))", label)
    sent = run.sent(["method", "route", "status"].index(label) + 1)
    most = 1 + 2 * 1.1 * SCRAPE_SECONDS / (run.ended - run.began - 2 * SCRAPE_SECONDS)
    assert found.keys() == sent.keys()
    assert {series: (sent[series], value) for series, value in found.items() if not 0.9999 < value / sent[series] < most} == {}


@pytest.mark.parametrize(("quantile", "least", "most"), [(0.2, 0, 0.25), (0.5, 0.25, 1), (0.9, 1, 2.5), (0.95, 1, 2.5)])
def test_quantiles_agree_with_the_durations(run: Run, quantile: float, least: float, most: float) -> None:
    """A third of the answers 200 came at once, half took 0.3 s, a seventh 1.1 s: the quantiles agree."""
    buckets = f'increase(http_request_duration_seconds_bucket{{status="200"}}{run.window})'
    found = run.prometheus.query(f"histogram_quantile({quantile}, sum by (shop, le) ({buckets}))")
    assert found.keys() == everywhere(0).keys()
    assert all(least < value <= most for value in found.values()), found


def test_durations_are_those_of_the_whole_answer(run: Run) -> None:
    """The seconds of each route lie between the sleep of the application, to the end of streams, and the times of clients."""
    slept: defaultdict[Series, float] = defaultdict(float)
    seen: defaultdict[Series, float] = defaultdict(float)
    for shop in run.shops:
        for answer in shop.answers:
            series = shop.name, shop.route(answer.request)
            slept[series] += answer.request.seconds
            seen[series] += answer.seconds
    found = run.gained("http_request_duration_seconds_sum", "route")
    assert found.keys() == slept.keys()
    late = 1.05  # a client may see the last byte before the worker looks at its clock
    assert {series: value for series, value in found.items() if not slept[series] <= value <= late * seen[series]} == {}


def test_made_up_paths_and_methods_are_one_series_each(run: Run) -> None:
    """A hundred unmatched paths are one series, twenty unknown methods another, in Prometheus as in the text."""
    for series, count in (('route="<unmatched>"', len(FLOOD)), ('method="<other>"', len(MADE_UP))):
        selector = f"http_requests_total{{{series}}}"
        assert run.prometheus.query(f"count by (shop) (last_over_time({selector}{run.window}))") == everywhere(1)
        assert run.gained(selector, "method") == {(name, "<other>" if "other" in series else "GET"): count for name in NAMES}
        for shop in run.shops:
            lines = shop.ask(METRICS).body.splitlines()
            assert len([line for line in lines if line.startswith("http_requests_total{") and series in line]) == 1


def test_a_killed_worker_is_forgotten(run: Run) -> None:
    """Requests in progress of a killed worker are shown no longer than its lease; its answered requests stay."""
    for shop in run.shops:
        assert shop.victim in {answer.worker for answer in shop.warm_up}
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            shop.stream.read()
        before = f"last_over_time(http_requests_in_progress{{shop='{shop.name}'}}[{RECENT}] @ {shop.killed:.3f})"
        assert run.prometheus.query(f"sum by (shop) ({before})") == {(shop.name,): 1}
    assert run.prometheus.query(IN_PROGRESS) == everywhere(0)
    last = run.prometheus.query(
        f"max by (shop) (max_over_time(timestamp(http_requests_in_progress > 0)[2m:{SCRAPE_SECONDS:g}s]))"
    )
    assert all(time <= max(run.killed + LEASE_SECONDS, run.answered) + 5 * SCRAPE_SECONDS for time in last.values())
    everything = Counter(shop.series(answer) for shop in run.shops for answer in shop.warm_up + shop.answers)
    shown = run.prometheus.query(f"last_over_time(http_requests_total[{RECENT}])", "method", "route", "status")
    assert shown == everything


def test_no_scrape_fails_and_all_workers_agree(run: Run) -> None:
    """All scrapes succeed; at the end all workers, also a new one, show the same, except for their own state."""
    in_time = f"scrape_duration_seconds < {0.9 * SCRAPE_SECONDS:g}"  # a longer one times out: the machine is busy
    window = run.window.replace("]", f":{SCRAPE_SECONDS:g}s]")
    assert run.prometheus.query(f"last_over_time((up == 1 and {in_time}){window})") == everywhere(1)
    assert run.prometheus.query(f"last_over_time((up == 0 and {in_time}){window})") == {}
    for shop in run.shops:
        answers = shop.ask_all_workers(METRICS)
        assert shop.victim not in {answer.worker for answer in answers}
        texts = [{line for line in answer.body.splitlines() if not line.startswith("pdc_")} for answer in answers]
        assert [text ^ texts[0] for text in texts] == [set()] * len(texts)
