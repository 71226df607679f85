"""``pdc options``: the options of programs, and their values in this environment."""

from __future__ import annotations

import json
import os

import click

from ..options import Options
from ..options.listing import Listed, as_markdown, listed
from .places import as_wrong_option
from .terminal import examples, printable

FORMATS = ("text", "markdown", "json")


@click.command(epilog=examples("pdc options", "pdc options --django --format json | jq -r '.[].name'"))
@click.option("--django", is_flag=True, help="List the options that only Django has, too.")
@click.option("--format", "kind", type=click.Choice(FORMATS), default="text", show_default=True, help="The format.")
def options(django: bool, kind: str) -> None:
    """List the options, with their values in this environment.

    Secrets are hidden. Settings of an application go before the environment, and are not shown. A value that is not allowed
    is an error after the list.
    """
    of = _options_of_django() if django else Options
    rows = listed(of, os.environ)
    if kind == "markdown":
        click.echo(as_markdown(rows))
    elif kind == "json":
        click.echo(json.dumps([row._asdict() for row in rows], indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join(map(_text, rows)))
    with as_wrong_option():
        of.load({}).check()


def _text(row: Listed) -> str:
    """The option in three lines, without the marks of code that the reference has."""
    default = f"default: {row.default}" if row.default else "no default"
    known = {"default": "default", "environment": f"from the environment; {default}"}[row.source]
    value = f"{row.name}={row.value}  ({known})" if row.value or row.source == "environment" else f"{row.name}  (not set)"
    meaning = row.meaning.replace("`", "")
    return f"{printable(value)}\n    {meaning}\n    Allowed: {row.allowed}"


def _options_of_django() -> type[Options]:
    try:
        from pdc_django.conf import DjangoOptions
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from None
    return DjangoOptions
