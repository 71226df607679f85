"""A nightly import of prices, run by cron. Its numbers outlive the process, and continue the next night.

    python job.py prices.csv

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Cron starts programs in
the home folder, so its line has full paths::

    15 3 * * *  PDC_SQLITE_PATH=/srv/shop/metrics.db /srv/shop/.venv/bin/python /srv/shop/job.py /srv/shop/prices.csv

Any ``/metrics`` of the same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"

Rules of Prometheus, for a job that did not succeed in 26 hours, or never did, and for one that leaves rows out::

    - alert: NightlyImportIsMissing
      expr: time() - import_last_success_timestamp_seconds > 26 * 3600 or absent(import_last_success_timestamp_seconds)
    - alert: NightlyImportRejectsRows
      expr: increase(import_rows_total{result="rejected"}[1d]) > 0
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pdc

SHOP = "shop.db"

# Each update is in the storage when its call returns. In Redis, metrics that no process renews expire within an hour by
# default; this process lives for seconds a day.
pdc.setup_from_environ(flush_interval=0, redis_expire=None)

rows = pdc.Counter("import_rows", "Rows that were read.", ["result"])
runs = pdc.Counter("import_runs", "Runs of the import.", ["outcome"])
duration = pdc.Histogram("import_duration_seconds", "Time per run.", buckets=(1, 10, 60, 600, 3600))
last_success = pdc.Gauge("import_last_success_timestamp_seconds", "When a run last succeeded.")


def read_prices(path: Path) -> dict[str, float]:
    """The prices by item. Counts and skips rows without a price; raises OSError and KeyError for a wrong file."""
    prices = {}
    rejected = 0
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            item, price = row["item"], row["price"]
            try:
                prices[item] = float(price)
            except (TypeError, ValueError):
                rejected += 1
                print(f"{item} has no price: {price!r}", file=sys.stderr)
    rows.labels("rejected").inc(rejected)
    return prices


def import_prices(path: Path) -> None:
    """Replace the prices of the shop, all or none."""
    prices = read_prices(path)
    with closing(sqlite3.connect(SHOP)) as shop, shop:
        shop.execute("CREATE TABLE IF NOT EXISTS prices (item PRIMARY KEY, price)")
        shop.execute("DELETE FROM prices")
        shop.executemany("INSERT INTO prices VALUES (?, ?)", prices.items())
    rows.labels("imported").inc(len(prices))


def main() -> None:
    """Run the import and count it. An exception ends the program with status 1 and a traceback, which cron mails."""
    for outcome in ("success", "failure"):
        runs.labels(outcome)  # exported as 0 before the first: Prometheus sees no increase from an absent series to 1
    try:
        with duration.time():
            import_prices(Path(sys.argv[1]))
    except BaseException:
        runs.labels("failure").inc()
        raise
    runs.labels("success").inc()
    last_success.set_to_current_time()


if __name__ == "__main__":
    main()
