"""Makes the pictures of docs/dashboard.md: the page of a shop with made-up traffic, in light, dark and narrow.

    python tests/screenshots.py

It needs Chromium and pngquant, and writes docs/images/dashboard-*.png.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch
from wsgiref.simple_server import WSGIRequestHandler, make_server

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from browser import Browser, Clock  # noqa: E402 - from here on, the checkout is on the path

import pdc  # noqa: E402
from pdc import config, dashboard  # noqa: E402
from pdc.dashboard import counts  # noqa: E402
from pdc.exposition import respond, scrape_from_wsgi  # noqa: E402

STEPS, SECONDS = 61, 5
PICTURES = {"light": ("light", 1120), "dark": ("dark", 1120), "narrow": ("light", 390)}
ROUTES = {  # requests per second, the median of seconds, the part that fails
    "/": (24.0, 0.008, 0.0),
    "/items/<name>": (41.0, 0.014, 0.0005),
    "/search": (12.0, 0.06, 0.002),
    "/cart": (7.0, 0.022, 0.0),
    "/orders": (3.0, 0.11, 0.02),
    "<unmatched>": (0.6, 0.001, 0.0),
}


class Shop:
    """The metrics of a shop, which has more visitors for a while, and then a slow payment."""

    def __init__(self) -> None:
        self._random = random.Random(7)
        labels = ["method", "route", "status"]
        self._requests = pdc.Counter("http_requests", "Requests.", labels)
        self._seconds = pdc.Histogram("http_request_duration_seconds", "Time of requests.", labels)
        self._raised = pdc.Counter("http_exceptions", "Exceptions.", ["method", "route", "exception"])
        pdc.Gauge("http_requests_in_progress", "Requests in progress.", ["method"], multiprocess_mode="livesum").labels(
            "GET"
        ).set(3)

    def work(self, step: int) -> None:
        """Answer the requests of a step."""
        busy = 1 + 0.35 * math.sin(step / 9) + 0.08 * self._random.random()
        trouble = 38 < step < 48
        for route, (rate, median, failing) in ROUTES.items():
            slower = 6.0 if trouble and route == "/orders" else 1.0
            for _ in range(round(rate * busy * SECONDS + self._random.random())):
                failed = self._random.random() < failing * slower
                status = "500" if failed else "404" if route == "<unmatched>" else "200"
                method = "POST" if route == "/orders" else "GET"
                self._requests.labels(method, route, status).inc()
                self._seconds.labels(method, route, status).observe(median * slower * self._random.lognormvariate(0, 0.7))
                if failed:
                    self._raised.labels(method, route, "PaymentTimeout" if route == "/orders" else "KeyError").inc()


class Silent(WSGIRequestHandler):
    """A handler that logs no requests."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        """Log nothing."""


def main() -> None:
    """Draw the pictures."""
    folder = Path(tempfile.mkdtemp())
    pdc.setup(sqlite=folder / "metrics.db", flush_interval=3600)
    shop, clock = Shop(), Clock()
    clock.now = time.time() - STEPS * SECONDS
    patch.object(counts, "read_storage", clock.read).start()
    patch.object(config, "described", lambda _: "SQLite /var/lib/shop/metrics.db").start()
    server = make_server(
        "127.0.0.1",
        0,
        lambda environ, start: respond(dashboard.answer(scrape_from_wsgi(environ)), start),
        handler_class=Silent,
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    with Browser(folder / "browser") as browser:
        browser.prefer()
        browser.open(f"http://127.0.0.1:{server.server_port}/metrics/dashboard")
        browser.wait_for("typeof before !== 'undefined' && before !== null")
        for step in range(STEPS):
            shop.work(step)
            clock.now += SECONDS
            browser.wait_for(f"poll().then(() => before.at === {clock.now})")
        for name, (scheme, width) in PICTURES.items():
            browser.prefer(scheme, width)
            picture = images / f"dashboard-{name}.png"
            browser.picture(picture)
            subprocess.run(["pngquant", "--force", "--output", picture, "64", picture], check=True)
            print(picture)


if __name__ == "__main__":
    main()
