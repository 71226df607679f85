"""The app: it sets the storage up once per process, without I/O, and connects all hooks."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.core.signals import got_request_exception, setting_changed
from django.db.backends.signals import connection_created

from . import caches, changes, checks, conf, databases, middleware, migration_state


class PDCConfig(AppConfig):
    """``INSTALLED_APPS += ["pdc_django"]``."""

    name = "pdc_django"
    verbose_name = "Prometheus metrics"

    def ready(self) -> None:
        """Start in this process."""
        register(checks.check, Tags.compatibility)
        setting_changed.connect(conf.reload)
        conf.start()
        middleware.watch_views()
        got_request_exception.connect(middleware.note_unhandled)
        connection_created.connect(databases.watch)
        caches.watch()
        changes.watch()
        migration_state.watch()
