"""A nightly import of prices, run by cron. Its numbers outlive the process, and continue the next night.

    python job.py prices.csv

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Cron starts programs in
the home folder, so its line has full paths::

    15 3 * * *  PDC_SQLITE_PATH=/srv/shop/metrics.db /srv/shop/.venv/bin/python /srv/shop/job.py /srv/shop/prices.csv

Any ``/metrics`` of the same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"

Rules of Prometheus, for a job that did not succeed in 26 hours, or never did, and for one that leaves rows out::

    - alert: NightlyImportIsMissing
      expr: time() - job_last_success_timestamp_seconds{job_name="prices"} > 26 * 3600
        or absent(job_last_success_timestamp_seconds{job_name="prices"})
    - alert: NightlyImportRejectsRows
      expr: increase(job_items_total{job_name="prices", result="rejected"}[1d]) > 0
"""

from __future__ import annotations

import csv
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pdc

# In Redis, metrics that no process renews expire within an hour by default; this process lives for seconds a day.
pdc.setup_from_environ(redis_expire=None)
prices_job = pdc.job("prices")


@prices_job
def import_prices(path: Path) -> None:
    """Replace the prices of the shop, all or none. Skips rows without a price, raises OSError for a missing file."""
    with path.open(newline="", encoding="utf-8") as lines, closing(sqlite3.connect("shop.db")) as shop, shop:
        shop.execute("CREATE TABLE IF NOT EXISTS prices (item PRIMARY KEY, price)")
        shop.execute("DELETE FROM prices")
        for row in csv.DictReader(lines):
            try:
                shop.execute("INSERT INTO prices VALUES (?, ?)", (row["item"], float(row["price"])))
            except ValueError:
                prices_job.count(result="rejected")
                print(f"{row['item']} has no price: {row['price']!r}", file=sys.stderr)
            else:
                prices_job.count()


if __name__ == "__main__":
    import_prices(Path(sys.argv[1]))
