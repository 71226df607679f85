"""Jobs of a small shop in RQ, counted and timed in each work-horse. This module has the settings of the workers, too.

With a Redis for the jobs (``RQ_REDIS_URL``, ``redis://localhost:6379/1`` by default), run in this folder::

    python -c "import jobs; jobs.queue.enqueue(jobs.order, 'tea')"
    rq worker -c jobs

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Any ``/metrics`` of the
same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"
"""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue

import pdc

pdc.setup_from_environ()
pdc.rq.instrument()

REDIS_URL = os.environ.get("RQ_REDIS_URL", "redis://localhost:6379/1")
queue = Queue("default", connection=Redis.from_url(REDIS_URL))


def order(item: str) -> str:
    """Order an item."""
    if item == "nothing":
        raise ValueError("nothing cannot be ordered")
    return f"ordered {item}"
