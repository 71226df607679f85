"""Delete all metrics from the storage."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

import pdc
from pdc import config


class Command(BaseCommand):
    """``manage.py clear_metrics``."""

    help = "Delete all metrics from the storage, for all processes."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take ``--no-input``, as Django's own commands do."""
        parser.add_argument("--noinput", "--no-input", action="store_false", dest="interactive", help="do not ask")

    def handle(self, *_: Any, interactive: bool, **__: Any) -> None:
        """Ask, then delete."""
        if interactive:
            _expect_agreement()
        try:
            config.expect_on()
            pdc.clear()
        except (pdc.StorageError, pdc.NotConfigured) as error:
            raise CommandError(str(error)) from error
        self.stdout.write("All metrics are deleted.")


def _expect_agreement() -> None:
    """Ask. Raises CommandError for a no, and where nobody can answer."""
    try:
        answer = input("Delete all metrics, of all processes? Type 'yes': ")
    except EOFError:
        raise CommandError("nothing was deleted, for there is no terminal to ask on: agree with --no-input") from None
    if answer != "yes":
        raise CommandError("nothing was deleted")
