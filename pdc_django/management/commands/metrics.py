"""Print all metrics of the storage."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

import pdc
from pdc import config
from pdc_django import conf


class Command(BaseCommand):
    """``manage.py metrics``."""

    help = "Print all metrics of the storage, as the metrics page shows them."
    requires_system_checks = ()

    def handle(self, *_: Any, **__: Any) -> None:
        """Print them in the text format."""
        try:
            config.expect_on()
            self.stdout.write(pdc.generate_latest(conf.REGISTRY).decode(), ending="")
        except (pdc.StorageError, pdc.NotConfigured) as error:
            raise CommandError(str(error)) from error
