"""``pdc migrate``: the data of version 2 is taken over now, not with the first sends of programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import click

from ..config import described
from ..family import Family, bucket_bounds
from ..storage import Batch, Storage, Update
from ..storage.version2 import SUFFIXES, taken_over
from .places import Place, as_redis, as_sqlite, with_place
from .terminal import busy, examples, print_table, progress
from .words import plural

MOVED, KNOWN = "taken over", "is there already"
LE = "le"


class Old(NamedTuple):
    """A metric of version 2."""

    name: str
    fields: Mapping[str, Any]
    is_known: bool
    """True where version 3 has the metric, or had it once."""


@click.command(epilog=examples("pdc migrate --redis redis://localhost:6379/0 --prefix shop --dry-run"))
@with_place
@click.option("--dry-run", is_flag=True, help="Show what would be taken over.")
def migrate(place: Place, dry_run: bool) -> int:
    """Take over the data of version 2 now. Without this command, each metric follows with its first send by version 3.

    Stop the programs of version 2 first: their later counts stay behind. Version 2's data stays as it is. Version 2 stored no
    help: it comes with the first program that declares the metric. In Redis the metrics expire as those of a program do. The
    exit code is 1 where a metric cannot be taken over.
    """
    storage = place.open()
    with busy("Reading"):
        found = sorted(_found(storage))
    rows = [_move(storage, old, dry_run=dry_run) for old in progress(found, "Taking over")]
    print_table(("Metric", "Type", "Fields ", "Result"), rows)
    moved = sum(row[-1] == MOVED for row in rows)
    verb = "would be taken over" if dry_run else MOVED
    click.echo(f"{described(storage)}: {plural(moved, 'metric')} of version 2 {verb}, of {len(rows)}", err=True)
    return 0 if all(row[-1] in (MOVED, KNOWN) for row in rows) else 1


def _move(storage: Storage, old: Old, *, dry_run: bool) -> tuple[str, str, str, str]:
    """Take over a metric, and return its row."""
    count = str(len(old.fields))
    try:
        family = family_of(old.name, old.fields)
        taken_over(old.fields, family.meta)
    except ValueError as error:
        return old.name, "?", count, str(error)
    if not old.is_known and not dry_run:
        writer = f"migrate-{os.urandom(8).hex()}"
        storage.apply(Batch(writer, 1, [Update(old.name, family.meta, [])]))
        storage.apply(Batch(writer, 2, [Update(old.name, "", [])], final=True))
    return old.name, family.type, count, KNOWN if old.is_known else MOVED


def family_of(name: str, fields: Mapping[str, Any]) -> Family:
    """The family that has these fields of version 2, as far as they show it. Raises ValueError."""
    found = {field.partition(":")[0] for field in fields}
    kind = next((kind for kind, suffixes in SUFFIXES.items() if found <= suffixes), None)
    if kind is None or found == {"_created"}:
        raise ValueError(f"its fields begin with {', '.join(sorted(found))}, as those of no type do")
    labels = [json.loads(field.partition(":")[2]) for field in fields]
    names = {tuple(name for name in each if kind != "histogram" or name != LE) for each in labels}
    if len(names) != 1:
        raise ValueError("its series have labels of different names")
    bounds = bucket_bounds(sorted({float(each[LE]) for each in labels if LE in each})) if kind == "histogram" else ()
    return Family(name, kind, "", labelnames=names.pop(), bounds=bounds)


def _found(storage: Storage) -> Iterator[Old]:
    """The metrics of version 2. The driver of the other kind of storage may be missing."""
    known = set(storage.read().metrics)
    if (redis := as_redis(storage)) is not None:
        from .version2_redis import metrics, noted

        found: Mapping[str, Mapping[str, Any]] = dict(metrics(redis))
        known |= noted(redis)
    elif (sqlite := as_sqlite(storage)) is not None:
        from .version2_sqlite import contents

        found, more = contents(sqlite)
        known |= more
    else:
        raise click.ClickException(f"{described(storage)} cannot have data of version 2")
    for name, fields in found.items():
        yield Old(name, fields, name in known)
