"""Clones that Python's hooks do not see: each is a process of its own, exact, and independent of its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import Run, mainly, script

import pdc
from pdc.exposition import collect


def stored(storage: dict[str, Any]) -> dict[str, float]:
    """The samples in the storage, by name and labels."""
    pdc.setup(**storage)
    found = {}
    for metric in collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                found[sample.name + "".join(f",{value}" for value in sample.labels.values())] = sample.value
    return found


@mainly("redis")
@pytest.mark.parametrize("interval", [0, 600])
@pytest.mark.parametrize("library", ["PyDLL", "CDLL"])
def test_clones(storage: dict[str, Any], run_script: Run, library: str, interval: float) -> None:
    """Clones of a process with pending updates, and clones of these, count exactly; the parent's updates count once."""
    source = (
        script("clones.py")
        + f"setup(flush_interval={interval})\n"
        + """
count()
def child():
    count(10, "child")
    pids = [cloned(grandchild) for _ in range(2)]
    count(10, "child")
    pdc.flush()
    wait(pids)
def grandchild():
    count(5, "grandchild")
    pdc.flush()
pids = [cloned(child) for _ in range(3)]
count()
wait(pids)
count()
"""
    )
    result = run_script(source, library, storage=storage)
    assert result.stderr == ""
    found = stored(storage)
    total = 30 + 3 * 20 + 6 * 5
    assert found["hits_total"] == found["last"] == found["own"] == found["sizes_count"] == found["times_count"] == total
    assert found["sizes_bucket,2.0"] == total
    assert found["kinds_total,child"] == 120
    assert found["kinds_total,grandchild"] == 60
    assert found["kinds_total,parent"] == 60


@pytest.mark.parametrize("interval", [0, 600])
def test_clones_that_end(storage: dict[str, Any], run_script: Run, interval: float) -> None:
    """Clones that end normally, also those made at the exit of the parent, have counted exactly."""
    source = (
        script("clones.py")
        + f"setup(flush_interval={interval})\n"
        + """
def at_exit():
    if os.getpid() == parent:
        count()
        wait([cloned(lambda: count(10, "late"), end_as_usual), cloned(lambda: None, end_as_usual)])
parent = os.getpid()
atexit.register(at_exit)
count()
wait([cloned(lambda: count(10, "child"), end_as_usual), cloned(lambda: None, end_as_usual)])
count()
"""
    )
    result = run_script(source, "PyDLL", storage=storage)
    assert result.stderr == ""
    found = stored(storage)
    assert (found["hits_total"], found["kinds_total,late"], found["kinds_total,child"]) == (50, 20, 20)
    assert found["sizes_count"] == found["times_count"] == found["own"] == 50


@pytest.mark.parametrize("interval", [0, 600])
def test_clones_of_a_process_whose_threads_are_at_work(storage: dict[str, Any], run_script: Run, interval: float) -> None:
    """A clone made while threads hold all locks neither waits for them nor loses anything.

    SQLite's own locks cannot be made anew: there, another process sends the updates of the clone's journal.
    """
    source = (
        script("clones.py")
        + f"setup(flush_interval={interval})\n"
        + """
buffer = pdc.config.DEFAULT
count(1)
pdc.flush()
holding, done = threading.Event(), threading.Event()
driver = getattr(buffer.storage, "server", None) or buffer.storage.database
def hold():
    with buffer._lock, driver.lock, hits._metric_cells.lock, mode._metric_cells.lock:
        holding.set()
        done.wait()
thread = threading.Thread(target=hold, daemon=True)
thread.start()
holding.wait()
def child():
    count(10, "child")
    mode.state("b")
    with contextlib.suppress(pdc.StorageError):
        pdc.flush()
wait([cloned(child, end_as_usual) for _ in range(3)])
done.set()
thread.join()
count(10)
buffer._work.replay_due = True
pdc.flush()
"""
    )
    result = run_script(source, "PyDLL", storage=storage)
    assert ("while a thread was using it" in result.stderr) == ("sqlite" in storage)
    found = stored(storage)
    assert (found["hits_total"], found["kinds_total,child"]) == (41, 60)
    assert found["sizes_count"] == found["times_count"] == found["own"] == found["last"] == 41
    assert found["mode,b"] == 1


def test_a_snapshot_of_a_virtual_machine(storage: dict[str, Any], run_script: Run, tmp_path: Path) -> None:
    """AWS Lambda's copies of a process have the same process id: each begins anew, and nothing counts twice."""
    (tmp_path / "snapshot_restore_py.py").write_text(
        "before, after = [], []\nregister_before_snapshot, register_after_restore = before.append, after.append\n"
    )
    source = (
        script("clones.py")
        + """
import snapshot_restore_py
os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"] = "snap-start"
setup(flush_interval=600)
count()
[before], [after] = snapshot_restore_py.before, snapshot_restore_py.after
before()
os.getpid = lambda pid=os.getpid(): pid
def copy():
    after()
    count(10, "copy")
    pdc.flush()
wait([cloned(copy) for _ in range(2)])
"""
    )
    assert run_script(source, "PyDLL", storage=storage).stderr == ""
    found = stored(storage)
    assert (found["hits_total"], found["kinds_total,copy"], found["own"]) == (30, 40, 30)
