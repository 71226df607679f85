"""Threads take turns to change a cell where Python runs without the GIL."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from ..process.forks import FREE_THREADED
from ..process.interruption import is_own


def wait_for_threads() -> None:
    """Return once no other thread is in the middle of an update that had begun before.

    A build without the GIL stops all threads for this call, at the points where one with the GIL switches between them.
    """
    if FREE_THREADED:
        sys._current_exceptions()


TURN_LOCK: Any = threading.RLock()
"""The lock of a `Turn`. Calls to it are faster; they suit code in which a handler may run and raise."""


class Turn:
    """The turn of one thread: after `alone` no other thread passes its own `alone` until this one reads `together`.

    Both are attributes and not methods. A handler of a signal, which may want the turn too, runs at calls and backward jumps,
    but not where code reads an attribute. So the statements in between must neither call, nor jump back, nor raise.
    On a build with the GIL both attributes are None: threads and handlers switch at the same points there.
    """

    alone: Any = None
    together: Any = None

    if FREE_THREADED and not TYPE_CHECKING:
        from operator import methodcaller  # a build with the GIL need not import it

        release = TURN_LOCK.release
        alone = property(TURN_LOCK.acquire)  # the argument of the property, an object, reads as `blocking=True`
        together = property(methodcaller("release"))

    def begin(self) -> None:
        """Free the turn from threads of the parent, which do not exist in a fork.

        A handler that forks amid the turn of its own thread gives it back to the code that it interrupted.
        """
        if FREE_THREADED and not is_own(TURN_LOCK):
            TURN_LOCK._at_fork_reinit()


TURN = Turn()
