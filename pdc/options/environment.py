"""The environment variables that belong to pdc: those of options, and those that look like misspelt ones."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Mapping

from ..process import log

_OF_KUBERNETES = re.compile(r"(PDC\w*?)_(SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)")
"""Variables that Kubernetes sets in containers beside a service whose name begins with ``pdc``."""
_GUARDS = ("PDC_METRICS_TOKEN", "PDC_METRICS_BASIC_AUTH", "PDC_METRICS_NETWORKS", "PDC_METRICS_DECORATOR")
"""Options whose variable must not be empty: the page would be open to everybody."""
_OF_DJANGO = "PDC_DJANGO_"
"""The start of options that only Django has: an environment may serve several frameworks."""


class OptionError(ValueError):
    """An option has a value that is not allowed, or a name that does not exist."""


def given(environ: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The variables of these names that have a value. Raises OptionError for a variable that looks like a misspelt option."""
    is_django = any(name.startswith(_OF_DJANGO) for name in known)
    for name in _ours(environ).keys() - set(known):
        if is_django or not name.startswith(_OF_DJANGO):
            _refuse_or_log(name, known)
    return values_of(environ, known)


def values_of(environ: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The variables of these names that have a value; an empty guard has one."""
    ours = _ours(environ)
    return {name: text for name, text in ours.items() if name in known and (text.strip() or name in _GUARDS)}


def _ours(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if name.startswith("PDC_") and not _is_of_kubernetes(name, environ)}


def _refuse_or_log(name: str, known: Collection[str]) -> None:
    if _closest(name, known) is not None:
        raise OptionError(f"unknown environment variable {with_hint(name, known)} Rename it, or remove it")
    log.write(logging.WARNING, "the environment variable %s means nothing to pdc; there are %s", name, ", ".join(known))


def _closest(name: str, known: Iterable[str]) -> str | None:
    """The option that the name may have meant, if any; the ``PDC_`` that all begin with does not count."""
    by_rest = {option.removeprefix("PDC_"): option for option in known}
    rest = name.removeprefix("PDC_")
    found = difflib.get_close_matches(rest, by_rest, n=1)
    found += [option for option in by_rest if set(rest.split("_")) <= set(option.split("_"))]
    return by_rest[found[0]] if found else None


def _is_of_kubernetes(name: str, environ: Mapping[str, str]) -> bool:
    found = _OF_KUBERNETES.fullmatch(name)
    if found is None or f"{found[1]}_SERVICE_HOST" not in environ:
        return False
    return found[2] != "PORT" or "://" in environ[name]  # PDC_METRICS_PORT=9100 is an option beside any services


def with_hint(name: str, known: Iterable[str]) -> str:
    """The name of no option, with the option that it may have meant, or all of them."""
    close = _closest(name, known)
    return f"{name}; did you mean {close}?" if close else f"{name}; there are {', '.join(known)}"
