"""Show that every request is counted once: Gunicorn with four workers, concurrent clients, one SQLite file.

With ``PDC_REDIS_URL`` in the environment the metrics are in Redis instead.

``python demo.py`` prints an account and goes on serving; ``--once`` ends after it, with status 1 where the numbers of
requests sent and counted differ. Arguments after ``--`` go to Gunicorn, for example ``-- --max-requests 50``.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
APPS = ("flask_app", "django_app", "starlette_app")
"""The folders of the applications; Gunicorn finds its configuration there."""
CLIENTS = 8
MIX = [
    "GET /",
    "GET /items/tea",
    "GET /items/cake",
    "GET /items/nothing",
    "GET /nowhere",
    "GET /report/2",
    "POST /items/tea/order",
]
QUANTILES = (0.5, 0.9, 0.99)


class Answer(NamedTuple):
    """The answer of a worker."""

    status: int
    worker: str
    body: str


class Account(NamedTuple):
    """The account of the requests so far on one worker's ``/metrics``."""

    worker: str
    counted: Counter[str]
    buckets: dict[float, float]

    @property
    def total(self) -> int:
        """All requests, whatever their status."""
        return sum(self.counted.values())

    def quantile(self, quantile: float) -> float:
        """Seconds within which that share of the requests was answered, interpolated as PromQL's histogram_quantile."""
        bounds = sorted(self.buckets)
        rank = quantile * self.buckets[bounds[-1]]
        lower, below = 0.0, 0.0
        for bound in bounds:
            if self.buckets[bound] >= rank and bound != float("inf"):
                return lower + (bound - lower) * (rank - below) / (self.buckets[bound] - below)
            if bound != float("inf"):
                lower, below = bound, self.buckets[bound]
        return lower


def ask(port: int, request: str) -> Answer:
    """Send a request on a connection of its own, so that any worker may take it."""
    method, path = request.split()
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Answer(response.status, response.headers["X-Worker"], response.read().decode())
    finally:
        connection.close()


def read_account(port: int) -> Account:
    """Scrape ``/metrics`` once."""
    answer = ask(port, "GET /metrics")
    counted: Counter[str] = Counter()
    buckets: defaultdict[float, float] = defaultdict(float)
    for family in text_string_to_metric_families(answer.body):
        for sample in family.samples:
            if sample.name == "http_requests_total":
                counted[sample.labels["status"]] += int(sample.value)
            elif sample.name == "http_request_duration_seconds_bucket":
                buckets[float(sample.labels["le"])] += sample.value
    return Account(answer.worker, counted, dict(buckets))


def read_accounts(port: int, sent: int, seconds: float = 10.0) -> list[Account]:
    """Scrape until three workers in a row count all sent requests, or time is up; earlier accounts are out of date."""
    agreeing: dict[str, Account] = {}
    deadline = time.monotonic() + seconds
    while True:
        account = read_account(port)
        if account.total == sent:
            agreeing[account.worker] = account
        else:
            agreeing.clear()
            time.sleep(0.1)
        if len(agreeing) == 3 or time.monotonic() > deadline:
            return list(agreeing.values()) or [account]


def send(port: int, number: int) -> Counter[str]:
    """Send that many requests from concurrent clients, and count the answers by status."""
    requests = [random.choice(MIX) for _ in range(number)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(str(answer.status) for answer in clients.map(lambda request: ask(port, request), requests))


def report(sent: Counter[str], accounts: list[Account]) -> bool:
    """Print the sent and the counted requests, and return True if they agree."""
    print(f"\n{'status':>10}  {'sent':>6}" + "".join(f"  {'worker ' + account.worker:>15}" for account in accounts))
    for status in sorted(sent):
        print(f"{status:>10}  {sent[status]:>6}" + "".join(f"  {account.counted[status]:>15}" for account in accounts))
    print(f"{'all':>10}  {sum(sent.values()):>6}" + "".join(f"  {account.total:>15}" for account in accounts))
    for quantile in QUANTILES:
        print(f"{quantile:>10.0%} of the requests were answered within {accounts[0].quantile(quantile) * 1000:.1f} ms")
    agree = len(accounts) == 3 and all(account.counted == sent for account in accounts)
    print(f"\nEvery worker counts what was sent: {'yes' if agree else 'NO'}")
    return agree


def free_port(wanted: int) -> int:
    """The wanted port, or another one where that is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise SystemExit("no free port")


def start(app: str, port: int, environment: dict[str, str], options: list[str]) -> subprocess.Popen[bytes]:
    """Start Gunicorn and wait until it listens."""
    bind = ["--bind", f"{HOST}:{port}", "--log-level", "warning"]
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", *bind, *options, "app:app"],
        cwd=Path(__file__).parent / app,
        env={**os.environ, **environment},
    )
    for _ in range(300):
        if server.poll() is not None:
            raise SystemExit(f"Gunicorn ended with status {server.returncode}")
        try:
            ask(port, "GET /metrics")
        except OSError:
            time.sleep(0.1)
        else:
            return server
    raise SystemExit("Gunicorn did not answer within 30 s")


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--app", choices=APPS, default="flask_app", help="which application to run (flask_app)")
    parser.add_argument("--once", action="store_true", help="end after the account")
    parser.add_argument("--requests", type=int, default=400, help="how many to send (400)")
    parser.add_argument("--port", type=int, default=8000, help="where to listen (8000, or another one if that is taken)")
    parser.add_argument("gunicorn", nargs="*", help="options of Gunicorn")
    options = parser.parse_args()
    port = free_port(options.port)
    with tempfile.TemporaryDirectory(prefix="pdc-demo-") as folder:
        environment = {} if "PDC_REDIS_URL" in os.environ else {"PDC_SQLITE_PATH": f"{folder}/metrics.db"}
        server = start(options.app, port, environment, options.gunicorn)
        agree = False
        try:
            print(f"Gunicorn serves {options.app}; metrics are in {environment.get('PDC_SQLITE_PATH', 'Redis')}", flush=True)
            sent = send(port, options.requests)
            agree = report(sent, read_accounts(port, sum(sent.values())))
            if not options.once:
                print(f"\nServing on http://{HOST}:{port}/ and http://{HOST}:{port}/metrics until Ctrl-C", flush=True)
                server.wait()
        except KeyboardInterrupt:
            print("\nStopping")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
