"""The comparisons: each module has one suite."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contest import Suite

from . import ceiling, interpreters, pauses, registry, scrape, server, updates, web, write_through, writers

SUITES: dict[str, Callable[..., Suite]] = {
    "web": web.suite,
    "server": server.suite,
    "updates": updates.suite,
    "interpreters": interpreters.suite,
    "write_through": write_through.suite,
    "scrape": scrape.suite,
    "registry": registry.suite,
    "writers": writers.suite,
    "ceiling": ceiling.suite,
    "pauses": pauses.suite,
}
"""The function that makes each suite, with or without ``quick=True``."""
