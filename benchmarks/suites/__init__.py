"""What is compared with what."""

from __future__ import annotations

from benchmarks.contest import Suite

from . import web

SUITES: list[Suite] = [web.SUITE]
