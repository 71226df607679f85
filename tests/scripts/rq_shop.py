"""Jobs of RQ of every end, and the settings of their workers: `python -m rq.cli worker -c rq_shop`, with Redis in `BROKER`."""

from __future__ import annotations

import os
import signal
import time

from rq import Retry

import pdc

if "BROKER" in os.environ:
    pdc.setup_from_environ()
    pdc.rq.instrument(queue_length=True)
    REDIS_URL = os.environ["BROKER"]


def order(end: str = "success", seconds: float = 0.0) -> str | Retry:
    """End like that."""
    time.sleep(seconds)
    if end == "failure":
        raise LookupError("no tea")
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return Retry(max=1) if end == "retry" else end
