"""What pdc logs. Whatever filters and handlers of the log do, they break nothing of ours, and hold up nobody who sends."""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from .forks import FORKS
from .interruption import interruption

logger = logging.getLogger("pdc")

MOST_DEFERRED = 100
"""How many messages wait at most, where a handler of the log does not return."""
FAILURES: list[Callable[[], object]] = []
"""What to call for each message that could not be logged."""


class _Message(NamedTuple):
    level: int
    text: str
    values: tuple[object, ...]
    error: BaseException | None

    def emit(self) -> None:
        """Log it. Raises only what the application raised into the log, as handlers of signals do."""
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
"""The thread that logs what the background threads have to say, while there is any."""


def defer(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log this as soon as nobody waits for who says it; for callers that hold a lock."""
    if len(_deferred) < MOST_DEFERRED:
        _deferred.append(_Message(level, text, values, error))
    else:
        _count_failure()


def defer_once(about: object, level: int, text: str, *values: object) -> None:
    """Defer the message, unless one about the same thing was deferred before."""
    if about not in _known:
        _known.add(about)
        defer(level, text, *values)


def emit() -> None:
    """Log what was deferred; for callers that hold no lock."""
    while _deferred:
        with suppress(IndexError):  # another thread was faster
            _deferred.popleft().emit()


def write(level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log this; for callers that hold no lock."""
    _Message(level, text, values, error).emit()


def emit_in_thread() -> None:
    """Log what was deferred in a thread of its own, since a handler may wait for anything; in this one if none can start."""
    if not _deferred or any(thread.is_alive() for thread in _threads):
        return
    thread = threading.Thread(target=_emit_unharmed, name="pdc-log", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there are too many, or the interpreter ends
        _emit_unharmed()
    else:
        _threads[:] = [thread]


def _emit_unharmed() -> None:
    """Log what was deferred in a thread of ours, whatever is raised: nobody else would hear of it."""
    while _deferred:
        with suppress(BaseException):  # it is counted
            emit()


def finish(seconds: float) -> None:
    """Log what was deferred before the process ends, and wait for who is at it, for so long at most."""
    for thread in _threads:
        if thread is not threading.current_thread():
            thread.join(seconds)
    emit()


def log_or_raise(error: Exception, text: str, *values: object) -> None:
    """Log an error of ours, which must break nothing; raise what the application raised into our code."""
    if (raised := interruption(error)) is not None:
        raise raised
    write(logging.ERROR, text, *values, error=error)


def _count_failure() -> None:
    for count in FAILURES:
        count()


def _forget() -> None:
    """Leave to the parent what it has to say."""
    _deferred.clear()
    _threads.clear()


FORKS.register(after_in_child=_forget)
