"""Counts responses by template, which only django-prometheus has a name for."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from pdc import Counter
from pdc.http import TRACKER
from pdc.metrics import declared_once

from . import conf


@declared_once
def _family(namespace: str, max_series: int) -> Counter:
    return Counter(
        "django_http_responses_total_by_templatename",
        "Responses by the name of their template.",
        ["templatename"],
        namespace=namespace,
        registry=None,
        max_series=max_series,
    )


def count(request: HttpRequest, response: Any) -> None:
    """Count the response of a request that is tracked."""
    if request.META.get(TRACKER) is not None:
        with conf.log_errors():
            options = conf.options()
            _family(options.namespace, options.max_series).labels(_name(response.template_name)).inc()


def _name(template: Any) -> str:
    """The name of a template, or the list of names among which Django chooses; ``None`` where it has no name."""
    if isinstance(template, str):
        return template
    if isinstance(template, (list, tuple)):
        return str([str(name) for name in template])
    return str(getattr(getattr(template, "template", template), "name", None))
