"""Exemplars as their fields keep them: beside the number that an exemplar belongs to, and named after its field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain

from prometheus_client.samples import Exemplar

from .storage.labels import EXEMPLAR, check_texts

__all__ = ["EXEMPLAR", "exemplar_from", "exemplar_text"]

_UNSAFE = re.compile(r'[\n\r"{},=\\]')


def exemplar_text(labels: Mapping[str, str], value: float, timestamp: float) -> str:
    """An exemplar as its field keeps it. Raises ValueError where no format can carry it."""
    _check_names(labels)
    return json.dumps([dict(labels), value, timestamp], separators=(",", ":"))


def exemplar_from(text: str) -> Exemplar:
    """The exemplar in a text of `exemplar_text`. Raises TypeError and ValueError for any other text."""
    labels, value, timestamp = json.loads(text)
    check_texts(chain.from_iterable(labels.items()))
    _check_names(labels)
    return Exemplar(labels, float(value), float(timestamp))


def _check_names(labels: Iterable[str]) -> None:
    """Raise ValueError unless a format can carry the label names of an exemplar. No format escapes them."""
    for name in labels:
        if _UNSAFE.search(name):
            raise ValueError(f"names of an exemplar's labels may have no quotes, braces, commas or line ends, got {name!r}")
