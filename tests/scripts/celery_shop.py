"""An application of Celery with tasks of every end: `python -m celery -A celery_shop worker`, with the broker in `BROKER`."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

import pdc


def shop(broker: str, **options: Any) -> Celery:
    """An application, instrumented with these options."""
    app = Celery("shop", broker=broker, backend="cache+memory://", set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={"polling_interval": 0.01},
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
    )
    pdc.celery.instrument(app, **options)

    @app.task(name="order", bind=True, max_retries=1, shared=False)
    def order(self: Task[..., Any], end: str = "success", seconds: float = 0.0) -> str:
        """End like that."""
        time.sleep(seconds)
        if end == "retry" and not self.request.retries:
            raise self.retry(exc=TimeoutError("no water"), countdown=0)
        errors = {"failure": LookupError("no tea"), "reject": Reject("no tea", requeue=False), "ignore": Ignore()}
        if end in errors:
            raise errors[end]
        return end

    return app


if "BROKER" in os.environ:
    pdc.setup_from_environ()
    app = shop(os.environ["BROKER"], queue_length=True)
