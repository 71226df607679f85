"""Threads take turns to change a cell where Python runs without the GIL."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

FREE_THREADED = "t" in getattr(sys, "abiflags", "")
"""Whether this build of Python can run without the GIL. It may do so at any time, whatever PYTHON_GIL says."""


def wait_for_threads() -> None:
    """Return once no other thread is in the middle of an update that had begun before.

    A build without the GIL stops all threads for this call, at the points where one with the GIL switches between them.
    """
    if FREE_THREADED:
        sys._current_exceptions()


class Turn:
    """The turn of one thread: after `alone` no other thread passes its own `alone` until this one reads `together`.

    Both are attributes and not methods. A handler of a signal, which may want the turn too, runs at calls and backward jumps,
    but not where code reads an attribute. So the statements in between must neither call, nor jump back, nor raise.
    On a build with the GIL both attributes are None: threads and handlers switch at the same points there.
    """

    alone: Any = None
    together: Any = None
    lock: threading.RLock
    """The lock behind the turn. Calls to it are faster; they suit code in which a handler may run and raise."""
    release: Callable[[], None]

    @classmethod
    def begin(cls) -> None:
        """Free the turn. A thread that had it before a fork does not exist in the child."""
        if FREE_THREADED:
            from operator import methodcaller  # a build with the GIL need not import it

            lock = cls.lock = threading.RLock()
            cls.release = lock.release
            cls.alone = property(lock.acquire)  # the argument of the property, an object, reads as `blocking=True`
            cls.together = property(methodcaller("release"))


TURN = Turn()
TURN.begin()
