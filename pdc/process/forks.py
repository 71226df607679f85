"""Calls all hooks of a fork in their order, also of a fork that Python does not see.

Python runs hooks where Python forks. A server written in C, such as uWSGI, or a call by ctypes clones the process without
them. Such a clone notices by its process id, before it counts or sends anything, and then begins like a child of Python.
"""

from __future__ import annotations

import logging  # noqa: F401 - Python calls its hook after ours, if it was imported before: ours may wait for a thread that logs
import mmap
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from .interruption import let_through

FREE_THREADED = "t" in getattr(sys, "abiflags", "")
"""This build of Python can run without the GIL. It may do so at any time, whatever PYTHON_GIL says."""
MADV_WIPEONFORK = 18
"""Of Linux, from 4.14 on: a fork finds nothing but zeros in such memory. Python's `mmap` does not name it."""


def _nothing() -> None:
    """Do nothing."""


class Hooks(NamedTuple):
    """The functions to call at a fork. A clone that Python did not make calls `after_in_child` alone."""

    before: Callable[[], None]
    after_in_parent: Callable[[], None]
    after_in_child: Callable[[], None]


class Forks:
    """Calls the registered hooks at each fork of this process: before it the last one first, after it the first one first."""

    def __init__(self) -> None:
        self.forked = False
        """True if this process has forked children."""
        self._hooks: list[Hooks] = []
        self._pid = os.getpid()
        self._turns: dict[int, threading.RLock] = {}
        self._waiting: dict[int, list[Hooks]] = {}
        """By thread: the hooks that still wait for the end of its fork."""
        self._unforked: dict[int, Any] = {}

    def register(
        self,
        before: Callable[[], None] = _nothing,
        after_in_parent: Callable[[], None] = _nothing,
        after_in_child: Callable[[], None] = _nothing,
    ) -> None:
        """Call these functions at every fork; they must not call `notice`."""
        self._hooks.append(Hooks(before, after_in_parent, after_in_child))

    def import_first(self, *modules: str) -> None:
        """Import these modules before a fork of a process with several threads, if they are not imported yet.

        A module that another thread is importing at a fork would stay half imported in the child, where that thread is gone.
        """

        def import_all() -> None:
            if threading.active_count() > 1:
                for module in modules:
                    import_module(module)

        self.register(before=import_all)

    def unforked(self) -> Any:
        """A value that is true in this process, and false in whatever is forked or cloned from it.

        It takes no call to look at it: it is a pointer in memory that the kernel clears at a fork. Where the kernel cannot, it
        is True. Without the GIL each thread has one of its own: others would make it wait while they look.
        """
        thread = threading.get_ident() if FREE_THREADED else 0
        if thread not in self._unforked:
            self._unforked[thread] = _pointer_that_forks_lose()
        return self._unforked[thread]

    def notice(self) -> None:
        """Begin as a new process where this is a clone of the one that was here before."""
        pid = os.getpid()
        if pid != self._pid:
            with self._turns.setdefault(pid, threading.RLock()):  # a lock of the parent may be held for ever
                self._begin(pid)

    def begin_anew(self) -> None:
        """Begin as a new process, whatever the process id says: for copies of a virtual machine."""
        self._pid = -1
        self.notice()

    def before(self) -> None:
        """Prepare for a fork."""
        self.notice()
        waiting = self._waiting.setdefault(threading.get_ident(), [])
        for hooks in reversed(self._hooks):
            waiting.append(hooks)
            hooks.before()

    def after_in_parent(self) -> None:
        """Go on after a fork.

        Python calls it twice: where a handler raises an exception in the first call, which Python drops, the other one goes on.
        """
        self.forked = True
        waiting = self._waiting.get(threading.get_ident())
        while waiting:
            waiting[-1].after_in_parent()
            waiting.pop()

    def after_in_child(self) -> None:
        """Begin as a new process."""
        self._begin(os.getpid())

    def _begin(self, pid: int) -> None:
        self._unforked = {}
        for hooks in self._hooks:
            if self._pid == pid:  # a handler, or another thread, was faster
                return
            hooks.after_in_child()
        self.forked = False
        self._waiting.clear()
        self._pid = pid


def _pointer_that_forks_lose() -> Any:
    try:
        import ctypes  # only here: programs that write each update at once do without

        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(MADV_WIPEONFORK)
    except (ImportError, AttributeError, OSError) as error:
        let_through(error)
        return True
    page[0] = 1
    return ctypes.POINTER(ctypes.c_byte).from_buffer(page)


FORKS = Forks()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=FORKS.before, after_in_parent=FORKS.after_in_parent, after_in_child=FORKS.after_in_child)
    os.register_at_fork(after_in_parent=FORKS.after_in_parent)
