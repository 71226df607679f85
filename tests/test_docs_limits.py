"""docs/limits.md: its numbers are those of the code, and the limits of numbers and labels are as it states them."""

from __future__ import annotations

from importlib import metadata

import prometheus_client
import pytest
from conftest import ROOT
from helpers import shown
from prometheus_client import CollectorRegistry

import pdc
from pdc.config import REDIS_EXPIRE
from pdc.delivery.buffer import EXIT_SECONDS
from pdc.delivery.flusher import BEAT_SECONDS
from pdc.delivery.journal.layout import MOST_BYTES
from pdc.delivery.journal.left import FOREIGN_SECONDS
from pdc.family import LEASE_SECONDS
from pdc.options import Options
from pdc.storage import FORGET_VALUES_SECONDS, FORGET_WRITER_SECONDS, MOST_ENTRIES
from pdc.storage.redis.reading import MOST_READ
from pdc.storage.sqlite.database import BUSY_SECONDS
from pdc.testing import own_storage

PAGE = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
OLDEST_PYTHON = metadata.metadata("prometheus-distributed-client")["Requires-Python"].removeprefix(">=")
HOUR, DAY = 3600.0, 86400.0
NUMBERS = {
    "`redis_expire` (an hour)": REDIS_EXPIRE == HOUR,
    "forgets the mark of a writer after an hour": FORGET_WRITER_SECONDS == HOUR,
    "a dead process is shown for a day": FORGET_VALUES_SECONDS == DAY,
    f"nobody has sent for {FOREIGN_SECONDS / DAY:.0f} days": True,
    f"more than {MOST_BYTES / 2**20:.0f} MiB": True,
    f"more than {MOST_READ:,} fields": True,
    f"killed process count for {LEASE_SECONDS:.0f} s": True,
    f"a sign of life every {BEAT_SECONDS:.0f} s": True,
    f"an idle process writes every {FORGET_WRITER_SECONDS / 3 / 60:.0f} minutes": True,
    f"HTTP metrics have {Options().max_series:,} series each": True,
    f"up to {MOST_ENTRIES} series at a time": True,
    f"waits up to {BUSY_SECONDS:.0f} s for others": True,
    f"waits up to {EXIT_SECONDS:.0f} s for a storage": True,
    f"Python {OLDEST_PYTHON} and later": True,
}
"""Phrases of the page, and if the code agrees."""


@pytest.mark.parametrize("phrase", NUMBERS)
def test_the_numbers_are_those_of_the_code(phrase: str) -> None:
    """Each number of the page is that of a constant."""
    assert phrase in PAGE
    assert NUMBERS[phrase]


def test_numbers_are_doubles(registry: CollectorRegistry) -> None:
    """From 2 to the power of 53 on, adding 1 changes nothing, here as in prometheus_client."""
    with own_storage():
        for module in (pdc, prometheus_client):
            counter = module.Counter("big", "Big.", registry=CollectorRegistry() if module is prometheus_client else registry)
            counter.inc(2**53)
            counter.inc()
            (family,) = counter.collect()
            assert family.samples[0].value == 2**53


def test_labels_and_exemplars(registry: CollectorRegistry) -> None:
    """A label may have a megabyte; an exemplar has 128 characters; a lone surrogate becomes another character."""
    with own_storage():
        visits = pdc.Counter("visits", "Visits.", ["page"], registry=registry)
        visits.labels("x" * 2**20).inc(1, {"a": "b" * 127})
        with pytest.raises(ValueError, match="exceeding the limit of 128"):
            visits.labels("a").inc(1, {"a": "b" * 128})
        visits.labels("\ud800").inc()
        assert {f'visits_total{{page="{page}"}}' for page in ("x" * 2**20, "\ufffd")} <= set(shown("visits"))
