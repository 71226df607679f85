"""Distinguishes exceptions that the application raised into running code from errors of that code."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # typeshed has no stub of it
import inspect
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import methodcaller
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_LIBRARIES = sys.stdlib_module_names | {"builtins", "pdc", "redis", "hiredis"}
"""The packages whose code runs while a storage is used, and which raise only exceptions of each other."""
_SWITCHERS = frozenset({"gevent", "greenlet", "eventlet"})
"""Packages in whose code a greenlet waits, and where others throw exceptions into it."""


def interruption(error: BaseException, handled: BaseException | None = None) -> BaseException | None:
    """The exception of the application that broke off the code which raised `error`; None where that failed by itself.

    Handlers of signals, `PyThreadState_SetAsyncExc` and greenlets raise exceptions of any class into whatever runs, and
    drivers turn some of them into errors of their own: those have the original as their context. `handled` is the exception
    that was being handled when that code was called (`sys.exc_info`): it is the context of every error, and no reason.
    """
    return next((each for each in _chain(error, handled) if _is_of_application(each)), None)


def let_through(error: BaseException) -> None:
    """Raise the error again where the application raised it, for code that goes on after errors of such a class.

    A handler of a signal that ends a call in time may well raise TimeoutError, which is an OSError.
    """
    if _is_of_application(error):
        raise error


class tolerate(suppress):  # noqa: N801 - it is used as a function, as its base is
    """`contextlib.suppress`, but for exceptions that the application raised."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        return super().__exit__(kind, error, trace) and error is not None and not _is_of_application(error)


def interruption_of_callable(error: BaseException, handled: BaseException | None = None) -> BaseException | None:
    """The exception of a handler of a signal that broke off a function of the application; None where that failed by itself.

    Such a function raises exceptions of any class, from any library. It also turns exceptions into others, as
    `asyncio.timeout` does with the cancellation that it caused.
    """
    return next((each for each in _chain(error, handled) if is_raised_by_handler(each.__traceback__)), None)


def locked(lock: threading.RLock, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do the work with the lock held, which is free again whatever raises.

    In CPython 3.14 a handler may raise when `with` has taken a lock, but would not release it yet.
    """
    is_nested = is_own(lock)
    try:
        with lock:
            return work(*args, **kwargs)
    finally:
        if not is_nested and is_own(lock):
            lock.release()


def locked_within(seconds: float, lock: threading.RLock, work: Callable[[], object]) -> bool:
    """Do the work with the lock held unless other threads hold it for so long; return whether it was done.

    The lock is free again whatever raises, also a handler while it is released. A thread that has it keeps it meanwhile.
    """
    if is_own(lock):
        work()
        return True
    try:
        try:
            if is_in_time := lock.acquire(timeout=seconds):
                work()
            return is_in_time
        finally:
            release_own(lock)
    finally:
        if is_own(lock):
            lock.release()


def release_own(lock: threading.RLock) -> None:
    """Release a lock that this thread may hold: a handler's exception may have come before it could note whether it does."""
    try:
        lock.release()
    except RuntimeError as error:  # it is free, or another thread's
        let_through(error)
        return


is_own: Callable[[Any], bool] = methodcaller("_is_owned")
"""True where this thread holds the lock. The conditions of `threading` ask the same way."""


def ends_greenlet(error: BaseException) -> bool:
    """True for the exception that ends a greenlet. The code that kills one may wait for its end."""
    return type(error).__name__ == "GreenletExit" and _package(type(error).__module__) in _SWITCHERS


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and those that it came of."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following is not handled and following not in seen:
        yield following
        seen.append(following)
        following = following.__context__ if following.__cause__ is None else following.__cause__


def is_raised_by_handler(traceback: TracebackType | None) -> bool:
    """True where it passed a handler of a signal, or another function that got the frame which it interrupted."""
    interrupted: FrameType | None = None
    while traceback is not None:
        frame = traceback.tb_frame
        if interrupted is not None and (_has_argument(frame, interrupted) or _is_handler_without_frame(frame)):
            return True
        interrupted, traceback = frame, traceback.tb_next
    return False


def _is_handler_without_frame(frame: FrameType) -> bool:
    """True for a handler of a signal that has deleted one of its arguments, or replaced the frame among them.

    The application may call a handler itself, and functions that one decorator has made share their code with a handler that
    it made, too: they keep their arguments, none of which is the number of a signal.
    """
    code, local = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    names = code.co_varnames[:count]
    kinds = [type(local[name]) for name in names if name in local]
    if len(kinds) == len(names) and (FrameType in kinds or not any(issubclass(kind, int) for kind in kinds)):
        return False
    handlers = map(_signal.getsignal, range(1, signal.NSIG))  # that of `signal` looks for names, which takes a millisecond
    return any(_code_of(each) is code for each in handlers)


def _code_of(handler: Any) -> Any:
    """The code that a handler runs: a function, a method, an object that can be called, or a `partial` of one."""
    while issubclass(type(handler), partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)
    return getattr(getattr(type(handler), "__call__", None), "__code__", None) if code is None else code  # noqa: B004


def _has_argument(frame: FrameType, wanted: FrameType) -> bool:
    values = list(frame.f_locals.values())
    tuples = (value for value in values if issubclass(type(value), tuple))  # `isinstance` would ask lazy objects to load
    return any(value is wanted for value in values) or any(item is wanted for each in tuples for item in each)


def _is_of_application(error: BaseException) -> bool:
    return not isinstance(error, Exception) or is_raised_by_handler(error.__traceback__) or _is_raised_from_outside(error)


def _is_raised_from_outside(error: Exception) -> bool:
    """True where a library seems to raise what it cannot: a foreign class, or one without a message that Python gives one."""
    owner = _package(type(error).__module__)
    if owner in _LIBRARIES and (owner != "builtins" or error.args or isinstance(error, (AssertionError, MemoryError))):
        return False
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    package = _package(traceback.tb_frame.f_globals.get("__name__", "")) if traceback is not None else ""
    return package in _LIBRARIES or package in _SWITCHERS


def _package(module: str) -> str:
    return module.partition(".")[0]
