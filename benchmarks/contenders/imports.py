"""The import of a package, in a process that has not imported it."""

from __future__ import annotations

import importlib

from benchmarks.worker import Operation


def make(modules: list[str]) -> Operation:
    """The import of these modules, which happens once."""

    def load(_: int) -> None:
        for module in modules:
            importlib.import_module(module)

    return load
