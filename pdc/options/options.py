"""The options of the frameworks' extensions: one list, read from settings or the environment, checked at start-up."""

from __future__ import annotations

import inspect
import logging
import os
import pkgutil
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from prometheus_client.registry import CollectorRegistry

from .. import config
from ..metrics import Histogram, Mode
from ..metrics.processes import ProcessMetrics
from ..process import log
from ..process.interruption import let_through
from ..storage.redaction import is_url, without_secrets
from . import values
from .environment import OptionError, given, values_of, with_hint

LABELS = (
    "a dict of label names and texts or callables, in ASGI also coroutine functions; "
    f"not one of {', '.join(values.RESERVED_LABELS)}"
)
_SECONDS_OR_NEVER = "seconds, more than 0, or None (text: never)"
_TRUE_OR_FALSE = "true or false"
_NATIVE_HISTOGRAMS = "PDC_NATIVE_HISTOGRAMS"

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


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of every framework. The name ``redis_url`` is the setting ``PDC_REDIS_URL`` and the environment variable."""

    redis_url: str | None = option(
        None,
        values.parse_filled,
        "a URL such as redis://localhost:6379/0, redis+cluster://host:6379 or redis+sentinel://host:26379/mymaster",
        "The Redis that holds the metrics.",
        secret=True,
    )
    sqlite_path: str | None = option(
        None,
        values.parse_file,
        "the path of a file, no URL",
        "The SQLite file that holds the metrics, `metrics.db` without any storage.",
    )
    redis_prefix: str = option(
        "", values.parse_text, "a text", "Part of every key, so that several programs can share a database."
    )
    redis_expire: float | None = option(
        config.REDIS_EXPIRE,
        values.parse_expiry,
        _SECONDS_OR_NEVER,
        "The time after which Redis drops a metric that no living process declares.",
    )
    flush_interval: float = option(
        1.0,
        values.parse_seconds,
        "seconds, 0 to write each update at once",
        "The time between two batches, which a background thread sends.",
    )
    journal: str | bool = option(
        True,
        values.parse_journal,
        "a folder, true or false",
        "The place of updates that are not in the storage yet: the next process sends those of a killed one.",
    )
    exit_timeout: float = option(
        2.0,
        values.parse_seconds,
        "seconds, 0 to leave at once",
        "The longest time that the end of the process waits for the storage.",
    )
    metrics_path: str | None = option(
        "/metrics",
        values.parse_url_path,
        "a path that starts with /, or None (text: none) to mount nothing",
        "The path of the metrics page.",
    )
    metrics_port: tuple[str, int] | None = option(
        None,
        values.parse_address,
        "a port, or an address and a port: 127.0.0.1:9100",
        "A port for scrapes alone, which one process at a time serves.",
    )
    metrics_token: str | None = option(
        None,
        values.parse_token,
        "the bearer token that a scrape must send, not empty",
        "Scrapes without it get 401.",
        secret=True,
    )
    metrics_basic_auth: str | None = option(
        None,
        values.parse_credentials,
        "user:password, neither of them empty",
        "Scrapes without these credentials get 401.",
        secret=True,
    )
    metrics_networks: tuple[values.Network, ...] = option(
        (),
        values.parse_networks,
        "networks such as 10.0.0.0/8, with zeros after the prefix, or addresses, at least one",
        "Scrapes of clients elsewhere get 403.",
    )
    metrics_decorator: str | values.Decorator | None = option(
        None,
        values.parse_decorator,
        "a callable, or the dotted path of one",
        "Decorates the view of the metrics page, as `login_required` does.",
    )
    dashboard: bool = option(
        False,
        values.parse_flag,
        _TRUE_OR_FALSE,
        "Show rates, errors and latencies live, on the page /dashboard below that of the metrics.",
    )
    registry: str | CollectorRegistry | None = option(
        "prometheus_client.REGISTRY",
        values.parse_registry,
        "a CollectorRegistry, the dotted path of one, or None (text: none)",
        "Its metrics that are not pdc's are on the metrics page, too.",
    )
    namespace: str = option(
        "",
        values.parse_namespace,
        "letters, digits and underscores",
        "The start of the names of HTTP metrics and of Django's metrics.",
    )
    names: str = option(
        "pdc",
        values.parse_names,
        f"one of {', '.join(values.NAMES)}",
        "The exporter whose names and labels the HTTP metrics have.",
    )
    buckets: tuple[float, ...] = option(
        Histogram.DEFAULT_BUCKETS, values.parse_bounds, "increasing numbers of seconds", "The buckets of request durations."
    )
    native_histograms: bool = option(
        False,
        values.parse_flag,
        _TRUE_OR_FALSE,
        "Let the histograms of requests, databases, caches, jobs and tasks have the buckets of native histograms, too.",
    )
    exclude_paths: tuple[str | re.Pattern[str], ...] = option(
        (),
        values.parse_patterns,
        "paths that start with /, or compiled patterns that must match fully",
        "Requests of these paths are not counted.",
    )
    exclude_methods: tuple[str, ...] = option(
        (), values.parse_methods, "methods, such as OPTIONS and HEAD", "Requests of these methods are not counted."
    )
    count_unmatched: bool = option(
        True, values.parse_flag, _TRUE_OR_FALSE, "False leaves out requests that no route matches, else `<unmatched>`."
    )
    group_status: bool = option(
        False, values.parse_flag, _TRUE_OR_FALSE, "Count statuses as `2xx` and `4xx`, not `200` and `404`."
    )
    labels: dict[str, values.Label] = option(
        {},
        values.parse_labels,
        LABELS,
        "Further labels of the HTTP metrics; callables take the request, or it and the response.",
    )
    sizes: bool = option(False, values.parse_flag, _TRUE_OR_FALSE, "Observe the sizes of request and response bodies, too.")
    size_buckets: tuple[float, ...] = option(
        values.SIZE_BUCKETS, values.parse_bounds, "increasing numbers of bytes", "The buckets of sizes."
    )
    first_byte: bool = option(
        False,
        values.parse_flag,
        _TRUE_OR_FALSE,
        "Observe the time until the start of the answer in a histogram of its own, too.",
    )
    in_progress_by_route: bool = option(
        False, values.parse_flag, _TRUE_OR_FALSE, "Show requests and WebSocket connections in progress by route, too."
    )
    process_metrics: bool = option(
        False,
        values.parse_flag,
        _TRUE_OR_FALSE,
        "Show `process_*`, `python_gc_*` and `python_info` of every living process, by host and pid.",
    )
    exemplars: values.Exemplars = option(
        False,
        values.parse_exemplars,
        "true, false or a callable",
        "True attaches the trace of OpenTelemetry; a callable, of the request if it takes one, returns labels.",
    )
    max_series: int = option(
        10_000,
        values.parse_count,
        "a whole number, at least 1",
        "The most series of an HTTP metric; further ones count as `<overflow>`.",
    )
    expire_series: float | None = option(
        None,
        values.parse_expiry,
        _SECONDS_OR_NEVER,
        "The time after which a series goes that nobody updates, unless its metric has another limit.",
    )
    install: bool | Mode = option(
        False,
        values.parse_install,
        "true, false or the mode of gauges that name none, such as liveall",
        "Keep metrics of plain `prometheus_client` classes in the storage, too, those of other packages.",
    )
    enabled: bool = option(
        True,
        values.parse_flag,
        _TRUE_OR_FALSE,
        "False counts nothing, serves no page, and uses no storage: other metrics go nowhere, without a `pdc.setup`.",
    )

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

    def check(self, option: str = "") -> None:
        """Raise OptionError for a URL or a path that no storage can have, ImportError without the driver of the storage.

        The message names the option that has it, unless another one is given.
        """
        try:
            if self.redis_url is not None:
                config.redis_storage(self.redis_url, self.redis_prefix, self.redis_expire, option or "PDC_REDIS_URL")
            elif self.sqlite_path is not None:
                from ..storage.sqlite import SqliteStorage

                SqliteStorage(self.sqlite_path)
        except ValueError as error:
            let_through(error)
            reason = str(error)
        else:
            return
        raise OptionError(reason if self.redis_url is not None else f"{option or 'PDC_SQLITE_PATH'}: {reason}")

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
        """Use the storage of these options, and keep the metrics of other packages there, if one says so.

        Without a storage, keep that of an earlier `pdc.setup`, or use ``metrics.db``. Raises as `check`, and OptionError for a
        prefix where metrics would go to a file. A process has one storage for its applications: a warning is logged where
        these options replace another one. Where `enabled` is false, updates go nowhere until a `pdc.setup`.
        """
        if self.enabled:
            self.check()
            self._use_storage()
        else:
            config.switch_off()

    def _use_storage(self) -> None:
        before = None if config.is_off() else config.DEFAULT.storage
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
        if self.install:
            from ..metrics.installation import install

            install(gauge_mode="shared" if self.install is True else self.install)

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
    ``PDC_EXIT_TIMEOUT`` (2 seconds), ``PDC_EXPIRE_SERIES``, ``PDC_PROCESS_METRICS``, ``PDC_INSTALL`` and ``PDC_ENABLED``;
    metrics of jobs and tasks also read ``PDC_NATIVE_HISTOGRAMS``. They mean the same as in web applications, so that one
    environment serves all programs. A keyword goes before its variable:
    ``setup_from_environ(flush_interval=0, redis_expire=None)``. Raises OptionError, which is a ValueError.
    """
    loaded = Options.load({f"PDC_{name.upper()}": value for name, value in options.items()})
    loaded.setup()
    loaded.report_process()


def native_histograms() -> bool:
    """The value of ``PDC_NATIVE_HISTOGRAMS``, for metrics that no framework configures. Raises OptionError."""
    (option,) = [each.metadata["option"] for each in fields(Options) if each.name == "native_histograms"]
    known = values_of(os.environ, [_NATIVE_HISTOGRAMS])
    return _NATIVE_HISTOGRAMS in known and bool(_parsed(_NATIVE_HISTOGRAMS, known[_NATIVE_HISTOGRAMS], option))


def _parsed(name: str, value: Any, option: Option) -> Any:
    try:
        return option.parse(value)
    except values.WrongPartError as error:
        fault = str(error)
    except (ValueError, TypeError, KeyError) as error:  # which may quote a secret
        let_through(error)
        fault = ""
    raise OptionError(f"{name} must be {option.allowed}, got {_got(value, option, fault)}")


def _got(value: Any, option: Option, fault: str) -> str:
    """The value and its fault, without secrets."""
    if option.secret:
        return fault or f"a value of type {type(value).__qualname__}"
    if isinstance(value, str) and is_url(value.strip()):  # its password may have any character
        return "a URL"
    return without_secrets(f"{value!r}: {fault}" if fault else repr(value))
