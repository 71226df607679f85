"""Actors of Dramatiq of every end: `python -m dramatiq dramatiq_shop`, with Redis as the broker in `BROKER`."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO

import pdc


def shop(broker: dramatiq.Broker, **options: Any) -> dramatiq.Actor[..., None]:
    """An actor of the broker, which is instrumented with these options."""
    pdc.dramatiq.instrument(broker, **options)
    broker.add_middleware(AsyncIO())

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=2, throws=KeyError, time_limit=30_000)
    def order(end: str = "success", seconds: float = 0.0) -> None:
        """End like that."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:  # a time limit cannot interrupt a longer sleep
            time.sleep(0.01)
        errors = {"failure": LookupError("no tea"), "thrown": KeyError("no tea")}
        if end in errors:
            raise errors[end]

    @dramatiq.actor(broker=broker, queue_name="async")
    async def cook(seconds: float) -> None:
        """Take a while."""
        await asyncio.sleep(seconds)

    return order


if "BROKER" in os.environ:
    pdc.setup_from_environ()
    broker = RedisBroker(url=os.environ["BROKER"])
    dramatiq.set_broker(broker)
    order = shop(broker, queue_length=True)
