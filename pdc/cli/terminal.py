"""Output: tables for terminals, columns with tabs for pipes, and progress on the standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.table import Table

T = TypeVar("T")


def examples(*lines: str) -> str:
    """The end of the help of a command."""
    return "\n".join(("\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)))


def printable(text: str) -> str:
    """The text without control characters, which could write anywhere on a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print rows: as a table that fits a terminal, or for a pipe with a tab between columns."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(made_table(columns, rows, title=title))
        return
    if title:
        click.echo(f"# {title}")
    for row in (map(str.strip, columns), *rows):
        click.echo("\t".join(map(printable, row)))


def made_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", fold: bool = True) -> Table:
    """A table for a terminal; columns whose names end with a space hold numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Any = "right" if column.endswith(" ") else "left"
        table.add_column(column.strip(), justify=justify, overflow="fold" if fold else "ellipsis", no_wrap=not fold)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def progress(items: Sequence[T], text: str) -> Iterator[T]:
    """Yield the items, with a bar on the standard error of a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, text, console=Console(stderr=True), transient=True)


@contextmanager
def _spinner(text: str) -> Iterator[None]:
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def busy(text: str) -> AbstractContextManager[None]:
    """Show on the standard error of a terminal that something is going on."""
    return _spinner(text) if sys.stderr.isatty() else nullcontext()
