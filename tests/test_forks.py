"""Clones that Python's hooks do not see: each is a process of its own, exact, and independent of its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import Run

import pdc
from pdc.exposition import collect

CLONE = """
import atexit, contextlib, ctypes, os, sys, threading, time, traceback
fork = ctypes.{library}(None).fork

def others():
    found = []
    for task in set(os.listdir("/proc/self/task")) - {str(threading.get_native_id())}:
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/status") as file:
            found.append([line for line in file if line.startswith(("State", "voluntary"))])
    return found

def cloned(work, end=os._exit):
    # CPython itself hangs in a clone of a process in which another thread has the GIL or waits for it. Without the GIL so
    # does any thread that runs: the clone waits for it at its next garbage collection.
    before = None
    while before != (now := others()) or any("S (sleeping)" not in lines[0] for lines in now):
        before = now
        time.sleep(0.05)
    pid = fork()
    if pid == 0:
        # From 3.14 on CPython also keeps a list of threads that wait, by address, of which some are on stacks that a thread
        # of the clone gets: by chance it hangs or crashes on them. `prove_threads.py --control` shows both without pdc.
        getattr(ctypes.pythonapi, "_PyParkingLot_AfterFork", int)()
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            end(status)
    return pid

def wait(pids):
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0

def end_as_usual(status):
    atexit._run_exitfuncs()
    os._exit(status)

hits = pdc.Counter("hits", "Hits.")
kinds = pdc.Counter("kinds", "Hits.", ["kind"])
last = pdc.Gauge("last", "Shared.")
own = pdc.Gauge("own", "Per process.", multiprocess_mode="sum")
sizes = pdc.Histogram("sizes", "Sizes.", buckets=(1, 2))
lasted = pdc.Summary("times", "Times.")
mode = pdc.Enum("mode", "Mode.", states=["a", "b"])

def count(times=10, kind="parent"):
    for _ in range(times):
        hits.inc()
        kinds.labels(kind).inc(2)
        last.inc()
        own.inc()
        sizes.observe(1.5)
        lasted.observe(0.5)
"""


def stored(storage: dict[str, Any]) -> dict[str, float]:
    """The samples in the storage, by name and labels."""
    pdc.setup(**storage)
    found = {}
    for metric in collect():
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                found[sample.name + "".join(f",{value}" for value in sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize("interval", [0, 600])
@pytest.mark.parametrize("library", ["PyDLL", "CDLL"])
def test_clones(storage: dict[str, Any], run_script: Run, library: str, interval: float) -> None:
    """Clones of a process with pending updates, and clones of these, count exactly; the parent's updates count once."""
    source = (
        CLONE.replace("{library}", library)
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
    result = run_script(source, storage=storage)
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
        CLONE.replace("{library}", "PyDLL")
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
    result = run_script(source, storage=storage)
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
        CLONE.replace("{library}", "PyDLL")
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
    result = run_script(source, storage=storage)
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
        CLONE.replace("{library}", "PyDLL")
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
    assert run_script(source, storage=storage).stderr == ""
    found = stored(storage)
    assert (found["hits_total"], found["kinds_total,copy"], found["own"]) == (30, 40, 30)
