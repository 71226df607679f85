"""The comparisons: each module has one suite."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contest import Suite

from . import scale, scrape, server, updates, web

SUITES: dict[str, Callable[..., Suite]] = {
    "web": web.suite,
    "server": server.suite,
    "updates": updates.suite,
    "scrape": scrape.suite,
    "scale": scale.suite,
}
"""The function that makes each suite, with or without ``quick=True``."""
