"""Metrics that processes share, and storages that follow each other."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from conftest import Peer, RedisServer
from helpers import Run, shown
from kinds import TYPES, UPDATES, make
from prometheus_client import CollectorRegistry

import pdc
import pdc.redis
import pdc.sqlite
from pdc import config
from pdc.storage import Batch, Kind, Operation, Update

REMOVALS = {
    "remove('1', '2')": {("1", "3"), ("2", "3")},
    "remove_by_labels({'a': '1'})": {("2", "3")},
    "remove_by_labels({'a': 1, 'b': 3})": {("1", "2"), ("2", "3")},
    "remove_by_labels({})": {("1", "2"), ("1", "3"), ("2", "3")},
    "clear()": set(),
}
"""The series that each leaves."""


@pytest.mark.parametrize("kind", TYPES)
def test_a_removal_reaches_other_processes(
    kind: str, storage: dict[str, Any], registry: CollectorRegistry, start_peer: Callable[..., Peer]
) -> None:
    """A series removed by one process is gone for all, and starts again with the next update."""
    pdc.setup(**storage)
    parent = make(kind, ["a", "b"], registry=registry)
    children = {values: parent.labels(*values) for values in (("1", "2"), ("1", "3"), ("2", "3"))}
    for child in children.values():
        UPDATES[kind](child)
    before = pdc.generate_latest()
    options = ", states=['on', 'off']" if kind == "Enum" else ""
    peer = start_peer(storage)
    peer.tell(f"m = pdc.{kind}('m', 'Help', ['a', 'b']{options})")
    for removal, left in REMOVALS.items():
        peer.tell(f"m.{removal}")
        text = pdc.generate_latest().decode()
        assert set(re.findall('a="(.)",b="(.)"', text)) == left, removal
        for values in children.keys() - left:
            UPDATES[kind](children[values])
        again = pdc.generate_latest()
        strip = re.compile(rb"(?m)^m_created.*\n")
        assert strip.sub(b"", again) == strip.sub(b"", before), removal


def test_a_reset_reaches_other_processes(storage: dict[str, Any], registry: CollectorRegistry, run_script: Run) -> None:
    """A counter that one process resets is zero for all, and created anew."""
    pdc.setup(**storage)
    counter = make("Counter", registry=registry)
    counter.inc(3)
    before = registry.get_sample_value("m_created")
    run_script("setup()\npdc.Counter('m', 'Help').reset()", storage=storage)
    assert shown() == {"m_total": 0.0}
    assert before is not None
    assert before < (registry.get_sample_value("m_created") or 0)
    counter.inc(2)
    assert shown() == {"m_total": 2.0}


def test_processes_share_every_type(storage: dict[str, Any], registry: CollectorRegistry, run_script: Run) -> None:
    """Counters, summaries and histograms of processes add up; of gauges, infos and enums the last one wins."""
    pdc.setup(**storage)
    metrics = {kind: getattr(pdc, kind)(kind.lower(), "Help", registry=registry) for kind in TYPES[:3]}
    metrics["Histogram"] = pdc.Histogram("histogram", "Help", buckets=[1, 3], registry=registry)
    metrics["Info"] = pdc.Info("info", "Help", registry=registry)
    metrics["Enum"] = pdc.Enum("enum", "Help", states=["on", "off"], registry=registry)
    for kind, metric in metrics.items():
        UPDATES[kind](metric)
    source = """
        setup()
        pdc.Counter("counter", "Help").inc(2)
        pdc.Gauge("gauge", "Help").inc(2)
        pdc.Summary("summary", "Help").observe(2)
        pdc.Histogram("histogram", "Help", buckets=[2, 3]).observe(2)
        pdc.Info("info", "Help").info({"host": "b"})
        pdc.Enum("enum", "Help", states=["on", "off"]).state("on")
        """
    run_script(source, storage=storage)
    assert shown() == {
        "counter_total": 3.0,
        "gauge": 3.0,
        "summary_count": 2.0,
        "summary_sum": 3.0,
        'histogram_bucket{le="1.0"}': 1.0,
        'histogram_bucket{le="2.0"}': 2.0,
        'histogram_bucket{le="3.0"}': 2.0,
        'histogram_bucket{le="+Inf"}': 2.0,
        "histogram_count": 2.0,
        "histogram_sum": 3.0,
        'info_info{host="b"}': 1.0,
        'enum{enum="on"}': 1.0,
        'enum{enum="off"}': 0.0,
    }


@pytest.mark.parametrize("kind", ["Counter", "Summary", "Histogram"])
def test_created_is_the_time_of_the_first_process(
    kind: str, storage: dict[str, Any], registry: CollectorRegistry, run_script: Run
) -> None:
    """Later processes keep the time of creation; it is hidden where it is disabled."""
    earliest = time.time()
    pdc.setup(**storage, flush_interval=3600)
    metric = make(kind, registry=registry)
    declared = time.time()
    UPDATES[kind](metric)
    pdc.flush()
    created = registry.get_sample_value("m_created")
    assert created is not None
    assert earliest <= created <= declared
    run_script(
        f"setup()\nmetric = pdc.{kind}('m', 'Help')\n(getattr(metric, 'inc', None) or metric.observe)(1)", storage=storage
    )
    assert registry.get_sample_value("m_created") == created
    prometheus_client.disable_created_metrics()
    try:
        assert b"_created" not in pdc.generate_latest()
    finally:
        prometheus_client.enable_created_metrics()
    assert b"_created" in pdc.generate_latest()


@pytest.mark.parametrize("interval", [0, 3600])
@pytest.mark.parametrize("kind", ["Counter", "Summary", "Histogram"])
def test_a_series_that_was_removed_elsewhere_is_created_anew(
    kind: str, interval: float, storage: dict[str, Any], registry: CollectorRegistry
) -> None:
    """A process that goes on with a series, which another one has removed, lets it begin with a new time of creation."""
    pdc.setup(**storage, flush_interval=interval)
    child = make(kind, ["path"], registry=registry).labels("/")
    UPDATES[kind](child)
    pdc.flush()
    created = registry.get_sample_value("m_created", {"path": "/"}) or 0
    assert created
    remove = Update("m", "{}", [Operation(Kind.DELETE, '{"path":"/"}')])
    config.DEFAULT.required().apply(Batch("9-z", 1, [remove]))
    assert registry.get_sample_value("m_created", {"path": "/"}) is None
    UPDATES[kind](child)
    pdc.flush()
    assert created < (registry.get_sample_value("m_created", {"path": "/"}) or 0) < time.time() + 1


@pytest.mark.parametrize("mode", ["shared", "sum", "all"])
def test_clear_starts_again(mode: Any, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """`pdc.clear()` deletes everything: metrics without labels show zero, series with labels return with their next update."""
    pdc.setup(**storage)
    by_hand = pdc.redis if "redis" in storage else pdc.sqlite
    counter, tied = make("Counter", registry=registry), by_hand.Counter("tied", "Help", registry=registry)
    gauge = pdc.Gauge("g", "Help", registry=registry, multiprocess_mode=mode)
    labelled = pdc.Gauge("labelled", "Help", ["path"], registry=registry, multiprocess_mode=mode)
    for update in (counter.inc, tied.inc, gauge.inc, labelled.labels("/").inc):
        update(3)
    pdc.clear()
    assert sorted(shown().values()) == [0.0, 0.0, 0.0]
    for update in (counter.inc, tied.inc, gauge.inc, labelled.labels("/").inc):
        update(2)
    assert sorted(shown().values()) == [2.0, 2.0, 2.0, 2.0]


def test_one_process_uses_both_storages(
    registry: CollectorRegistry, tmp_path: Path, redis_server: RedisServer, run_script: Run
) -> None:
    """`pdc.redis.*` and `pdc.sqlite.*` keep to their storage, whichever `setup` chose last; `clear` is for the last."""
    redis, sqlite = {"redis": redis_server.url}, {"sqlite": str(tmp_path / "metrics.db")}
    metrics = [
        module.Counter(f"m{number}", "Help", registry=registry) for number, module in enumerate((pdc.redis, pdc.sqlite, pdc))
    ]
    pdc.setup(redis=redis["redis"])
    pdc.setup(sqlite=sqlite["sqlite"])
    for metric in metrics:
        metric.inc(2)
    show = "setup()\nprint([line for line in pdc.generate_latest().decode().splitlines() if '_total 2.0' in line])"
    assert run_script(show, storage=redis).stdout == "['m0_total 2.0']\n"
    assert run_script(show, storage=sqlite).stdout == "['m1_total 2.0', 'm2_total 2.0']\n"
    assert pdc.get_redis_conn().connection_pool.connection_kwargs["port"] == redis_server.port
    pdc.clear()
    assert [registry.get_sample_value(f"m{number}_total") for number in range(3)] == [2.0, 0.0, 0.0]


@pytest.mark.parametrize("interval", [0, 3600])
def test_setup_again_moves_to_another_storage(
    interval: float, storage: dict[str, Any], registry: CollectorRegistry, tmp_path: Path
) -> None:
    """Pending updates go to the storage before; metrics are declared in the new one, and count there from zero."""
    pdc.setup(**storage, flush_interval=interval)
    counter, labelled = make("Counter", registry=registry), pdc.Gauge("g", "Help", ["path"], registry=registry)
    counter.inc(3)
    labelled.labels("/").inc(3)
    pdc.setup(sqlite=tmp_path / "other.db", flush_interval=interval)
    assert shown() == {"m_total": 0.0, 'g{path="/"}': 0.0}
    counter.inc(2)
    assert shown("m") == {"m_total": 2.0}
    pdc.setup(**storage, flush_interval=interval)
    assert shown() == {"m_total": 3.0, 'g{path="/"}': 3.0}
    counter.inc()
    assert shown("m") == {"m_total": 4.0}
