"""The servers that run this process: uWSGI, Gunicorn and AWS Lambda. There is nothing to set.

uWSGI and Gunicorn (``--preload``) may load an application in a master, whose forks are the workers. uWSGI forks without
Python's hooks, and without ``--enable-threads`` it lets no thread run while a worker waits for a request.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any

from .forks import FORKS

WORKER_STARTS: list[Callable[[], None]] = [FORKS.notice]
"""The functions to call where a worker starts, before its first request."""
REQUEST_ENDS: list[Callable[[], None]] = []
"""The functions to call after each request of a worker where no threads run."""
SNAPSHOTS: list[Callable[[], None]] = []
"""The functions to call before AWS Lambda takes a snapshot (SnapStart), of which it makes many copies later."""
ABORTS: list[Callable[[], None]] = []
"""The functions to call where Gunicorn stops a worker that hangs."""
NO_THREADS = "start uWSGI with --enable-threads, or no thread runs while a worker waits for a request"


def _uwsgi() -> Any:
    """The module that uWSGI gives to its processes. It cannot be imported elsewhere."""
    found = sys.modules.get("uwsgi")
    return found if hasattr(found, "masterpid") else None


def is_master() -> bool:
    """True where this process loads the application for its forks, and answers no request itself."""
    uwsgi = _uwsgi()
    if uwsgi is not None:
        return bool(uwsgi.worker_id() == 0 and uwsgi.mule_id() == 0 and not uwsgi.i_am_the_spooler())
    return "gunicorn.arbiter" in sys.modules and _is_called_by_arbiter()


def _is_called_by_arbiter() -> bool:
    """True while Gunicorn's master loads the application."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        where = frame.f_globals.get("__name__", "")
        if where.startswith("gunicorn.workers."):
            return False
        if where == "gunicorn.arbiter":
            return True
        frame = frame.f_back
    return False


def _spawned() -> Any:
    """The worker that Gunicorn's master is making; None where this call does not come from there."""
    frame: FrameType | None = sys._getframe() if "gunicorn.arbiter" in sys.modules else None
    while frame is not None:
        if frame.f_code.co_name == "spawn_worker" and frame.f_globals.get("__name__") == "gunicorn.arbiter":
            return frame.f_locals.get("worker")
        frame = frame.f_back
    return None


def _join(pid: object) -> None:
    """Let a worker of Gunicorn, which calls its process `pid`, run Python's exit handlers at its end.

    A worker of Uvicorn raises the signal that stopped it once more at its end, with the handler from before. A worker with an
    event loop does not hear, while the loop hangs, that Gunicorn aborts it.
    """
    worker = _spawned()
    if worker is None or worker.pid != pid:
        return
    if worker.booted:
        _heed_signals(worker)
        return
    run = worker.run

    def run_as_worker() -> None:
        _heed_signals(worker)
        _call(WORKER_STARTS)
        run()

    worker.run = run_as_worker  # the code before it, and the hooks, set handlers of signals, another user, gevent's classes


def _heed_signals(worker: Any) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)
    before = signal.getsignal(signal.SIGABRT)

    def abort(number: int, frame: FrameType | None) -> None:
        for hook in ABORTS:  # not later: some frameworks do not let the exit pass
            hook()
        (before if callable(before) else worker.handle_abort)(number, frame)

    signal.signal(signal.SIGABRT, abort)


def _exit(_number: int, _frame: object) -> None:
    sys.exit(0)


def threads_run() -> bool:
    """True where threads run as long as this process lives, and may be there when it forks."""
    uwsgi = _uwsgi()
    return uwsgi is None or bool((uwsgi.has_threads or uwsgi.loop) and not is_master())


def adapt() -> None:
    """Have the functions called: where a worker starts, after requests, around snapshots. Once per process is enough."""
    uwsgi = _uwsgi()
    if uwsgi is not None:
        _chain(uwsgi, "post_fork_hook", WORKER_STARTS)
        if not (uwsgi.has_threads or uwsgi.loop):
            _chain(uwsgi, "after_req_hook", REQUEST_ENDS)
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start" and not _snapshots:
        _snapshots.append(import_module("snapshot_restore_py"))
        _snapshots[0].register_before_snapshot(partial(_call, SNAPSHOTS))
        _snapshots[0].register_after_restore(FORKS.begin_anew)


_snapshots: list[Any] = []
"""The module of AWS Lambda for snapshots, once our functions are registered there."""


def _chain(uwsgi: Any, name: str, ours: list[Callable[[], None]]) -> None:
    """Call these functions before the hook of that name, if there is one."""
    theirs = getattr(uwsgi, name, None)
    if not isinstance(theirs, partial) or theirs.func is not _call:
        setattr(uwsgi, name, partial(_call, ours, theirs))


def _call(ours: list[Callable[[], None]], theirs: Callable[[], None] | None = None) -> None:
    for hook in ours:
        hook()
    if theirs is not None:
        theirs()


_join(os.getpid())  # a worker that loads the application imports this module
FORKS.register(after_in_child=partial(_join, "[booting]"))  # a master that has loaded it has just forked the worker
