"""The cost of an update on several interpreters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.contest import Suite

from .updates import KINDS, PDC, REFERENCE, updates

ABOUT = "import platform, sys; print(platform.python_version() + ('t' if 't' in sys.abiflags else ''))"


def suite(*, quick: bool, pythons: Sequence[str] = (sys.executable,)) -> Suite:  # noqa: ARG001 - a quick one has the same cases
    """The suite for these interpreters, which have the requirements of pdc with Redis."""
    cases = []
    for python in pythons:
        version = subprocess.run([python, "-c", ABOUT], capture_output=True, text=True, check=True).stdout.strip()
        for title, kind in KINDS.items():
            case = updates(f"{title}, Python {version}", kind, [REFERENCE, *PDC])
            cases.append(replace(case, contenders=[replace(each, python=python) for each in case.contenders], most_rounds=31))
    return Suite("interpreters", "Cost of an update on other interpreters", cases)
