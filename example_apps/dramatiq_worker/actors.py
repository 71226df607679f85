"""Actors of a small shop in Dramatiq, counted and timed in every process and thread of the worker.

With a Redis for the broker (``DRAMATIQ_BROKER_URL``, ``redis://localhost:6379/1`` by default), run in this folder::

    python -c "import actors; actors.order.send('tea')"
    dramatiq actors --processes 2 --threads 4

The metrics are in ``metrics.db``; set ``PDC_SQLITE_PATH`` or ``PDC_REDIS_URL`` for another place. Any ``/metrics`` of the
same storage shows them, and so does a process of its own::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"
"""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

import pdc

pdc.setup_from_environ()

broker = RedisBroker(url=os.environ.get("DRAMATIQ_BROKER_URL", "redis://localhost:6379/1"))
dramatiq.set_broker(broker)
pdc.dramatiq.instrument(broker)


@dramatiq.actor(max_retries=0)
def order(item: str) -> None:
    """Order an item."""
    if item == "nothing":
        raise ValueError("nothing cannot be ordered")
