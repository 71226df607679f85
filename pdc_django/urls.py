"""The metrics page at PDC_METRICS_PATH, and that of PDC_DASHBOARD below it: ``path("", include("pdc_django.urls"))``."""

from __future__ import annotations

from django.urls import URLPattern, path

from pdc.dashboard import path_of
from pdc.process.interruption import tolerate

from . import conf, views

NAME, DASHBOARD = "pdc_metrics", "pdc_dashboard"

urlpatterns: list[URLPattern] = []
with tolerate(*conf.CONFIG_ERRORS):  # the system check reports it
    if (page := conf.options().metrics_path) is not None:
        urlpatterns.append(path(page.removeprefix("/"), views.metrics, name=NAME))
    if conf.options().dashboard and (page := path_of(page)) is not None:
        urlpatterns.append(path(page.removeprefix("/"), views.dashboard, name=DASHBOARD))
