"""How many migrations are applied, read from the databases when metrics are scraped, and only then."""

from __future__ import annotations

from collections.abc import Iterator

from django.db import connections
from django.db.migrations.loader import MigrationLoader
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from . import conf


class _MigrationState(Collector):
    """Gauges of this process's code and the databases it sees; a database that cannot be read has none."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the migrations of every database, if PDC_DJANGO_MIGRATIONS asks for it."""
        options = conf.active()
        if options is None or not options.django_migrations:
            return
        prefix = f"{options.namespace}_" if options.namespace else ""
        applied = GaugeMetricFamily(f"{prefix}django_migrations_applied", "Migrations that are applied.", labels=["alias"])
        unapplied = GaugeMetricFamily(f"{prefix}django_migrations_unapplied", "Migrations to be applied.", labels=["alias"])
        for alias in connections:
            with conf.harmless():
                loader = MigrationLoader(connections[alias], ignore_no_migrations=True)
                known, done = set(loader.graph.nodes), set(loader.applied_migrations)
                applied.add_metric([alias], len(known & done))
                unapplied.add_metric([alias], len(known - done))
        yield applied
        yield unapplied


registry = CollectorRegistry(auto_describe=False)
registry.register(_MigrationState())
