"""Texts for messages, without the passwords that may be in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HIDDEN = (
    (re.compile(r"(\b[A-Za-z]{2,}:/+)[^\s'\"]+"), r"\1***"),  # a URL
    (re.compile(r"((?:pass|secret|token|credential)\w*['\"]?\s*[=:]\s*)[^\s,;&)}\]]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(with args beginning with).*", re.DOTALL), r"\1 ***"),  # where a server knows no AUTH or HELLO
)


def is_url(text: str) -> bool:
    """True if the text is a URL, perhaps a misspelt one, and no path."""
    return re.match(r"[A-Za-z]{2,}(\+[A-Za-z]+)?:/", text) is not None


def is_address(text: str) -> bool:
    """True if the text is a host and a port, localhost or an IPv4 address, perhaps with a database: a URL without scheme."""
    host_and_port = r"(?:[\w.-]+|\[[\da-fA-F:.]+\]):\d{1,5}"
    return re.fullmatch(rf"({host_and_port}|localhost|(\d{{1,3}}\.){{3}}\d{{1,3}})(/\d+)?", text) is not None


def without_secrets(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without these secrets, and without anything that may be a password, as drivers quote it."""
    for secret in secrets:
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    for pattern, shown in _HIDDEN:
        text = pattern.sub(shown, text)
    return text
