"""What is compared with what: each module has one suite."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.contest import Suite

from . import scrape, server, updates, web

SUITES: dict[str, Callable[..., Suite]] = {
    "web": web.suite,
    "server": server.suite,
    "updates": updates.suite,
    "scrape": scrape.suite,
}
"""How to make each suite, with or without ``quick=True``."""
