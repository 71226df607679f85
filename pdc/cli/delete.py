"""``pdc delete`` and ``pdc clear``: metrics and series go from a storage."""

from __future__ import annotations

import sys

import click

from ..config import described
from ..family import Family, Fields, dump, explained
from ..storage import META, Batch, Kind, Operation, Storage, Update, new_id
from .get import found
from .places import Place, with_place
from .terminal import busy, examples
from .words import Selector, plural, series_of, some, spelled

YES = click.option("--yes", "-y", "is_agreed", is_flag=True, help="Do not ask.")


@click.command(epilog=examples("pdc delete old_jobs", "pdc delete 'http_requests{route=\"/old\"}' --yes"))
@click.argument("selector", metavar="METRIC")
@YES
@with_place
def delete(place: Place, selector: str, is_agreed: bool) -> None:
    """Delete a METRIC, or series of it.

    With labels, the series that have these go. A process that counts on begins a deleted series again with its next update,
    from 0. So do metrics without labels. Series with labels that nobody updates stay away. It asks first, unless --yes is
    given.
    """
    wanted = Selector.parse(selector)
    storage = place.open()
    name, snapshot = found(storage, wanted)
    if wanted.labels:
        count = _matching(wanted, name, snapshot.metrics[name], snapshot.now)
        what = f"{count} series of {name}"
    else:
        what = f"the metric {name}"
    _expect_agreement(f"Delete {what} from {described(storage)}?", is_agreed=is_agreed)
    with busy("Deleting"):
        if wanted.labels:
            _delete_series(storage, name, wanted)
        else:
            storage.delete([name])
    click.echo(f"deleted {what}", err=True)


def _matching(wanted: Selector, name: str, fields: Fields, now: float) -> int:
    """The count of series with these labels. Raises ClickException where there are none."""
    with explained(name):
        family = Family.from_meta(fields[META])
    unknown = wanted.labels.keys() - set(family.labelnames)
    if unknown:
        known = ", ".join(family.labelnames) or "none"
        raise click.ClickException(f"metric {name!r} has the labels {known}, got {', '.join(sorted(unknown))}")
    every = series_of(family.metric(fields, now))
    count = sum(wanted.match(dict(series.labels)) for series in every)
    if not count:
        raise click.ClickException(
            f"metric {name!r} has no series with the labels {spelled(wanted.labels.items())}{some(every)}"
        )
    return count


def _delete_series(storage: Storage, name: str, wanted: Selector) -> None:
    operation = Operation(Kind.DELETE, dump(wanted.labels))
    storage.remove(Batch(new_id().removeprefix("#id:"), 1, [Update(name, "", [operation])]))


@click.command(epilog=examples("pdc clear --redis redis://localhost:6379/0 --prefix shop"))
@YES
@with_place
def clear(place: Place, is_agreed: bool) -> None:
    """Delete all metrics.

    Those with other prefixes stay. It asks first, unless --yes is given. Metrics of processes that run come back with their
    next updates, from 0.
    """
    storage = place.open()
    with busy("Reading"):
        count = plural(len(storage.read().metrics), "metric")
    _expect_agreement(f"Delete {count} from {described(storage)}?", is_agreed=is_agreed)
    with busy("Deleting"):
        storage.delete()
    click.echo(f"deleted {count}", err=True)


def _expect_agreement(question: str, *, is_agreed: bool) -> None:
    """Ask, unless the user has agreed. Raises Abort for a no, and UsageError where nobody can answer."""
    if is_agreed:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("the standard input is no terminal to ask on: agree with --yes", click.get_current_context())
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing is deleted")
