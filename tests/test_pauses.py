"""A process that goes on after the end of its application's lifespan, with which it left its storages."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Peer, RedisServer, wait_until
from helpers import SHORT_INTERVALS, has_live_values, shown
from journals import Journal
from prometheus_client import CollectorRegistry

import pdc
import pdc.sqlite
from pdc.delivery.dispatcher import Dispatcher
from pdc.delivery.flusher import Flusher
from pdc.storage import Batch, Outcome


def leave() -> None:
    """Leave the storages, as at the end of a lifespan."""
    pdc.config.flush_before_end(60, deregister=True)


@SHORT_INTERVALS
def test_updates_while_a_process_deregisters(
    storage: dict[str, Any], tmp_path: Path, registry: CollectorRegistry, interval: float
) -> None:
    """Threads count while the process leaves its storage again and again: each update is there once, and no journal is left."""
    pdc.setup(**storage, flush_interval=interval, journal=tmp_path / "journal")
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    live = pdc.Gauge("live", "Now.", multiprocess_mode="livesum", registry=registry)
    ended = threading.Event()

    def count() -> None:
        hits.inc()
        live.inc()
        counted.append(1)

    def count_on() -> None:
        while not ended.is_set():
            count()
            time.sleep(0.0001)  # else no other thread gets far

    counted: list[int] = []
    threads = [threading.Thread(target=count_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        leave()
    ended.set()
    for thread in threads:
        thread.join()
    count()  # the process is out of its storage if it left after the last update of the threads
    assert shown() == {"hits_total": len(counted), "live": len(counted)}
    leave()
    assert not (tmp_path / "journal").exists() or list((tmp_path / "journal").iterdir()) == []
    assert not has_live_values("live")


@SHORT_INTERVALS
def test_a_storage_that_lost_its_data_meanwhile_gets_them_again(
    storage: dict[str, Any], registry: CollectorRegistry, start_peer: Callable[..., Peer], interval: float
) -> None:
    """The next update of one series brings all of them back, as in a process that never left."""
    pdc.setup(**storage, flush_interval=interval)
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    pdc.Gauge("peak", "Peak.", registry=registry, multiprocess_mode="max").set(3)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    hits.labels("/a").inc()
    hits.labels("/b").inc()
    pdc.flush()
    leave()
    start_peer(storage).tell("pdc.config.DEFAULT.required().delete()")
    hits.labels("/a").inc(2)
    wait_until(lambda: set(pdc.config.DEFAULT.required().read().metrics) >= {"hits", "peak", "live"})
    assert shown() == {'hits_total{path="/a"}': 2.0, 'hits_total{path="/b"}': 0.0, "peak": 3.0, "live": 4.0}


@SHORT_INTERVALS
@pytest.mark.parametrize("way", ["update", "scrape"])
def test_live_values_are_back_at_once(storage: dict[str, Any], registry: CollectorRegistry, interval: float, way: str) -> None:
    """Live values that nobody changes come back with the next update of any metric, or with the next scrape of the process."""
    pdc.setup(**storage, flush_interval=interval)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    hits.inc()
    leave()
    assert not has_live_values("live")
    if way == "update":
        hits.inc()
        wait_until(lambda: has_live_values("live"), 2)
    assert shown("live") == {"live": 4.0}


def test_a_beat_that_takes_its_time_brings_nothing_back(
    storage: dict[str, Any], registry: CollectorRegistry, tmp_path: Path
) -> None:
    """A function of a gauge is running in the background thread when the process leaves: it stays out, without a journal."""
    pdc.setup(**storage, flush_interval=0.1, journal=tmp_path / "journal")
    running, go_on = threading.Event(), threading.Event()

    def level() -> float:
        if threading.current_thread().name == "pdc-flush":
            running.set()
            go_on.wait(20)
        return 3.0

    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set_function(level)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    assert running.wait(20)
    leave()
    go_on.set()
    wait_until(lambda: not any(thread.name == "pdc-flush" for thread in threading.enumerate()))
    assert not has_live_values("live")
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_refused_metric_keeps_no_other_one(
    own_redis_server: RedisServer, registry: CollectorRegistry, tmp_path: Path
) -> None:
    """The live values of other metrics go; the journal stays, which has what the storage refuses."""
    with own_redis_server.client() as client:
        client.set("prometheus_test_bad", "no metric")
    pdc.setup(redis=own_redis_server.url, redis_prefix="test", flush_interval=0.1, journal=tmp_path / "journal")
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    pdc.Counter("bad", "Bad.", registry=registry).inc()
    leave()
    assert not has_live_values("live")
    assert len(list((tmp_path / "journal").iterdir())) == 1


def test_a_storage_that_is_down_keeps_the_process_in_no_other_one(
    own_redis_server: RedisServer, registry: CollectorRegistry, tmp_path: Path
) -> None:
    """The process leaves the storage that answers; the journal of the other one stays alone."""
    own_redis_server.stop()
    pdc.setup(redis=own_redis_server.url, flush_interval=0.1, journal=tmp_path / "journal")
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=0.1, journal=tmp_path / "journal")
    pdc.sqlite.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    pdc.redis.Counter("hits", "Hits.", registry=registry).inc()
    leave()
    query = "SELECT count(*) FROM pdc_metrics WHERE metric_key = 'live' AND subkey LIKE '#live%'"
    with sqlite3.connect(tmp_path / "metrics.db") as connection:
        assert connection.execute(query).fetchone() == (0,)
    connection.close()
    assert len(list((tmp_path / "journal").iterdir())) == 1


@pytest.mark.parametrize("way", ["lifespan", "setup"])
def test_records_of_one_journal_are_not_used_in_the_next(journal: Journal, way: str) -> None:
    """A metric that nobody holds is dropped in the time of the next journal: what comes then is in that one."""
    anew = {"lifespan": "pdc.config.flush_before_end(60, deregister=True)", "setup": "setup(flush_interval=600)"}[way]
    journal.leave(
        f"""
import gc
hits.labels("/a").inc()
pdc.Counter("gone", "Gone.", registry=None).inc()
gc.collect()
{anew}
hits.labels("/a").inc()
pdc.generate_latest()
pdc.flush()
more = pdc.Counter("more", "More.", registry=None)
more.inc(5)
hits.labels("/a").inc()
"""
    )
    assert journal.send() == {("/a",): 3.0}
    assert shown("more") == {"more_total": 5.0}


@SHORT_INTERVALS
@pytest.mark.parametrize("between", ["nothing", "a scrape"])
def test_a_process_leaves_as_often_as_it_is_back(
    storage: dict[str, Any], registry: CollectorRegistry, interval: float, between: str
) -> None:
    """Each end takes the live value out, also where nothing was updated since the one before."""
    pdc.setup(**storage, flush_interval=interval)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    for _ in range(3):
        leave()
        assert not has_live_values("live")
        if between == "a scrape":
            assert shown("live") == {"live": 4.0}


def test_an_idle_process_writes_nothing_when_it_leaves_again(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first end of a lifespan after an update writes to the storage."""
    pdc.setup(**storage, flush_interval=60)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    leave()
    batches: list[object] = []
    apply = pdc.config.DEFAULT.required().apply

    def noting(batch: Batch) -> Outcome:
        batches.append(batch)
        return apply(batch)

    monkeypatch.setattr(pdc.config.DEFAULT.required(), "apply", noting)
    for _ in range(3):
        leave()
    assert batches == []


def test_a_scrape_keeps_a_live_value_alive(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is back with a scrape renews the lease of its values, without an update."""
    monkeypatch.setattr(pdc.delivery.flusher, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 1.0)
    pdc.setup(**storage)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    leave()
    for _ in range(3):
        assert shown("live") == {"live": 4.0}
        time.sleep(0.7)


@SHORT_INTERVALS
def test_the_first_scrape_lets_exceptions_of_functions_through(
    storage: dict[str, Any], registry: CollectorRegistry, interval: float
) -> None:
    """Ctrl-C amid the function of a gauge reaches the application, as in any other scrape."""
    pdc.setup(**storage, flush_interval=interval)

    def level() -> float:
        if interrupting and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return 3.0

    interrupting: list[bool] = []
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set_function(level)
    pdc.Gauge("plain", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    pdc.flush()
    leave()
    interrupting.append(True)
    with pytest.raises(KeyboardInterrupt):
        pdc.generate_latest()
    interrupting.clear()
    assert shown() == {"live": 3.0, "plain": 4.0}


def test_a_thread_that_begins_late_does_not_go_on(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread has not run yet when the process leaves: it ends, and brings no value back."""
    begin, run = threading.Event(), Flusher._run

    def late(*arguments: Any) -> None:
        begin.wait(20)
        run(*arguments)

    monkeypatch.setattr(Flusher, "_run", late)
    pdc.setup(**storage, flush_interval=0.01)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    leave()
    begin.set()
    wait_until(lambda: not any(thread.name == "pdc-flush" for thread in threading.enumerate()))
    assert not has_live_values("live")


def test_a_thread_that_begins_late_stops_no_later_one(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is back, with another thread, when the one of before its end begins to run: updates are sent."""
    begin, run = threading.Event(), Flusher._run
    held: list[threading.Thread] = []

    def late(*arguments: Any) -> None:
        if not held:
            held.append(threading.current_thread())
            begin.wait(20)
        run(*arguments)

    monkeypatch.setattr(Flusher, "_run", late)
    pdc.setup(**storage, flush_interval=0.01)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    hits.inc()
    leave()
    hits.inc()
    begin.set()
    wait_until(lambda: bool(held) and not held[0].is_alive())
    hits.inc()
    read = pdc.config.DEFAULT.required().read
    wait_until(lambda: read().metrics["hits"].get("_total:{}") in (3.0, "3"))


def test_a_beat_amid_the_end_keeps_nobody(
    storage: dict[str, Any], registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background thread queues live values while the process takes them out: they stay out."""
    send_final_batch = Dispatcher._send_final_batch

    def amid(work: Dispatcher, names: list[str]) -> bool:
        is_applied = send_final_batch(work, names)
        work.queue_unprompted(beat=True)
        return is_applied

    monkeypatch.setattr(Dispatcher, "_send_final_batch", amid)
    pdc.setup(**storage, flush_interval=0.01)
    pdc.Gauge("live", "Now.", registry=registry, multiprocess_mode="livesum").set(4)
    leave()
    wait_until(lambda: not any(thread.name == "pdc-flush" for thread in threading.enumerate()))
    assert not has_live_values("live")
