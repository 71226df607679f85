"""`pdc run`: a program and its children count in the storage; its environment, its exit codes and its start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import pytest
from commands import COMMAND, ENVIRON, Pdc, place
from conftest import ROOT
from helpers import shown

import pdc
from pdc.cli.run import SITE

command = commands.command
SQLITE = pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
PROGRAM = """
import multiprocessing, os, sys
from prometheus_client import REGISTRY, Counter, Gauge, generate_latest

JOBS, BUSY = Counter("jobs", "Jobs."), Gauge("busy", "Busy.")

def work(folder):
    os.chdir(folder)
    JOBS.inc()
    BUSY.set(1)

if __name__ == "__main__":
    work(".")
    for method in ("fork", "spawn"):
        child = multiprocessing.get_context(method).Process(target=work, args=["/"])
        child.start()
        child.join()
    sys.exit(7 if "jobs_total 3.0" in generate_latest(REGISTRY).decode() else 1)
"""


@SQLITE
def test_all_processes_of_a_program_count(storage: dict[str, Any], tmp_path: Path) -> None:
    """A script counts in its own process, in a forked and in a spawned child, sees the total, and has its exit code."""
    script = tmp_path / "jobs"
    script.write_text(f"#!{sys.executable}\n{PROGRAM}")
    script.chmod(0o755)
    options = [*place(storage), "--flush-interval", "0", "--gauge-mode", "max"]
    done = subprocess.run([*COMMAND, "run", *options, "./jobs"], cwd=tmp_path, env=ENVIRON, check=False, timeout=60)
    assert done.returncode == 7
    pdc.setup(**storage)
    assert shown() == {"jobs_total": 3.0, "busy": 1.0}


def test_a_program_that_is_switched_off_runs_as_without_pdc(tmp_path: Path) -> None:
    """With PDC_ENABLED=false its metrics stay in its memory, and the command says so."""
    program = "import prometheus_client; print(prometheus_client.Counter)"
    words = [*COMMAND, "run", "--sqlite", "metrics.db", "--", sys.executable, "-c", program]
    environ = {**ENVIRON, "PDC_ENABLED": "false"}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "<class 'prometheus_client.metrics.Counter'>\n"
    assert done.stderr == "pdc: PDC_ENABLED is false: the metrics of the program stay in its memory\n"
    assert list(tmp_path.iterdir()) == []


def test_the_program_replaces_the_command(tmp_path: Path) -> None:
    """The program has the process id and the signals of the command; also those that Python ignores end it."""
    words = [*COMMAND, "run", "--", "sh", "-c", "yes | head -n 1; echo $$; kill -TERM $$"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.communicate(timeout=60) == (f"y\n{process.pid}\n", "")
    assert process.returncode == -signal.SIGTERM


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The programs that replaced this process, which they do not: each has its words and its environment."""
    found: list[tuple[list[str], dict[str, str]]] = []

    def become(_: str, words: list[str], environ: dict[str, str]) -> None:
        found.append((words, environ))
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "execvpe", become)
    return found


@SQLITE
def test_the_options_become_the_environment(
    command: Pdc, started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Options go before PDC_..., whose others stay; paths are absolute, and what is on PYTHONPATH is still there."""
    monkeypatch.setenv("PYTHONPATH", "lib")
    monkeypatch.setenv("PDC_REDIS_URL", "redis://localhost/1")
    monkeypatch.setenv("PDC_REDIS_PREFIX", "shop")
    monkeypatch.setenv("PDC_INSTALL", "liveall")
    command("run", "--", "serve", "--redis", at=None)
    command("run", "--sqlite", "a.db", "--flush-interval", "0.5", "--gauge-mode", "max", "serve", "-w", at=None)
    (first_words, first), (words, environ) = started
    assert (first_words, words) == (["serve", "--redis"], ["serve", "-w"])
    paths = {"PYTHONPATH": f"{SITE}{os.pathsep}lib"}
    variables = {name: text for name, text in first.items() if name.startswith("PDC_")}
    assert variables == {"PDC_REDIS_URL": "redis://localhost/1", "PDC_REDIS_PREFIX": "shop", "PDC_INSTALL": "liveall"}
    variables = {name: text for name, text in environ.items() if name.startswith(("PDC_", "PYTHONPATH"))}
    assert variables == paths | {
        "PDC_SQLITE_PATH": str(tmp_path / "a.db"),
        "PDC_FLUSH_INTERVAL": "0.5",
        "PDC_INSTALL": "max",
    }


@SQLITE
@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["no-such-command"], 127, "cannot run no-such-command: No such file"),
        (["./plain"], 126, "cannot run ./plain: Permission denied"),
        ([sys.executable, "-I", "-m", "shop"], 2, "the flag -I would not load pdc"),
        (["python3.12", "-sE", "shop.py"], 2, "the flag -E would not load pdc"),
        (["python", "-W", "error"], 126, "cannot run python: Permission denied"),
        (["python", "-m", "shop", "-I"], 126, "cannot run python: Permission denied"),
        (["./isolated"], 2, "/usr/bin/python3 with the flag -I would not load pdc"),
    ],
)
def test_a_program_that_cannot_be_run_is_one_line(
    words: list[str], code: int, reason: str, command: Pdc, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The exit codes are those of shells. A Python that would not load pdc is refused, also by the first line of a script."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "isolated").write_text("#!/usr/bin/env -S /usr/bin/python3 -I\n")
    (tmp_path / "isolated").chmod(0o755)
    if words[0] == "python":
        request.getfixturevalue("started")
    done = command("run", "--", *words, at=None)
    assert (done.code, done.output, done.errors.count("\n")) == (code, "", 1)
    assert reason in done.errors
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN


@SQLITE
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prefix", "shop"], "a prefix such as 'shop' is for Redis"),
        (["--redis", "redis://localhost/0?nonsense=1"], "nonsense"),
        (["--flush-interval", "nan"], "PDC_FLUSH_INTERVAL must be seconds"),
        (["--gauge-mode", "most"], "'most' is not one of 'shared'"),
    ],
)
def test_wrong_options_start_nothing(
    arguments: list[str], reason: str, command: Pdc, started: list[tuple[list[str], dict[str, str]]]
) -> None:
    """A storage or an option that cannot be is a wrong call before the program starts."""
    done = command("run", *arguments, "serve", at=None)
    assert (done.code, done.errors.count("\n"), started) == (2, 1, [])
    assert reason in done.errors


class Started:
    """Python as a program of `pdc run` starts it, in a folder with a `sitecustomize` of the user."""

    def __init__(self, folder: Path, source: str, customize: str = "") -> None:
        (folder / "sitecustomize.py").write_text(customize)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", source],
            cwd=folder,
            env={
                **ENVIRON,
                "PYTHONPATH": os.pathsep.join(map(str, (SITE, folder, ROOT))),
                "PDC_INSTALL": "true",
                "PDC_SQLITE_PATH": "metrics.db",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.output, self.errors = done.stdout.split(), done.stderr
        assert done.returncode == 0, done.stderr


def test_a_program_without_metrics_starts_as_without_pdc(tmp_path: Path) -> None:
    """Its own `sitecustomize` runs, pdc is not imported, and the path of modules has no folder of ours."""
    source = "import sys, sitecustomize; print(sitecustomize.MINE, 'pdc' in sys.modules, *sys.path)"
    mine, is_imported, *path = Started(tmp_path, source, "MINE = 3").output
    assert (mine, is_imported, path[:2]) == ("3", "False", [str(tmp_path), str(ROOT)])
    assert str(SITE) not in path


@pytest.mark.parametrize("first", ["prometheus_client.core", "pdc"])
def test_the_first_import_sets_up(tmp_path: Path, first: str) -> None:
    """A search without an import changes nothing; the import of either package sets up, and modules look as ever."""
    source = f"""
import importlib.util
assert importlib.util.find_spec({first!r}.split(".")[0]).submodule_search_locations
import {first}
from prometheus_client import REGISTRY, Counter
import pdc, sys
print(isinstance(Counter("hits", "Hits."), pdc.Counter), pdc.get_sqlite_conn() is not None)
print(*(type(sys.modules[name].__spec__.loader).__name__ for name in ("prometheus_client", "pdc")))
"""
    started = Started(tmp_path, source)
    assert started.output == ["True", "True", "SourceFileLoader", "SourceFileLoader"]
    assert started.errors == ""


def test_a_later_setup_of_the_program_wins(tmp_path: Path) -> None:
    """A program that calls `pdc.setup` counts there from the start."""
    source = """
from prometheus_client import Counter
hits = Counter("hits", "Hits.")
import pdc
pdc.setup(sqlite="own.db")
hits.inc()
"""
    Started(tmp_path, source)
    pdc.setup(sqlite=tmp_path / "own.db")
    assert shown() == {"hits_total": 1.0}


@pytest.mark.parametrize(
    ("customize", "reason"),
    [
        ("import sys; sys.modules['pdc'] = None", "install prometheus-distributed-client there, too, for pdc is missing"),
        ("import os; os.environ['PDC_FLUSH_INTERVAL'] = 'soon'", "PDC_FLUSH_INTERVAL must be seconds"),
    ],
)
def test_a_failed_start_is_one_line(tmp_path: Path, customize: str, reason: str) -> None:
    """Where pdc is missing, or cannot be set up, the program runs on, and one line names the interpreter and the reason."""
    started = Started(tmp_path, "import prometheus_client as p; p.Counter('hits', 'Hits.').inc(); print('ran')", customize)
    assert started.output == ["ran"]
    start = f"pdc run: the metrics of {sys.executable} stay in its memory: {reason}"
    assert re.fullmatch(rf"{re.escape(start)}.*\n", started.errors)
