"""The log of pdc. Its filters and handlers may raise or wait: they break nothing of ours, and hold up no thread that sends."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .forks import FORKS
from .interruption import interruption, interruption_of_callable, let_through, tolerate

logger = logging.getLogger("pdc")

MOST_DEFERRED = 100
"""The most messages that wait where a handler of the log does not return."""
FAILURES: list[Callable[[], object]] = []
"""The functions to call for each message that could not be logged."""


class _Message(NamedTuple):
    level: int
    text: str
    values: tuple[object, ...]
    error: BaseException | None

    def emit(self) -> None:
        """Log it. Raises only the exceptions that the application raised into the log, as handlers of signals do."""
        handled = sys.exc_info()[1]
        try:
            logger.log(self.level, self.text, *self.values, exc_info=self.error)
        except BaseException as failure:
            _count_failure()
            if (raised := interruption(failure, handled)) is not None:
                raise raised  # noqa: B904 - the log may have turned it into another one


_deferred: deque[_Message] = deque()
_known: set[object] = set()
"""The things about which one message is enough."""
_threads: list[threading.Thread] = []
"""The thread that logs the messages of the background threads, while there is one."""


def defer(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log this when the caller has released its locks."""
    if len(_deferred) < MOST_DEFERRED:
        _deferred.append(_Message(level, text, values, error))
    else:
        _count_failure()


def defer_once(about: object, level: int, text: str, *values: object) -> None:
    """Defer the message, unless one about the same thing was deferred before."""
    if about not in _known:
        _known.add(about)
        defer(level, text, *values)


def is_waiting() -> bool:
    """True where messages are deferred."""
    return bool(_deferred)


def emit() -> None:
    """Log deferred messages. The caller holds no lock."""
    while _deferred:
        with tolerate(IndexError):  # another thread was faster
            _deferred.popleft().emit()


def write(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log this now. The caller holds no lock."""
    _Message(level, text, values, error).emit()


def emit_in_thread() -> None:
    """Log deferred messages in a thread of its own, since a handler may wait for anything; here if no thread can start."""
    if not _deferred or any(thread.is_alive() for thread in _threads):
        return
    thread = threading.Thread(target=_emit_unharmed, name="pdc-log", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:  # there are too many, there is no memory for it, or the interpreter ends
        let_through(error)
        _emit_unharmed()
    else:
        _threads[:] = [thread]


def _emit_unharmed() -> None:
    """Log deferred messages in a thread of ours. It outlives every exception, of which nobody else would hear."""
    while _deferred:
        with suppress(BaseException):  # it is counted
            emit()


def finish(seconds: float) -> None:
    """Log deferred messages before the process ends, and wait so long at most for a thread that does."""
    for thread in _threads:
        if thread is not threading.current_thread():
            thread.join(seconds)
    emit()


def log_or_raise(error: Exception, text: str, *values: object) -> None:
    """Log an error of ours, which must break nothing; raise an exception that the application raised into our code."""
    if (raised := interruption(error)) is not None:
        raise raised
    write(logging.ERROR, text, *values, error=error)


def log_once_or_raise(logged: set[str], error: Exception, message: str) -> None:
    """Log an error of a function of the application, unless it is among the `logged`; raise what a handler raised into it.

    Call this after the ``except`` clause: an exception that the caller handles, such as that of a client that left, is the
    context of the error, and no reason.
    """
    if (raised := interruption_of_callable(error, sys.exc_info()[1])) is not None:
        raise raised
    if message in logged:
        error.__traceback__ = None  # a cycle with the caller's frame: only the garbage collector would free its objects
        return
    logged.add(message)
    write(logging.WARNING, message, error=error)


def _count_failure() -> None:
    for count in FAILURES:
        count()


def _forget() -> None:
    """Leave the messages of the parent to it."""
    _deferred.clear()
    _threads.clear()


FORKS.register(after_in_child=_forget)
