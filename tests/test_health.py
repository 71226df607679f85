"""pdc's own metrics at every endpoint, and a scrape of a storage that was down."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import pdc
from pdc import config
from pdc.delivery import backoff, flusher
from pdc.delivery.health import NAMES
from pdc.exposition import Scrape

OF_PDC = {
    "pdc_batches_retried_total": 0.0,
    "pdc_families_hidden": 0.0,
    "pdc_flush_duration_seconds_count": 0.0,
    "pdc_flush_duration_seconds_sum": 0.0,
    "pdc_log_messages_lost_total": 0.0,
    "pdc_series_pending": 0.0,
    "pdc_series_refused_total": 0.0,
    "pdc_storage_up": 1.0,
}
"""A scrape of an unused process."""
LAST_FLUSH = "pdc_last_flush_timestamp_seconds"


@pytest.fixture(autouse=True)
def _nothing_before() -> None:
    """Begin without a storage: pending updates go to the next one, retries included."""
    pdc.shutdown()


def told(page: str = "") -> dict[str, float]:
    """The metrics of pdc itself in a page, or a scrape, without the buckets and times of creation."""
    families = list(text_string_to_metric_families(page or Scrape().answer().body.decode()))
    assert [family.name for family in families] == sorted(family.name for family in families)
    return {
        sample.name: sample.value
        for family in families
        if family.name in NAMES
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def fail(_: object, __: object) -> Any:
    """Raise the error of a storage that is down."""
    raise pdc.StorageError("the storage is down")


@pytest.fixture
def broken(storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Set up a storage, with a buffer, whose writes fail on command; reads work."""
    pdc.setup(**storage, flush_interval=3600)
    kind = type(config.DEFAULT.required())
    works = kind.apply

    def break_or_mend(down: bool) -> None:
        monkeypatch.setattr(kind, "apply", fail if down else works)

    return break_or_mend


def test_a_process_that_only_reads_writes_nothing(storage: dict[str, Any], run_script: Callable[..., Any]) -> None:
    """A storage without writers stays empty, also where a process without metrics flushes; its scrape is a 503."""
    script = """
        from pdc.exposition import Scrape
        setup(flush_interval=60)
        pdc.flush()
        answer = Scrape().answer()
        print(int(answer.status), answer.body.decode(), pdc.generate_latest())
        if names := set(pdc.config.DEFAULT.read().metrics):
            raise SystemExit(f"there should be no metric, got {names}")
    """
    where = f"SQLite {storage['sqlite']}" if "sqlite" in storage else f"Redis {storage['redis'][8:-2]} with redis_prefix 'test'"
    answer = run_script(script, storage=storage).stdout
    assert answer.startswith(f"503 # nobody writes to {where}, or all of it has expired, and this process declares no metric: ")
    assert answer.endswith("b''\n")


def test_a_process_with_a_metric_is_shown_zeros(storage: dict[str, Any], registry: Any) -> None:
    """A process that declares a metric is answered with pdc's own metrics, at zero as long as nothing was counted."""
    pdc.setup(**storage)
    _ = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    assert told() == OF_PDC


def test_flushes_are_timed_for_every_process(storage: dict[str, Any], run_script: Callable[..., Any]) -> None:
    """A process shows the flushes of another one, but `generate_latest` does not."""
    script = """
        setup(flush_interval=60)
        hits = pdc.Counter("hits", "Hits.")
        for _ in range(3):
            hits.inc()
            pdc.flush()
    """
    before = time.time()
    run_script(script, storage=storage)
    pdc.setup(**storage)
    for processes in (1, 2):
        found = told()
        assert before < found.pop(LAST_FLUSH) < time.time()
        assert 0 < found.pop("pdc_flush_duration_seconds_sum") < 10
        assert found.pop("pdc_flush_duration_seconds_count") >= 2 * processes
        assert found.items() <= OF_PDC.items()
        run_script(script, storage=storage)
    assert b"pdc_" not in pdc.generate_latest()


def test_an_idle_process_stays_idle(storage: dict[str, Any], registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that was sent is no reason for another one."""
    sent: list[object] = []
    pdc.setup(**storage, flush_interval=0.01)
    kind = type(config.DEFAULT.required())
    works = kind.apply

    def apply(self: Any, batch: Any) -> Any:
        sent.append(batch)
        return works(self, batch)

    monkeypatch.setattr(kind, "apply", apply)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    wait_until(lambda: sent)
    pdc.flush()
    before = len(sent)
    pdc.flush()
    time.sleep(0.1)
    assert len(sent) == before


def test_batches_are_timed_now_and_then(storage: dict[str, Any], registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durations of batches go with the first batch of a process, then every 5 s, and with every scrape."""
    pdc.setup(**storage, flush_interval=0.01)
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    batches: list[set[str]] = []
    kind = type(config.DEFAULT.required())
    works = kind.apply

    def apply(self: Any, batch: Any) -> Any:
        batches.append({update.name for update in batch.updates})
        return works(self, batch)

    monkeypatch.setattr(kind, "apply", apply)

    def ten_more() -> bool:
        hits.inc()
        return len(batches) >= 10

    wait_until(ten_more)
    assert sum("pdc_flush_duration_seconds" in names for names in batches) <= 2

    def all_told() -> bool:
        hits.inc()
        return told()["pdc_flush_duration_seconds_count"] >= 10

    wait_until(all_told, seconds=flusher.BEAT_SECONDS / 2)


def test_an_outage_is_reported(broken: Callable[[bool], None], registry: Any) -> None:
    """During an outage the 503 reports the waiting series; afterwards retries are counted, and the batch took that long."""
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
    hits.labels("/0").inc()
    pdc.flush()
    broken(True)
    for number in range(5):
        hits.labels(f"/{number}").inc()
    began = time.monotonic()
    for _ in range(4):
        with pytest.raises(pdc.StorageError):
            pdc.flush()
    answer = Scrape().answer()
    assert answer.status == 503
    assert re.search(rb"the storage is down\n# [5-7] series of this process wait in memory\n", answer.body)
    broken(False)
    pdc.flush()
    lasted = time.monotonic() - began
    hits.labels("/0").inc()
    found = told()
    assert found["pdc_batches_retried_total"] in (4.0, 5.0)  # the scrape tries once a second at most
    assert 0 < found["pdc_flush_duration_seconds_sum"] < lasted + 10
    assert (found["pdc_storage_up"], found["pdc_series_pending"]) == (1.0, 0.0)


def test_messages_that_could_not_be_logged_are_counted(broken: Callable[[bool], None], registry: Any) -> None:
    """A filter of the log that raises breaks neither updates, flushes nor scrapes, which count the lost messages."""

    def refuse(_: logging.LogRecord) -> bool:
        raise LookupError("there is no request")

    logger = logging.getLogger("pdc")
    logger.addFilter(refuse)
    try:
        broken(True)
        pdc.Counter("hits", "Hits.", registry=registry).inc()
        with pytest.raises(pdc.StorageError):
            pdc.flush()
        assert Scrape().answer().status == 503
        broken(False)
        wait_until(lambda: Scrape().answer().status == 200)
        assert told()["pdc_log_messages_lost_total"] >= 2.0  # the messages about the outage and about its end
    finally:
        logger.removeFilter(refuse)


def test_a_second_storage_that_is_down_is_reported(tmp_path: Path, redis_server: Any, registry: Any) -> None:
    """A page of one storage reports that another one of the process cannot be written, and how many series wait for it."""
    pdc.setup(sqlite=str(tmp_path / "missing" / "metrics.db"))
    pdc.sqlite.Counter("hits", "Hits.", registry=registry).inc()
    pdc.setup(redis=redis_server.url)
    _ = pdc.redis.Counter("sales", "Sales.", registry=registry)
    found = told()
    assert found["pdc_storage_up"] == 0.0
    assert found["pdc_series_pending"] >= 1.0
    (tmp_path / "missing").mkdir()
    pdc.flush()
    assert told().items() >= {"pdc_storage_up": 1.0, "pdc_series_pending": 0.0}.items()


def test_the_first_scrape_after_a_long_outage_is_right(
    broken: Callable[[bool], None], registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scrapes try a storage that is down now and then, but not every time, however long the buffer would wait."""
    monkeypatch.setattr(backoff, "SCRAPE_RETRY_SECONDS", 0.2)
    broken(True)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    for _ in range(10):
        with pytest.raises(pdc.StorageError):
            pdc.flush()
    tries = told_retries()
    assert {Scrape().answer().status for _ in range(100)} == {503}
    assert told_retries() - tries <= 5
    broken(False)
    wait_until(lambda: Scrape().answer().status == 200, 2.0)


def told_retries() -> float:
    """The number of batches that this process has sent again."""
    (counter,) = config.DEFAULT.health._counters.values()
    return counter.memory[counter.offset]


def test_a_scrape_counts_the_metrics_that_it_omits(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Metrics that share names with others are counted, from any process, until they are renamed or gone."""
    pdc.setup(**storage)
    pdc.Counter("jobs", "Jobs.", registry=registry).inc()
    for name in ("jobs_total", "jobs_created", "pdc_series_refused_total", "other"):
        pdc.Gauge(name, "Jobs.", registry=None).set(1)
    assert told()["pdc_families_hidden"] == 3.0
    pdc.clear()
    assert told()["pdc_families_hidden"] == 0.0
