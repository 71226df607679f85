"""A shop in Flask under Gunicorn whose Redis freezes, or is killed and restarted, while clients send requests.

Run ``python tests/outage.py --seconds 30`` for outages of 30 s, and for the time that counting adds to a request.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import ROOT, RedisServer, free_port, wait_until
from flask import Flask
from werkzeug.test import EnvironBuilder

import pdc
from pdc.exposition import collect
from pdc_flask import PrometheusMetrics

FAULTS = ("frozen", "killed")
CLIENTS = 4
PAUSE_SECONDS = 0.01
"""The pause between two requests of a client, so that the clients do not keep the machine busy."""
REQUESTS = [("GET", "/", "/"), ("POST", "/items/tea/order", "/items/<name>/order"), ("GET", "/items/nothing", "/items/<name>")]
"""Method, path and route."""


@dataclass
class Run:
    """The answers that clients got during an outage, and the counts after it."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """The duration of each request, by phase: before, during and after the outage."""
    answers: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Requests by method, route and status; 0 is no answer."""
    counted: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    observed: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """The same counts in the storage: the counter, and the number of observed durations."""
    orders: float = 0.0
    scrape: int = 0
    """The status of a scrape during the outage."""

    def report(self) -> str:
        """The requests, and the quantiles of their durations."""
        lines = [f"{sum(self.answers.values())} requests, {sum(self.counted.values())} counted; scrape {self.scrape}"]
        lines += [f"{phase:8} {quantiles(taken)}" for phase, taken in self.seconds.items()]
        return "\n".join(lines)


def quantiles(seconds: list[float]) -> str:
    """Some quantiles in milliseconds."""
    ordered = sorted(seconds)
    shown = [(text, ordered[int(part * (len(ordered) - 1))]) for text, part in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))]
    return f"n={len(ordered):<7}" + "  ".join(f"{text} {value * 1000:.3f} ms" for text, value in shown)


class Shop:
    """The example application under Gunicorn, with its own configuration."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.port = free_port()
        with (folder / "gunicorn.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{self.port}", "app:app"],
                cwd=ROOT / "example_apps" / "flask_app",
                env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), "PDC_REDIS_URL": redis_url},
                stderr=log,
            )
        wait_until(lambda: self.ask("GET", "/metrics") == 200, 30)

    def ask(self, method: str, path: str) -> int:
        """The status of the answer; 0 without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            return 0
        else:
            return response.status
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop Gunicorn, whose workers send pending updates."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


@contextmanager
def outage(server: RedisServer, fault: str) -> Iterator[None]:
    """Freeze the server, or kill it and restart it with its data."""
    begin, end = {"frozen": (server.freeze, server.thaw), "killed": (server.stop, server.start)}[fault]
    begin()
    try:
        yield
    finally:
        end()


def run(folder: Path, fault: str, seconds: float) -> Run:
    """Send requests before, during and after an outage of that many seconds."""
    result = Run()
    server = RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always")
    shop = Shop(folder, f"{server.url}?socket_timeout=1")
    try:
        with ThreadPoolExecutor(CLIENTS + 1) as pool:
            for phase in ("before", "during", "after"):
                duration = seconds if phase == "during" else min(seconds, 1.0)
                with outage(server, fault) if phase == "during" else nullcontext():
                    deadline = time.monotonic() + duration
                    clients = [pool.submit(_send, shop, deadline) for _ in range(CLIENTS)]
                    scrape = pool.submit(shop.ask, "GET", "/metrics")
                    sent = [answer for client in clients for answer in client.result()]
                    result.scrape = scrape.result() if phase == "during" else result.scrape
                result.seconds[phase] = [taken for _, taken in sent]
                result.answers.update(answer for answer, _ in sent)
        shop.stop()
        pdc.setup(redis=server.url)
        _count(result)
        pdc.shutdown()
    finally:
        shop.stop()
        server.stop()
    return result


def _send(shop: Shop, deadline: float) -> list[tuple[tuple[str, str, int], float]]:
    """Send requests until then; return the answers and their durations."""
    answers = []
    while time.monotonic() < deadline:
        for method, path, route in REQUESTS:
            start = time.perf_counter()
            status = shop.ask(method, path)
            answers.append(((method, route, status), time.perf_counter() - start))
            time.sleep(PAUSE_SECONDS)
    return answers


def _count(result: Run) -> None:
    """Read the counts of the storage, without those of scrapes."""
    books = {"http_requests_total": result.counted, "http_request_duration_seconds_count": result.observed}
    for family in collect():
        for sample in family.samples:
            if sample.name in books and sample.labels["route"] in {route for _, _, route in REQUESTS}:
                labels = sample.labels
                books[sample.name][labels["method"], labels["route"], int(labels["status"])] += int(sample.value)
            elif sample.name == "shop_orders_total":
                result.orders += sample.value


def added_time(folder: Path, requests: int, report: Callable[[str], Any]) -> None:
    """Report the duration of a request to a trivial view in this process: without metrics, and in two kinds of outage."""
    report(f"without metrics   {quantiles(_timed(_application(), requests))}")
    server = RedisServer(folder)
    app = _application()
    app.config["PDC_REDIS_URL"] = server.url
    PrometheusMetrics(app)
    try:
        report(f"Redis answers     {quantiles(_timed(app, requests))}")
        for fault in FAULTS:
            with outage(server, fault):
                time.sleep(2)
                report(f"Redis is {fault:9}{quantiles(_timed(app, requests))}")
    finally:
        pdc.shutdown()
        server.stop()


def _application() -> Flask:
    app = Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "hello")
    return app


def _timed(app: Flask, requests: int) -> list[float]:
    """The duration of each of so many requests, after some to warm up."""
    environ = EnvironBuilder(path="/").get_environ()
    taken = []
    for _ in range(requests // 10 + requests):
        request = dict(environ)
        start = time.perf_counter()
        body = app(request, lambda *_: lambda _: None)
        b"".join(body)
        if hasattr(body, "close"):
            body.close()
        taken.append(time.perf_counter() - start)
    return taken[requests // 10 :]


def main() -> None:
    """Run both kinds of outage and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long an outage lasts (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=20_000, help="how many requests are timed in one process")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        added_time(Path(folder), arguments.requests, print)
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            result = run(Path(folder), fault, arguments.seconds)
        verdict = "all counted once" if result.answers == result.counted == result.observed else "NOT EXACT"
        print(f"\nRedis {fault} for {arguments.seconds:g} s: {verdict}\n{result.report()}")


if __name__ == "__main__":
    main()
