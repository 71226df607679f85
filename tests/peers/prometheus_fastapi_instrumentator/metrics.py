"""The peer's ready-made instrumentations, as functions that `pdc_starlette.add` calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pdc

Instrumentation = Callable[["Info"], None]


@dataclass
class Info:
    """The record of a request, with the names of the peer."""

    request: Any
    response: Any
    method: str
    modified_handler: str
    modified_status: str
    modified_duration: float
    modified_duration_without_streaming: float = 0.0
    request_size: int = 0
    response_size: int = 0


@dataclass
class Default:
    """The default metrics: those of `PDC_NAMES=fastapi-instrumentator`."""

    metric_namespace: str = ""
    metric_subsystem: str = ""
    custom_labels: Mapping[str, str] = field(default_factory=dict)
    should_only_respect_2xx_for_highr: bool = False
    should_exclude_streaming_duration: bool = False
    latency_highr_buckets: Sequence[float] = ()
    latency_lowr_buckets: Sequence[float] = ()


default = Default


def _observing(kind: Any, name: str, documentation: str, value: Callable[[Info], float]) -> Callable[..., Instrumentation]:
    """A function that makes instrumentations which observe the value."""

    def make(
        metric_name: str = name,
        metric_namespace: str = "",
        metric_subsystem: str = "",
        should_include_handler: bool = True,
        should_include_method: bool = True,
        should_include_status: bool = True,
        **more: Any,
    ) -> Instrumentation:
        facts = {
            "handler": (should_include_handler, "modified_handler"),
            "method": (should_include_method, "method"),
            "status": (should_include_status, "modified_status"),
        }
        labels = {label: fact for label, (is_asked_for, fact) in facts.items() if is_asked_for}
        names = {"namespace": metric_namespace, "subsystem": metric_subsystem}
        metric = kind(metric_name, documentation, tuple(labels), registry=None, **names, **more)

        def instrumentation(info: Info) -> None:
            child = metric.labels(*(getattr(info, fact) for fact in labels.values())) if labels else metric
            (child.inc if kind is pdc.Counter else child.observe)(value(info))

        return instrumentation

    return make


latency = _observing(pdc.Histogram, "http_request_duration_seconds", "Duration.", lambda info: info.modified_duration)
request_size = _observing(pdc.Summary, "http_request_size_bytes", "Bytes.", lambda info: info.request_size)
response_size = _observing(pdc.Summary, "http_response_size_bytes", "Bytes.", lambda info: info.response_size)
combined_size = _observing(
    pdc.Summary, "http_combined_size_bytes", "Bytes.", lambda info: info.request_size + info.response_size
)
requests = _observing(pdc.Counter, "http_requests_total", "Requests.", lambda _: 1.0)
