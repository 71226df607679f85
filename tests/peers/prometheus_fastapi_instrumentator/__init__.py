"""In place of prometheus_fastapi_instrumentator: its names, by `pdc_starlette`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import peer_plugin
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

import pdc
import pdc_starlette

from . import metrics, routing
from .metrics import Default, Info

__all__ = ["Instrumentator", "metrics", "routing"]

INSTRUMENTATOR = "peer.instrumentator"


class Instrumentator:
    """Takes the arguments of the peer. Latencies are not rounded, and functions of requests get no body."""

    def __init__(
        self,
        should_group_status_codes: bool = True,
        should_ignore_untemplated: bool = False,
        should_respect_env_var: bool = False,
        should_instrument_requests_inprogress: bool = False,  # noqa: ARG002 - they are always there
        excluded_handlers: Sequence[str] = (),
        env_var_name: str = "ENABLE_METRICS",
        inprogress_labels: bool = False,
        registry: CollectorRegistry | None = None,
        **_: Any,
    ) -> None:
        self.group_status = should_group_status_codes
        self.excluded_handlers = [re.compile(pattern) for pattern in excluded_handlers]
        self.functions: list[Any] = []
        self._default = Default()
        self._app: Any = None
        self._is_enabled = not should_respect_env_var or os.environ.get(env_var_name, "").lower() in ("true", "1")
        self._options: dict[str, Any] = {
            "count_unmatched": not should_ignore_untemplated,
            "enabled": self._is_enabled,
            "exclude_paths": [re.compile(rf".*?(?:{pattern}).*") for pattern in excluded_handlers],
            "in_progress_by_route": inprogress_labels,
            "metrics_path": None,
            **({} if registry is None else {"registry": registry}),
        }

    def options(self) -> dict[str, Any]:
        """The options of the middleware. Functions replace the default metrics, unless the default is one of them."""
        defaults = [function for function in self.functions if isinstance(function, Default)]
        if self.functions and not defaults:  # the peer has no metrics of its own then: these have other names
            return {**self._options, "names": "otel"}
        chosen = defaults[0] if defaults else self._default
        namespace = "_".join(part for part in (chosen.metric_namespace, chosen.metric_subsystem) if part)
        more = {"namespace": namespace, "labels": chosen.custom_labels}
        return {**self._options, "names": "fastapi-instrumentator", **more}

    def instrument(self, app: Any, **arguments: Any) -> Instrumentator:
        """Add the middleware."""
        self._default = Default(**arguments)
        self._app = app
        app.add_middleware(_Middleware, instrumentator=self)
        return self

    def expose(self, app: Any, endpoint: str = "/metrics", **_: Any) -> Instrumentator:
        """Serve the page."""
        if self._is_enabled:
            app.add_route(endpoint, pdc_starlette.metrics if app is self._app else _page, include_in_schema=False)
        return self

    def add(self, *functions: Callable[[Info], object] | Default) -> Instrumentator:
        """Call these functions with each request."""
        self.functions += functions
        return self


def _page(request: Request) -> Response:
    """The page of an application that is not instrumented."""
    return Response(*pdc.scrape_response(request.scope, REGISTRY))


class _Middleware(pdc_starlette.PrometheusMiddleware):
    """Leaves its instrumentator in the scope."""

    def __init__(self, app: ASGIApp, instrumentator: Instrumentator) -> None:
        super().__init__(app, **instrumentator.options())
        self._instrumentator = instrumentator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault(INSTRUMENTATOR, self._instrumentator)
        await super().__call__(scope, receive, send)


@pdc_starlette.add
def _call(record: pdc_starlette.RequestRecord) -> None:
    """Call the functions of the application that has the request."""
    instrumentator = record.request.scope[INSTRUMENTATOR]
    info = Info(
        record.request,
        Response(status_code=record.status),
        record.method,
        "none" if record.route == "<unmatched>" else record.route,
        f"{record.status // 100}xx" if instrumentator.group_status else str(record.status),
        record.duration,
        request_size=record.request_size,
        response_size=record.response_size,
    )
    for function in instrumentator.functions:
        if callable(function):
            try:
                function(info)
            except Exception as error:  # noqa: BLE001 - pdc would log the first one alone, and the test is to fail
                peer_plugin.ERRORS.append(repr(error))
