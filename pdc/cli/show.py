"""``pdc show``: all metrics of a storage."""

from __future__ import annotations

import click

from ..config import described
from ..family import TYPES, Family, Fields, explained
from ..storage import META, Snapshot, StorageError, writers
from .places import Place, as_redis, with_place
from .terminal import busy, examples, print_table
from .words import last_seen, plural, series_of, state, summary

COLUMNS = ("Metric", "Type", "Series ", "Value ", "Written", "Help")


@click.command(epilog=examples("pdc show --sqlite metrics.db"))
@with_place
def show(place: Place) -> None:
    """Show all metrics.

    Each has its type, its count of series, its value, its last write and its help. The value of a counter is the sum of its
    series. Of a histogram or a summary it is the count times the mean, and of a gauge with several series the range. Into a
    pipe go columns with a tab between them.
    """
    storage = place.open()
    with busy("Reading"):
        snapshot = storage.read()
    rows = [_row(name, fields, snapshot.now) for name, fields in sorted(snapshot.metrics.items())]
    print_table(COLUMNS, rows)
    click.echo(f"{described(storage)}: {plural(len(rows), 'metric')}, {_processes(snapshot)}", err=True)
    if not rows and as_redis(storage) is not None:
        click.echo("no metric has this prefix: `pdc check` lists the other prefixes of this database", err=True)


def _row(name: str, fields: Fields, now: float) -> tuple[str, ...]:
    """The row of a metric; one that pdc did not write shows the reason in place of its help."""
    written = writers([fields])
    last = last_seen(next(iter(written.values())), now) if written else "-"
    try:
        with explained(name):
            family = Family.from_meta(fields[META])
        if family.type not in TYPES:
            return name, family.type, "-", "-", last, "of a later version of pdc"
        metric = family.metric(fields, now)
    except StorageError as error:
        return name, "?", "-", "-", last, str(error)
    return name, family.type, str(len(series_of(metric))), summary(metric), last, family.documentation


def _processes(snapshot: Snapshot) -> str:
    """The count of processes that are alive, of all that wrote."""
    seen = writers(snapshot.metrics.values()).values()
    alive = [each for each in seen if state(each, snapshot.now) == "alive"]
    return f"{plural(len(alive), 'process')} alive of {len(seen)}"
