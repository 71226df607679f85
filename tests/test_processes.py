"""Many processes, threads, forks, signals and finalizers: no update is lost, doubled or stuck."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Peer, RedisServer, wait_until
from helpers import INTERVALS, SHORT_INTERVALS, Run, Tally, mainly, script, shown
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import pdc
from pdc.delivery.health import NAMES
from pdc.exposition import Scrape

# Python warns of every fork of a process with threads, from 3.12 on; these tests make such forks. And redis-py drops the
# connections that a child inherits without closing them.
FORKS = """
import warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
"""


def totals(storage: dict[str, Any]) -> dict[str, float]:
    """The samples in the storage, by name and labels, as a process that declares nothing reads them."""
    pdc.setup(**storage)
    return shown()


def run_quietly(run_script: Run, source: str, storage: dict[str, Any], *arguments: object) -> str:
    """Run the script, which must succeed without exceptions in threads and without warnings in the log."""
    result = run_script(FORKS + source, *arguments, storage=storage, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@SHORT_INTERVALS
def test_eight_processes_of_four_threads_count_exactly(storage: dict[str, Any], run_script: Run, interval: float) -> None:
    """All 12,800 updates of 32 threads are there, and no scrape meanwhile sees a histogram whose buckets and count differ."""
    source = f"""
import multiprocessing, threading

hits = pdc.Counter("hits", "Hits.", ["path"])
latency = pdc.Histogram("latency", "Seconds.", ["path"], buckets=(1, 2, 3))
level = pdc.Gauge("level", "Ups and downs.")

def update(path):
    for number in range(100):
        hits.labels(path).inc()
        latency.labels(path).observe(number % 5)
        level.inc(2)
        level.dec()

def work():
    setup(flush_interval={interval})
    threads = [threading.Thread(target=update, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

context = multiprocessing.get_context("fork")
workers = [context.Process(target=work) for _ in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert [worker.exitcode for worker in workers] == [0] * 8
"""
    pdc.setup(**storage)
    scrapes: list[str] = []
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_quietly, run_script, source, storage)
        while not running.done():
            scrapes.append(pdc.generate_latest().decode())
        running.result()
    seen = dict.fromkeys("0123", 0.0)
    for scrape in scrapes:
        counts = dict(re.findall(r'^latency_count{path="(\d)"} (\S+)', scrape, re.MULTILINE))
        assert counts == dict(re.findall(r'^latency_bucket{le="\+Inf",path="(\d)"} (\S+)', scrape, re.MULTILINE))
        assert all(seen[path] <= float(count) for path, count in counts.items())
        seen.update((path, float(count)) for path, count in counts.items())
    found = totals(storage)
    for path in seen:
        assert found[f'hits_total{{path="{path}"}}'] == 800
        assert [found[f'latency_bucket{{le="{le}",path="{path}"}}'] for le in ("1.0", "2.0", "3.0", "+Inf")] == [
            *(320, 480, 640, 800)
        ]
        assert found[f'latency_count{{path="{path}"}}'] == 800
        assert found[f'latency_sum{{path="{path}"}}'] == 1600
    assert found["level"] == 3200


@mainly("redis")
@pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])
@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise ValueError('unhandled')", 1), ("threading.Thread(target=hits.inc).start()", 0)],
    ids=["plain", "exit", "exception", "thread"],
)
def test_a_process_that_ends_leaves_its_counts(
    storage: dict[str, Any], run_script: Run, interval: float, end: str, code: int
) -> None:
    """The counts of a script are in the storage, however it ends; handlers of atexit may count, too."""
    source = f"""
import atexit, sys, threading
hits = pdc.Counter("hits", "Hits.")
atexit.register(hits.inc, 10)
setup(flush_interval={interval})
hits.inc()
{end}
"""
    if code == 1:  # or the result of another exception in this interpreter
        code = subprocess.run([sys.executable, "-c", end], capture_output=True, timeout=60, check=False).returncode
    assert run_script(source, storage=storage, check=False).returncode == code
    assert totals(storage) == {"hits_total": 12.0 if "Thread" in end else 11.0}


def test_a_first_update_at_exit_is_counted(storage: dict[str, Any], run_script: Run) -> None:
    """The first update of a process counts even in a handler of atexit, in any order of handlers."""
    source = """
import atexit
late = []
atexit.register(lambda: late[0].inc())
hits = pdc.Counter("hits", "Hits.")
late.append(hits)
atexit.register(hits.inc)
setup(flush_interval=3600)
"""
    run_quietly(run_script, "import atexit\natexit.register(lambda: hits.inc(100))\n" + source, storage)
    assert totals(storage) == {"hits_total": 102.0}


CHILDREN = {
    "os.fork": """
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        work.increment()
        sys.exit()
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
""",
    **{
        f"Process-{method}": f"""
context = multiprocessing.get_context({method!r})
children = [context.Process(target=work.increment, args=(arguments,)) for _ in range(3)]
for child in children:
    child.start()
for child in children:
    child.join()
assert [child.exitcode for child in children] == [0] * 3
"""
        for method in ("fork", "spawn", "forkserver")
    },
    **{
        f"Pool-{method}": f"""
pool = multiprocessing.get_context({method!r}).Pool(2)
pool.map(work.increment, [arguments] * 3, chunksize=1)
pool.close()
pool.join()
"""
        for method in ("fork", "spawn")
    },
    **{
        f"ProcessPoolExecutor-{method}": f"""
with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context({method!r})) as pool:
    list(pool.map(work.increment, [arguments] * 3))
"""
        for method in ("fork", "spawn")
    },
}


@mainly("sqlite")
@pytest.mark.parametrize("interval", [pytest.param(0, marks=pytest.mark.long), 3600], ids=["write-through", "buffered"])
@pytest.mark.parametrize("way", CHILDREN)
def test_children_begin_with_nothing_pending(
    storage: dict[str, Any], run_script: Run, tmp_path: Path, way: str, interval: float
) -> None:
    """Of a parent with 10 pending and three children that count 1 each, 13 are counted, for each kind of child."""
    (tmp_path / "work.py").write_text(
        """
import multiprocessing
import pdc

hits = pdc.Counter("hits", "Hits.")

def increment(arguments=None):
    if multiprocessing.get_start_method(allow_none=True) and arguments and pdc.config.DEFAULT.storage is None:
        pdc.setup(**arguments)
    hits.inc()
"""
    )
    source = f"""
import concurrent.futures, multiprocessing, os, sys
import work
arguments = {{**{storage!r}, "flush_interval": {interval}}}
pdc.setup(**arguments)
work.hits.inc(10)
"""
    run_quietly(run_script, source + CHILDREN[way], storage)
    assert totals(storage) == {"hits_total": 13.0}


@SHORT_INTERVALS
def test_a_fork_amid_updates_and_flushes(storage: dict[str, Any], run_script: Run, interval: float) -> None:
    """A process whose threads update, flush and scrape may fork at any time; parent and children count exactly."""
    parent = float(run_quietly(run_script, script("forks.py"), storage, interval))
    found = totals(storage)
    assert found['hits_total{who="parent"}'] == parent
    assert found['hits_total{who="child"}'] == 60
    assert found["latency_count"] == found['latency_bucket{le="+Inf"}'] == parent + 60


@pytest.mark.parametrize(("module", "first"), [("pdc.exposition", "generate_latest()"), ("pdc.options", "setup_from_environ")])
def test_a_fork_amid_a_first_import(module: str, first: str, storage: dict[str, Any], run_script: Run) -> None:
    """A process may fork while a thread of it uses a function for the first time, which imports the function's module."""
    source = f"""
import os, signal, sys, threading, time
hits = pdc.Counter("hits", "Hits.")
setup(flush_interval=3600)
importing = threading.Event()

class Slowly:
    def find_spec(self, name, *arguments):
        if name == {module!r}:
            importing.set()
            time.sleep(0.2)

sys.meta_path.insert(0, Slowly())
thread = threading.Thread(target=lambda: pdc.{first})
thread.start()
importing.wait()
child = os.fork()
if not child:
    signal.alarm(20)
    hits.inc()
    pdc.{first}
    sys.exit()
thread.join()
print(os.waitpid(child, 0)[1] + 1)
"""
    assert float(run_quietly(run_script, source, storage)) == 1
    assert totals(storage)["hits_total"] == 1


def test_connections_are_not_shared_with_children(storage: dict[str, Any], run_script: Run) -> None:
    """A child has no open file of the database, and has its own connections; those of the parent stay usable."""
    connected = "pdc.get_redis_conn().client_id()" if "redis" in storage else "os.getpid()"
    source = f"""
import os, sys
from pathlib import Path

hits = pdc.Counter("hits", "Hits.")
setup()
hits.inc()
in_parent = {connected}
pid = os.fork()
if not pid:
    opened = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
    assert not any("metrics.db" in path for path in opened), opened
    hits.inc()
    assert {connected} != in_parent, "the child uses the connection of its parent"
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
hits.inc()
"""
    run_quietly(run_script, source, storage)
    assert totals(storage) == {"hits_total": 3.0}


@SHORT_INTERVALS
def test_handlers_finalizers_and_callbacks_may_update(storage: dict[str, Any], run_script: Run, interval: float) -> None:
    """Updates that interrupt updates, flushes and scrapes in the same thread neither block nor are lost."""
    printed = run_quietly(run_script, script("handlers.py"), storage, interval)
    counts = [float(count) for count in printed.split()]
    found = totals(storage)
    assert [found[f'hits_total{{who="{who}"}}'] for who in ("handler", "finalizer", "collector", "main", "thread")] == counts
    assert found["latency_count"] == found['latency_bucket{le="1.0"}'] == found["latency_sum"] * 2 == sum(counts)


@SHORT_INTERVALS
def test_setup_again_amid_updates(run_script: Run, tmp_path: Path, interval: float) -> None:
    """While threads update, the storage may be changed any number of times: every update is in one of them."""
    source = f"""
import threading
hits = pdc.Counter("hits", "Hits.")
setup()
done = threading.Event()
counted = [0] * 2

def update(index):
    while not done.is_set():
        hits.inc()
        counted[index] += 1

threads = [threading.Thread(target=update, args=(index,)) for index in range(2)]
for thread in threads:
    thread.start()
for number in range(9):
    pdc.setup(sqlite=f"{{number % 3}}.db", flush_interval={interval})
done.set()
for thread in threads:
    thread.join()
pdc.flush()
print(sum(counted))
"""
    counted = float(run_quietly(run_script, source, {"sqlite": str(tmp_path / "0.db")}))
    assert counted == sum(totals({"sqlite": tmp_path / f"{number}.db"})["hits_total"] for number in range(3))


@mainly("sqlite")
@pytest.mark.package("gevent")
@SHORT_INTERVALS
@pytest.mark.parametrize("patched", ["before", "after"])
def test_greenlets_count_exactly(storage: dict[str, Any], run_script: Run, interval: float, patched: str) -> None:
    """Under gevent, patched before pdc is imported or after, updates of many greenlets are exact."""
    patch = "from gevent import monkey; monkey.patch_all()"
    source = f"""
import gevent
{patch if patched == "after" else ""}
hits = pdc.Counter("hits", "Hits.")
latency = pdc.Histogram("latency", "Seconds.", buckets=(1,))
setup(flush_interval={interval})

def update():
    for _ in range(8):
        hits.inc()
        latency.observe(2)
        gevent.sleep(0)

gevent.joinall([gevent.spawn(update) for _ in range(50)], raise_error=True)
pdc.flush()
"""
    if patched == "before":
        source = f"""
import subprocess, sys
script = {patch!r} + "\\nimport pdc; setup = lambda **options: pdc.setup(**{{**{storage!r}, **options}})\\n" + {source!r}
sys.exit(subprocess.run([sys.executable, "-c", script], check=False).returncode)
"""
    run_quietly(run_script, source, storage)
    assert totals(storage) == {
        "hits_total": 400.0,
        'latency_bucket{le="1.0"}': 0.0,
        'latency_bucket{le="+Inf"}': 400.0,
        "latency_count": 400.0,
        "latency_sum": 800.0,
    }


# Processes whose clock differs


def test_a_process_that_sleeps_for_long_is_alive_again(
    storage: dict[str, Any],
    registry: CollectorRegistry,
    start_peer: Callable[..., Peer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that was stopped until its lease ended and its marks were forgotten returns with its live value and counts."""
    monkeypatch.setattr("pdc.family.LEASE_SECONDS", 1.0)
    for module in ("pdc.storage", "pdc.storage.redis.writing", "pdc.storage.redis.forgetting"):
        monkeypatch.setattr(f"{module}.FORGET_WRITER_SECONDS", 1.0)
    pdc.setup(**storage, flush_interval=3600)
    tally = Tally(registry)
    peer = start_peer(storage, flush_interval=0.05)
    peer.tell("pdc.delivery.flusher.BEAT_SECONDS = 0.1")
    peer.tell(
        "busy = pdc.Gauge('busy', 'Of this process.', multiprocess_mode='livesum'); "
        "hits = pdc.Counter('hits', 'Hits.', ['path'])"
    )
    peer.tell("busy.inc(100); hits.labels('/').inc(10); pdc.flush(); hits.labels('/').inc(5)")
    peer.freeze()
    wait_until(lambda: "busy" not in shown())
    tally.update()
    assert shown()["busy"] == 1.0
    peer.thaw()
    wait_until(lambda: shown()["busy"] == 101.0)
    wait_until(lambda: shown()['hits_total{path="/"}'] == 17.0)
    assert peer.stop() == ""


def test_clocks_that_differ_by_hours(redis_server: RedisServer, start_peer: Callable[..., Peer]) -> None:
    """Redis's clock decides which processes are alive and which value is the latest, whatever the clocks of hosts show."""
    declare = (
        "busy = pdc.Gauge('busy', 'Of this process.', multiprocess_mode='livesum'); "
        "last = pdc.Gauge('last', 'Latest.', multiprocess_mode='livemostrecent')"
    )
    pdc.setup(redis=redis_server.url)
    for number, hours in enumerate((5, -5, 0), 1):
        peer = start_peer({"redis": redis_server.url}, flush_interval=3600)
        for clock in ("time", "monotonic"):
            peer.tell(f"import time; time.{clock} = lambda real=time.{clock}: real() + {hours} * 3600")
        peer.tell(declare, f"busy.inc(); last.set({number}); pdc.flush()")
        assert shown() == {"busy": number, "last": number}


# Two versions of a program that count at the same time


VERSIONS = {
    "help": ("Counter('help', 'Old.')", "Counter('help', 'New.')", "documentation 'Old.' is now 'New.'"),
    "labels": (
        "Counter('labels', 'Help.', ['a']).labels('x')",
        "Counter('labels', 'Help.', ['a', 'b']).labels('x', 'y')",
        "labelnames ('a',) is now ('a', 'b')",
    ),
    "buckets": (
        "Histogram('buckets', 'Help.', buckets=(1, 3))",
        "Histogram('buckets', 'Help.', buckets=(2, 4))",
        "bounds ('1.0', '3.0', '+Inf') is now ('2.0', '4.0', '+Inf')",
    ),
    "type": (
        "Counter('type', 'Help.')",
        "Histogram('type', 'Help.', buckets=(2,))",
        "type 'counter' is now 'histogram', bounds () is now ('2.0', '+Inf')",
    ),
    "mode": ("Gauge('mode', 'Help.')", "Gauge('mode', 'Help.', multiprocess_mode='max')", "mode 'shared' is now 'max'"),
    "same": ("Counter('same', 'Help.')", "Counter('same', 'Help.')", ""),
}
"""The declarations of the old and the new version, and the warning about them."""


UPDATES = {"Counter": "inc()", "Histogram": "observe(2.5)", "Gauge": "inc()"}


@INTERVALS
def test_a_rolling_deploy(storage: dict[str, Any], start_peer: Callable[..., Peer], interval: float) -> None:
    """While an old and a new version count, nothing is lost, the output is valid, and the first new process warns once."""
    programs = [[version[which] for version in VERSIONS.values()] for which in (0, 1, 1)]
    peers = [start_peer(storage, flush_interval=interval) for _ in programs]
    for peer, declarations, times in zip(peers, programs, (5, 1, 1), strict=True):
        metrics = ", ".join(f"pdc.{declaration}" for declaration in declarations)
        updates = "; ".join(f"m[{i}].{UPDATES[text.partition('(')[0]]}" for i, text in enumerate(declarations))
        peer.tell(f"m = [{metrics}]", *[updates] * times, "pdc.flush()")
    peers[0].tell("m[0].inc(0); m[1].inc(0); m[2].observe(2.5); m[3].inc(0); pdc.flush()")
    pdc.setup(**storage)
    assert shown() == {
        "help_total": 7.0,
        'labels_total{a="x"}': 5.0,
        'labels_total{a="x",b="y"}': 2.0,
        'buckets_bucket{le="2.0"}': 0.0,
        'buckets_bucket{le="3.0"}': 6.0,
        'buckets_bucket{le="4.0"}': 8.0,
        'buckets_bucket{le="+Inf"}': 8.0,
        "buckets_count": 8.0,
        "buckets_sum": 20.0,
        'type_bucket{le="2.0"}': 0.0,
        'type_bucket{le="+Inf"}': 2.0,
        "type_count": 2.0,
        "type_sum": 5.0,
        "mode": 1.0,
        "same_total": 7.0,
    }
    text = pdc.generate_latest()
    assert {family.name for family in parse_text(text.decode())} >= set(VERSIONS)
    openmetrics = Scrape(accept="application/openmetrics-text").answer().body.decode()
    assert [family.name for family in parse_openmetrics(openmetrics) if family.name not in NAMES] == sorted(VERSIONS)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
    told = sorted(
        f"metric {name} was declared otherwise before; its counts go on: {difference}"
        for name, (_, _, difference) in VERSIONS.items()
        if difference
    )
    assert [sorted(peer.stop().splitlines()) for peer in peers] == [[], told, []]
