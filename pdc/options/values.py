"""The values of options: each function reads one from a setting, or from the text of a variable.

They raise TypeError, ValueError or KeyError for a value that is not allowed; `Option.allowed` says which are.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, get_args

from prometheus_client.registry import CollectorRegistry

from ..metrics import Mode
from ..storage.redaction import is_url

Label = str | Callable[[Any], object] | Callable[[Any, Any], object]
"""The value of an application's own label: a text, or a callable of the framework's request, or of that and the response."""
Exemplars = bool | Callable[[], Mapping[str, str] | None] | Callable[[Any], Mapping[str, str] | None]
"""No exemplars, those of OpenTelemetry, or those of a callable, which may take the framework's request."""

Network = IPv4Network | IPv6Network
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

RESERVED_LABELS = ("method", "route", "status", "exception", "le")
"""Labels of the HTTP metrics themselves."""
NAMES = (
    *("pdc", "otel", "django-prometheus", "prometheus-flask-exporter", "starlette-exporter"),
    *("fastapi-instrumentator", "fastapi-observability"),
)
"""The exporters that the HTTP metrics may be named after."""
SIZE_BUCKETS = tuple(float(4**power) for power in range(3, 14))
"""64 bytes to 64 MiB."""
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104 - the default of prometheus_client.start_http_server


class WrongPartError(ValueError):
    """Names the fault of a value. The text has no secrets."""


def parse_text(value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def parse_path(value: Any) -> str:
    """The path of a file or folder, which is not empty."""
    return parse_filled(os.fspath(value))


def parse_filled(value: Any) -> str:
    """A text that is not empty: an empty one is a mistake, and the program must not go on with another storage or no token."""
    if not parse_text(value).strip():
        raise WrongPartError("an empty text")
    return parse_text(value)


def parse_file(value: Any) -> str:
    """The path of a file; a URL is not one."""
    if is_url(path := parse_path(value)):
        raise ValueError(value)
    return path


def parse_flag(value: Any) -> bool:
    """True or false, from a value or a text such as ``on``. Raises KeyError for other ones."""
    flags = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return flags[str(value).strip().lower()]


def parse_journal(value: Any) -> str | bool:
    """True, false, or the path of a folder."""
    try:
        return parse_flag(value)
    except KeyError:
        return True if value == "" else parse_path(value)


def parse_seconds(value: Any) -> float:
    """Seconds, not less than 0."""
    seconds = float(value)
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise ValueError(value)
    return seconds


def parse_expiry(value: Any) -> float | None:
    """Seconds, more than 0; None for ``never``."""
    if value is None or str(value).strip().lower() == "never":
        return None
    seconds = parse_seconds(value)
    if seconds == 0:
        raise ValueError(value)
    return seconds


def parse_url_path(value: Any) -> str | None:
    """The path of a URL; None for ``none``."""
    if value is None or value == "" or parse_text(value).strip().lower() == "none":
        return None
    if not parse_text(value).startswith("/"):
        raise ValueError(value)
    return parse_text(value)


def parse_address(value: Any) -> tuple[str, int] | None:
    """An address and a port from a pair of them, ``9100``, ``127.0.0.1:9100`` or ``[::1]:9100``."""
    if value is None or value == "":
        return None
    text = ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
    host, colon, port = text.rpartition(":")
    if isinstance(value, bool) or not 0 < int(port) < 65536 or (colon and not host) or "/" in host:
        raise ValueError(value)
    return host.strip("[]") or EVERY_ADDRESS, int(port)


def parse_items(value: Any) -> list[Any]:
    """The items of an iterable, or of a text separated by commas."""
    if isinstance(value, str):
        return [item for part in value.split(",") if (item := part.strip())]
    return list(value)


def parse_bounds(value: Any) -> tuple[float, ...]:
    """The upper bounds of buckets, in increasing order."""
    bounds = tuple(float(bound) for bound in parse_items(value))
    if not bounds or list(bounds) != sorted(set(bounds)) or any(math.isnan(bound) for bound in bounds):
        raise ValueError(value)
    return bounds


def parse_patterns(value: Any) -> tuple[str | re.Pattern[str], ...]:
    """Paths, which start with a slash, and compiled patterns of paths."""
    patterns = tuple(parse_items(value))
    if not all(isinstance(pattern, re.Pattern) or parse_text(pattern).startswith("/") for pattern in patterns):
        raise ValueError(value)
    return patterns


def parse_token(value: Any) -> str:
    """A text without the space and the new line around it, which no header has at its end."""
    return parse_filled(value).strip()


def parse_credentials(value: Any) -> str:
    """A user and a password with a colon in between."""
    user, colon, password = parse_filled(value).partition(":")
    if not colon:
        raise WrongPartError("a text without a colon")
    if not user.strip() or not password.strip():
        raise WrongPartError(f"an empty {'password' if user.strip() else 'user'}")
    return parse_text(value)


def parse_networks(value: Any) -> tuple[Network, ...]:
    """Networks and addresses."""
    networks = [value] if isinstance(value, Network) else parse_items(value)  # the items of a network are its addresses
    if not networks or not all(isinstance(each, (str, IPv4Address, IPv6Address, Network)) for each in networks):
        raise ValueError(value)
    return tuple(ip_network(each) for each in networks)


def parse_dotted_path(value: Any) -> str:
    """The dotted path of an object: it is imported where the object is needed."""
    if not re.fullmatch(r"\w+(\.\w+)+", parse_text(value)):
        raise ValueError(value)
    return parse_text(value)


def parse_decorator(value: Any) -> str | Decorator:
    """A decorator, or the dotted path of one."""
    return value if callable(value) else parse_dotted_path(value)


def parse_registry(value: Any) -> str | CollectorRegistry | None:
    """A registry, the dotted path of one, or None."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    return value if isinstance(value, CollectorRegistry) else parse_dotted_path(value)


def parse_names(value: Any) -> str:
    """The name of an exporter."""
    name = parse_text(value).strip().lower()
    if name not in NAMES:
        raise ValueError(value)
    return name


def parse_namespace(value: Any) -> str:
    """The start of the name of a metric."""
    if not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", parse_text(value)):
        raise ValueError(value)
    return parse_text(value)


def parse_labels(value: Any) -> dict[str, Label]:
    """Labels by name; a text is ``name=value`` pairs separated by commas."""
    labels = dict(item.split("=", 1) for item in parse_items(value)) if isinstance(value, str) else dict(value)
    for name, label in labels.items():
        if not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", parse_text(name)) or name in RESERVED_LABELS:
            raise WrongPartError(f"the label {name!r}")
        if not callable(label):
            parse_text(label)
    return labels


def parse_methods(value: Any) -> tuple[str, ...]:
    """HTTP methods, in capital letters."""
    methods = tuple(parse_text(method).upper() for method in parse_items(value))
    if not all(re.fullmatch(r"[A-Z][A-Z-]*", method) for method in methods):
        raise ValueError(value)
    return methods


def parse_install(value: Any) -> bool | Mode:
    """True, false or a mode of gauges."""
    if value in get_args(Mode):
        mode: Mode = value
        return mode
    return parse_flag(value)


def parse_exemplars(value: Any) -> Exemplars:
    """True, false, or a callable."""
    return value if callable(value) else parse_flag(value)


def parse_count(value: Any) -> int:
    """A whole number, at least 1."""
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return int(value)
