"""``pdc top``: the rates of a storage, live."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import click

from ..config import described
from ..storage import Storage, StorageError, writers
from .places import Place, with_place
from .rates import Moment, Rates, in_progress
from .terminal import examples, made_table, printable
from .words import QUANTILES, duration, number, plural, state

if TYPE_CHECKING:
    from rich.console import RenderableType

WINDOW_SECONDS = 15.0
"""The time that rates and quantiles are of."""
LINES_OF_FRAME = 5


class View(NamedTuple):
    """The result of a read."""

    place: str
    state: str
    moment: Moment | None = None
    """None where the storage could not be read."""


@click.command(epilog=examples("pdc top --redis redis://localhost:6379/0 --prefix shop"))
@with_place
@click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two reads.")
def top(place: Place, interval: float) -> None:
    """Show rates and latencies, live.

    It shows requests, latencies and errors by route, other rates, and living processes. The key q quits. Rates and quantiles
    are of the last 15 seconds.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("it needs a terminal; `pdc show` writes into pipes", click.get_current_context())
    storage = place.open()
    from rich.console import Console
    from rich.live import Live

    moments: deque[Moment] = deque()
    console = Console(highlight=False)
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            view = _read(storage)
            if view.moment is not None:
                keep(moments, view.moment)
            live.update(_screen(view, moments, console.height), refresh=True)
            if _quits_within(interval):
                return


def keep(moments: deque[Moment], moment: Moment) -> None:
    """Add the moment, and drop those that are too old, or later by a clock that was set back since."""
    if moments and moment.at < moments[-1].at:
        moments.clear()
    moments.append(moment)
    while len(moments) > 2 and moments[1].at <= moment.at - WINDOW_SECONDS:
        moments.popleft()


def _read(storage: Storage) -> View:
    began = time.monotonic()
    where = described(storage)
    try:
        snapshot = storage.read()
        moment = Moment.of(snapshot)
        alive = sum(state(seen, snapshot.now) == "alive" for seen in writers(snapshot.metrics.values()).values())
    except StorageError as error:
        return View(where, str(error))
    took = duration(time.monotonic() - began)
    active = in_progress(moment)
    running = "" if active is None else f", {number(active)} requests in progress"
    return View(
        where, f"{plural(alive, 'process')} alive{running}, {plural(len(moment.series), 'metric')}, read in {took}", moment
    )


def _screen(view: View, moments: deque[Moment], height: int) -> RenderableType:
    """The head, then as many routes as there is room for, then other series."""
    from rich.console import Group
    from rich.text import Text

    head = Text(printable(view.place), no_wrap=True, overflow="ellipsis")
    about = Text(printable(view.state), style="bold" if view.moment is not None else "bold red")
    if len(moments) < 2:
        return Group(head, about, Text("the first rates follow; q quits"))
    rates = Rates(moments[0], moments[-1])
    routes, others = rates.routes(), rates.others()
    room = max(height - LINES_OF_FRAME, 2)
    shown_routes = routes[: max(room // 2, room - len(others) - 1)]
    parts: list[RenderableType] = [head, about, Text("")]
    if shown_routes:
        columns = ("Route", "Requests/s ", "Errors ", *(f"p{100 * each:g} " for each in QUANTILES))
        rows = [_route_cells(row.route, row.rate, row.errors, row.quantiles) for row in shown_routes]
        parts.append(made_table(columns, rows, fold=False))
    left = room - (len(shown_routes) + 1 if shown_routes else 0) - 1
    if others and left > 0:
        cells = [(row.name, f"{row.rate:.2f}", number(row.mean) if not math.isnan(row.mean) else "-") for row in others[:left]]
        parts.append(made_table(("Series", "Rate/s ", "Mean "), cells, fold=False))
    if not routes and not others:
        parts.append(Text("nothing is counted at the moment"))
    return Group(*parts)


def _route_cells(route: str, rate: float, errors: float, quantiles: tuple[float, ...]) -> tuple[str, ...]:
    times = ("-" if math.isnan(each) else f"{each * 1000:.0f} ms" if each < 1 else f"{each:.2f} s" for each in quantiles)
    return route, f"{rate:.2f}", f"{errors:.1%}", *times


@contextmanager
def _keys() -> Iterator[None]:
    """Let keys come one by one and unseen, and give the terminal back as it was, also where a signal ends the command."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    signal.signal(signal.SIGTERM, _end)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _quits_within(seconds: float) -> bool:
    """Wait so long for the key that quits."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([sys.stdin], [], [], left)
        if readable and (not (keys := os.read(sys.stdin.fileno(), 100)) or b"q" in keys.lower()):
            return True
    return False
