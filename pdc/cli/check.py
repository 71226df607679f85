"""``pdc check``: faults of a storage and their remedies."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ..config import described
from ..storage import Storage
from .findings import ERROR, OK, WARNING, Finding, of_journals, of_scrape
from .places import Place, as_redis, as_sqlite, with_place
from .terminal import busy, examples, print_table
from .words import plural


@click.command(epilog=examples("pdc check --redis redis://localhost:6379/0 --prefix shop"))
@with_place
def check(place: Place) -> int:
    """Find the faults of a storage.

    It looks at reach, rights, version, clock, memory, the cost of a scrape, journals, and keys of others. Each fault has its
    remedy. The exit code is 1 where there is an error; warnings alone give 0.
    """
    storage = place.open()
    with busy("Checking"):
        findings = [*_of_kind(storage)]
        if all(each.subject != "reach" or each.level != ERROR for each in findings):
            findings += of_scrape(storage)
        findings += of_journals(storage, place.options)
    print_table(("Level", "Subject", "Finding", "Remedy"), findings)
    errors, warnings = (sum(each.level == level for each in findings) for level in (ERROR, WARNING))
    click.echo(f"{described(storage)}: {plural(errors, 'error')}, {plural(warnings, 'warning')}", err=True)
    return 1 if errors else 0


def _of_kind(storage: Storage) -> Iterator[Finding]:
    """The findings of one kind of storage. It is imported here, as the driver may be missing."""
    if (redis := as_redis(storage)) is not None:
        from .findings_redis import of_redis

        yield from of_redis(redis)
    elif (sqlite := as_sqlite(storage)) is not None:
        from .findings_sqlite import of_sqlite

        yield from of_sqlite(sqlite)
    else:
        yield Finding(OK, "storage", described(storage))
