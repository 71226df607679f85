"""Reads from the databases how many migrations are applied, when metrics are scraped and only then."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections
from django.db.migrations.loader import MigrationLoader
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from . import conf


class _MigrationState(Collector):
    """Gauges of this process's code and its databases; a database that cannot be read is left out."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the migrations of every database, if PDC_DJANGO_MIGRATIONS asks for it."""
        options = conf.active()
        if options is None or not options.django_migrations:
            return
        prefix = f"{options.namespace}_" if options.namespace else ""
        end, label = ("_total", "connection") if options.has_peer_names else ("", "alias")
        start = f"{prefix}django_migrations"
        applied = GaugeMetricFamily(f"{start}_applied{end}", "Migrations that are applied.", labels=[label])
        unapplied = GaugeMetricFamily(f"{start}_unapplied{end}", "Migrations to be applied.", labels=[label])
        for alias in connections:
            with conf.log_errors():
                loader = MigrationLoader(connections[alias], ignore_no_migrations=True)
                known, done = set(loader.graph.nodes), set(loader.applied_migrations)
                applied.add_metric([alias], len(known & done))
                unapplied.add_metric([alias], len(known - done))
        yield applied
        yield unapplied


_STATE = _MigrationState()


def watch() -> None:
    """Let scrapes collect the state of migrations."""
    conf.REGISTRY.register(_STATE)
