"""The options of the frameworks' extensions: one list, read from settings or the environment, checked at start-up."""

from __future__ import annotations

import inspect
import logging
import math
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, TypeVar

from prometheus_client.registry import CollectorRegistry

from . import config
from .environment import OptionError, given, with_hint
from .metrics import Histogram
from .metrics.processes import ProcessMetrics
from .process import log
from .storage.redaction import is_url, without_secrets

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

LABELS = (
    f"a dict of label names and texts or callables, in ASGI also coroutine functions; not one of {', '.join(RESERVED_LABELS)}"
)
_SECONDS_OR_NEVER = "seconds, more than 0, or None (never)"
_TRUE_OR_FALSE = "true or false"

__all__ = ["OptionError", "from_header", "from_response_header"]

OptionsT = TypeVar("OptionsT", bound="Options")


def from_header(name: str, *, allowed: Collection[str] | None = None, default: str = "") -> Callable[[Any], str]:
    """A label whose value is a header of the request; `default` where the header is missing or not `allowed`.

    Clients choose the header: without `allowed`, each value makes a series of its own.
    """

    def label(request: Any) -> str:
        return _allowed(request.headers.get(name), allowed, default)

    return label


def from_response_header(name: str, *, allowed: Collection[str] | None = None, default: str = "") -> Callable[[Any, Any], str]:
    """A label whose value is a header of the response; `default` where the header is missing or not `allowed`.

    It is empty for a request that gets no response.
    """

    def label(_: Any, response: Any) -> str:
        return _allowed(response.headers.get(name), allowed, default)

    return label


def _allowed(value: Any, allowed: Collection[str] | None, default: str) -> str:
    return default if value is None or (allowed is not None and value not in allowed) else str(value)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: `parse` reads a value or the text of an environment variable, or raises."""

    parse: Callable[[Any], Any]
    allowed: str
    """The allowed values, as an error message names them."""
    help: str
    """The meaning in one sentence, for the reference."""
    secret: bool = False
    """True if errors hide the value, whatever its type."""


def option(default: Any, parse: Callable[[Any], Any], allowed: str, meaning: str, *, secret: bool = False) -> Any:
    """Make the field of a dataclass of options; `meaning` is its `Option.help`."""
    made = Option(parse=parse, allowed=allowed, help=meaning, secret=secret)
    return field(default_factory=lambda: default, repr=not secret, metadata={"option": made})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _path(value: Any) -> str:
    return _filled(os.fspath(value))


def _filled(value: Any) -> str:
    """A text that is not empty: an empty one is a mistake, and the program must not go on with another storage or no token."""
    if not _text(value).strip():
        raise ValueError(value)
    return _text(value)


def _file(value: Any) -> str:
    if is_url(path := _path(value)):
        raise ValueError(value)
    return path


def parse_flag(value: Any) -> bool:
    """True or false, from a value or a text such as ``on``. Raises KeyError for other ones."""
    flags = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return flags[str(value).strip().lower()]


def _journal(value: Any) -> str | bool:
    try:
        return parse_flag(value)
    except KeyError:
        return True if value == "" else _path(value)


def _seconds(value: Any) -> float:
    seconds = float(value)
    if isinstance(value, bool) or not 0 <= seconds < math.inf:
        raise ValueError(value)
    return seconds


def _expiry(value: Any) -> float | None:
    if value is None or str(value).strip().lower() == "never":
        return None
    seconds = _seconds(value)
    if seconds == 0:
        raise ValueError(value)
    return seconds


def _url_path(value: Any) -> str | None:
    if value is None or value == "" or _text(value).strip().lower() == "none":
        return None
    if not _text(value).startswith("/"):
        raise ValueError(value)
    return _text(value)


def _address(value: Any) -> tuple[str, int] | None:
    """An address and a port from a pair of them, ``9100``, ``127.0.0.1:9100`` or ``[::1]:9100``."""
    if value is None or value == "":
        return None
    text = ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
    host, colon, port = text.rpartition(":")
    if isinstance(value, bool) or not 0 < int(port) < 65536 or (colon and not host):
        raise ValueError(value)
    return host.strip("[]") or EVERY_ADDRESS, int(port)


def parse_items(value: Any) -> list[Any]:
    """The items of an iterable, or of a text separated by commas."""
    if isinstance(value, str):
        return [item for part in value.split(",") if (item := part.strip())]
    return list(value)


def _bounds(value: Any) -> tuple[float, ...]:
    bounds = tuple(float(bound) for bound in parse_items(value))
    if not bounds or list(bounds) != sorted(set(bounds)) or any(math.isnan(bound) for bound in bounds):
        raise ValueError(value)
    return bounds


def _patterns(value: Any) -> tuple[str | re.Pattern[str], ...]:
    patterns = tuple(parse_items(value))
    if not all(isinstance(pattern, (str, re.Pattern)) for pattern in patterns):
        raise TypeError(value)
    return patterns


def _credentials(value: Any) -> str:
    user, _, password = _text(value).partition(":")
    if not user.strip() or not password.strip():
        raise ValueError(value)
    return _text(value)


def _networks(value: Any) -> tuple[Network, ...]:
    networks = [value] if isinstance(value, Network) else parse_items(value)  # the items of a network are its addresses
    if not networks or not all(isinstance(each, (str, IPv4Address, IPv6Address, Network)) for each in networks):
        raise ValueError(value)
    return tuple(ip_network(each) for each in networks)


def _dotted_path(value: Any) -> str:
    """The dotted path of an object: it is imported where the object is needed."""
    if not re.fullmatch(r"\w+(\.\w+)+", _text(value)):
        raise ValueError(value)
    return _text(value)


def _decorator(value: Any) -> str | Decorator:
    return value if callable(value) else _dotted_path(value)


def _registry(value: Any) -> str | CollectorRegistry | None:
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return None
    return value if isinstance(value, CollectorRegistry) else _dotted_path(value)


def _names(value: Any) -> str:
    name = _text(value).strip().lower()
    if name not in NAMES:
        raise ValueError(value)
    return name


def _namespace(value: Any) -> str:
    if not re.fullmatch(r"([a-zA-Z_][a-zA-Z0-9_]*)?", _text(value)):
        raise ValueError(value)
    return _text(value)


def _labels(value: Any) -> dict[str, Label]:
    """Labels by name; a text is ``name=value`` pairs separated by commas."""
    labels = dict(item.split("=", 1) for item in parse_items(value)) if isinstance(value, str) else dict(value)
    for name, label in labels.items():
        if not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", _text(name)) or name in RESERVED_LABELS:
            raise ValueError(value)
        if not callable(label):
            _text(label)
    return labels


def _methods(value: Any) -> tuple[str, ...]:
    methods = tuple(_text(method).upper() for method in parse_items(value))
    if not all(re.fullmatch(r"[A-Z][A-Z-]*", method) for method in methods):
        raise ValueError(value)
    return methods


def _exemplars(value: Any) -> Exemplars:
    return value if callable(value) else parse_flag(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value) or int(value) < 1:
        raise ValueError(value)
    return int(value)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every framework. The name ``redis_url`` is the setting ``PDC_REDIS_URL`` and the environment variable."""

    redis_url: str | None = option(
        None, _filled, "a URL such as redis://localhost:6379/0", "The Redis that holds the metrics.", secret=True
    )
    sqlite_path: str | None = option(
        None, _file, "the path of a file, no URL", "The SQLite file that holds the metrics, `metrics.db` without any storage."
    )
    redis_prefix: str = option("", _text, "a text", "Part of every key, so that several programs can share a database.")
    redis_expire: float | None = option(
        config.REDIS_EXPIRE,
        _expiry,
        _SECONDS_OR_NEVER,
        "The time after which Redis drops a metric that no living process declares.",
    )
    flush_interval: float = option(
        1.0, _seconds, "seconds, 0 for write-through", "The time between two batches, which a background thread sends."
    )
    journal: str | bool = option(
        True,
        _journal,
        "a folder, true or false",
        "The place of updates that are not in the storage yet: the next process sends those of a killed one.",
    )
    exit_timeout: float = option(
        2.0, _seconds, "seconds, 0 to leave at once", "The longest time that the end of the process waits for the storage."
    )
    metrics_path: str | None = option(
        "/metrics",
        _url_path,
        "a path that starts with /, or None (text: none) to mount nothing",
        "The path of the metrics page.",
    )
    metrics_port: tuple[str, int] | None = option(
        None,
        _address,
        "a port, or an address and a port: 127.0.0.1:9100",
        "A port for scrapes alone, which one process at a time serves.",
    )
    metrics_token: str | None = option(
        None, _filled, "the bearer token that a scrape must send, not empty", "Scrapes without it get 401.", secret=True
    )
    metrics_basic_auth: str | None = option(
        None, _credentials, "user:password, neither of them empty", "Scrapes without these credentials get 401.", secret=True
    )
    metrics_networks: tuple[Network, ...] = option(
        (), _networks, "networks or addresses such as 10.0.0.0/8, at least one", "Scrapes of clients elsewhere get 403."
    )
    metrics_decorator: str | Decorator | None = option(
        None,
        _decorator,
        "a callable, or the dotted path of one",
        "Decorates the view of the metrics page, as `login_required` does.",
    )
    registry: str | CollectorRegistry | None = option(
        "prometheus_client.REGISTRY",
        _registry,
        "a CollectorRegistry, the dotted path of one, or None (text: none)",
        "Its metrics that are not pdc's are on the metrics page, too.",
    )
    namespace: str = option(
        "", _namespace, "letters, digits and underscores", "The start of the names of HTTP metrics and of Django's metrics."
    )
    names: str = option(
        "pdc", _names, f"one of {', '.join(NAMES)}", "The exporter whose names and labels the HTTP metrics have."
    )
    buckets: tuple[float, ...] = option(
        Histogram.DEFAULT_BUCKETS, _bounds, "increasing numbers of seconds", "The buckets of request durations."
    )
    exclude_paths: tuple[str | re.Pattern[str], ...] = option(
        (), _patterns, "paths, or compiled patterns that must match fully", "Requests of these paths are not counted."
    )
    exclude_methods: tuple[str, ...] = option(
        (), _methods, "methods, such as OPTIONS and HEAD", "Requests of these methods are not counted."
    )
    count_unmatched: bool = option(
        True, parse_flag, _TRUE_OR_FALSE, "False leaves out requests that no route matches, else `<unmatched>`."
    )
    group_status: bool = option(False, parse_flag, _TRUE_OR_FALSE, "Count statuses as `2xx` and `4xx`, not `200` and `404`.")
    labels: dict[str, Label] = option(
        {}, _labels, LABELS, "Further labels of the HTTP metrics; callables take the request, or it and the response."
    )
    sizes: bool = option(False, parse_flag, _TRUE_OR_FALSE, "Observe the sizes of request and response bodies, too.")
    size_buckets: tuple[float, ...] = option(SIZE_BUCKETS, _bounds, "increasing numbers of bytes", "The buckets of sizes.")
    first_byte: bool = option(
        False, parse_flag, _TRUE_OR_FALSE, "Observe the time until the start of the answer in a histogram of its own, too."
    )
    in_progress_by_route: bool = option(
        False, parse_flag, _TRUE_OR_FALSE, "Show requests and WebSocket connections in progress by route, too."
    )
    process_metrics: bool = option(
        False,
        parse_flag,
        _TRUE_OR_FALSE,
        "Show `process_*`, `python_gc_*` and `python_info` of every living process, by host and pid.",
    )
    exemplars: Exemplars = option(
        False,
        _exemplars,
        "true, false or a callable",
        "True attaches the trace of OpenTelemetry; a callable, of the request if it takes one, returns labels.",
    )
    max_series: int = option(
        10_000, _count, "a whole number, at least 1", "The most series of an HTTP metric; further ones count as `<overflow>`."
    )
    expire_series: float | None = option(
        None,
        _expiry,
        _SECONDS_OR_NEVER,
        "The time after which a series goes that nobody updates, unless its metric has another limit.",
    )
    enabled: bool = option(True, parse_flag, _TRUE_OR_FALSE, "False counts nothing and serves no metrics page.")

    @classmethod
    def load(cls: type[OptionsT], settings: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> OptionsT:
        """Read the options from the settings of a framework or, where it has none, from the environment.

        Raises OptionError for an unknown setting that starts with ``PDC_``, for an unknown environment variable whose name
        is close to an option, for a value that is not allowed, and for two storages. An empty environment variable counts as
        missing, except for guards of the metrics page. Other unknown variables may belong to other programs: they are logged.
        """
        known = {f"PDC_{option.name.upper()}": option for option in fields(cls)}
        for name in settings:
            if str(name).startswith("PDC_") and name not in known:
                raise OptionError(f"unknown option {with_hint(name, known)}")
        environ = given(os.environ if environ is None else environ, known)
        options = cls(
            **{
                option.name: _parsed(name, source[name], option.metadata["option"])
                for name, option in known.items()
                for source in [settings if name in settings else environ]
                if name in source
            }
        )
        if options.redis_url is not None and options.sqlite_path is not None:
            raise OptionError(
                f"PDC_REDIS_URL and PDC_SQLITE_PATH={options.sqlite_path!r} are both given, metrics live in one of them: "
                "remove the other"
            )
        return options

    def found(self, name: str) -> Any:
        """The value of an option that may be a dotted path: the object there. Raises OptionError where there is none."""
        value = getattr(self, name)
        if not isinstance(value, str):
            return value
        (option,) = [each.metadata["option"] for each in fields(self) if each.name == name]
        setting = f"PDC_{name.upper()}"
        try:
            found = pkgutil.resolve_name(value)
        except (ImportError, AttributeError) as error:
            raise OptionError(
                f"{setting} must be {option.allowed}, got {value!r}, which cannot be imported: {error}"
            ) from error
        if found is None or isinstance(found, str):
            raise OptionError(f"{setting} must be {option.allowed}, got {value!r}, which is {found!r}")
        return _parsed(setting, found, option)

    def setup(self) -> None:
        """Use the storage of these options. Without one, keep the storage of an earlier `pdc.setup`, or use ``metrics.db``.

        Raises OptionError for a prefix where metrics would go to a file. A process has one storage for its applications: a
        warning is logged where these options replace another one.
        """
        before = config.DEFAULT.storage
        if self.redis_url is not None:
            config.setup(
                redis=self.redis_url,
                redis_prefix=self.redis_prefix,
                redis_expire=self.redis_expire,
                flush_interval=self.flush_interval,
                journal=self.journal,
                exit_timeout=self.exit_timeout,
                expire_series=self.expire_series,
            )
        elif self.sqlite_path is not None or before is None:
            self._refuse_prefix()
            config.setup(
                sqlite=self.sqlite_path or "metrics.db",
                flush_interval=self.flush_interval,
                journal=self.journal,
                exit_timeout=self.exit_timeout,
                expire_series=self.expire_series,
            )
        if before is not None and str(before) != str(config.DEFAULT.storage):
            text = "the metrics of this process go to %s from now on, no longer to %s"
            log.write(logging.WARNING, text, config.DEFAULT.storage, before)

    def report_process(self) -> None:
        """Show this process among the others, where the options ask for it."""
        if self.process_metrics and self.enabled:
            ProcessMetrics()

    def _refuse_prefix(self) -> None:
        if self.redis_prefix:
            instead = "remove PDC_SQLITE_PATH" if self.sqlite_path is not None else "metrics would go to metrics.db"
            raise OptionError(f"PDC_REDIS_PREFIX={self.redis_prefix!r} needs PDC_REDIS_URL, which is not given: {instead}")


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def with_options_shown(function: FunctionT) -> FunctionT:
    """Show all options and their defaults in the signature of a function that takes them as keywords."""
    options = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=getattr(Options(), each.name), annotation=each.type
        )
        for each in fields(Options)
    ]
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined] # functions take any
    return function


@with_options_shown
def setup_from_environ(**options: Any) -> None:
    """Set up the storage that the environment names, in a program that no framework configures: a job, a worker, a function.

    ``PDC_REDIS_URL`` or ``PDC_SQLITE_PATH`` is the storage, ``metrics.db`` in the working folder where neither is given.
    The others are ``PDC_REDIS_PREFIX``, ``PDC_REDIS_EXPIRE``, ``PDC_FLUSH_INTERVAL`` (1 second), ``PDC_JOURNAL``,
    ``PDC_EXIT_TIMEOUT`` (2 seconds), ``PDC_EXPIRE_SERIES`` and ``PDC_PROCESS_METRICS``. They mean the same as in web
    applications, so that one environment serves all programs. A keyword goes before its variable:
    ``setup_from_environ(flush_interval=0, redis_expire=None)``. Raises OptionError, which is a ValueError.
    """
    loaded = Options.load({f"PDC_{name.upper()}": value for name, value in options.items()})
    loaded.setup()
    loaded.report_process()


def _parsed(name: str, value: Any, option: Option) -> Any:
    with suppress(ValueError, TypeError, KeyError):
        return option.parse(value)
    got = f"a value of type {type(value).__qualname__}" if option.secret else without_secrets(repr(value))
    raise OptionError(f"{name} must be {option.allowed}, got {got}")
