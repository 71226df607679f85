"""The process of one contender: reads a number of operations from a pipe, does them, and answers their cost.

It imports nothing but the standard library, so that it costs every contender the same, in any environment.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Operation = Callable[[int], "float | None"]
"""Does something that many times. A return value is a measurement of its own, such as bytes."""


def measure(operation: Operation, times: int) -> dict[str, float | None]:
    """The wall-clock seconds of so many operations, the CPU seconds of this process, and their return value.

    Earlier garbage is collected first. The collector stays on, since its work belongs to the operation that causes it.
    """
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    result = operation(times)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "result": result}


def main() -> None:
    """Make the operation that the arguments name (module, function, keywords as JSON), then answer a line for each line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # other output must not come between the answers
    module, function, keywords = sys.argv[1:]
    make: Callable[..., Operation] = getattr(importlib.import_module(module), function)
    operation = make(**json.loads(keywords))
    gc.collect()
    gc.freeze()

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")

    answer("ready")
    for line in sys.stdin:
        answer(measure(operation, int(line)))


if __name__ == "__main__":
    main()
