"""The command line: ``pdc`` and ``python -m pdc``.

`app` has the group of commands and reports errors, `places` the options that name a storage, `terminal` and `words` the output.
Each other module has one command, or two that belong together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

LIBRARIES = ("click", "rich")
"""The libraries that the extra brings."""

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit code: 0, 1 for a failure or a finding, 2 for a wrong call."""
    if not all(map(find_spec, LIBRARIES)):
        needed = " and ".join(LIBRARIES)
        sys.stderr.write(f"pdc: the command line needs {needed}: pip install 'prometheus-distributed-client[cli]'\n")
        return 1
    from .app import run

    return run(arguments)
