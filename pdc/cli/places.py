"""The storage of a command: its options, or the environment."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .. import config
from ..options import OptionError, Options
from ..storage import Storage
from ..storage.redaction import is_address, is_url

if TYPE_CHECKING:
    from ..storage.redis import RedisStorage
    from ..storage.sqlite import SqliteStorage

OF_STORAGES = ("PDC_REDIS_URL", "PDC_SQLITE_PATH", "PDC_REDIS_PREFIX")
DEFAULT_PATH = "metrics.db"


class Place(NamedTuple):
    """The storage that a command works on, and the options beside it."""

    options: Options
    argument: str = ""
    """The argument of a command that names it; empty where options and variables do."""

    @classmethod
    def of(cls, redis: str | None = None, sqlite: str | None = None, prefix: str | None = None, option: str = "") -> Place:
        """The storage that these options of a command name; the environment names the rest. Raises OptionError.

        Messages about the URL or the path name the `option` that has it.
        """
        if redis is not None and sqlite is not None:
            raise click.UsageError("expected one of --redis and --sqlite, got both", click.get_current_context(silent=True))
        given = dict(zip(OF_STORAGES, (redis, sqlite, prefix), strict=True))
        hidden = OF_STORAGES if sqlite is not None else OF_STORAGES[:2] if redis is not None else ()
        environ = {name: text for name, text in os.environ.items() if name not in hidden}
        options = Options.load({name: text for name, text in given.items() if text is not None}, environ)
        with as_wrong_option():
            options.check(option or ("--redis" if redis is not None else "--sqlite" if sqlite is not None else ""))
        return cls(options)

    @classmethod
    def named(cls, argument: str, place: str, prefix: str | None) -> Place:
        """The storage at a URL of Redis, or at the path of a SQLite file. An address without a scheme is refused as a URL."""
        is_redis = is_url(place) or is_address(place)
        found = cls.of(**{"redis" if is_redis else "sqlite": place}, prefix=prefix, option=argument)
        return found._replace(argument=argument)

    @property
    def path(self) -> Path | None:
        """The path of the SQLite file; None for Redis."""
        return None if self.options.redis_url is not None else Path(self.options.sqlite_path or DEFAULT_PATH)

    def set_up(self) -> Storage:
        """Use the storage as `pdc.setup` does, without a journal: this process counts nothing."""
        with as_wrong_option():
            dataclasses.replace(self.options, enabled=True, journal=False, flush_interval=0.0).setup()
        return config.DEFAULT.required()

    def connect(self) -> Storage:
        """The storage, for this command alone. Raises OptionError for a prefix where there is none."""
        with as_wrong_option():
            storage = self._storage()
        click.get_current_context().call_on_close(storage.close)
        return storage

    def _storage(self) -> Storage:
        options = self.options
        if options.redis_url is not None:
            return config.redis_storage(options.redis_url, options.redis_prefix, options.redis_expire)
        if options.redis_prefix:
            raise OptionError(f"a prefix such as {options.redis_prefix!r} is for Redis: name the URL of one, or no prefix")
        from ..storage.sqlite import SqliteStorage

        return SqliteStorage(self.path or DEFAULT_PATH)

    def open(self) -> Storage:
        """The same, but it must be there: an empty file in a wrong place would say that all is well."""
        if self.path is not None and not self.path.exists():
            argument = f"{self.argument} is the path of a SQLite file that is there, or a URL of Redis"
            remedy = argument if self.argument else "name the storage with --redis URL or --sqlite PATH"
            raise click.ClickException(f"there is no file {self.path.absolute()}: {remedy}")
        return self.connect()


@contextmanager
def as_wrong_option() -> Iterator[None]:
    """Report a URL or a path that no storage can have as a wrong option, and a missing driver by its remedy."""
    try:
        yield
    except ValueError as error:
        raise OptionError(str(error)) from None
    except ImportError as error:
        raise click.ClickException(str(error)) from None


def with_place(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name a storage to a command, which gets them as `place`."""

    @wraps(command)
    def chosen(redis: str | None, sqlite: str | None, prefix: str | None, **rest: Any) -> Any:
        return command(place=Place.of(redis, sqlite, prefix), **rest)

    for option in (
        click.option("--prefix", metavar="TEXT", help="The redis_prefix of the programs (else PDC_REDIS_PREFIX)."),
        click.option("--sqlite", metavar="PATH", type=click.Path(), help="The SQLite file (else PDC_SQLITE_PATH)."),
        click.option("--redis", metavar="URL", help="The Redis (else PDC_REDIS_URL; it keeps a password from `ps`)."),
    ):
        chosen = option(chosen)
    return chosen


def as_redis(storage: Storage) -> RedisStorage | None:
    """The storage where it is one in Redis; None for another one. The driver may be missing then."""
    module = sys.modules.get("pdc.storage.redis")
    return storage if module is not None and isinstance(storage, module.RedisStorage) else None


def as_sqlite(storage: Storage) -> SqliteStorage | None:
    """The storage where it is one in SQLite."""
    module = sys.modules.get("pdc.storage.sqlite")
    return storage if module is not None and isinstance(storage, module.SqliteStorage) else None


def suggestion(name: str, known: Mapping[str, Any]) -> str:
    """The known name that is the closest, as the end of a message."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; `pdc show` lists all metrics"
