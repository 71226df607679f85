"""Runs tests with every Python of this machine, or with the named ones, and reports missing ones.

    python tests/check_pythons.py [--pythons python3.12 /opt/python3.14t ...] [-- arguments of pytest]
    python tests/check_pythons.py --requirements [--free-threaded]

Each gets its own environment in `.venv-pythons`, with the group `runner` of pyproject.toml. One without `venv` runs the tests
by itself: it must already have these packages, and `--requirements` lists them. Where a named one is missing, or tests fail, it
exits with 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PYPROJECT = ROOT / "pyproject.toml"
ENVIRONMENTS = ROOT / ".venv-pythons"
KNOWN = [*(f"python3.{minor}" for minor in range(10, 16)), "python3.14t", "python3.15t"]
ABOUT = "import platform, sys; print(platform.python_version() + ('t' if 't' in sys.abiflags else ''))"
HAS_ALL = "import prometheus_client, pytest, xdist, pytest_timeout, redis"


class Unusable(Exception):  # noqa: N818 - the message gives the reason
    """An interpreter cannot run the tests."""


def output(*command: str | Path) -> str:
    """The output of the command. Raises Unusable where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise Unusable(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def pyproject() -> dict[str, Any]:
    """The content of pyproject.toml."""
    reader = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter
    content: dict[str, Any] = reader.loads(PYPROJECT.read_text(encoding="utf-8"))
    return content


def requirements(*, free_threaded: bool) -> list[str]:
    """The requirements of the tests, without the checkout, in pip's syntax."""
    document = pyproject()
    groups, extras = document["dependency-groups"], document["project"]["optional-dependencies"]
    found: dict[str, None] = {}

    def add(lines: list[Any]) -> None:
        for line in lines:
            if isinstance(line, dict):
                add(groups[line["include-group"]])
            elif line != "uwsgi":  # it has no wheels, so that only an interpreter with a compiler builds it
                found[line] = None

    add([*document["project"]["dependencies"], *groups["runner-free-threaded" if free_threaded else "runner"]])
    for name in tested_extras(free_threaded=free_threaded):
        add(extras[name])
    return list(found)


def tested_extras(*, free_threaded: bool) -> list[str]:
    """The extras that the tests need; the one of Redis brings hiredis, which turns the GIL on."""
    return ["flask", "django", "starlette", "cli", *([] if free_threaded else ["redis"])]


def environment(python: str, version: str) -> Path:
    """An interpreter with all requirements of the tests. Raises Unusable."""
    folder = ENVIRONMENTS / f"{version}-{hashlib.sha256(PYPROJECT.read_bytes()).hexdigest()[:8]}"
    inside = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return inside
    if subprocess.run([python, "-m", "venv", "--clear", str(folder)], capture_output=True, check=False).returncode:
        shutil.rmtree(folder, ignore_errors=True)
        output(python, "-c", HAS_ALL)
        return Path(python)
    free_threaded = version.endswith("t")
    group, brought = "runner-free-threaded" if free_threaded else "runner", ",".join(tested_extras(free_threaded=free_threaded))
    output(inside, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1")
    output(inside, "-m", "pip", "install", "--quiet", "--editable", f".[{brought}]", "--group", group)
    (folder / "ready").touch()
    return inside


def check(python: str, arguments: list[str]) -> str:
    """Run the tests, and summarize the result. Raises Unusable."""
    version = output(python, "-c", ABOUT)
    print(f"\n=== {python}: {version}", flush=True)
    began = time.monotonic()
    exit_code, failures = run_tests(environment(python, version), arguments)
    if exit_code:
        raise Unusable("\n  ".join([f"tests failed with {version}", *failures]))
    return f"passed with {version} in {time.monotonic() - began:.0f} s"


def run_tests(python: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """Run the tests and show their output; return the exit code and pytest's lines of failures, to be repeated at the end."""
    failures = []
    command = [str(python), "-m", "pytest", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1) as tests:
        assert tests.stdout
        for line in tests.stdout:
            print(line, end="", flush=True)
            if line.startswith(("FAILED ", "ERROR ")):
                failures.append(line.rstrip())
    return tests.returncode, failures


def check_all(names: list[str], arguments: list[str], *, named: bool) -> int:
    """Run the tests with all these interpreters; return the exit code."""
    failed = False
    results = {}
    for name in names:
        python = shutil.which(name)
        if python is None:
            results[name] = "missing"
            failed |= named
            continue
        try:
            results[name] = check(python, arguments)
        except Unusable as error:
            results[name] = f"FAILED: {error}"
            failed = True
    print()
    for name, result in results.items():
        print(f"{name}: {result}")
    if all(result == "missing" for result in results.values()):
        print("no Python was found")
        return 1
    return int(failed)


def main() -> int:
    """Parse the arguments, and run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="*", default=[], help="commands or paths; all that are found unless given")
    parser.add_argument("--requirements", action="store_true", help="print what the tests need, and do nothing else")
    parser.add_argument("--free-threaded", action="store_true", help="print what they need on a build without the GIL")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, arguments = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    if options.requirements:
        print(*requirements(free_threaded=options.free_threaded), sep="\n")
        return 0
    return check_all(options.pythons or KNOWN, arguments, named=bool(options.pythons))


if __name__ == "__main__":
    sys.exit(main())
