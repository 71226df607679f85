"""In place of starlette_exporter: its names, by `pdc_starlette`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

import pdc_starlette
from pdc import options

__all__ = ["PrometheusMiddleware", "from_header", "from_response_header", "handle_metrics", "handle_openmetrics"]

handle_metrics = pdc_starlette.metrics


async def handle_openmetrics(request: Request) -> Response:
    """Answer a scrape that asks for OpenMetrics."""
    headers = [*request.scope["headers"], (b"accept", b"application/openmetrics-text")]
    return await pdc_starlette.metrics(Request({**request.scope, "headers": headers}))


def from_header(key: str, allowed_values: Collection[str] | None = None) -> Callable[[Any], str]:
    """A label whose value is a header of the request."""
    return options.from_header(key, allowed=allowed_values)


def from_response_header(
    key: str, allowed_values: Collection[str] | None = None, default: str = ""
) -> Callable[[Any, Any], str]:
    """A label whose value is a header of the response."""
    return options.from_response_header(key, allowed=allowed_values, default=default)


class PrometheusMiddleware(pdc_starlette.PrometheusMiddleware):
    """Takes the options of the peer. Its `group_paths` and `always_use_int_status` have no counterpart: both are always on."""

    _metrics: ClassVar[dict[str, Any]] = {}  # type: ignore[assignment,misc] # tests replace it, and ours is of the instance

    def __init__(
        self,
        app: ASGIApp,
        group_paths: bool = True,  # noqa: ARG002 - as the class explains
        app_name: str = "starlette",
        prefix: str = "starlette",
        buckets: Sequence[float] | None = None,
        filter_unhandled_paths: bool = True,
        skip_paths: Sequence[str] = (),
        skip_methods: Sequence[str] = (),
        optional_metrics: Sequence[str] = (),
        always_use_int_status: bool = False,  # noqa: ARG002 - as the class explains
        labels: dict[str, Any] | None = None,
        exemplars: Callable[..., dict[str, str]] | None = None,
        group_unhandled_paths: bool = False,
    ) -> None:
        given = {"buckets": buckets, "exemplars": exemplars}
        super().__init__(
            app,
            names="starlette-exporter",
            namespace=prefix,
            metrics_path=None,
            labels={"app_name": app_name, **(labels or {})},
            exclude_paths=[re.compile(path) for path in skip_paths],
            exclude_methods=skip_methods,
            count_unmatched=group_unhandled_paths or not filter_unhandled_paths,
            sizes=bool(optional_metrics),
            **{name: value for name, value in given.items() if value is not None},
        )
