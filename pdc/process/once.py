"""Functions that run once per process: declarations of metrics that its applications share, settings, and warnings.

An application factory may be called many times in a process, which has one set of metrics for all applications.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache, wraps
from typing import Any, TypeVar

from .forks import FORKS
from .interruption import locked

T = TypeVar("T")

_REGISTERED: list[_lru_cache_wrapper[object]] = []


def once(function: Callable[..., T]) -> _lru_cache_wrapper[T]:
    """Run the function once for each set of arguments, and return that result from then on; other threads wait for it."""
    results = lru_cache(maxsize=None)(function)  # two threads that call it at once would both run the function
    turns: list[threading.RLock] = []

    def begin() -> None:
        turns[:] = [threading.RLock()]  # the one of the parent may be held for ever

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> T:
        return locked(turns[0], results, *args, **kwargs)

    def clear() -> None:
        type(known).cache_clear(known)
        results.cache_clear()

    begin()
    FORKS.register(after_in_child=begin)
    known = lru_cache(maxsize=None)(run)
    known.cache_clear = clear  # type: ignore[method-assign] # it is part of the same cache
    return _registered(known)


def once_each(most: int) -> Callable[[Callable[..., T]], _lru_cache_wrapper[T]]:
    """Like `once`, for functions of endless arguments: it remembers the last `most` sets of them."""
    return lambda function: _registered(lru_cache(maxsize=most)(function))


def forget() -> None:
    """Let every function run again: for tests, each of which begins like a new process."""
    for function in _REGISTERED:
        function.cache_clear()


def _registered(function: _lru_cache_wrapper[T]) -> _lru_cache_wrapper[T]:
    _REGISTERED.append(function)
    return function
