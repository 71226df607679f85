"""Routes of Starlette and FastAPI, for peers that test how they find them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pdc.http import UNMATCHED
from pdc_starlette.routes import RouteFinder


def template(scope: dict[str, Any], routes: list[Any]) -> str | None:
    """The template of the route that the scope matches."""
    route = RouteFinder(SimpleNamespace(routes=routes)).find(scope).route
    return None if route == UNMATCHED else route
