"""``pdc get``: the series of one metric."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import click

from ..config import described
from ..dashboard import as_classic
from ..family import LEASE_SECONDS, TYPES, Family, Fields, explained, families
from ..storage import MARK, META, UPDATED, Snapshot, Storage, StorageError, marks_of, writers
from ..storage.labels import series_of as labels_of
from .places import Place, as_redis, suggestion, with_place
from .terminal import examples, print_table, printable
from .words import (
    Selector,
    ago,
    duration,
    last_seen,
    number,
    own_values,
    plural,
    series_of,
    some,
    spelled,
    state,
    value_cells,
    value_columns,
)


@click.command(epilog=examples("pdc get http_requests_total", 'pdc get \'http_requests{route="/",status="200"}\' --raw'))
@click.argument("selector", metavar="METRIC")
@click.option("--raw", is_flag=True, help="Show the fields as they are stored.")
@with_place
def get(place: Place, selector: str, raw: bool) -> None:
    """Show the series of a METRIC.

    It shows their values, the processes that wrote them and when, and when the metric expires. METRIC is a name, or a name
    with some labels of the series. The name of a sample, as in queries, will do.
    """
    wanted = Selector.parse(selector)
    storage = place.open()
    name, snapshot = found(storage, wanted)
    if raw:
        _print_fields(wanted, name, snapshot.metrics[name])
    else:
        _print_metric(wanted, name, snapshot, storage)


def found(storage: Storage, wanted: Selector) -> tuple[str, Snapshot]:
    """The metric that a selector means, and its fields. Raises ClickException where there is none."""
    snapshot = storage.read(wanted.names())
    for name in wanted.names():
        if name in snapshot.metrics:
            return name, snapshot
    hint = suggestion(wanted.name, storage.read().metrics)
    raise click.ClickException(f"{described(storage)} has no metric {wanted.name!r}{hint}")


def _print_fields(wanted: Selector, name: str, fields: Fields) -> None:
    stored = {**fields, **{MARK + writer: mark for writer, mark in marks_of(fields).items()}}
    chosen = sorted(field for field in stored if not wanted.labels or _matches(wanted, field))
    print_table(("Field", "Value"), [(field, str(stored[field])) for field in chosen])
    if not chosen:
        raise _no_series(wanted, name, "; without them, --raw shows all fields")


def _matches(wanted: Selector, field: str) -> bool:
    """True for a field of a series with the wanted labels."""
    try:
        return wanted.match(json.loads(labels_of(field) or ""))
    except ValueError:
        return False


def _print_metric(wanted: Selector, name: str, snapshot: Snapshot, storage: Storage) -> None:
    fields, now = snapshot.metrics[name], snapshot.now
    with explained(name):
        family = Family.from_meta(fields[META])
    if family.type not in TYPES:
        raise StorageError(f"metric {name!r} is a {family.type}, of a later version of pdc: --raw shows its fields")
    with explained(name):
        about = [*_about(family, fields, now, storage)]
    for line in about:
        click.echo(printable(line))
    (metric,) = families({name: as_classic(name, fields)}, now)
    every = series_of(metric)
    chosen = [series for series in every if wanted.match(dict(series.labels))]
    rows = [[spelled(each.labels), *value_cells(metric, each), _time(each.value("_created"), now)] for each in chosen]
    print_table(["Series", *value_columns(metric.type), "Begun"], rows)
    if own := list(_own_values(family, fields, now, wanted)):
        print_table(["Process", "Series", "Value ", "Set", "State"], own, title="Values of processes")
    seen = [[writer, last_seen(then, now), state(then, now)] for writer, then in writers([fields]).items()]
    print_table(["Process", "Seen", "State"], seen, title="Written by")
    if not chosen and wanted.labels:
        raise _no_series(wanted, name, some(every))


def _no_series(wanted: Selector, name: str, more: str) -> click.ClickException:
    labels = spelled(wanted.labels.items())
    return click.ClickException(f"metric {name!r} has no series with the labels {labels}{more}")


def _time(then: float, now: float) -> str:
    return "-" if math.isnan(then) else ago(then, now)


def _about(family: Family, fields: Fields, now: float, storage: Storage) -> Iterator[str]:
    """The description of the metric: type, help, mode, limits, expiry."""
    unit = f", in {family.unit}" if family.unit else ""
    mode = f", multiprocess_mode={family.mode}" if family.type == "gauge" else ""
    yield f"{family.name}: {family.type}{unit}{mode}. {family.documentation}"
    if family.live:
        yield f"A process counts for {LEASE_SECONDS:g} s after it was last seen."
    if family.max_series:
        yield f"It has {plural(int(family.max_series), 'series')} at most."
    if family.expire_series:
        idle = [float(str(value).split()[-1]) for field, value in fields.items() if field.startswith(UPDATED)]
        next_one = f"; the next one in {duration(max(min(idle) + family.expire_series - now, 0))}" if idle else ""
        yield f"A series goes {duration(family.expire_series)} after its last update{next_one}."
    if (redis := as_redis(storage)) is not None:
        gone_at = redis.keys.expiries().get(family.name, math.inf)
        when = "never" if math.isinf(gone_at) else f"within {duration(max(gone_at - now, 0.0))}, unless a process renews it"
        yield f"It expires {when}."


def _own_values(family: Family, fields: Fields, now: float, wanted: Selector) -> Iterator[list[str]]:
    """The values of single processes of a gauge in a mode other than ``shared``."""
    seen = writers([fields])
    for own in own_values(family, fields):
        labels = json.loads(own.labels)
        if wanted.match(labels):
            about = state(seen.get(own.writer, 0.0), now) if own.writer else "gone"
            yield [own.writer or "(ended)", spelled(labels.items()), number(own.value), ago(own.set_at, now), about]
