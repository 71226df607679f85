"""Fuzzing of code that reads foreign bytes: `make fuzz` lets atheris search input that breaks promises, target by target.

pytest does not run it: a run has no end of its own.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["pdc"]):
    import pdc
    from pdc.delivery import Buffer
    from pdc.delivery.journal import DamagedJournal, Journals, batches, written
    from pdc.exposition import Scrape
    from pdc.exposition.rendering import Encoder, Renderer
    from pdc.family import Family, dump
    from pdc.storage import META, Snapshot, StorageError
    from pdc.storage.labels import Selectors, around_bound, series_of
    from pdc.storage.sqlite import SqliteStorage

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

NOW = 1_700_000_000.0
TYPES = ("counter", "gauge", "summary", "histogram", "info", "stateset", "later")
MODES = ("shared", "all", "sum", "livemostrecent", "later")
COUNTS = ("", "_total:", "_created:", "_sum:", "_count:", "_bucket:", "_info:", ":")
PREFIXES = (*COUNTS, "#mark:", "#sum:a:", "#live:a:", "#exemplar_total:")
LABELS = ("{}", '{"a":"b"}', '{"le":"1.0"}', '{"a":"","le":"+Inf"}', '{"a":1}', "[]", "{", '{"a":"\\ud800"}')
VALUES: tuple[Any, ...] = (0, 1.5, "2", "nan", "-inf", "1 2", "[{},1,2]", '{"a":"b"}', None)


def exposition(data: atheris.FuzzedDataProvider) -> None:
    """For any fields of a metric, a scrape is text that parses, or a StorageError."""

    def text() -> str:
        return str(data.ConsumeUnicode(data.ConsumeIntInRange(0, 12)))

    def pick(choices: tuple[Any, ...]) -> Any:
        return data.PickValueInList([*choices, text()])

    name, bounds = data.PickValueInList(["m", "m.é", "a b"]), (pick(("1.0", "+Inf")),)
    family = Family(name, pick(TYPES), text(), text(), (text(),), pick(MODES), bounds, (text(),))
    fields = {META: pick((family.meta, "{}", "[]"))}
    for _ in range(data.ConsumeIntInRange(0, 8)):
        fields[pick(PREFIXES) + pick(LABELS)] = pick(VALUES)
    for openmetrics in (False, True):
        try:
            rendered = Renderer().render(Snapshot(NOW, {family.name: dict(fields)}), Encoder(openmetrics), lambda _: b"")
        except StorageError:
            continue
        if openmetrics:
            rendered.decode()
        else:
            list(text_string_to_metric_families(rendered.decode()))


def codec(data: atheris.FuzzedDataProvider) -> None:
    """Labels come back from a subkey unchanged, and the subkey is found by them."""
    labels = {data.ConsumeUnicodeNoSurrogates(8): data.ConsumeUnicodeNoSurrogates(20) for _ in range(4)}
    spelled = dump(labels)
    assert spelled.isascii()
    assert json.loads(spelled) == labels
    bucket = "1.0".join(around_bound(spelled))
    assert series_of(f"_bucket:{bucket}") == series_of(f"_sum:{spelled}") == spelled
    assert bucket == dump({**labels, "le": "1.0"})
    assert Selectors([dict(list(labels.items())[:2])]).match_text(spelled)
    series_of(data.ConsumeUnicode(40))
    Selectors([labels]).match_text(data.ConsumeUnicode(40))


def scrape(data: atheris.FuzzedDataProvider) -> None:
    """Any request of a client gets an answer."""
    words = [data.ConsumeUnicode(data.ConsumeIntInRange(0, 40)) for _ in range(4)]
    method = data.PickValueInList(["GET", "HEAD", "OPTIONS", words[0]])
    accept = data.PickValueInList(["application/openmetrics-text;", "text/plain;", "*/*,", ""]) + words[1]
    answer = Scrape(method, f"name[]={words[2]}&{words[2]}", accept, words[3]).answer()
    assert answer.status in (200, 405), answer
    assert dict(answer.headers)["Content-Length"].isdigit()


def journal(data: atheris.FuzzedDataProvider) -> None:
    """A journal with any damage is a DamagedJournal, or sends batches that a storage can apply."""
    content = bytearray(JOURNAL)
    for _ in range(data.ConsumeIntInRange(1, 20)):
        content[data.ConsumeIntInRange(0, len(content) - 1)] = data.ConsumeIntInRange(0, 255)
    try:
        left = list(batches(bytes(content[: data.ConsumeIntInRange(0, 2 * len(content))]), time.time()))
    except DamagedJournal:
        return
    for batch in left:
        APPLIED.apply(batch._replace(writer=str(time.monotonic_ns())))


def _journal() -> bytes:
    """A journal with metrics of every kind, as a killed process leaves it."""
    buffer, folder = Buffer(), FOLDER / "journals"
    registry = CollectorRegistry()

    def own(kind: type[Any], *arguments: Any, **options: Any) -> Any:
        return type(kind.__name__, (kind,), {"buffer": buffer})(*arguments, registry=registry, **options)

    counter, level = own(pdc.Counter, "hits", "Hits.", ["path"]), own(pdc.Gauge, "level", "Level.")
    buffer.attach(
        SqliteStorage(FOLDER / "left.db"), 3600.0, None, thread=threading.get_ident(), journals=Journals(folder, "fuzz")
    )
    counter.labels("/").inc(2)
    level.set(3)
    own(pdc.Gauge, "total", "Total.", multiprocess_mode="sum").set(4)
    own(pdc.Histogram, "wait", "Wait.").observe(1)
    own(pdc.Info, "about", "About.").info({"version": "1"})
    counter.remove("/")
    counter.labels("/b").inc()
    (path,) = folder.iterdir()
    with path.open("rb") as opened:
        return written(opened.fileno())


TARGETS: dict[str, Callable[[atheris.FuzzedDataProvider], None]] = {
    target.__name__: target for target in (exposition, codec, scrape, journal)
}

if __name__ == "__main__":
    logging.disable()
    FOLDER = Path(tempfile.mkdtemp(prefix="pdc-fuzz-"))
    JOURNAL, APPLIED = _journal(), SqliteStorage(FOLDER / "applied.db")
    pdc.setup(sqlite=FOLDER / "metrics.db")
    pdc.Counter("hits", "Hits.", ["path"]).labels("/").inc()
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, lambda content: target(atheris.FuzzedDataProvider(content)))
    atheris.Fuzz()
