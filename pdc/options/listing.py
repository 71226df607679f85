"""The options as a list: for the command ``pdc options``, and for the tables of the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from ..storage.redaction import is_url, without_secrets
from .environment import values_of
from .options import Options

HIDDEN = "***"
COLUMNS = ("Option", "Default", "Meaning", "Allowed")


class Listed(NamedTuple):
    """An option, and its value in an environment."""

    name: str
    default: str
    value: str
    """As the variable has it, where it has a value. A secret is hidden."""
    source: str
    """``environment`` or ``default``."""
    meaning: str
    allowed: str


def listed(options: type[Options], environ: Mapping[str, str]) -> list[Listed]:
    """List the options in the order of their declaration. Values that are not allowed are listed as they are."""
    known = {f"PDC_{each.name.upper()}": each for each in fields(options)}
    given = values_of(environ, known)
    rows = []
    for name, each in known.items():
        about, default = each.metadata["option"], _as_text(getattr(options(), each.name))
        text = given.get(name, "").strip()
        hides = about.secret or is_url(text)  # a URL in the wrong place may have a password with any character
        value = default if name not in given else HIDDEN if hides else without_secrets(text)
        source = "environment" if name in given else "default"
        rows.append(Listed(name, default, value, source, about.help, about.allowed))
    return rows


def as_markdown(rows: Iterable[Listed]) -> str:
    """The table of the reference, which has no values."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [(f"`{row.name}`", f"`{row.default}`" if row.default else "", row.meaning, row.allowed) for row in rows]
    head, rule, *body = (" | ".join(cells) for cells in lines)
    return "\n".join([f"| {head} |", f"|{rule.replace(' ', '')}|", *(f"| {line} |" for line in body)])


def _as_text(value: Any) -> str:
    """A default as a variable would have it; empty where the option is not set."""
    if isinstance(value, bool):
        return str(value).lower()
    items = value if isinstance(value, tuple) else () if value in (None, "", {}) else (value,)
    return ", ".join(f"{each:.10g}" if isinstance(each, float) else str(each) for each in items)
