"""``pdc copy``: the metrics of one storage are added to another one."""

from __future__ import annotations

import time
from typing import NamedTuple

import click

from ..config import described
from ..family import TYPES, Family, Fields, explained
from ..storage import META, Batch, Snapshot, Storage, StorageError, Update
from .copying import LIMIT, Copier, Part
from .places import Place, as_redis
from .terminal import busy, examples, progress
from .words import plural


class Target(NamedTuple):
    """The storage that gets the metrics, and the writer that it knows the source by."""

    storage: Storage
    writer: str
    snapshot: Snapshot


@click.command(epilog=examples("pdc copy metrics.db redis://localhost:6379/0 --to-prefix shop"))
@click.argument("source", metavar="FROM", type=click.Path())  # shells complete paths
@click.argument("target", metavar="TO", type=click.Path())
@click.option("--from-prefix", metavar="TEXT", help="The redis_prefix of FROM.")
@click.option("--to-prefix", metavar="TEXT", help="The redis_prefix of TO.")
def copy(source: str, target: str, from_prefix: str | None, to_prefix: str | None) -> None:
    """Add the metrics of a storage to another one.

    FROM and TO are a URL of Redis, or the path of a SQLite file. TO notes what it has got from FROM. So a second copy adds
    only the counts since the first one: copy, move the programs from FROM to TO, and copy again once the last one has moved.
    No count is lost or doubled then, and processes may count in both storages meanwhile. FROM stays as it is. Values of living
    processes (multiprocess_mode live... and all) are not copied. Run one copy between two storages at a time.
    """
    from_storage = Place.named("FROM", source, from_prefix or "").open()
    to_storage = Place.named("TO", target, to_prefix or "").connect()
    if from_storage.identity == to_storage.identity:
        raise click.UsageError(f"expected two storages, got {described(from_storage)} twice", click.get_current_context())
    with busy("Reading"):
        origin, snapshot = from_storage.id(), from_storage.read()
        if not snapshot.metrics:
            remedy = "; `pdc check` lists the prefixes of this database" if as_redis(from_storage) is not None else ""
            raise click.ClickException(f"FROM, {described(from_storage)}, has no metrics{remedy}")
        before = to_storage.read(list(snapshot.metrics))
    if origin and origin == to_storage.id():
        raise click.ClickException("FROM and TO are the same storage by two names")
    goal = Target(to_storage, f"copy-{origin.removeprefix('#id:')}"[:32], before)
    series, left_out = 0, []
    for name in progress(sorted(snapshot.metrics), "Copying"):
        copied = _copy(name, snapshot, goal)
        series += copied or 0
        left_out += [name] if copied is None else []
    click.echo(
        f"{plural(len(snapshot.metrics) - len(left_out), 'metric')} copied, {plural(series, 'series')} had changed", err=True
    )
    if left_out:
        click.echo(f"left out, as they are values of living processes: {', '.join(left_out)}", err=True)


def _copy(name: str, snapshot: Snapshot, target: Target) -> int | None:
    """Copy a metric, and return how many series had changed; None for a metric of living processes alone."""
    fields = snapshot.metrics[name]
    with explained(name):
        family = Family.from_meta(fields[META])
    if family.type not in TYPES:
        raise StorageError(f"metric {name!r} is a {family.type}, of a later version of pdc: copy with that one")
    if family.live or family.mode == "all":
        return None
    there = target.snapshot.metrics.get(name, {})
    _expect_same_type(family, there)
    copier = Copier(family, target.writer, there)
    parts = copier.values_of(fields, snapshot.now) if family.lasting else copier.numbers_of(fields)
    with explained(name):
        changed = [part for part in parts if part.operations]
    for first in range(0, len(changed), LIMIT):
        _send(family, changed[first : first + LIMIT], target)
    if not changed and META not in there:
        _send(family, [], target)
    if not family.lasting and (changed or META not in there):
        _apply(target, Update(name, "", []), final=True)
    return len(changed)


def _expect_same_type(family: Family, there: Fields) -> None:
    """Raise StorageError where the other storage has a metric of that name with values of another kind."""
    if META in there:
        with explained(family.name):
            other = Family.from_meta(there[META])
        if (other.type, other.mode) != (family.type, family.mode):
            kinds = f"{family.type} ({family.mode}) in FROM and {other.type} ({other.mode}) in TO"
            raise StorageError(f"metric {family.name!r} is {kinds}: delete or rename one of them")


def _send(family: Family, parts: list[Part], target: Target) -> None:
    operations = [operation for part in parts for operation in part.operations]
    _apply(target, Update(family.name, family.meta, operations))


def _apply(target: Target, update: Update, *, final: bool = False) -> None:
    """Send a batch. Sequences rise from copy to copy, as the time does. Raises StorageError where it is refused."""
    sequence = time.time_ns() // 1_000
    outcome = target.storage.apply(Batch(target.writer, sequence, [update], final=final))
    if outcome.refused:
        raise StorageError(f"metric {update.name!r} is refused: {outcome.refused[update.name]}")
