"""A serverless function for AWS Lambda: the platform freezes or kills the process once `handler` has returned.

So each update is in the storage when its call returns. Processes on many hosts share a Redis: set ``PDC_REDIS_URL`` (and
``PDC_REDIS_PREFIX``). Without it the metrics are in ``metrics.db``, which is enough to try it::

    python handler.py event.json

where ``event.json`` is ``{"items": ["tea", "cake"]}``. A function cannot be scraped; any ``/metrics`` of the same storage
shows its metrics, and so does a process of its own, somewhere that Prometheus reaches::

    python -c "import pdc; pdc.setup_from_environ(); pdc.start_http_server(9100)[1].join()"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pdc

PRICES = {"tea": 3, "cake": 4}

# In Redis, metrics that no process renews expire within an hour by default; a frozen process renews nothing.
pdc.setup_from_environ(flush_interval=0, redis_expire=None)

cold_starts = pdc.Counter("function_cold_starts", "Processes that were started.")
cold_starts.inc()


@pdc.job("prices")
def handler(event: dict[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001 - the platform passes both
    """The price of the items of an event. Raises KeyError for an item that the shop does not have."""
    return {"statusCode": 200, "body": json.dumps({"total": sum(PRICES[item] for item in event["items"])})}


if __name__ == "__main__":
    print(json.dumps(handler(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), None)))
