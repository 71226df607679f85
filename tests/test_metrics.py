"""The metric classes, over every storage."""

from __future__ import annotations

from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry

import pdc


def test_a_counter_renders_as_in_memory(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A counter renders byte for byte as prometheus_client's, apart from the time of creation."""
    prometheus_client.disable_created_metrics()
    try:
        pdc.setup(**storage)
        reference = CollectorRegistry()
        for module, target in ((pdc, registry), (prometheus_client, reference)):
            counter = module.Counter("requests", 'Help "quoted"\n', ["path"], registry=target)
            counter.labels("/\n\\\"").inc(2.5)
        expected = prometheus_client.generate_latest(reference)
        assert prometheus_client.generate_latest(registry) == expected
        assert pdc.generate_latest() == expected
    finally:
        prometheus_client.enable_created_metrics()


def test_an_update_before_setup_says_what_to_call(registry: CollectorRegistry) -> None:
    """With nothing set up the first update raises an error that names setup, and counts nothing."""
    counter = pdc.Counter("requests", "Help", registry=registry)
    with pytest.raises(pdc.NotConfigured, match=r"pdc\.setup"):
        counter.inc()
