"""One metric of each type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pdc

TYPES = ("Counter", "Gauge", "Summary", "Histogram", "Info", "Enum")
UPDATES: dict[str, Callable[[Any], object]] = {
    "Counter": lambda metric: metric.inc(),
    "Gauge": lambda metric: metric.set(1),
    "Summary": lambda metric: metric.observe(1),
    "Histogram": lambda metric: metric.observe(1),
    "Info": lambda metric: metric.info({"version": "1"}),
    "Enum": lambda metric: metric.state("off"),
}
"""One update of a metric of each type."""


def make(kind: str, *arguments: Any, module: Any = pdc, **options: Any) -> Any:
    """A metric of that type with the name `m`."""
    if kind == "Enum":
        options.setdefault("states", ["on", "off"])
    return getattr(module, kind)("m", "Help", *arguments, **options)
