"""The checks of the arguments of `setup`, and of the limits of metrics."""

from __future__ import annotations

import math
from typing import Any


def only(**places: Any) -> str:
    """The name of the only storage that is given. Raises ValueError."""
    given = [name for name, place in places.items() if place is not None]
    if len(given) != 1:
        raise ValueError(f"setup() takes exactly one of redis=, sqlite= and storage=, got {' and '.join(given) or 'none'}")
    return given[0]


def expect_redis(chosen: str, **given: tuple[object, object]) -> None:
    """Raise ValueError for arguments that only Redis has, each with its default, and that somebody gave another value."""
    for name, (value, default) in given.items():
        if chosen != "redis" and value != default:
            raise ValueError(
                f"setup({chosen}=...) has no {name}, got {value!r}: remove it, or give setup() redis=... instead of {chosen}="
            )


def series_limits(max_series: Any, expire_series: Any) -> dict[str, float | None]:
    """The limits of a metric's series by their names, None where there is none. Raises ValueError."""
    if max_series not in (None, math.inf) and (
        isinstance(max_series, bool) or not isinstance(max_series, int) or max_series < 1
    ):
        raise ValueError(f"max_series must be a whole number, at least 1, None or math.inf (no limit), got {max_series!r}")
    if expire_series not in (None, math.inf):
        seconds("expire_series", expire_series, least=0.001)
    return {"max_series": max_series, "expire_series": expire_series}


def seconds(name: str, value: Any, least: float = 0.0) -> float:
    """The seconds as a float. Raises ValueError with the name of the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise ValueError(f"{name} must be a number of seconds, at least {least:g}, got {value!r}")
    return float(value)
