"""Tasks of a small shop in Celery, counted and timed in every process of the pool.

With a Redis for the broker (``CELERY_BROKER_URL``, ``redis://localhost:6379/1`` by default), run in this folder::

    celery -A tasks worker
    celery -A tasks call tasks.order --args '["tea"]'

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Any ``/metrics`` of the
same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task

import pdc

pdc.setup_from_environ()

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost:6379/1"))
app.conf.broker_connection_retry_on_startup = True
pdc.celery.instrument(app)


@app.task
def order(item: str) -> str:
    """Order an item."""
    if item == "nothing":
        raise ValueError("nothing cannot be ordered")
    return f"ordered {item}"


@app.task(bind=True, max_retries=2)
def pay(self: Task[..., Any], amount: float) -> str:
    """Pay, which works at the third attempt."""
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return f"paid {amount}"


@app.task
def report(seconds: float) -> str:
    """Sleep that long."""
    time.sleep(seconds)
    return "done"
