"""The findings of ``pdc check``, and those that every storage has: the read, the scrape, the writers, the journals."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..delivery import health
from ..delivery.journal import default_folders
from ..delivery.journal.folder import SUFFIX
from ..delivery.journal.layout import HEADER, MAGIC, OWNER, fingerprint, text_of
from ..delivery.journal.left import DAMAGED
from ..exposition import Encoder
from ..family import Page, families, known_families
from ..options import Options
from ..process.files import life
from ..storage import META, Snapshot, Storage, StorageError, writers
from .words import duration, plural, state

OK, WARNING, ERROR = "ok", "warning", "ERROR"
SLOW_SECONDS, TOO_SLOW_SECONDS = 1.0, 10.0
"""A scrape that takes so long is a warning, or an error: Prometheus gives up after 10 s by default."""


class Finding(NamedTuple):
    """A statement about a storage, and the remedy where it is one of a fault."""

    level: str
    subject: str
    text: str
    remedy: str = ""


def of_scrape(storage: Storage) -> Iterator[Finding]:
    """Read and render all metrics, as a scrape does."""
    began = time.monotonic()
    try:
        snapshot = storage.read()
        read_seconds = time.monotonic() - began
        page = Encoder().encode(families(snapshot.metrics, snapshot.now))
    except StorageError as error:
        yield Finding(ERROR, "scrape", str(error), "a scrape is a 503 until then")
        return
    seconds = time.monotonic() - began
    lines = sum(not line.startswith(b"#") for line in page.splitlines())
    text = f"{lines} samples, {len(page):,} bytes, {duration(seconds)} ({duration(read_seconds)} of it to read)"
    level = ERROR if seconds > TOO_SLOW_SECONDS else WARNING if seconds > SLOW_SECONDS else OK
    remedy = "" if level == OK else "give metrics fewer labels, max_series or expire_series; `pdc show` counts their series"
    yield Finding(level, "scrape", text, remedy)
    yield from _of_metrics(snapshot)


def _of_metrics(snapshot: Snapshot) -> Iterator[Finding]:
    described = {name: fields for name, fields in snapshot.metrics.items() if META in fields}
    shown = {name for name, _ in known_families(described, Page())}
    for name in sorted(described.keys() - shown):
        text = f"{name} is on no page: it shares the name of a sample with another metric, or is of a later version"
        yield Finding(WARNING, "metrics", text, f"rename it, or `pdc delete {name}`")
    seen = writers(snapshot.metrics.values()).values()
    alive = sum(state(each, snapshot.now) == "alive" for each in seen)
    idle = sum(state(each, snapshot.now) == "idle or gone" for each in seen)
    text = f"{plural(alive, 'process')} alive, {idle} idle or gone a short while ago"
    if alive or idle:
        yield Finding(OK, "writers", text)
    else:
        yield Finding(WARNING, "writers", text, "check that the programs which count use this storage, with this prefix")
    refused = _total(snapshot, health.SERIES_REFUSED.name)
    if refused:
        text = f"{refused:.0f} updates of series over max_series counted as <overflow>"
        yield Finding(WARNING, "metrics", text, "give these metrics fewer labels, or a higher max_series")


def _total(snapshot: Snapshot, name: str) -> float:
    return float(snapshot.metrics.get(name, {}).get("_total:{}", 0.0))


def of_journals(storage: Storage, options: Options) -> Iterator[Finding]:
    """Look for journals of dead processes on this host. It takes no lock: a process may be about to send them."""
    folders = [Path(options.journal)] if isinstance(options.journal, str) else default_folders()
    prefix = fingerprint(storage.identity or "")
    left, damaged = [], []
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - the names are enough
        except OSError:  # there is none, or it is another user's
            continue
        damaged += [folder / name for name in names if name.startswith(prefix) and name.endswith(DAMAGED)]
        left += [
            folder / name for name in names if name.startswith(prefix) and name.endswith(SUFFIX) and _is_left(folder / name)
        ]
    if left:
        age = duration(time.time() - min(path.stat().st_mtime for path in left))
        text = f"{plural(len(left), 'journal')} of dead processes in {left[0].parent}, the oldest {age} old"
        remedy = "the next process of this user that counts here sends them; if none does, look at its log"
        yield Finding(WARNING, "journals", text, remedy)
    else:
        yield Finding(OK, "journals", "no dead process of this user left one on this host")
    for path in damaged:
        yield Finding(WARNING, "journals", f"{path} cannot be read, and was set aside", "delete it: its updates are lost")


def _is_left(path: Path) -> bool:
    """True for a journal whose owner does not live, as far as this process can see."""
    try:
        with path.open("rb") as file:
            header = file.read(HEADER)
    except OSError:
        return False
    owner = text_of(header, OWNER)
    pid = owner.partition(" ")[0]
    return header[: len(MAGIC)] == MAGIC and not (pid.isdecimal() and life(int(pid)) == owner)
