"""Descriptors whose number may belong to others, and the facts that distinguish one life of a process from another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_until

from pdc.process.files import Descriptor, life


def test_a_descriptor_is_ours_until_others_take_its_number(tmp_path: Path) -> None:
    """Neither a closed descriptor nor its successor of the same number is used or closed."""
    (tmp_path / "ours").touch()
    ours = Descriptor.open(tmp_path / "ours", os.O_RDWR)
    assert ours.required() == ours.number
    number = ours.number
    os.close(number)
    assert ours.status() is None
    theirs = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    os.dup2(theirs, number)
    with pytest.raises(OSError, match="others closed it"):
        ours.reserve(0, 4096)
    ours.close()
    assert os.fstat(number).st_size == 0
    for each in {theirs, number}:
        os.close(each)


def test_files_are_not_opened_where_somebody_may_print(run_script: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Where a daemon closed its standard streams, no file of ours becomes its output."""
    source = """
        import os
        report = os.fdopen(os.dup(1), "w")
        os.closerange(0, 3)
        setup(flush_interval=600, journal="journals")
        pdc.Counter("hits", "Hits.").inc()
        links = [os.readlink(f"/dev/fd/{number}") for number in range(3) if os.path.exists(f"/dev/fd/{number}")]
        print([link for link in links if "journals" in link], file=report, flush=True)
        """
    assert run_script(source, storage={"sqlite": "metrics.db"}).stdout == "[]\n"


def test_a_process_that_has_ended_has_no_life() -> None:
    """An ended process has no life, also before its parent reads its status, and whatever has its number later."""
    assert life(os.getpid()).startswith(f"{os.getpid()} ")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    alive = life(child.pid)
    assert alive == life(child.pid) != life(os.getpid())
    child.kill()
    wait_until(lambda: life(child.pid) == "")
    child.communicate()
    assert life(child.pid) == ""
