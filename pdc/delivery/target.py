"""The storage that a buffer sends to."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from ..process import log
from ..process.interruption import interruption
from ..storage import Batch, Outcome, Snapshot, Storage, StorageError

if TYPE_CHECKING:
    from .journal import Journals

P = ParamSpec("P")
T = TypeVar("T")


class NotConfigured(RuntimeError):
    """A metric was updated, or metrics were read, before `setup` said where they live."""


class Target(NamedTuple):
    """A storage to send to, and how."""

    storage: Storage | None = None
    interval: float = 0.0
    """Seconds between two batches; 0 to write each update through."""
    renew_seconds: float | None = None
    """Seconds after which metrics are renewed."""
    thread: int | None = None
    """The one thread that may use the storage, where not all may. Updates of others wait for it."""
    journals: Journals | None = None
    limits: Mapping[str, float] = MappingProxyType({})
    """The limits of metrics that have none of their own."""

    def required(self) -> Storage:
        """The storage. Raises NotConfigured where there is none."""
        if self.storage is None:
            raise NotConfigured(
                "nothing says where metrics are kept: call pdc.setup(sqlite='metrics.db') or "
                "pdc.setup(redis='redis://localhost') before metrics are updated or read"
            )
        return self.storage

    @property
    def accepts_a_thread(self) -> bool:
        """True where a background thread may use the storage."""
        return self.storage is not None and self.thread is None

    @property
    def is_for_this_thread(self) -> bool:
        """True in a thread that may use the storage."""
        return self.thread in (None, threading.get_ident())

    def expect_thread(self) -> None:
        """Raise StorageError in a thread that may not use the storage. That is no outage."""
        if not self.is_for_this_thread:
            raise StorageError(
                f"cannot use {self.storage}: only the thread that made it may, and what others count waits for that one. "
                "Open it with check_same_thread=False, or give setup() a path"
            )


def call_storage(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a storage. Raises StorageError where it fails, or the exception of the application that broke the call off."""
    handled = sys.exc_info()[1]
    try:
        return call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - a storage may be of others
        raise _failure(error, handled)  # noqa: B904 - it has the cause that it needs


def applied(storage: Storage, batch: Batch) -> Outcome:
    """Apply the batch. Raises as `call_storage`, also for an answer that is no outcome."""
    handled = sys.exc_info()[1]  # the same as there without one more call: each update that is written through takes it
    try:
        answer: object = storage.apply(batch)
    except Exception as error:  # noqa: BLE001 - as above
        raise _failure(error, handled)  # noqa: B904 - as above
    if not isinstance(answer, Outcome):
        raise _failure(TypeError(f"apply() must return a pdc.storage.Outcome, got {answer!r}"), handled)
    return answer


def _failure(error: Exception, handled: BaseException | None) -> BaseException:
    """The exception to raise for an error of a storage, where `handled` was being handled when it was called."""
    if (raised := interruption(error, handled)) is not None:
        return raised  # the driver may have turned it into another one
    if isinstance(error, StorageError):
        return error
    log.defer(logging.ERROR, "the storage raised an error that nobody foresaw", error=error)
    failure = StorageError(f"the storage failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def found(storage: Storage, names: Collection[str] | None) -> Snapshot:
    """Read those metrics or all. Raises TypeError for an answer that is no snapshot."""
    answer: object = storage.read(names)
    if not isinstance(answer, Snapshot):
        raise TypeError(f"read() must return a pdc.storage.Snapshot, got a {type(answer).__qualname__}")
    return answer


def checked(storage: Storage) -> Storage:
    """The storage, if it has all that the contract names. Raises TypeError."""
    if isinstance(storage, type):
        raise TypeError(f"setup(storage=...) takes an object, got the class {storage.__name__}: call it")
    missing = [name for name in vars(Storage) if not name.startswith("_") and not _has(storage, name)]
    if missing:
        raise TypeError(f"setup(storage=...) takes a pdc.storage.Storage, got {storage!r}, which has no {', '.join(missing)}")
    identity: object = storage.identity
    if not (identity is None or isinstance(identity, str)):
        remedy = "make it a @property" if callable(identity) else "return the name of the storage"
        raise TypeError(f"the identity of a storage must be a text or None, got {identity!r}: {remedy}")
    return storage


def _has(storage: Storage, name: str) -> bool:
    """True where the storage has this member of the contract, of its own: a subclass of `Storage` inherits all, empty."""
    is_of_its_own = getattr(type(storage), name, None) is not getattr(Storage, name)
    return is_of_its_own and hasattr(storage, name) and (name == "identity" or callable(getattr(storage, name)))
