"""The middlewares of the peer: ours is one."""

from __future__ import annotations

from typing import Any

from pdc_django.middleware import PrometheusMiddleware as PrometheusBeforeMiddleware

__all__ = ["PrometheusAfterMiddleware", "PrometheusBeforeMiddleware"]


def PrometheusAfterMiddleware(get_response: Any) -> Any:  # noqa: N802 - the name of the peer
    """Do nothing: the other middleware sees all."""
    return get_response
