"""``pdc run``: another program, unmodified, whose metrics of plain prometheus_client classes are in the storage."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import click
from click.shell_completion import CompletionItem

from ..metrics import Mode
from ..options import Options
from .places import OF_STORAGES, Place, with_place
from .terminal import examples, printable

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes, as shells have them."""
SITE = Path(__file__).parent / "site"
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores. A program that replaces it would go on to."""


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog=examples("pdc run --redis redis://localhost:6379/0 --prefix shop -- gunicorn --workers 4 shop:app"),
)
@with_place
@click.option(
    "--flush-interval",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="The time between two batches (else PDC_FLUSH_INTERVAL, 1; 0: each update at once).",
)
@click.option(
    "--gauge-mode",
    type=click.Choice(get_args(Mode)),
    metavar="MODE",
    help="The mode of gauges that name none (else that of PDC_INSTALL, shared).",
)
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=lambda *_: [CompletionItem("", type="file")]
)
def run(place: Place, flush_interval: float | None, gauge_mode: str | None, command: tuple[str, ...]) -> int:
    """Run a program with its metrics in the storage.

    The program stays as it is: its metrics of plain prometheus_client classes, and those of its packages, are in the storage
    from the start, in this process and in all its children, as after pdc.install(). The program replaces this process, so that
    its signals and its exit code are its own. A program that cannot be run has the exit code 126, one that is not found 127.
    """
    if place.path is not None or find_spec("redis") is not None:  # the driver may be in the environment of the program alone
        place.connect()
    environ = _environ(place, flush_interval, gauge_mode)
    for words in (command, _shebang(shutil.which(command[0]))):
        if flag := _isolating_flag(words):
            raise click.UsageError(
                f"{words[0]} with the flag -{flag} would not load pdc, for it ignores PYTHONPATH or sitecustomize: "
                "remove the flag, or call pdc.install() in the program",
                click.get_current_context(),
            )
    if not place.options.enabled:
        click.echo("pdc: PDC_ENABLED is false: the metrics of the program stay in its memory", err=True)
    return _become(command, environ)


def _environ(place: Place, flush_interval: float | None, gauge_mode: str | None) -> dict[str, str]:
    """The environment of the program. Its processes may have other working folders, so paths are absolute."""
    options = place.options
    environ = {name: text for name, text in os.environ.items() if name not in OF_STORAGES}
    if place.path is not None:
        environ["PDC_SQLITE_PATH"] = str(place.path.absolute())
    else:
        environ |= {"PDC_REDIS_URL": str(options.redis_url), "PDC_REDIS_PREFIX": options.redis_prefix}
    if flush_interval is not None:
        environ["PDC_FLUSH_INTERVAL"] = str(flush_interval)
    environ["PDC_INSTALL"] = gauge_mode or (options.install if isinstance(options.install, str) else "true")
    Options.load({}, environ)
    before = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = f"{SITE}{os.pathsep}{before}" if before else str(SITE)
    return environ


def _shebang(path: str | None) -> list[str]:
    """The words of the first line of a script: its interpreter and the flags."""
    if path is None:
        return []
    try:
        with Path(path).open("rb") as file:
            line = file.readline(256)
    except OSError:  # a program that may be run, but not read
        return []
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    return [word for word in words if Path(word).name not in ("env", "-S")]


def _isolating_flag(words: Sequence[str]) -> str:
    """The flag by which this call of Python ignores PYTHONPATH or `sitecustomize`; empty where there is none."""
    if not words or not re.fullmatch(r"(python|pypy)[\d.]*t?", Path(words[0]).name):
        return ""
    for word in words[1:]:
        flags = re.match(r"-([^-cmWX]*)([cm]?)", word)  # the four have a value
        if flags is None:
            return ""
        isolating: set[str] = {*flags[1]} & {"I", "E", "S"}
        if isolating:
            return max(isolating)
        if flags[2]:
            return ""
    return ""


def _become(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Replace this process by the command, or return the exit code of a shell that cannot run it."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in IGNORED_BY_PYTHON}
    try:
        os.execvpe(command[0], [*command], environ)  # noqa: S606 - the user gives the command
    except OSError as error:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        click.echo(f"pdc: cannot run {printable(command[0])}: {error.strerror}", err=True)
        return NOT_FOUND if isinstance(error, (FileNotFoundError, NotADirectoryError)) else NOT_EXECUTABLE
