"""The templates of routes that are regular expressions, as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pdc.process.once import once

_IS_EXPRESSION = re.compile(r"[\^\\]|\$$|\([?\[.]")
"""The signs of an expression: `path` could match them only as they are written."""
_TOKEN = re.compile(
    r"""
    (?P<literal>\\[^A-Za-z0-9])                 # an escaped character
    | (?P<nothing>\\[AZzbB]|[\^$]|(?:(?<=\))\{[\d,]+\}|[?*+])\??)  # anchors and quantifiers
    | (?P<group>\()
    | (?P<other>\[\^?\]?(?:\\.|[^\]\\])*\]|\\.|.)   # sets of characters stay as they are
    """,
    re.VERBOSE | re.DOTALL,
)


@once
def readable(route: str) -> str:
    """The route with ``{name}`` for the groups of a regular expression, without its other signs; other routes as they are."""
    return "".join(_parts(route)) if _IS_EXPRESSION.search(route) else route


def _parts(expression: str) -> Iterator[str]:
    tokens = _TOKEN.finditer(expression)
    for token in tokens:
        if token["group"]:
            yield _group("".join(_inside(tokens)))
        elif token["literal"]:
            yield token["literal"][1]
        else:
            yield token["other"] or ""


def _inside(tokens: Iterator[re.Match[str]]) -> Iterator[str]:
    """The text of these tokens up to the parenthesis that closes the group."""
    depth = 1
    for token in tokens:
        depth += (token["group"] is not None) - (token["other"] == ")")
        if depth == 0:
            return
        yield token[0]


def _group(inside: str) -> str:
    """A named group as its name; the content of a group that captures nothing; nothing for a condition."""
    if named := re.match(r"\?P[<=](\w+)", inside):
        return f"{{{named[1]}}}"
    if not inside.startswith("?"):
        return "{var}"
    if not inside.startswith("?:"):
        return ""
    content = "".join(_parts(inside[2:]))
    return f"({content})" if "|" in content else content
