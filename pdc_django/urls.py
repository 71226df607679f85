"""The metrics page at PDC_METRICS_PATH: ``path("", include("pdc_django.urls"))``."""

from __future__ import annotations

from contextlib import suppress

from django.urls import URLPattern, path

from . import conf, views

NAME = "pdc_metrics"

urlpatterns: list[URLPattern] = []
with suppress(*conf.CONFIG_ERRORS):  # the system check reports it
    if conf.options().metrics_path is not None:
        urlpatterns.append(path(str(conf.options().metrics_path).removeprefix("/"), views.metrics, name=NAME))
