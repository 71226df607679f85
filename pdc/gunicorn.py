"""Server hooks of Gunicorn: ``gunicorn -c python:pdc.gunicorn``, or ``from pdc.gunicorn import *`` in its configuration.

There is nothing to set and no directory to clean. The hooks make workers of every class send what is pending before they
end; what a worker that is killed had in progress goes by itself, when its lease ends.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Any

from .config import flush
from .storage import StorageError

__all__ = ["post_worker_init"]


def post_worker_init(worker: Any) -> None:
    """Let the worker run Python's exit handlers where a signal would end it without them.

    Uvicorn's workers raise the signal that stopped them once more at their end, with the handler from before. And those
    with an event loop do not hear, while it hangs, that Gunicorn aborts them.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)

    def abort(number: int, frame: object) -> None:
        with suppress(StorageError):  # it is logged
            flush()  # now: not every framework lets the exit pass
        worker.handle_abort(number, frame)

    signal.signal(signal.SIGABRT, abort)


def _exit(_number: int, _frame: object) -> None:
    sys.exit(0)
